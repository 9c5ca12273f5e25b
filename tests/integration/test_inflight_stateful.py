"""Whatever happens to requests, to their callers and to the engine: afterwards nothing is in flight, held or open.

A whole gateway is driven through random histories: answers, errors of every kind, callers who hang up, an engine that
dies and comes back, pages of metrics that lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine_house import HOME, House, house, page
from tests.patience import PATIENCE_S, until
from tests.upstream import (
    Behaviour,
    aborted,
    cut,
    error_frame,
    malformed,
    no_usage,
    ok,
    silence,
    stall,
    stall_after_headers,
    status,
)

T = TypeVar("T")
BEHAVIOURS: dict[str, Behaviour] = {
    "good": ok(tokens=5),
    "slow": ok(tokens=20, gap_s=0.01),
    "no usage": no_usage(),
    "silent": stall(),
    "silent after the headers": stall_after_headers(),
    "silent in the middle": silence(3),
    "reset before the first token": cut(0),
    "reset in the middle": cut(4),
    "ended early": cut(4, "clean_end"),
    "error frame": error_frame(3),
    "garbage": malformed(3),
    "aborted": aborted(),
    "busy": status(503),
    "rate limit": status(429, headers=[("retry-after", "0")]),
    "refused": status(400),
    "wrong key": status(401),
}
PAGES = {"idle": page(), "full": page(8, 500, 0.99), "html": (200, b"<html></html>", "text/html")}


class AnyHistory(RuleBasedStateMachine):
    """Requests in flight are tasks; time is real, in small steps."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.open: list[asyncio.Task[object]] = []
        self.running = True

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, and with it everything that is under way."""
        return self.loop.run_until_complete(work)

    @initialize()
    def open_the_house(self) -> None:
        self.context = house(Path(self.folder.name), timeouts={"first_byte_s": 0.3, "idle_s": 0.3, "total_s": 2})
        self.house: House = self.do(self.context.__aenter__())
        self.room = self.house.front.gateway.state.engines["house-model"]

    @rule(
        behaviour=st.sampled_from(sorted(BEHAVIOURS)),
        stream=st.booleans(),
        at_home=st.booleans(),
        most=st.sampled_from([None, 1, 400]),
    )
    def ask(self, behaviour: str, stream: bool, at_home: bool, most: int | None) -> None:
        self.house.engine.script(BEHAVIOURS[behaviour])
        body: dict[str, Any] = {"stream": stream} | ({"max_tokens": most} if most is not None else {})

        async def call() -> object:
            with contextlib.suppress(aiohttp.ClientError):
                return await self.house.ask(headers=HOME if at_home else None, **body)
            return None

        self.open.append(self.loop.create_task(call()))
        self.do(asyncio.sleep(0.005))

    @rule(which=st.integers(0, 100))
    def hang_up(self, which: int) -> None:
        # No precondition: who still waits hangs on real time, and a history must be the same whenever it is played.
        still = [task for task in self.open if not task.done()]
        if still:
            still[which % len(still)].cancel()
            self.do(asyncio.sleep(0.002))

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.15]))
    def let_time_pass(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @rule(what=st.sampled_from(sorted(PAGES)))
    def the_engine_says(self, what: str) -> None:
        self.house.engine.pages["/metrics"] = PAGES[what]

    @precondition(lambda self: self.running)
    @rule()
    def the_engine_dies(self) -> None:
        self.running = False
        self.do(self.house.engine.stop())

    @precondition(lambda self: not self.running)
    @rule()
    def the_engine_comes_back(self) -> None:
        self.running = True
        self.do(self.house.engine.start())

    @invariant()
    def nothing_is_ever_less_than_nothing(self) -> None:
        if hasattr(self, "room"):
            state = self.room.inflight.state(self.house.front.gateway.clock.now_s())
            assert min(self.parts()) >= 0, state
            assert state.n <= sum(not task.done() for task in self.open) + 1  # the watcher's own probe is none of them

    def parts(self) -> tuple[float, ...]:
        """Every part of the count of what is in the engine."""
        state = self.room.inflight.state(self.house.front.gateway.clock.now_s())
        return (
            *(state.n, state.streaming, state.waiting_prompt_tokens, state.context_tokens),
            *(state.reserved_tokens, state.bucket_s, self.room.inflight.streamed_n),
        )

    def teardown(self) -> None:
        try:
            if hasattr(self, "house"):
                try:
                    self.do(self.all_is_put_back())
                finally:
                    self.do(self.context.__aexit__(None, None, None))
        finally:
            self.do(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.folder.cleanup()

    async def all_is_put_back(self) -> None:
        """Everybody gets their answer or leaves, and then all counts are zero and the books are whole."""
        await asyncio.wait_for(asyncio.gather(*self.open, return_exceptions=True), PATIENCE_S)
        gateway = self.house.front.gateway
        await until(lambda: not any(self.parts()) and gateway.in_flight.count == 0)
        ledger = gateway.ledger
        await until(lambda: ledger.state().healthy and ledger.state().spooled_events == 0)
        assert (await self.house.front.costs()).totals.open_reservations == 0
        assert {state.reserved_nanousd for state in gateway.budgets.states(gateway.clock.now_utc())} <= {0}
        assert gateway.deps.in_progress == set()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
