"""Carrying out the plan: calls made one after the other until one answers, and the relay of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from router.core.attempts import Attempt, AttemptResult
from router.core.decision import Decision
from router.core.fallback import attempts
from router.core.nouns import Noun
from router.core.request import TokenUsage
from router.core.vocabulary import Outcome, Reason
from router.errors import OverBudget, RouterError, UpstreamError
from router.ports import BrokenReply, CallTimeouts, Deps, PlainReply, ProviderCall, StreamReply
from router.settlement import Settlement, expected_cost_nanousd, outcome_of, outcome_of_leaving


class AnswerMeta(Noun, frozen=True):
    """What the caller is told about an answer, whatever its form."""

    request_id: str
    tier: str
    model: str
    reason: str
    cost_nanousd: int
    cost_observed: bool
    attempts: int
    overhead_s: float
    decision: Decision


class PlainAnswer(Noun, frozen=True):
    """A finished answer, settled."""

    meta: AnswerMeta
    body: bytes


@dataclass(slots=True)
class Primed:
    """A stream that has shown its first token: from here on it is the caller's."""

    stream: StreamReply
    blocks: list[bytes]
    ended: bool


class _Failure(Noun, frozen=True):
    """An attempt that gave no answer: what the plan is told, and what the caller would be."""

    result: AttemptResult
    error: RouterError


def answer_meta(bill: Settlement, *, cost_observed: bool) -> AnswerMeta:
    """The facts of an answer: of the attempt that answered, or is answering."""
    candidate, number = bill.answering
    decision = bill.case.decision
    reason = decision.reason if decision.chosen == candidate else Reason.FALLBACK_AFTER_ERROR
    cost = bill.cost_nanousd if cost_observed else expected_cost_nanousd(decision, candidate, bill.cost_nanousd)
    return AnswerMeta(
        request_id=bill.case.facts.request_id,
        tier=candidate.tier.value,
        model=candidate.wire_model,
        reason=reason.value if reason is not None else "",
        cost_nanousd=cost,
        cost_observed=cost_observed,
        attempts=number,
        overhead_s=bill.overhead_s(),
        decision=decision,
    )


async def deliver(bill: Settlement, deps: Deps) -> PlainReply | Primed:
    """Work through the plan of attempts; raises the last failure when none of them answers."""
    case = bill.case
    facts = case.facts
    caps = [cap for cap in (facts.max_nanousd, case.cfg.max_nanousd_per_request) if cap is not None]
    plan = attempts(
        case.decision,
        now_s=deps.clock.now_s(),
        deadline_at_s=facts.received_at_s + facts.deadline_s,
        cap_nanousd=min(caps) if caps else None,
        cfg=deps.retry,
    )
    attempt = next(plan)
    while True:
        reply = await _try(attempt, bill, deps)
        if not isinstance(reply, _Failure):
            return reply
        try:
            attempt = plan.send(reply.result)
        except StopIteration:
            reply.error.request_id = facts.request_id
            reply.error.attempts = attempt.number
            raise reply.error from reply.error.__cause__


async def _try(attempt: Attempt, bill: Settlement, deps: Deps) -> PlainReply | Primed | _Failure:
    if attempt.wait_s > 0.0:
        await deps.clock.sleep(attempt.wait_s)
    if not await bill.begin(attempt):
        refusal = OverBudget(
            "The budget has no room for another attempt; see policy.budget_usd_per_day and _per_month."
        )
        return _Failure(AttemptResult(Outcome.NO_ROUTE, deps.clock.now_s()), refusal)
    chat = bill.case.chat
    call = ProviderCall(
        request_id=bill.case.facts.request_id,
        candidate=attempt.candidate,
        fields=chat.fields,
        stream=chat.stream,
        include_usage=chat.include_usage,
        timeouts=_limits(attempt, deps, stream=chat.stream),
    )
    provider = deps.providers[attempt.candidate.name]
    stream: StreamReply | None = None
    try:
        if not chat.stream:
            plain = await provider.complete(call)
            seen = deps.tokens.count([plain.output_text], messages=0)[0] if plain.output_text else 0
            bill.close(Outcome.OK, usage=plain.usage, output_tokens_seen=seen)
            return plain
        stream = await provider.open_stream(call)
        primed = await _prime(stream, deps.max_precommit_bytes)
        bill.first_token(stream.output_events)
        return primed
    except UpstreamError as error:
        usage, seen = error.usage if isinstance(error, BrokenReply) else None, 0
        if stream is not None:
            usage, seen = stream.usage, stream.output_events
            await stream.close()
        return _Failure(bill.close(outcome_of(error), usage=usage, output_tokens_seen=seen, error=error), error)
    except BaseException:
        if stream is not None:
            await stream.close()
        raise


def _limits(attempt: Attempt, deps: Deps, *, stream: bool) -> CallTimeouts:
    """What bounds this call.

    The headers of a plain answer come with its last token, so the limit on the first byte cuts off every long answer;
    where we watch the engine ourselves there is no need for it.
    """
    limits = _within(deps.timeouts, attempt.timeout_s)
    if not stream and attempt.candidate.name in deps.supervised:
        return replace(limits, first_byte_s=limits.total_s)
    return limits


def _within(limits: CallTimeouts, left_s: float) -> CallTimeouts:
    """The same limits, none longer than what is left of the request's deadline (give or take a few milliseconds)."""
    if left_s > limits.total_s - 0.05:
        return limits
    return replace(limits, first_byte_s=min(limits.first_byte_s, left_s), total_s=min(limits.total_s, left_s))


async def _prime(stream: StreamReply, max_bytes: int) -> Primed:
    """Read until the first token: what fails before it falls back unseen. Bounded, so that nobody can make us hoard."""
    blocks: list[bytes] = []
    held = 0
    while not stream.saw_output and held <= max_bytes:
        block = await stream.next_block()
        if block is None:
            return Primed(stream, blocks, ended=True)
        blocks.append(block)
        held += len(block)
    return Primed(stream, blocks, ended=False)


class StreamAnswer:
    """A stream under way. Iterate `blocks` to its end or `close` it; either settles it, exactly once.

    After the end `usage_event` is the upstream's usage-only chunk (if it sent one) and `cost_nanousd` the final cost.
    """

    def __init__(self, primed: Primed, bill: Settlement) -> None:
        self.meta = answer_meta(bill, cost_observed=False)
        self._primed = primed
        self._bill = bill

    @property
    def cost_nanousd(self) -> int:
        """Observed cost; final once `blocks` has ended."""
        return self._bill.cost_nanousd

    @property
    def usage(self) -> TokenUsage | None:
        """Tokens as booked; `None` before the end."""
        return self._bill.records[-1].usage if self._bill.records else None

    @property
    def usage_event(self) -> Mapping[str, Any] | None:
        """The decoded usage-only chunk, for a caller who asked."""
        return self._primed.stream.usage_event

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Whole SSE events, without usage and `[DONE]`. Raises UpstreamError when the upstream fails in mid-stream."""
        stream, bill = self._primed.stream, self._bill
        try:
            for block in self._primed.blocks:
                yield block
            counted = stream.output_events
            while not self._primed.ended:
                block_or_end = await stream.next_block()
                if block_or_end is None:
                    break
                if stream.output_events != counted:
                    bill.tokens(stream.output_events - counted)
                    counted = stream.output_events
                yield block_or_end
        except UpstreamError as error:
            outcome = outcome_of(error)
            error.request_id = self.meta.request_id
            bill.close(
                outcome,
                usage=stream.usage,
                output_tokens_seen=stream.output_events,
                first_token_sent=True,
                error=error,
            )
            bill.finish(outcome)
            raise
        bill.close(Outcome.OK, usage=stream.usage, output_tokens_seen=stream.output_events, first_token_sent=True)
        bill.finish(Outcome.OK)

    async def close(self) -> None:
        """Stop: settles what was used if the stream had not ended, and makes the upstream stop."""
        stream = self._primed.stream
        self._bill.abandon(outcome_of_leaving(self._bill.deps), stream.output_events, usage=stream.usage)
        await stream.close()
