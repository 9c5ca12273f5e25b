"""Nouns to rows and back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import msgspec
from msgspec.structs import FieldInfo, fields, replace

from classifier.datamodels import RequestFeatures, Score
from router.core.attempts import AttemptOpened, AttemptRecord, Charge, Hold, RoutingRecord
from router.core.decision import Alternative, Candidate, Decision
from router.core.judgements import JudgedAnswer
from router.core.replay import world_hash as hash_of_world
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Reason, Tier
from router.stores import schema
from router.stores.events import Event, FeedbackGiven, Judged, Opened, Released, Reserved, Settled, WorldSeen

Row = tuple[Any, ...]

EVENTS_AT_ONCE = 16
"""Those of eight requests: a tenth of a millisecond in which the event loop can not have the interpreter."""

OPEN_COLUMNS = tuple(c.name for c in schema.open_attempt.columns)
ATTEMPT_COLUMNS = tuple(c.name for c in schema.attempt.columns)
REQUEST_COLUMNS = tuple(c.name for c in schema.request.columns)
JUDGEMENT_COLUMNS = tuple(c.name for c in schema.judgement.columns)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_encode = msgspec.json.Encoder(decimal_format="string").encode


class _Candidates(msgspec.Struct):
    """All that a record needs of its world."""

    candidates: tuple[Candidate, ...] = ()


def _default(field_of_noun: FieldInfo) -> tuple[Any, ...]:
    if field_of_noun.default is not msgspec.NODEFAULT:
        return (field_of_noun.default,)
    if field_of_noun.default_factory is not msgspec.NODEFAULT:
        return (msgspec.field(default_factory=field_of_noun.default_factory),)
    return ()


class Shape:
    """How a noun is kept as JSON: without some fields, and without what has its default."""

    def __init__(self, noun: type[msgspec.Struct], *without: str) -> None:
        kept = [f for f in fields(noun) if f.name not in without]
        plain = [(f.name, f.type, *_default(f)) for f in kept]
        self._struct = msgspec.defstruct(f"Stored{noun.__name__}", plain, omit_defaults=True, kw_only=False)
        self._values = attrgetter(*(f.name for f in kept))

    def of(self, noun: object) -> msgspec.Struct:
        """The part of `noun` that is kept, ready to be encoded."""
        return self._struct(*self._values(noun))


# The scored text is never kept. Score and moment have columns of their own, candidates are in the world.
_features = Shape(RequestFeatures, "text")
_alternative = Shape(Alternative)
_decision = Shape(Decision, "score", "moment", "ranked", "alternatives")


def to_us(moment: datetime) -> int:
    """An aware datetime as microseconds since 1970 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """Inverse of `to_us`; exact."""
    return _EPOCH + timedelta(microseconds=us)


def storable(text: str | None) -> str | None:
    """`text` as every database can keep it: without NUL and lone surrogates."""
    if text is None or (text.isascii() and "\x00" not in text):
        return text
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _text(text: str) -> str:
    return storable(text) or ""


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000)


def _json(value: object) -> str | None:
    return None if value is None else _encode(value).decode()


class Worlds:
    """Names worlds, hashing each once: the bytes are one object for as long as the world does not change."""

    def __init__(self) -> None:
        self._last: tuple[bytes, str] = (b"", "")

    def name(self, world: bytes) -> str:
        """The hash that stands for `world`."""
        body, name = self._last
        if world is not body:
            name = hash_of_world(world)
            self._last = (world, name)
        return name


@dataclass(slots=True)
class Batch:
    """The rows of many events, ready for the driver."""

    opened: list[Row] = field(default_factory=list)
    closed: list[tuple[str]] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    worlds: dict[str, str] = field(default_factory=dict)
    feedback: list[FeedbackGiven] = field(default_factory=list)
    judgements: list[Row] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)


def batch_of(events: Sequence[Event], worlds: Worlds, give_way: Callable[[], None] = lambda: None) -> Batch:
    """The rows of `events`; of two settlements of one request the first counts. Calls `give_way` now and then."""
    batch = Batch()
    # Begun and ended in one batch: it was never open for anybody. The delete stays, it may have been told before.
    ended = {event.record.request_id for event in events if type(event) is Settled}
    for count, event in enumerate(events, start=1):
        if count % EVENTS_AT_ONCE == 0:
            give_way()
        match event:
            case Settled():
                _settled(batch, event, worlds)
            case Reserved(hold=hold, instance=instance):
                if hold.request_id not in ended:
                    batch.opened.append(_open_row(hold.first, instance, hold))
            case Opened(attempt=attempt, instance=instance):
                if attempt.request_id not in ended:
                    batch.opened.append(_open_row(attempt, instance, None))
            case Released(request_id=request_id):
                batch.closed.append((request_id,))
            case WorldSeen(world_hash=name, body=body):
                batch.worlds[name] = body
            case FeedbackGiven():
                batch.feedback.append(event)
            case Judged(answer=answer):
                batch.judgements.append(_judgement_row(answer))
    return batch


def _settled(batch: Batch, event: Settled, worlds: Worlds) -> None:
    record = event.record
    if record.request_id in batch.settled:
        return
    batch.settled.add(record.request_id)
    name = event.world_hash
    if name is None and record.world:
        name = worlds.name(record.world)
        batch.worlds[name] = record.world.decode()
    if event.hold_open:
        batch.closed.append((record.request_id,))
    last = max((a.number for a in record.attempts), default=0)
    tenant = _text(record.tenant)
    for a in record.attempts:
        batch.attempts.append(_attempt_row(record.request_id, tenant, a, is_last=a.number == last))
    batch.requests.append(_request_row(record, name))


def _judgement_row(a: JudgedAnswer) -> Row:
    return (
        a.request_id,
        a.tier,
        a.provenance,
        a.judge,
        _text(a.model),
        a.quality_ratio,
        a.action_probability,
        a.label_probability,
        a.output_tokens,
        to_us(a.judged_at_utc),
    )


def _open_row(opened: AttemptOpened, instance: str, hold: Hold | None) -> Row:
    return (
        opened.request_id,
        opened.number,
        instance,
        _text(opened.tenant),
        opened.candidate,
        opened.tier.value,
        opened.provider,
        opened.model,
        to_us(opened.opened_at_utc),
        to_us(hold.expires_at_utc) if hold is not None else None,
        opened.estimate_input_tokens,
        opened.reserve_nanousd,
        hold.reserve_nanousd if hold is not None else 0,
        opened.request_id,  # for the look whether it is booked already
    )


def _attempt_row(request_id: str, tenant: str, a: AttemptRecord, *, is_last: bool) -> Row:
    usage, charge = a.usage, a.charge
    if usage is None:
        tokens: Row = (None, None, None, None, None, 0, "")
    else:
        tokens = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
            int(usage.estimated),
            " ".join(usage.flags),
        )
    return (
        request_id,
        a.number,
        schema.SETTLED,
        tenant,
        a.candidate,
        a.tier.value,
        a.provider,
        a.model,
        to_us(a.started_at_utc),
        a.outcome.value,
        *tokens,
        charge.amount_nanousd,
        charge.price_version,
        charge.work_gpu_ns,
        " ".join(charge.flags),
        _us(a.duration_s),
        _us(a.first_token_s),
        storable(a.detail),
        int(is_last),
        charge.asset,
        0,
    )


def _request_row(record: RoutingRecord, world_hash: str | None) -> Row:
    decision, features, score = record.decision, record.features, record.score
    if score is None and decision is not None:
        score = decision.score
    moment = record.moment or (decision.moment if decision is not None else None)
    return (
        record.request_id,
        record.schema_version,
        _text(record.tenant),
        to_us(record.received_at_utc),
        _text(record.requested_model),
        int(record.stream),
        record.outcome.value,
        record.reason.value if record.reason is not None else None,
        storable(record.session),
        # The sum of what is booked, whatever the record says: the books agree by request and by attempt.
        sum(a.charge.amount_nanousd for a in record.attempts),
        _us(record.duration_s),
        _us(record.first_token_s),
        record.exploration_probability,
        record.prompt_sha256,
        storable(record.prompt_text),
        decision.policy_version if decision is not None else None,
        decision.inputs_hash if decision is not None else None,
        world_hash,
        _json(_features.of(features)) if features is not None else None,
        _json(score),
        _decision_json(decision) if decision is not None else None,
        _json(record.usage),
        moment.decode() if moment else None,
        0,
    )


def _decision_json(decision: Decision) -> str:
    return _encode(
        {
            "ranked": [c.name for c in decision.ranked],
            "alternatives": [_alternative.of(a) for a in decision.alternatives],
            "rest": _decision.of(decision),
        }
    ).decode()


def _decision_of(text: str, score: Score | None, moment: bytes | None, world: bytes | None) -> Decision:
    stored = msgspec.json.decode(text)
    known = {c.name: c for c in msgspec.json.decode(world, type=_Candidates).candidates} if world else {}
    alternatives = msgspec.convert(stored["alternatives"], tuple[Alternative, ...])
    tiers = {a.name: a.tier for a in alternatives}
    # Without its world a candidate is no more than its name.
    ranked = tuple(
        known.get(name) or Candidate(name, tiers.get(name, Tier.LOCAL), "", name, 0) for name in stored["ranked"]
    )
    rest = msgspec.convert({**stored["rest"], "ranked": (), "alternatives": (), "score": None}, Decision)
    return replace(rest, ranked=ranked, alternatives=alternatives, score=score, moment=moment or b"")


def _flags(text: str) -> tuple[Flag, ...]:
    return tuple(Flag(word) for word in text.split())


def _s(us: int | None) -> float | None:
    return None if us is None else us / 1_000_000


def attempt_of(row: Mapping[str, Any]) -> AttemptRecord:
    """A counted row of `attempt` as the noun."""
    usage = None
    if row["input_tokens"] is not None:
        usage = TokenUsage(
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cached_input_tokens=row["cached_input_tokens"],
            cache_write_tokens=row["cache_write_tokens"],
            reasoning_tokens=row["reasoning_tokens"],
            estimated=bool(row["usage_estimated"]),
            flags=_flags(row["usage_flags"]),
        )
    return AttemptRecord(
        number=row["number"],
        candidate=row["candidate"],
        tier=Tier(row["tier"]),
        provider=row["provider"],
        model=row["model"],
        outcome=Outcome(row["outcome"]),
        usage=usage,
        charge=Charge(
            row["amount_nanousd"], row["price_version"], row["work_gpu_ns"], _flags(row["flags"]), row["asset"]
        ),
        started_at_utc=from_us(row["opened_at_us"]),
        duration_s=_s(row["duration_us"]) or 0.0,
        first_token_s=_s(row["first_token_us"]),
        detail=row["detail"],
    )


def record_of(row: Mapping[str, Any], attempts: Sequence[AttemptRecord]) -> RoutingRecord:
    """A row of `request` (with the column `body` of its world, if joined) as the noun; the scored text is not kept."""
    score = msgspec.json.decode(row["score"], type=Score) if row["score"] else None
    moment = row["moment"].encode() if row["moment"] else None
    world = row["body"].encode() if row.get("body") else None
    features = None
    if row["features"]:
        features = msgspec.convert({**msgspec.json.decode(row["features"]), "text": ""}, RequestFeatures)
    return RoutingRecord(
        schema_version=row["schema_version"],
        request_id=row["request_id"],
        tenant=row["tenant"],
        received_at_utc=from_us(row["received_at_us"]),
        requested_model=row["requested_model"],
        stream=bool(row["stream"]),
        features=features,
        score=score,
        decision=_decision_of(row["decision"], score, moment, world) if row["decision"] else None,
        attempts=tuple(attempts),
        outcome=Outcome(row["outcome"]),
        usage=msgspec.json.decode(row["usage"], type=TokenUsage) if row["usage"] else None,
        cost_nanousd=row["cost_nanousd"],
        duration_s=_s(row["duration_us"]) or 0.0,
        first_token_s=_s(row["first_token_us"]),
        exploration_probability=row["exploration_probability"],
        prompt_sha256=row["prompt_sha256"],
        prompt_text=row["prompt_text"],
        reason=Reason(row["reason"]) if row["reason"] else None,
        session=row["session"],
        world=world,
        moment=moment,
    )
