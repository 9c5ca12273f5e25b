"""The order of steps of one request; open this file first.

    describe ─ score ─ limits ─ DECIDE ─ claim ─ reserve ─ attempt(s) ─ settle ─ answer

Nothing after the decision changes it; nothing before it does slow I/O. The flow knows no HTTP, no store and no
provider: it is given them (`Deps`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from msgspec.structs import replace

from classifier.datamodels import RequestFeatures, Score
from classifier.features import features as featurize
from router.core.chat import ChatRequest
from router.core.decision import Decision, PolicyConfig
from router.core.eligibility import as_if_awake
from router.core.limits import Allowance
from router.core.nouns import Noun
from router.core.policy import decide
from router.core.refusal import why_nothing
from router.core.request import RequestFacts
from router.core.snapshot import Snapshot
from router.core.virtual_models import TargetKind, resolve
from router.core.vocabulary import Flag, Locality, Outcome
from router.delivery import AnswerMeta, PlainAnswer, StreamAnswer, answer_meta, deliver
from router.errors import RateLimited, RouterError
from router.ports import Deps, PlainReply, ScoringPolicy
from router.records import Case, refused_record
from router.settlement import Settlement, outcome_of_exit

_TOKENS_PER_IMAGE = 800
_WAKE_ABOVE_U = 0.5
"""How tight an engine must be before a sleeping one is missed: waking takes seconds, in which the load may double."""

__all__ = ["AnswerMeta", "Described", "PlainAnswer", "StreamAnswer", "choose", "consider", "describe", "handle_chat"]


class Described(Noun, frozen=True):
    """A request, counted and scored, before anything is decided. `flags` are warnings that every decision carries.

    `free`: the caller left it to the router how good the answer has to be (`auto`, no floor).
    """

    chat: ChatRequest
    facts: RequestFacts
    features: RequestFeatures
    score: Score
    cfg: PolicyConfig
    received_at_utc: datetime
    flags: tuple[Flag, ...] = ()
    free: bool = True


async def handle_chat(
    chat: ChatRequest, tenant: str, deps: Deps, allowance: Allowance | None = None
) -> PlainAnswer | StreamAnswer:
    """Answer one request from the cheapest place that is good enough. Raises RouterErrors.

    `allowance` is what a key that has limits has left; the request takes its tokens of it, and gives back what it did
    not use before its last byte. A `StreamAnswer` must be closed by whoever gets it; it settles itself when it ends or
    is closed.
    """
    seen = describe(chat, tenant, deps)
    if allowance is not None:
        _take_tokens(seen, allowance)
    decision, snapshot = await choose(seen, deps)
    if not decision.ranked:
        raise _refuse(seen, decision, deps)
    case = Case(chat, seen.facts, seen.features, decision, snapshot, seen.cfg, seen.received_at_utc, deps.state.world())
    bill = Settlement(case, deps, allowance)
    try:
        bill.claim()
        await bill.open()
        reply = await deliver(bill, deps)
        looked = _looked_at(seen, decision, bill, deps)
    except BaseException as error:
        bill.abandon(outcome_of_exit(error, deps))
        raise
    if isinstance(reply, PlainReply):
        bill.finish(Outcome.OK)
        if looked is not None and deps.learner is not None:
            deps.learner.answered(looked, reply)
        return PlainAnswer(answer_meta(bill, cost_observed=True), reply.body)
    if looked is not None and deps.learner is not None:
        reply.stream = deps.learner.streaming(looked, reply.stream, reply.blocks, ended=reply.ended)
    return StreamAnswer(reply, bill)


def _take_tokens(seen: Described, allowance: Allowance) -> None:
    estimate = seen.facts.estimate
    try:
        allowance.take_tokens(estimate.input_tokens, estimate.output_p90_tokens * max(1, seen.facts.n))
    except RateLimited as error:
        error.request_id = seen.facts.request_id
        raise


def _looked_at(seen: Described, decision: Decision, bill: Settlement, deps: Deps) -> Any | None:
    if deps.learner is None:
        return None
    return deps.learner.watch(seen.chat, seen.facts, seen.features, decision, seen.cfg, bill.answering[0])


def describe(chat: ChatRequest, tenant: str, deps: Deps) -> Described:
    """Count tokens, take features, score; no I/O. Raises NotFound for an unknown model."""
    received_at_s = deps.clock.now_s()
    target = resolve(chat.requested_model, deps.candidates)
    tokens, estimated = deps.tokens.count((*chat.texts, *chat.schema_texts), messages=chat.message_count)
    if chat.image_count:
        tokens, estimated = tokens + chat.image_count * _TOKENS_PER_IMAGE, True
    seen = featurize(
        texts=chat.texts,
        system_text=chat.system_text,
        last_user_text=chat.last_user_text,
        turns=chat.turns,
        input_tokens=tokens,
        input_tokens_estimated=estimated,
        has_tools=chat.has_tools,
        has_images=chat.has_images,
        wants_json=chat.wants_json,
        max_output_tokens=chat.max_output_tokens,
    )
    request_class = _class_of(chat, tokens)
    local_only = target.locality is Locality.LOCAL_ONLY or chat.controls.locality is Locality.LOCAL_ONLY
    facts = RequestFacts(
        request_id=deps.new_id(),
        tenant=tenant,
        estimate=deps.lengths.estimate(request_class, tokens, estimated=estimated, cap=chat.max_output_tokens),
        received_at_s=received_at_s,
        deadline_s=deps.timeouts.total_s,
        request_class=request_class,
        needs_tools=chat.has_tools,
        needs_images=chat.has_images,
        needs_json=chat.wants_json,
        stream=chat.stream,
        max_output_tokens=chat.max_output_tokens,
        n=chat.n,
        pinned_model=target.pinned,
        pinned_tier=target.tier,
        locality=Locality.LOCAL_ONLY if local_only else Locality.ANY,
        quality_floor_ratio=chat.controls.quality_floor_ratio,
        max_nanousd=chat.controls.max_nanousd,
        session=chat.controls.session,
    )
    score, scoring = _score(seen, facts.session or facts.request_id, deps)
    cfg = scoring.policies[target.preset or ""]
    free = target.kind is TargetKind.AUTO and target.preset is None and facts.quality_floor_ratio is None
    if free and deps.state.premium_capped():
        cfg = replace(cfg, premium_capped=True)
    return Described(chat, facts, seen, score, cfg, deps.clock.now_utc(), scoring.flags, free)


def _class_of(chat: ChatRequest, input_tokens: int) -> str:
    """The class whose output lengths are learnt together: what is asked for, and how much is shown."""
    kind = "tools" if chat.has_tools else "json" if chat.wants_json else "chat"
    size = "short" if input_tokens < 100 else "medium" if input_tokens < 1000 else "long"
    return f"{kind}/{size}"


def _score(seen: RequestFeatures, key: str, deps: Deps) -> tuple[Score, ScoringPolicy]:
    """The score, and whose dials go with it; a scorer that fails is replaced by the prior, and every record says so."""
    scoring = deps.state.scoring_policy(key)
    started_at_s = deps.clock.now_s()
    try:
        score = scoring.scorer.score(seen)
    except Exception:  # noqa: BLE001 - whatever a model does, the request is still answered
        deps.telemetry.warn("classifier_unavailable", cause="error")
        deps.state.note_score(scoring, None)
        return deps.prior.scorer.score(seen), deps.prior
    deps.state.note_score(scoring, deps.clock.now_s() - started_at_s)
    return score, scoring


def consider(seen: Described, deps: Deps) -> tuple[Decision, Snapshot]:
    """One decision over one look at the world."""
    snapshot = deps.state.snapshot()
    decision = decide(seen.facts, seen.score, deps.candidates, snapshot, seen.cfg)
    if seen.flags:
        decision = replace(decision, flags=(*decision.flags, *seen.flags))
    return decision, snapshot


async def choose(seen: Described, deps: Deps) -> tuple[Decision, Snapshot]:
    """Decide; where the policy lets a request queue for the local engine, wait for room and decide again."""
    started_at_s = deps.clock.now_s()
    if deps.draw is not None and seen.cfg.exploration_ratio > 0.0:
        seen = replace(seen, facts=replace(seen.facts, exploration_draw=deps.draw()))
    while True:
        decision, snapshot = consider(seen, deps)
        wait_s = decision.queue_for_s
        if deps.state.asleep():
            wait_s = max(wait_s, _wake_who_is_missed(seen, decision, snapshot, deps))
        left_s = started_at_s + wait_s - deps.clock.now_s()
        if wait_s <= 0.0 or left_s <= 0.0:
            deps.state.note_decision(decision, free=seen.free)
            return decision, snapshot
        try:
            await deps.state.room_changed(left_s)
        except BaseException as error:  # who leaves the queue is remembered, and owes nothing
            _book_unanswered(seen, decision, deps, outcome_of_exit(error, deps))
            raise


def _wake_who_is_missed(seen: Described, decision: Decision, snapshot: Snapshot, deps: Deps) -> float:
    """Wake a sleeping engine that would be taken were it awake; seconds to wait for it, 0 if others may answer.

    None is missed while another engine does the work with ease, and of several one is enough.
    """
    chosen = decision.chosen
    if chosen is not None and (decision.alternative(chosen.name).tightness or 1.0) <= _WAKE_ABOVE_U:
        return 0.0
    for name in deps.state.asleep():
        would = decide(seen.facts, seen.score, deps.candidates, as_if_awake(snapshot, name), seen.cfg)
        if would.chosen is not None and would.chosen.name == name:
            deps.state.wake(name)
            return 0.0 if decision.ranked else deps.timeouts.first_byte_s
    return 0.0


def _book_unanswered(seen: Described, decision: Decision, deps: Deps, outcome: Outcome) -> None:
    duration_s = deps.clock.now_s() - seen.facts.received_at_s
    record = refused_record(
        seen.chat,
        seen.facts,
        seen.features,
        decision,
        received_at_utc=seen.received_at_utc,
        duration_s=duration_s,
        outcome=outcome,
    )
    deps.ledger.settle(record, hold_open=False)
    deps.telemetry.request_done(record, overhead_s=duration_s)


def _refuse(seen: Described, decision: Decision, deps: Deps) -> RouterError:
    _book_unanswered(seen, decision, deps, Outcome.NO_ROUTE)
    ttfts = [alt.ttft_s for alt in decision.alternatives if alt.ttft_s is not None]
    error = why_nothing(decision, seen.facts, deps.candidates, retry_after_s=max(1.0, min(ttfts, default=1.0)))
    error.request_id = seen.facts.request_id
    return error
