"""Requests that arrive together go on together, and nobody waits for long."""

from __future__ import annotations

import asyncio

import pytest

from router.api.company import FROM_IN_FLIGHT, MOST, Company


async def arrive(company: Company, went_on: list[int], number: int) -> None:
    await company.join()
    went_on.append(number)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_with_few_in_flight_nobody_waits() -> None:
    step = Company(lambda: FROM_IN_FLIGHT - 1).join()
    with pytest.raises(StopIteration):
        step.send(None)


async def test_those_who_come_in_successive_turns_go_on_in_one() -> None:
    company, went_on = Company(lambda: 16), list[int]()
    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(arrive(company, went_on, number)))
        await turns(1)
        assert went_on == []
    await turns(4)
    assert went_on == [0, 1, 2]
    await asyncio.gather(*tasks)


async def test_a_full_group_does_not_wait_for_more_and_all_go_on_in_order() -> None:
    company, went_on = Company(lambda: 64), list[int]()
    tasks = [asyncio.create_task(arrive(company, went_on, number)) for number in range(MOST)]
    await turns(3)
    late = [asyncio.create_task(arrive(company, went_on, MOST + number)) for number in range(2)]
    await asyncio.gather(*tasks, *late)
    assert went_on == list(range(MOST + 2))


async def test_who_is_cancelled_while_waiting_holds_nobody_up() -> None:
    company, went_on = Company(lambda: 16), list[int]()
    tasks = [asyncio.create_task(arrive(company, went_on, number)) for number in range(3)]
    await turns(1)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert went_on == [0, 2]
    again = asyncio.create_task(arrive(company, went_on, 3))
    await again
    assert went_on == [0, 2, 3]
