"""Two things broken at once: no caller sees an error that one of them alone would not have caused."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine_house import HOME, House, house, page, watcher
from tests.gateway import until
from tests.upstream import Behaviour, cut, stall_after_headers, status

LOG_BYTES_A_REQUEST = 400
RSS_GROWTH_BYTES = 40_000_000


@contextmanager
def locked_database(folder: Path) -> Iterator[None]:
    """Somebody else holds the write lock of the books."""
    with closing(sqlite3.connect(folder / "data" / "router.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def all_booked(h: House, answers: int) -> Any:
    """The books once they are whole again: every answer a request, nothing left open."""
    ledger = h.front.gateway.ledger
    await until(lambda: ledger.state().healthy and ledger.state().spooled_events == 0)
    totals = (await h.front.costs()).totals
    assert (totals.requests, totals.open_reservations) == (answers, 0)
    assert ledger.state().dropped_events == 0
    return totals


async def test_a_full_engine_and_a_slow_database_cost_no_answer_and_little_log_and_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with house(tmp_path) as h:
        h.engine.pages["/metrics"] = page(8, 500, 0.99)
        await until(lambda: h.front.gateway.state.engines["house-model"].inflight.others.n > 100)
        await asyncio.gather(*(h.ask() for _ in range(20)))  # everything has been used once
        caplog.clear()
        before, took_s = resident_bytes(), []
        with locked_database(tmp_path):
            for _ in range(10):
                began_s = time.monotonic()
                answers = await asyncio.gather(*(h.ask() for _ in range(20)))
                took_s.append(time.monotonic() - began_s)
                assert {code for code, _, _ in answers} == {200}
                assert all(headers["x-router-reason"].startswith("SPILL_") for _, headers, _ in answers)
        assert min(took_s) < 5.0  # the lock is held all the time: nobody waits for it
        assert sum(len(record.getMessage()) for record in caplog.records) < 200 * LOG_BYTES_A_REQUEST
        assert resident_bytes() - before < RSS_GROWTH_BYTES
        await all_booked(h, 220)


async def test_a_hung_engine_and_a_slow_database_leave_nothing_open(tmp_path: Path) -> None:
    async with house(tmp_path, timeouts={"first_byte_s": 30, "idle_s": 30, "total_s": 60}) as h:
        h.engine.default = stall_after_headers()
        waiting = asyncio.create_task(h.ask(headers=HOME, stream=True))
        await until(lambda: watcher(h.front.gateway).state()[0] == "degraded")
        with locked_database(tmp_path):
            answers = await asyncio.gather(*(h.ask() for _ in range(20)))
            assert {(code, headers["x-router-tier"]) for code, headers, _ in answers} == {(200, "cheap")}
            refused = await asyncio.gather(*(h.ask(headers=HOME) for _ in range(5)))
            assert {(code, body["error"]["code"]) for code, _, body in refused} == {(503, "no_route")}
            waiting.cancel()
            await until(lambda: h.front.gateway.state.engines["house-model"].inflight.n == 0)
        assert h.big.chats == []
        await all_booked(h, 21)  # who was refused cost nothing


TROUBLES = {"503": status(503), "401": status(401), "reset": cut(0), "silence": Behaviour(delay_s=900.0)}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_an_engine_that_is_gone_and_a_provider_that_fails_leave_the_third_to_answer(
    tmp_path: Path, trouble: Behaviour
) -> None:
    timeouts = {"first_byte_s": 1.0} if trouble.delay_s else None
    async with house(tmp_path, timeouts=timeouts) as h:
        assert await h.tier() == "local"
        await h.engine.stop()
        h.cheap.default = trouble
        answers = [await h.ask(stream=number % 2 == 0) for number in range(12)]
        assert {(code, headers["x-router-tier"]) for code, headers, _ in answers} == {(200, "premium")}
        # what fails again and again is left alone: no caller pays for it with a wait
        assert len(h.cheap.chats) <= 6
        assert answers[-1][1]["x-router-attempts"] == "1"
        totals = await all_booked(h, 13)
        assert totals.attempts >= 13 + len(h.cheap.chats)
        assert h.front.gateway.state.engines["house-model"].inflight.n == 0


async def test_with_everything_away_the_refusal_is_quick_and_honest_and_each_comes_back_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.engine.stop()
        h.cheap.default = h.big.default = status(503)
        for _ in range(4):
            code, headers, body = await h.ask()
            assert (code, bool(body["error"]["code"])) == (502, True) or code == 503, body
            assert headers["x-request-id"]
        assert (await h.readiness())[0] in (200, 503)
        await h.engine.start()
        await h.is_answered_by("local")
