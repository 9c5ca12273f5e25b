"""From an answer to the hour it is booked in: a running gateway keeps the books of its hardware."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from router.core.periods import Period
from router.stores.periods import PeriodStore
from router.stores.reports import Hours, hours
from tests.e2e.conftest import EASY, IMPATIENT, House
from tests.gateway import until
from tests.upstream import ok, stall_after_headers

NAME = "house-model"


async def posted(house: House) -> Hours:
    """The hours as they stand once everything settled is posted."""
    gateway = house.front.gateway
    await gateway.ledger.flush()
    await gateway.hours.turn()
    store = PeriodStore(gateway.settings.server.database_url)
    await asyncio.to_thread(store.advance, NAME, int(datetime.now(UTC).timestamp() * 1e6))
    store.close()
    return await asyncio.to_thread(hours, gateway.ledger.read_engine, datetime.now(UTC))


def absorbed(found: Hours) -> int:
    return sum(period.absorbed_nanousd for period in found.periods)


def account(found: Hours) -> Period:
    return found.periods[-1]


async def test_a_local_answer_is_absorbed_by_the_hour_in_which_it_was_given(house: House) -> None:
    await house.ask(EASY)
    found = await posted(house)
    report = await house.front.costs()
    assert absorbed(found) == report.totals.cost_nanousd > 0
    assert account(found).closed is False
    assert account(found).asset == NAME
    assert account(found).usd_per_hour == 2.50
    assert (found.groups[-1].tenant, found.groups[-1].requests) == ("default", 1)


async def test_what_a_running_stream_has_done_can_be_told_and_ends_with_it(house: House) -> None:
    house.local.default = ok("word " * 40, gap_s=0.01)
    running = house.front.gateway.deps.in_progress
    seen: list[int] = []
    async for _ in await house.client.chat.completions.create(model="auto", messages=EASY, stream=True):  # type: ignore[call-overload]
        seen += [work.amount_nanousd for one in running if (work := one.work_done()) is not None]
    await until(lambda: not running)
    assert seen[0] > 0
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]
    # before the end the prompt's tokens are our own count; what is booked is what the engine says
    found = await posted(house)
    assert absorbed(found) == (await house.front.costs()).totals.cost_nanousd


@pytest.mark.parametrize("house", [IMPATIENT], indirect=True)
async def test_a_stream_that_never_left_the_engines_queue_costs_nothing_there(house: House) -> None:
    house.local.default = stall_after_headers()
    async for _ in await house.client.chat.completions.create(model="auto", messages=EASY, stream=True):  # type: ignore[call-overload]
        pass
    found = await posted(house)
    report = await house.front.costs()
    local = [row for row in report.rows if row.tier == "local"]
    assert [(row.attempts, row.cost_nanousd) for row in local] == [(1, 0)]
    assert absorbed(found) == 0
    assert account(found).invoice_nanousd > 0
