"""The money of one request: reserved before the call, settled exactly once after it, on every exit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from msgspec.structs import replace

from router.core.attempts import Attempt, AttemptOpened, AttemptRecord, AttemptResult, Charge, Hold, WorkDone
from router.core.charges import api_charge, local_charge
from router.core.decision import Candidate, Decision
from router.core.limits import Allowance
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Tier
from router.errors import (
    OverBudget,
    RouterError,
    UpstreamBroken,
    UpstreamContextTooLong,
    UpstreamCredentials,
    UpstreamError,
    UpstreamNotServed,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from router.ports import Deps, LocalTicket
from router.records import Case, record_of

# Most specific first; what is not listed is UNAVAILABLE.
_OUTCOME_OF: tuple[tuple[type[UpstreamError], Outcome], ...] = (
    (UpstreamTimeout, Outcome.TIMEOUT),
    (UpstreamRateLimited, Outcome.RATE_LIMITED),
    (UpstreamContextTooLong, Outcome.CONTEXT_TOO_LONG),
    (UpstreamRefused, Outcome.REFUSED),
    (UpstreamCredentials, Outcome.CREDENTIALS),
    (UpstreamNotServed, Outcome.NOT_SERVED),
    (UpstreamBroken, Outcome.BROKEN),
)
# After these the upstream may have worked for us although it told no usage.
_MAY_HAVE_WORKED = frozenset(
    {Outcome.OK, Outcome.TIMEOUT, Outcome.BROKEN, Outcome.CLIENT_GONE, Outcome.SHUTDOWN, Outcome.INTERNAL}
)
_HOLD_GRACE_S = 60.0
# Windows are configured and tokenizers differ, so the bound on what a host may report is a generous one.
_BELIEVED_WINDOWS = 4
_WIDE_WINDOW_TOKENS = 1_000_000


def outcome_of_leaving(deps: Deps) -> Outcome:
    """The label of a request that nobody waits for any more: its caller has left, or we have cut it off."""
    return Outcome.SHUTDOWN if deps.cutting_off() else Outcome.CLIENT_GONE


def outcome_of_exit(error: BaseException, deps: Deps) -> Outcome:
    """The label of a request that ended with `error` before it had an answer."""
    if isinstance(error, UpstreamError):
        return outcome_of(error)
    if isinstance(error, RouterError):
        return Outcome.UNAVAILABLE
    return Outcome.INTERNAL if isinstance(error, Exception) else outcome_of_leaving(deps)


def outcome_of(error: UpstreamError) -> Outcome:
    """The label of a provider's error."""
    return next((outcome for kind, outcome in _OUTCOME_OF if isinstance(error, kind)), Outcome.UNAVAILABLE)


@dataclass(slots=True)
class _Open:
    """The attempt that is in somebody's hands right now."""

    attempt: Attempt
    started_at_s: float
    started_at_utc: datetime
    ticket: LocalTicket | None
    first_token_at_s: float | None = None
    output_tokens: int = 0


@dataclass(slots=True, eq=False)
class Settlement:
    """Books one request. `open` first, then `begin`/`close` per attempt, `finish` at the end, however it ends.

    `allowance`, of a key that has limits, is told what was used.
    """

    case: Case
    deps: Deps
    allowance: Allowance | None = None
    records: list[AttemptRecord] = field(default_factory=list)
    upstream_s: float = 0.0
    _held_nanousd: int = 0
    _hold_open: bool = False
    _current: _Open | None = None
    _ticket: LocalTicket | None = None
    _claimed: Candidate | None = None
    _finished: bool = False

    @property
    def cost_nanousd(self) -> int:
        """What the request has cost so far: the sum over its attempts, cash and standard cost alike."""
        return sum(record.charge.amount_nanousd for record in self.records)

    @property
    def cash_nanousd(self) -> int:
        """The part of it that leaves the house."""
        return sum(r.charge.amount_nanousd for r in self.records if r.tier is not Tier.LOCAL)

    @property
    def used_tokens(self) -> int:
        """Input and output tokens of all attempts."""
        usages = (record.usage for record in self.records)
        return sum(usage.input_tokens + usage.output_tokens for usage in usages if usage is not None)

    @property
    def answering(self) -> tuple[Candidate, int]:
        """(candidate, attempt number) of the attempt under way, else of the last one."""
        if self._current is not None:
            return self._current.attempt.candidate, self._current.attempt.number
        last = self.records[-1]
        by_name = {c.name: c for c in self.case.decision.ranked}
        return by_name[last.candidate], last.number

    def claim(self) -> None:
        """Take room in the budgets and in the engine, and the probe of a half-open circuit, at once.

        Nothing may come between the decision and this: whoever decides next must see it. Raises OverBudget when other
        requests took the room since the snapshot.
        """
        decision = self.case.decision
        if decision.reserve_nanousd and not self.deps.budgets.try_reserve(decision.reserve_nanousd):
            raise OverBudget("The budget of this window is exhausted; see policy.budget_usd_per_day and _per_month.")
        self._held_nanousd = decision.reserve_nanousd
        self._enter(decision.ranked[0])

    def _enter(self, candidate: Candidate) -> None:
        self._ticket = self.deps.state.enter_engine(candidate, self.case.facts)
        self.deps.state.probing(candidate)
        self._claimed = candidate

    async def open(self) -> None:
        """Make the hold and its first attempt durable. Raises `Unavailable` when nothing durable is left."""
        facts, decision = self.case.facts, self.case.decision
        now_utc = self.deps.clock.now_utc()
        self._hold_open = True
        await self.deps.ledger.reserve(
            Hold(
                request_id=facts.request_id,
                tenant=facts.tenant,
                reserve_nanousd=decision.reserve_nanousd,
                reserved_at_utc=now_utc,
                expires_at_utc=now_utc + timedelta(seconds=facts.deadline_s + _HOLD_GRACE_S),
                first=self._opened(decision.ranked[0], 1, now_utc),
            )
        )

    def _opened(self, candidate: Candidate, number: int, now_utc: datetime) -> AttemptOpened:
        facts = self.case.facts
        return AttemptOpened(
            request_id=facts.request_id,
            number=number,
            tenant=facts.tenant,
            candidate=candidate.name,
            tier=candidate.tier,
            provider=candidate.provider,
            model=candidate.wire_model,
            opened_at_utc=now_utc,
            estimate_input_tokens=self._input_tokens(candidate),
            reserve_nanousd=self.case.decision.alternative(candidate.name).reserve_nanousd,
        )

    async def begin(self, attempt: Attempt) -> bool:
        """Journal the attempt. False when the budget has no room for it: then it must not be made."""
        candidate = attempt.candidate
        now_utc = self.deps.clock.now_utc()
        if attempt.number > 1:
            need = self.cash_nanousd + self.case.decision.alternative(candidate.name).reserve_nanousd
            if need > self._held_nanousd:
                if not self.deps.budgets.try_reserve(need - self._held_nanousd):
                    return False
                self._held_nanousd = need
            self._enter(candidate)
            await self.deps.ledger.open_attempt(self._opened(candidate, attempt.number, now_utc))
        self._current = _Open(attempt, self.deps.clock.now_s(), now_utc, self._ticket)
        self._ticket = self._claimed = None
        if candidate.tier is Tier.LOCAL:
            self.deps.in_progress.add(self)
        return True

    def first_token(self, tokens: int = 1) -> None:
        """The upstream has produced its first `tokens`."""
        if self._current is not None and self._current.first_token_at_s is None:
            self._current.first_token_at_s = self.deps.clock.now_s()
            self._current.output_tokens = tokens
            if self._current.ticket is not None:
                self._current.ticket.first_token()

    def tokens(self, count: int) -> None:
        """More tokens have come."""
        if self._current is not None:
            self._current.output_tokens += count
            if self._current.ticket is not None:
                self._current.ticket.token(count)

    def work_done(self) -> WorkDone | None:
        """See `ports.InProgress`."""
        current = self._current
        if current is None or current.first_token_at_s is None:
            return None
        candidate = current.attempt.candidate
        charge = self._charge(candidate, self._estimated_usage(candidate, current.output_tokens))
        if charge.asset is None or charge.work_gpu_ns is None:
            return None
        return WorkDone(
            request_id=self.case.facts.request_id,
            number=current.attempt.number,
            tenant=self.case.facts.tenant,
            model=candidate.wire_model,
            asset=charge.asset,
            started_at_utc=current.started_at_utc,
            work_gpu_ns=charge.work_gpu_ns,
            amount_nanousd=charge.amount_nanousd,
            price_version=charge.price_version,
        )

    def close(
        self,
        outcome: Outcome,
        *,
        usage: TokenUsage | None,
        output_tokens_seen: int = 0,
        first_token_sent: bool = False,
        error: UpstreamError | None = None,
    ) -> AttemptResult:
        """End the current attempt: charge it, tell health and engine, and return what the plan wants to know."""
        current = self._current
        now_s = self.deps.clock.now_s()
        if current is None:
            return AttemptResult(outcome, now_s)
        self._current = None
        self.deps.in_progress.discard(self)
        if current.ticket is not None:
            current.ticket.end(ok=outcome is Outcome.OK)
        candidate = current.attempt.candidate
        if usage is not None and not self._believable(candidate, usage):
            told = usage.output_tokens if usage.output_tokens <= self._most_tokens(candidate) else 0
            estimate = self._estimated_usage(candidate, output_tokens_seen or told)
            usage = replace(estimate, flags=(*estimate.flags, Flag.USAGE_INCONSISTENT))
        if usage is not None and outcome is not Outcome.OK and usage.output_tokens < output_tokens_seen:
            # told at the beginning or on the way, and more has come since
            flags = (*usage.flags, Flag.USAGE_ESTIMATED)
            usage = replace(usage, output_tokens=output_tokens_seen, estimated=True, flags=flags)
        if usage is None and outcome in _MAY_HAVE_WORKED and not self._queued(current):
            usage = self._estimated_usage(candidate, output_tokens_seen)
        charge = self._charge(candidate, usage)
        self.upstream_s += now_s - current.started_at_s
        first_token_s = None
        if current.first_token_at_s is not None:
            first_token_s = current.first_token_at_s - current.started_at_s
        self.records.append(
            AttemptRecord(
                number=current.attempt.number,
                candidate=candidate.name,
                tier=candidate.tier,
                provider=candidate.provider,
                model=candidate.wire_model,
                outcome=outcome,
                usage=usage,
                charge=charge,
                started_at_utc=current.started_at_utc,
                duration_s=now_s - current.started_at_s,
                first_token_s=first_token_s,
                detail=error.code if error is not None else None,
            )
        )
        result = AttemptResult(
            outcome=outcome,
            finished_at_s=now_s,
            usage=usage,
            first_token_sent=first_token_sent,
            retry_after_s=error.retry_after_s if error is not None else None,
            cost_nanousd=charge.amount_nanousd,
        )
        self.deps.state.note(candidate, result)
        if outcome is Outcome.OK and usage is not None and not usage.estimated:
            self._learn(candidate, usage)
        return result

    def _queued(self, current: _Open) -> bool:
        """Whether nothing shows that our engine had begun: a stream that ended in its queue has used no GPU time."""
        local = current.attempt.candidate.tier is Tier.LOCAL
        return local and self.case.chat.stream and current.first_token_at_s is None

    def _learn(self, candidate: Candidate, usage: TokenUsage) -> None:
        facts = self.case.facts
        self.deps.lengths.observe(facts.request_class, usage.output_tokens // max(1, facts.n))
        if facts.needs_images:  # what an image counts is a guess: it says nothing about how text is counted
            return
        self.deps.state.note_input_tokens(candidate, counted=facts.estimate.input_tokens, reported=usage.input_tokens)

    def _believable(self, candidate: Candidate, usage: TokenUsage) -> bool:
        """Whether a model of this size can have read and written so much; one absurd report must not empty a budget."""
        most = self._most_tokens(candidate)
        return usage.input_tokens <= most and usage.output_tokens <= most * self.case.facts.n

    def _most_tokens(self, candidate: Candidate) -> int:
        return _BELIEVED_WINDOWS * max(candidate.context_window_tokens, _WIDE_WINDOW_TOKENS)

    def _input_tokens(self, candidate: Candidate) -> int:
        ratio = self.case.snapshot.input_token_ratio.get(candidate.name, 1.0)
        return max(1, round(self.case.facts.estimate.input_tokens * ratio))

    def _estimated_usage(self, candidate: Candidate, output_tokens_seen: int) -> TokenUsage:
        return TokenUsage(
            input_tokens=self._input_tokens(candidate),
            output_tokens=output_tokens_seen,
            estimated=True,
            flags=(Flag.USAGE_ESTIMATED,),
        )

    def _charge(self, candidate: Candidate, usage: TokenUsage | None) -> Charge:
        snapshot = self.case.snapshot
        if usage is None:
            return Charge(0, "none")
        if candidate.tier is Tier.LOCAL:
            asset = snapshot.assets[candidate.name]
            return local_charge(asset, asset.coefficients or snapshot.engines[candidate.name].coefficients, usage)
        return api_charge(snapshot.prices[candidate.name], usage)

    def abandon(self, outcome: Outcome, output_tokens_seen: int = 0, *, usage: TokenUsage | None = None) -> None:
        """End whatever is still open (the caller has gone, or we failed) and book it; `usage`: what was told so far."""
        if self._ticket is not None:
            self._ticket.end(ok=False)
            self._ticket = None
        if self._claimed is not None:  # the attempt never began: if it was to be a probe, another may be made
            self.deps.state.note(self._claimed, AttemptResult(Outcome.CLIENT_GONE, self.deps.clock.now_s()))
            self._claimed = None
        if self._current is not None:
            self.close(outcome, usage=usage, output_tokens_seen=output_tokens_seen)
        self.finish(outcome)

    def finish(self, outcome: Outcome) -> None:
        """Give the reservation back, book the request. The second call does nothing."""
        if self._finished:
            return
        self._finished = True
        if self._ticket is not None:
            self._ticket.end(ok=False)
        self.deps.budgets.settle(reserved_nanousd=self._held_nanousd, spent_nanousd=self.cash_nanousd)
        if self.allowance is not None:
            self.allowance.settle(self.used_tokens)
        record = record_of(
            self.case,
            self.records,
            outcome,
            duration_s=self.deps.clock.now_s() - self.case.facts.received_at_s,
            keep_text=self.deps.store_prompts,
        )
        self.deps.ledger.settle(record, hold_open=self._hold_open)
        overhead_s = max(0.0, record.duration_s - self.upstream_s)
        self.deps.telemetry.request_done(record, overhead_s=overhead_s)

    def overhead_s(self) -> float:
        """Time spent so far that was not spent waiting for an upstream."""
        return max(0.0, self.deps.clock.now_s() - self.case.facts.received_at_s - self.upstream_s)


def expected_cost_nanousd(decision: Decision, candidate: Candidate, spent_nanousd: int) -> int:
    """What the answer will probably cost in all, for the headers of a stream."""
    expected: Mapping[str, float | None] = {a.name: a.standard_cost_usd for a in decision.alternatives}
    return spent_nanousd + round((expected.get(candidate.name) or 0.0) * 1e9)
