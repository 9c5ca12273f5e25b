"""Calls that nobody waits for: shadow runs and judges. Reserved, priced and booked like any other, as overhead.

They go through the same decision, settlement and delivery as a request, pinned to where they are to go, under a tenant
of their own; so everything that keeps a request away from a model keeps them away too. They are the first to go when
something is short: room in the engine, money in a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from classifier.datamodels import RequestFeatures, Score
from router.core.attempts import RoutingRecord
from router.core.budgets import BudgetBook
from router.core.chat import ChatRequest
from router.core.decision import Decision, PolicyConfig
from router.core.policy import decide
from router.core.request import RequestFacts, TokenUsage
from router.core.savings import OVERHEAD_PREFIX
from router.core.snapshot import Snapshot
from router.core.vocabulary import Flag, Outcome, Tier
from router.delivery import deliver
from router.errors import RouterError
from router.learning_loop.answers import Answer, of_body
from router.ports import Deps, PlainReply, Telemetry
from router.records import Case
from router.settlement import Settlement, outcome_of_exit

MAX_TIGHTNESS = 0.5
SPARE_BUDGET_RATIO = 0.1
_OURS = ("stream", "stream_options")


@dataclass(frozen=True, slots=True)
class SideAnswer:
    """What a side call has brought."""

    tier: Tier
    model: str
    answer: Answer
    usage: TokenUsage | None


class Uncounted:
    """A `Telemetry` for which no request was made: side calls are counted by those who make them."""

    def __init__(self, inner: Telemetry) -> None:
        self._inner = inner

    def request_done(self, record: RoutingRecord, *, overhead_s: float) -> None:
        """Nothing: it was nobody's request."""

    def warn(self, event: str, **labels: str) -> None:
        """An alert is an alert."""
        self._inner.warn(event, **labels)


@dataclass(slots=True)
class SideCalls:
    """Makes the calls of one `kind` (shadow, judge), booked under `tenant`, within `budget`.

    `count(kind, outcome)` is told of every call made and of every call not made, with the cause.
    """

    deps: Deps
    kind: str
    tenant: str
    budget: BudgetBook
    count: Callable[[str, str], None]

    def __post_init__(self) -> None:
        self.deps = replace(self.deps, telemetry=Uncounted(self.deps.telemetry), store_prompts=False, draw=None)

    async def call(
        self, chat: ChatRequest, facts: RequestFacts, features: RequestFeatures, score: Score, cfg: PolicyConfig
    ) -> SideAnswer | None:
        """The answer to `chat` from where `facts` pin it to; `None` where there was no room, or no answer.

        Raises nothing but CancelledError; whatever was used is booked.
        """
        now_s = self.deps.clock.now_s()
        facts = replace(
            facts, request_id=self.deps.new_id(), tenant=self.tenant, session=facts.request_id, received_at_s=now_s,
            stream=False, quality_floor_ratio=None, max_nanousd=None, exploration_draw=None,
        )  # fmt: skip
        fields = {name: value for name, value in chat.fields.items() if name not in _OURS}
        chat = replace(
            chat, requested_model=f"{OVERHEAD_PREFIX}{self.kind}", fields=fields, stream=False, include_usage=False
        )
        snapshot = self.deps.state.snapshot()
        cfg = replace(cfg, on_saturation="reject", quality_floor_ratio=None)
        decision = decide(facts, score, self.deps.candidates, snapshot, cfg)
        against = self._no_room(decision, snapshot)
        if against is None and not self.budget.try_reserve(decision.reserve_nanousd):
            against = "budget"
        if against is not None:
            self.count(self.kind, against)
            return None
        decision = replace(decision, ranked=decision.ranked[:1])
        now_utc = self.deps.clock.now_utc()
        case = Case(chat, facts, features, decision, snapshot, cfg, now_utc, self.deps.state.world())
        bill = Settlement(case, self.deps)
        try:
            return await self._deliver(bill)
        finally:
            self.budget.settle(reserved_nanousd=decision.reserve_nanousd, spent_nanousd=bill.cash_nanousd)

    def _no_room(self, decision: Decision, snapshot: Snapshot) -> str | None:
        if not decision.ranked:
            return "no_route"
        tightness = decision.alternative(decision.ranked[0].name).tightness
        if Flag.SLO_UNREACHABLE in decision.flags or (tightness is not None and tightness > MAX_TIGHTNESS):
            return "engine_busy"
        if any(b.left_nanousd < SPARE_BUDGET_RATIO * b.limit_nanousd for b in snapshot.budgets):
            return "budget"
        return None

    async def _deliver(self, bill: Settlement) -> SideAnswer | None:
        try:
            bill.claim()
            await bill.open()
            reply = await deliver(bill, self.deps)
        except BaseException as error:
            bill.abandon(outcome_of_exit(error, self.deps))
            self.count(self.kind, outcome_of_exit(error, self.deps).value)
            if isinstance(error, RouterError):
                return None
            raise
        bill.finish(Outcome.OK)
        self.count(self.kind, Outcome.OK.value)
        candidate, _ = bill.answering
        answer = of_body(reply.body) if isinstance(reply, PlainReply) else None
        if answer is None:
            return None
        return SideAnswer(candidate.tier, candidate.wire_model, answer, bill.records[-1].usage)
