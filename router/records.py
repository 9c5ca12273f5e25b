"""What is remembered of a request: the learner's raw material and the answer to "why did it go there?". Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from classifier.datamodels import RequestFeatures
from router.core.attempts import AttemptRecord, RoutingRecord
from router.core.chat import ChatRequest
from router.core.decision import Decision, PolicyConfig
from router.core.nouns import Noun
from router.core.request import RequestFacts
from router.core.snapshot import Snapshot
from router.core.vocabulary import Outcome, Reason

SCHEMA_VERSION = 1
# hashlib gives the interpreter lock up for 2,048 bytes and more: a microsecond of hashing, and then a wait for the
# ledger's thread in the middle of a request. A long text takes long enough for others to have their turn.
_PIECE_BYTES = 2_047
_LONG_BYTES = 8 * _PIECE_BYTES


class Case(Noun, frozen=True):
    """One request as it stands once it is decided; what every later step may look at."""

    chat: ChatRequest
    facts: RequestFacts
    features: RequestFeatures
    decision: Decision
    snapshot: Snapshot
    cfg: PolicyConfig
    received_at_utc: datetime
    world: bytes


def record_of(
    case: Case, attempts: Sequence[AttemptRecord], outcome: Outcome, *, duration_s: float, keep_text: bool
) -> RoutingRecord:
    """The record of a request that ended with `outcome` after `attempts`; the prompt only with `keep_text`."""
    facts, decision = case.facts, case.decision
    last = attempts[-1] if attempts else None
    return RoutingRecord(
        schema_version=SCHEMA_VERSION,
        request_id=facts.request_id,
        tenant=facts.tenant,
        received_at_utc=case.received_at_utc,
        requested_model=case.chat.requested_model,
        stream=case.chat.stream,
        features=case.features,
        score=decision.score,
        decision=decision,
        attempts=tuple(attempts),
        outcome=outcome,
        usage=last.usage if last is not None else None,
        cost_nanousd=sum(attempt.charge.amount_nanousd for attempt in attempts),
        duration_s=duration_s,
        first_token_s=last.first_token_s if last is not None else None,
        exploration_probability=decision.exploration_probability,
        prompt_sha256=prompt_sha256(case.chat),
        prompt_text=prompt_text(case.chat) if keep_text else None,
        reason=_reason(decision, last),
        session=facts.session,
        world=case.world,
        moment=decision.moment,
    )


def _reason(decision: Decision, last: AttemptRecord | None) -> Reason | None:
    if last is not None and decision.chosen is not None and last.candidate != decision.chosen.name:
        return Reason.FALLBACK_AFTER_ERROR
    return decision.reason


def prompt_sha256(chat: ChatRequest) -> str:
    """Hash of the conversation as it came; what is kept of a prompt unless its text is asked for."""
    text = memoryview(chat.fields["messages"])
    if len(text) > _LONG_BYTES:
        return sha256(text).hexdigest()
    digest = sha256()
    for start in range(0, len(text), _PIECE_BYTES):
        digest.update(text[start : start + _PIECE_BYTES])
    return digest.hexdigest()


def prompt_text(chat: ChatRequest) -> str:
    """The conversation as it is kept where texts are: its messages as JSON, or with images only the texts."""
    return "\n".join(chat.texts) if chat.has_images else bytes(chat.fields["messages"]).decode()


def refused_record(
    chat: ChatRequest,
    facts: RequestFacts,
    features: RequestFeatures,
    decision: Decision,
    *,
    received_at_utc: datetime,
    duration_s: float,
    outcome: Outcome = Outcome.NO_ROUTE,
) -> RoutingRecord:
    """The record of a request that nobody could answer, or that left its queue: no attempt and cost, but reasons."""
    return RoutingRecord(
        schema_version=SCHEMA_VERSION,
        request_id=facts.request_id,
        tenant=facts.tenant,
        received_at_utc=received_at_utc,
        requested_model=chat.requested_model,
        stream=chat.stream,
        features=features,
        score=decision.score,
        decision=decision,
        attempts=(),
        outcome=outcome,
        usage=None,
        cost_nanousd=0,
        duration_s=duration_s,
        first_token_s=None,
        exploration_probability=0.0,
        prompt_sha256=prompt_sha256(chat),
        session=facts.session,
    )
