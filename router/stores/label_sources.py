"""Reading what is known of how good answers were: for `export-labels`. Writes nothing, reads in pages.

A range is over the moment at which a request was received, whenever it was judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Engine, Select, and_, inspect, select

from router.core.judgements import OVERHEAD_TENANTS, JudgedAnswer
from router.core.vocabulary import Outcome, Tier
from router.stores.queries import look, within
from router.stores.rows import from_us
from router.stores.schema import attempt, feedback, judgement, request

_PAGE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """One answered request without its weight: who asked, what stood in the prompt's place, which tier answered."""

    request_id: str
    tenant: str
    session: str | None
    prompt_sha256: str
    requested_model: str
    tier: Tier
    received_at_us: int
    duration_us: int
    complexity_ratio: float | None


class _Complexity(msgspec.Struct):
    complexity_ratio: float


@dataclass(frozen=True, slots=True)
class Opinion:
    """A caller's last word on an answer, and the tier that had given it."""

    request_id: str
    tenant: str
    tier: str
    score_ratio: float


def _answered(*columns: Any) -> Select[Any]:
    last = and_(attempt.c.request_id == request.c.request_id, attempt.c.is_last == 1)
    return (
        select(*columns)
        .select_from(request)
        .join(attempt, last)
        .where(attempt.c.outcome == Outcome.OK.value, request.c.tenant.not_in(OVERHEAD_TENANTS))
    )


def _stream(engine: Engine, query: Select[Any]) -> Iterator[Any]:
    with look(engine) as connection:
        if connection is not None:
            yield from connection.execution_options(yield_per=_PAGE_ROWS).execute(query)


def answered_requests(
    engine: Engine, from_utc: datetime | None, to_utc: datetime | None, *, without: Collection[str] = ()
) -> Iterator[AnsweredRow]:
    """Requests answered well, oldest first; those of the tenants `without` are passed over."""
    r = request.c
    columns = (
        r.request_id, r.tenant, r.session, r.prompt_sha256, r.requested_model, attempt.c.tier, r.received_at_us,
        r.duration_us, r.score,
    )  # fmt: skip
    query = _answered(*columns).where(within(r.received_at_us, from_utc, to_utc), r.tenant.not_in(tuple(without)))
    for row in _stream(engine, query.order_by(r.received_at_us, r.request_id)):
        score = msgspec.json.decode(row[8], type=_Complexity).complexity_ratio if row[8] is not None else None
        yield AnsweredRow(row[0], row[1], row[2], row[3], row[4], Tier(row[5]), row[6], row[7], score)


def opinions(
    engine: Engine, from_utc: datetime | None, to_utc: datetime | None, *, without: Collection[str] = ()
) -> Iterator[Opinion]:
    """Feedback on answered requests, in the order in which it was given."""
    r, f = request.c, feedback.c
    query = (
        _answered(f.request_id, f.tenant, attempt.c.tier, f.score)
        .join(feedback, f.request_id == r.request_id)
        .where(within(r.received_at_us, from_utc, to_utc), r.tenant.not_in(tuple(without)))
        .order_by(f.received_at_us, f.request_id)
    )
    for row in _stream(engine, query):
        yield Opinion(*row)


def judgements(
    engine: Engine, from_utc: datetime | None, to_utc: datetime | None, *, without: Collection[str] = ()
) -> Iterator[JudgedAnswer]:
    """What judges and checks have said of answers, in order."""
    with look(engine) as connection:
        if connection is None or not inspect(connection).has_table("judgement"):
            return  # books of a version that knew no judges
    r, j = request.c, judgement.c
    columns = (
        j.request_id, j.tier, j.model, j.quality, j.provenance, j.judge, j.action_probability, j.label_probability,
        j.output_tokens, j.judged_at_us,
    )  # fmt: skip
    query = (
        select(*columns)
        .select_from(judgement)
        .join(request, r.request_id == j.request_id)
        .where(within(r.received_at_us, from_utc, to_utc), r.tenant.not_in(tuple(without)))
        .order_by(j.judged_at_us, j.request_id, j.tier)
    )
    for row in _stream(engine, query):
        yield JudgedAnswer(
            request_id=row.request_id,
            tier=row.tier,
            model=row.model,
            quality_ratio=row.quality,
            provenance=row.provenance,
            judge=row.judge,
            action_probability=row.action_probability,
            label_probability=row.label_probability,
            output_tokens=row.output_tokens,
            judged_at_utc=from_us(row.judged_at_us),
        )
