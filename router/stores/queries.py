"""Reading the books. Safe beside a running gateway; every function opens a short-lived connection of its own.

A request is counted where its last attempt is, an attempt and its cost where the attempt is; days are UTC days in which
an attempt began. What is still running is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, func, inspect, select

from router.core.attempts import AttemptRecord, RoutingRecord
from router.core.exploration import extra_nanousd
from router.core.judgements import OVERHEAD_TENANTS
from router.core.vocabulary import Reason, Tier
from router.stores.engines import sqlite_path
from router.stores.rows import attempt_of, from_us, record_of, to_us
from router.stores.schema import attempt, feedback, open_attempt, request, world

_DAY_US = 86_400_000_000
_PAGE_ROWS = 500


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one tenant has spent with one model on one UTC day."""

    day: str
    tenant: str
    tier: str
    model: str
    requests: int
    attempts: int
    cost_nanousd: int


@dataclass(frozen=True, slots=True)
class CostTotals:
    """Sums over the rows, and the reservations open now."""

    requests: int
    attempts: int
    cost_nanousd: int
    open_reservations: int


@dataclass(frozen=True, slots=True)
class CostReport:
    """The rows, ordered by day, tenant, tier and model, and their totals."""

    rows: tuple[CostRow, ...]
    totals: CostTotals

    def as_dict(self) -> dict[str, Any]:
        """Ready to be shown as JSON."""
        return {"rows": [asdict(row) for row in self.rows], "totals": asdict(self.totals)}


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """The last opinion of a tenant on one of its requests; 1 is good."""

    request_id: str
    tenant: str
    score_ratio: float
    comment: str | None
    received_at_utc: datetime


@contextmanager
def look(engine: Engine) -> Iterator[Connection | None]:
    """A connection with one view of the books; `None` where there are none yet."""
    path = sqlite_path(engine.url)
    if path is not None and not path.exists():
        yield None
        return
    with engine.begin() as connection:
        yield connection if inspect(connection).has_table("schema_version") else None


def within(column: ColumnElement[int], from_utc: datetime | None, to_utc: datetime | None) -> ColumnElement[bool]:
    """`column` (microseconds) in the half-open range; `None` is no bound."""
    bounds = []
    if from_utc is not None:
        bounds.append(column >= to_us(from_utc))
    if to_utc is not None:
        bounds.append(column < to_us(to_utc))
    return and_(True, *bounds)


def costs(
    engine: Engine, from_utc: datetime | None = None, to_utc: datetime | None = None, tenant: str | None = None
) -> CostReport:
    """Spend of attempts begun in [`from_utc`, `to_utc`), of one tenant or of all."""
    day = (attempt.c.opened_at_us // _DAY_US).label("day")
    keys = (day, attempt.c.tenant, attempt.c.tier, attempt.c.model)
    # Shadow runs and judges cost money, but nobody asked for them.
    asked = case((attempt.c.tenant.in_(OVERHEAD_TENANTS), 0), else_=attempt.c.is_last)
    query = (
        select(*keys, func.sum(asked), func.count(), func.sum(attempt.c.amount_nanousd))
        .where(within(attempt.c.opened_at_us, from_utc, to_utc))
        .group_by(*keys)
        .order_by(*keys)
    )
    holds = select(func.count(open_attempt.c.request_id.distinct()))
    if tenant is not None:
        query, holds = query.where(attempt.c.tenant == tenant), holds.where(open_attempt.c.tenant == tenant)
    with look(engine) as connection:
        if connection is None:
            return CostReport((), CostTotals(0, 0, 0, 0))
        rows = tuple(
            CostRow(from_us(day * _DAY_US).date().isoformat(), owner, tier, model, int(done), tries, int(cost))
            for day, owner, tier, model, done, tries, cost in connection.execute(query)
        )
        open_holds = connection.scalar(holds) or 0
    totals = CostTotals(
        requests=sum(row.requests for row in rows),
        attempts=sum(row.attempts for row in rows),
        cost_nanousd=sum(row.cost_nanousd for row in rows),
        open_reservations=open_holds,
    )
    return CostReport(rows, totals)


def spent_since(engine: Engine, from_utc: datetime, tenant: str | None = None) -> int:
    """Nano-dollars that have left the house for attempts begun at or after `from_utc`; local work is no cash.

    With `tenant` only what was spent in that name.
    """
    query = select(func.sum(attempt.c.amount_nanousd)).where(
        attempt.c.tier != Tier.LOCAL.value, attempt.c.opened_at_us >= to_us(from_utc)
    )
    if tenant is not None:
        query = query.where(attempt.c.tenant == tenant)
    with look(engine) as connection:
        return int(connection.scalar(query) or 0) if connection is not None else 0


def explored_since(engine: Engine, from_utc: datetime) -> int:
    """Nano-dollars that explored requests received at or after `from_utc` were expected to cost above the usual."""
    query = _records().where(request.c.reason == Reason.EXPLORE.value, request.c.received_at_us >= to_us(from_utc))
    with look(engine) as connection:
        rows = connection.execution_options(yield_per=_PAGE_ROWS).execute(query).mappings() if connection else ()
        found = (record_of(dict(row), ()).decision for row in rows)
        return sum(extra_nanousd(decision) for decision in found if decision is not None)


def record(engine: Engine, request_id: str, tenant: str | None = None) -> RoutingRecord | None:
    """All that is kept of one request, or `None` if it is unknown (or, with `tenant`, somebody else's)."""
    query = _records().where(request.c.request_id == request_id)
    if tenant is not None:
        query = query.where(request.c.tenant == tenant)
    with look(engine) as connection:
        found = _load(connection, query) if connection is not None else []
    return found[0] if found else None


def records_of(engine: Engine, request_ids: Sequence[str]) -> list[RoutingRecord]:
    """The records of `request_ids` that are known, in order of arrival; a few hundred at a time are meant."""
    query = _records().where(request.c.request_id.in_(request_ids))
    with look(engine) as connection:
        if connection is None:
            return []
        return _load(connection, query.order_by(request.c.received_at_us, request.c.request_id))


def iterate_records(
    engine: Engine,
    from_utc: datetime | None = None,
    to_utc: datetime | None = None,
    tenant: str | None = None,
    *,
    page_size: int = 500,
) -> Iterator[RoutingRecord]:
    """Requests received in [`from_utc`, `to_utc`), oldest first; `page_size` at a time in memory."""
    query = _records().where(within(request.c.received_at_us, from_utc, to_utc))
    if tenant is not None:
        query = query.where(request.c.tenant == tenant)
    query = query.order_by(request.c.received_at_us, request.c.request_id).limit(page_size)
    page = query
    while True:
        # A connection a page: an export of hours must not keep the database from tidying up.
        with look(engine) as connection:
            records = _load(connection, page) if connection is not None else []
        yield from records
        if len(records) < page_size:
            return
        at_us, last_id = to_us(records[-1].received_at_utc), records[-1].request_id
        later, same = request.c.received_at_us > at_us, request.c.received_at_us == at_us
        page = query.where(later | (same & (request.c.request_id > last_id)))


def iterate_feedback(
    engine: Engine, from_utc: datetime | None = None, to_utc: datetime | None = None
) -> Iterator[FeedbackRow]:
    """Feedback received in [`from_utc`, `to_utc`), oldest first."""
    query = select(feedback).where(within(feedback.c.received_at_us, from_utc, to_utc))
    with look(engine) as connection:
        if connection is None:
            return
        for row in connection.execute(query.order_by(feedback.c.received_at_us, feedback.c.request_id)):
            yield FeedbackRow(row.request_id, row.tenant, row.score, row.comment, from_us(row.received_at_us))


def _records() -> Select[Any]:
    return select(request, world.c.body).select_from(
        request.outerjoin(world, world.c.world_hash == request.c.world_hash)
    )


def _load(connection: Connection, query: Select[Any]) -> list[RoutingRecord]:
    rows = connection.execute(query).mappings().all()
    tries = _attempts(connection, [row["request_id"] for row in rows])
    return [record_of(dict(row), tries.get(row["request_id"], ())) for row in rows]


def _attempts(connection: Connection, request_ids: Sequence[str]) -> dict[str, list[AttemptRecord]]:
    found: dict[str, list[AttemptRecord]] = {}
    query = select(attempt).where(attempt.c.request_id.in_(request_ids))
    for row in connection.execute(query.order_by(attempt.c.request_id, attempt.c.number)).mappings():
        found.setdefault(row["request_id"], []).append(attempt_of(dict(row)))
    return found
