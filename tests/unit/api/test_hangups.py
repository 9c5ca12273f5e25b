"""Who hangs up is noticed once the request is old enough; who does not costs nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.api.hangups import Hangup, Hangups


class Line:
    """A server's `receive` whose caller hangs up when told to."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()
        self.listening = asyncio.Event()
        self.asked = 0

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(0)
        self.listening.set()
        await self.hung_up.wait()
        return {"type": "http.disconnect"}


async def working(hangup: Hangup, until: asyncio.Event) -> str:
    hangup.watch()
    try:
        await until.wait()
    finally:
        hangup.stop()
    return "done"


async def test_work_is_cancelled_when_its_caller_hangs_up() -> None:
    line = Line()
    hangup = Hangup(line.receive, Hangups(0.001))
    work = asyncio.create_task(working(hangup, asyncio.Event()))
    await line.listening.wait()
    line.hung_up.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert hangup.hung_up


async def test_a_hang_up_after_the_work_is_done_means_nothing() -> None:
    line, finish = Line(), asyncio.Event()
    hangup = Hangup(line.receive, Hangups(0.001))
    work = asyncio.create_task(working(hangup, finish))
    await line.listening.wait()
    finish.set()
    assert await work == "done"
    line.hung_up.set()
    await asyncio.sleep(0)
    assert not hangup.hung_up


async def test_each_request_is_listened_to_when_it_is_old_enough_and_a_quick_one_never() -> None:
    hangups, lines, quick, done = Hangups(0.005), [Line() for _ in range(3)], Line(), asyncio.Event()
    done.set()
    assert await working(Hangup(quick.receive, hangups), done) == "done"
    finish = asyncio.Event()
    works = []
    for line in lines:
        works.append(asyncio.create_task(working(Hangup(line.receive, hangups), finish)))
        await asyncio.sleep(0.002)
    for line in lines:
        await line.listening.wait()
    finish.set()
    assert await asyncio.gather(*works) == ["done"] * 3
    assert quick.asked == 0
