"""A whole gateway without I/O and without an event loop: real decision, budgets and health over fakes."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from classifier.datamodels import Score
from classifier.heuristic import HeuristicScorer
from local_llm.datamodels import EngineLimits, ProcessState, SloTargets
from router.api.schemas import decode_chat
from router.core.attempts import AttemptOpened, Hold, RoutingRecord
from router.core.budgets import BudgetBook, Period
from router.core.decision import Candidate, PolicyConfig
from router.core.fallback import RetryConfig
from router.core.lengths import LengthTable
from router.core.limits import Allowance, KeyLimiter, LimitTerms
from router.core.snapshot import AssetRate, PriceRow
from router.core.vocabulary import CircuitState, Flag, Tier
from router.errors import (
    RouterError,
    Unavailable,
    UpstreamBroken,
    UpstreamContextTooLong,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from router.flow import PlainAnswer, StreamAnswer, handle_chat
from router.live_state import EngineRoom, LiveState
from router.ports import CallTimeouts, Deps, PlainReply, Provider, ProviderCall, ScoredBy, ScoringPolicy, StreamReply
from router.providers.scripted import Fail, ScriptedProvider, Step
from router.scorer_choice import ScorerChoice
from tests.fakes import (
    ALL,
    H100,
    HARD,
    LOCAL,
    PRICES,
    FakeClock,
    FixedScorer,
    MemoryLedger,
    SilentTelemetry,
    WordCounter,
)

CFG = PolicyConfig()

# How hosts fail.
REFUSED = UpstreamRefused("no", status=400, body=b'{"error": {"message": "no"}}')
DOWN, SLOW, CUT = UpstreamUnavailable("down"), UpstreamTimeout("slow"), UpstreamBroken("cut")
RATE, KEY, LONG = UpstreamRateLimited("busy"), UpstreamCredentials("bad key"), UpstreamContextTooLong("too long")
LONG_ANSWER = "one two three four five six"


def fails(*errors: UpstreamError) -> tuple[Step, ...]:
    return tuple(Fail(error, delay_s=0.01) for error in errors)


@types.coroutine
def pause() -> Generator[None, None, None]:
    """A point at which the rest of the world may go on."""
    yield


@dataclass
class Books(MemoryLedger):
    """A ledger that takes its time, notes the order of things, and may refuse further attempts."""

    journal: list[str] = field(default_factory=list)
    refuses_further: bool = False

    async def reserve(self, hold: Hold) -> None:
        await pause()
        await super().reserve(hold)
        self.journal.append("reserve")
        await pause()

    async def open_attempt(self, attempt: AttemptOpened) -> None:
        await pause()
        if self.refuses_further:
            raise Unavailable("no durable place for money", code="ledger_unavailable")
        await super().open_attempt(attempt)
        self.journal.append(f"open {attempt.number}")
        await pause()

    def settle(self, record: RoutingRecord, *, hold_open: bool) -> None:
        super().settle(record, hold_open=hold_open)
        self.journal.append("settle")


class StrictBudgets(BudgetBook):
    """Gives back no more than was reserved."""

    def settle(self, *, reserved_nanousd: int, spent_nanousd: int) -> None:
        assert reserved_nanousd <= self.reserved_nanousd
        super().settle(reserved_nanousd=reserved_nanousd, spent_nanousd=spent_nanousd)


@dataclass
class Host:
    """A scripted provider whose calls stand in the journal; `bug` is raised by each, `on_call` may look around."""

    name: str
    script: ScriptedProvider
    journal: list[str]
    bug: Exception | None = None
    on_call: Callable[[], object] = lambda: None
    calls: list[ProviderCall] = field(default_factory=list)

    async def complete(self, call: ProviderCall) -> PlainReply:
        self._note(call)
        await pause()
        return await self.script.complete(call)

    async def open_stream(self, call: ProviderCall) -> StreamReply:
        self._note(call)
        await pause()
        return await self.script.open_stream(call)

    def _note(self, call: ProviderCall) -> None:
        self.calls.append(call)
        self.journal.append(f"call {self.name}")
        self.on_call()
        if self.bug is not None:
            raise self.bug

    async def close(self) -> None:
        await self.script.close()


class World:
    """A whole gateway without I/O. `steps` is what each tier's host does, call after call; nothing more: it is down."""

    def __init__(
        self,
        steps: Mapping[Tier, Sequence[Step]],
        *,
        score: Score = HARD,
        day_budget_nanousd: int = 10**12,
        candidates: tuple[Candidate, ...] = ALL,
        price_row: Callable[[Candidate, datetime], PriceRow] = lambda candidate, _: PRICES[candidate.name],
        cfg: PolicyConfig = CFG,
    ) -> None:
        self.clock = FakeClock()
        self.on_block: Callable[[], object] = lambda: None
        self.books = Books()
        self.journal = self.books.journal
        self.budgets = StrictBudgets({Period.DAY: day_budget_nanousd}, now_utc=self.clock.now_utc)
        self.telemetry = SilentTelemetry()
        self.room = EngineRoom(
            coefficients=H100,
            limits=EngineLimits(max_num_seqs=256, kv_tokens=400_000, context_window_tokens=8192),
            slo=SloTargets(),
            process=lambda: (ProcessState.READY, None),
        )
        policies = dict.fromkeys(("", "cheap", "balanced", "quality"), cfg)
        prior = ScoringPolicy(HeuristicScorer(), policies, ScoredBy.PRIOR, (Flag.CLASSIFIER_UNAVAILABLE,))
        self.state = LiveState(
            clock=self.clock,
            candidates=candidates,
            price_row=price_row,
            budgets=self.budgets,
            engines={LOCAL.name: self.room},
            assets={LOCAL.name: AssetRate("gpu", Decimal("0.000817"), version="rented-2.50")},
            judged=ScorerChoice(current=ScoringPolicy(FixedScorer(score), policies), prior=prior),
        )
        self.hosts = {
            candidate.name: Host(
                candidate.tier.value,
                ScriptedProvider(tuple(steps.get(candidate.tier, ())), repeat=False, sleep=self.clock.sleep),
                self.journal,
            )
            for candidate in candidates
        }
        providers: Mapping[str, Provider] = dict(self.hosts)
        # on a clock that stands still, so that all that was ever counted is seen at the end
        self.limiter = KeyLimiter(LimitTerms(10**6, 10**6, 10**9, 10), now_s=FakeClock().now_s)
        ids = iter(range(10**6))
        self.deps = Deps(
            clock=self.clock,
            state=self.state,
            candidates=candidates,
            providers=providers,
            tokens=WordCounter(),
            lengths=LengthTable(),
            ledger=self.books,
            budgets=self.budgets,
            telemetry=self.telemetry,
            timeouts=CallTimeouts(connect_s=2, first_byte_s=20, idle_s=20, total_s=120),
            prior=prior,
            new_id=lambda: f"req_{next(ids)}",
            retry=RetryConfig(),
        )

    async def serve(self, *, stream: bool, model: str = "auto", **headers: str) -> PlainAnswer | StreamAnswer:
        """One request as the HTTP side serves it: a stream is sent on block by block and closed in any case."""
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Name a colour."}]}
        chat = decode_chat(
            json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()}
        )
        with Allowance(self.limiter) as allowance:
            answer = await handle_chat(chat, "acme", self.deps, allowance)
            if isinstance(answer, StreamAnswer):
                try:
                    async with aclosing(answer.blocks()) as blocks:
                        async for _ in blocks:
                            self.on_block()
                            await pause()
                finally:
                    await answer.close()
            assert self.limiter.running == 0, "the seat is not free before the last byte"
            return answer

    def ask(self, *, stream: bool = False, model: str = "auto", cancel_at: int | None = None) -> Any:
        """The answer, or the error a caller would see."""
        try:
            return drive(self.serve(stream=stream, model=model), cancel_at=cancel_at)
        except RouterError as error:
            return error

    @property
    def record(self) -> RoutingRecord:
        """The one record there is."""
        (record,) = self.books.settled
        return record

    def check(self, since: int = 0) -> None:
        """What holds after every request, however it ended. `since` so many were settled before the journal began."""
        journal = self.journal
        settled = [record.request_id for record in self.books.settled]
        assert len(settled) == len(set(settled)), "settled twice"
        assert self.books.open_holds == set(), "a hold was never settled"
        assert self.budgets.reserved_nanousd == 0, "a reservation was never given back"
        assert self.room.inflight.n == 0, "a ticket of the engine was never ended"
        assert self.limiter.running == 0, "a seat of the key was never given back"
        usages = [attempt.usage for record in self.books.settled for attempt in record.attempts]
        booked_tokens = sum(usage.input_tokens + usage.output_tokens for usage in usages if usage is not None)
        assert 10**9 - self.limiter.standings()[2].left == booked_tokens, "the key's tokens are not those in the books"
        calls = [entry for entry in journal if entry.startswith("call")]
        if calls:
            assert journal[0] == "reserve", "a call was made before its money was reserved"
            assert journal[-1] == "settle"
        fresh = [attempt for record in self.books.settled[since:] for attempt in record.attempts]
        # Every call is an attempt; an attempt without a call is one that was cancelled before it could be made.
        assert len(calls) <= len(fresh) <= len(calls) + 1
        for record in self.books.settled:
            assert record.cost_nanousd == sum(a.charge.amount_nanousd for a in record.attempts)
            assert [a.number for a in record.attempts] == list(range(1, len(record.attempts) + 1))
        attempts = [attempt for record in self.books.settled for attempt in record.attempts]
        assert len(attempts) <= len(self.books.holds) + len(self.books.opened), "an attempt that no journal knew of"
        cash = sum(a.charge.amount_nanousd for a in attempts if a.tier is not Tier.LOCAL)
        assert [state.spent_nanousd for state in self.budgets.states(self.clock.now_utc())] == [cash]
        assert len(self.telemetry.done) >= len(self.books.settled)
        for health in self.state.health.values():
            assert not (health.state is CircuitState.HALF_OPEN and health.probe_in_flight), "a probe never ended"


def drive(coroutine: Coroutine[Any, Any, Any], *, cancel_at: int | None = None) -> Any:
    """Step `coroutine` to its end; at its `cancel_at`-th wait it is cancelled instead of woken."""
    waits = 0
    while True:
        try:
            if waits == cancel_at:
                coroutine.throw(asyncio.CancelledError())
            else:
                coroutine.send(None)
        except StopIteration as end:
            return end.value
        waits += 1
