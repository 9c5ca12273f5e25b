"""Reading the books for reports: hours, requests as they were served, tokens by week. Writes nothing.

What spans many rows is read in pages or summed by the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, and_, func, inspect, select

from router.core.judgements import OVERHEAD_TENANTS
from router.core.periods import HOUR_US, Period, on_us, settle_period, span_at
from router.core.request import TokenUsage
from router.core.savings import OVERHEAD_PREFIX, Tried
from router.core.vocabulary import Outcome, Tier
from router.stores.metered import energy_of, stretches_of
from router.stores.periods import lines_of, on_of, rates_of
from router.stores.queries import look, within
from router.stores.rows import from_us, to_us
from router.stores.schema import asset, attempt, period, posting, request, world

_DAY_US = 86_400_000_000
_THURSDAY = 3  # 1970-01-01 was one; weeks begin on Monday
_PAGE_ROWS = 2_000
# Those lost in a crash have kept no more than their tenant.
_ASKED_FOR = and_(request.c.requested_model.not_like(f"{OVERHEAD_PREFIX}%"), request.c.tenant.not_in(OVERHEAD_TENANTS))


@dataclass(frozen=True, slots=True)
class PostedGroup:
    """What one tenant's use of one model has absorbed in one period."""

    asset: str
    period_us: int
    tenant: str
    model: str
    requests: int
    amount_nanousd: int
    work_gpu_ns: int
    adjusts_nanousd: int


@dataclass(frozen=True, slots=True)
class Hours:
    """Periods in order, closed and open, and who used them."""

    periods: tuple[Period, ...]
    groups: tuple[PostedGroup, ...]


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request's attempts with what they were decided on; `world_hash` names candidates and prices then in force.

    `overhead` is set for calls that were made for the learner and that nobody waited for.
    """

    request_id: str
    attempts: tuple[Tried, ...]
    world_hash: str | None
    p_adequate: dict[str, float] | None
    overhead: bool = False


@dataclass(frozen=True, slots=True)
class TokenWeek:
    """Tokens of one week (from Monday, UTC), tier and model."""

    week: str
    tier: str
    model: str
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nanousd: int


@dataclass(frozen=True, slots=True)
class ApiHour:
    """What one tenant's calls of one API model have cost in one UTC hour."""

    hour_us: int
    tenant: str
    provider: str
    model: str
    attempts: int
    tokens: int
    amount_nanousd: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One answered request: its size, its work on the local engine, and the decision behind it as JSON."""

    candidate: str

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    work_gpu_ns: int
    decision: str | None
    world_hash: str | None


def _has_hours(connection: Connection) -> bool:
    # a look at books that a newer program has not brought up to date yet
    return inspect(connection).has_table("period") and inspect(connection).has_table("asset_energy")


def hours(engine: Engine, now_utc: datetime, from_utc: datetime | None = None, to_utc: datetime | None = None) -> Hours:
    """Periods that begin in [`from_utc`, `to_utc`); those not closed yet as they stand at `now_utc`."""
    with look(engine) as connection:
        if connection is None or not _has_hours(connection):
            return Hours((), ())
        rows = connection.execute(
            select(period).where(within(period.c.start_us, from_utc, to_utc)).order_by(period.c.start_us)
        )
        found = [_period_of(row) for row in rows]
        for row in connection.execute(select(asset)):
            found += _open_periods(connection, row, to_us(now_utc), from_utc, to_utc)
        found.sort(key=lambda p: (p.start_us, p.asset))
        p = posting.c
        keys = (p.asset, p.period_us, p.tenant, p.model)
        late = func.sum(p.amount_nanousd).filter(p.adjusts_us.is_not(None))
        groups = connection.execute(
            select(
                *keys,
                func.count(p.request_id.distinct()),
                func.sum(p.amount_nanousd),
                func.sum(p.work_gpu_ns),
                func.coalesce(late, 0),
            )
            .where(within(p.period_us, from_utc, to_utc))
            .group_by(*keys)
            .order_by(p.period_us, p.asset, p.tenant, p.model)
        )
        posted = tuple(PostedGroup(*row[:4], *(int(value) for value in row[4:])) for row in groups)
    return Hours(tuple(found), posted)


def _period_of(row: Any) -> Period:
    return Period(
        asset=row.asset,
        start_us=row.start_us,
        end_us=row.end_us,
        on_us=row.on_us,
        usd_per_hour=Decimal(row.usd_per_hour),
        rate_version=row.rate_version,
        invoice_nanousd=row.invoice_nanousd,
        absorbed_nanousd=row.absorbed_nanousd,
        work_gpu_ns=row.work_gpu_ns,
        cost_lines=lines_of(row.cost_lines),
        energy=energy_of(row),
    )


def _open_periods(
    connection: Connection, row: Any, now_us: int, from_utc: datetime | None, to_utc: datetime | None
) -> Iterator[Period]:
    rates, on = rates_of(connection, row.asset), on_of(connection, row.asset, row.closed_until_us)
    p = posting.c
    query = select(p.period_us, func.sum(p.amount_nanousd), func.sum(p.work_gpu_ns)).where(
        p.asset == row.asset, p.period_us >= row.closed_until_us
    )
    booked = {r[0]: (int(r[1]), int(r[2])) for r in connection.execute(query.group_by(p.period_us))}
    stretches = stretches_of(connection, row.asset, row.closed_until_us)
    low = to_us(from_utc) if from_utc is not None else 0
    high = to_us(to_utc) if to_utc is not None else now_us
    at_us = row.closed_until_us
    while at_us < min(now_us, high):
        span = span_at(rates, at_us)
        at_us = span.end_us
        on_for_us = on_us(on, span.start_us, min(span.end_us, now_us))
        if span.start_us >= low and (on_for_us or span.start_us in booked):
            absorbed, work = booked.get(span.start_us, (0, 0))
            yield settle_period(
                row.asset,
                span,
                on_for_us=on_for_us,
                absorbed_nanousd=absorbed,
                work_gpu_ns=work,
                closed=False,
                until_us=now_us,
                stretches=stretches,
            )


def served_requests(
    engine: Engine, from_utc: datetime | None = None, to_utc: datetime | None = None
) -> Iterator[ServedRequest]:
    """Requests received in [`from_utc`, `to_utc`) that were tried at least once, oldest first."""
    a, r = attempt.c, request.c
    query = (
        select(
            r.request_id, r.requested_model, r.tenant, r.world_hash, r.score, a.candidate, a.tier, a.outcome,
            a.input_tokens, a.output_tokens, a.cached_input_tokens, a.cache_write_tokens, a.reasoning_tokens,
            a.amount_nanousd,
        )
        .join_from(request, attempt, a.request_id == r.request_id)
        .where(within(r.received_at_us, from_utc, to_utc))
        .order_by(r.received_at_us, r.request_id, a.number)
    )  # fmt: skip
    with look(engine) as connection:
        if connection is None:
            return
        rows = connection.execution_options(yield_per=_PAGE_ROWS).execute(query)
        for request_id, group in groupby(rows, key=attrgetter("request_id")):
            tries = list(group)
            score = msgspec.json.decode(tries[0].score) if tries[0].score else {}
            yield ServedRequest(
                request_id,
                tuple(_tried(row) for row in tries),
                tries[0].world_hash,
                score.get("p_adequate"),
                overhead=tries[0].requested_model.startswith(OVERHEAD_PREFIX) or tries[0].tenant in OVERHEAD_TENANTS,
            )


def _tried(row: Any) -> Tried:
    usage = None
    if row.input_tokens is not None:
        usage = TokenUsage(
            row.input_tokens, row.output_tokens, row.cached_input_tokens, row.cache_write_tokens, row.reasoning_tokens
        )
    return Tried(row.candidate, Tier(row.tier), Outcome(row.outcome), usage, row.amount_nanousd)


def world_body(engine: Engine, world_hash: str) -> bytes | None:
    """The world that decisions named `world_hash` rested on."""
    with look(engine) as connection:
        if connection is None:
            return None
        body = connection.scalar(select(world.c.body).where(world.c.world_hash == world_hash))
    return body.encode() if body is not None else None


def token_weeks(
    engine: Engine, from_utc: datetime | None = None, to_utc: datetime | None = None
) -> tuple[TokenWeek, ...]:
    """Tokens of attempts begun in [`from_utc`, `to_utc`), ordered by week, tier and model."""
    a = attempt.c
    week = ((a.opened_at_us // _DAY_US + _THURSDAY) // 7).label("week")
    keys = (week, a.tier, a.model)
    sums = (a.input_tokens, a.cached_input_tokens, a.output_tokens, a.reasoning_tokens, a.amount_nanousd)
    query = (
        select(*keys, func.sum(a.is_last), *(func.coalesce(func.sum(column), 0) for column in sums))
        .where(within(a.opened_at_us, from_utc, to_utc))
        .group_by(*keys)
        .order_by(*keys)
    )
    with look(engine) as connection:
        if connection is None:
            return ()
        rows = connection.execute(query).all()
    return tuple(
        TokenWeek(
            (from_us(0) + timedelta(days=int(row[0]) * 7 - _THURSDAY)).date().isoformat(),
            row[1],
            row[2],
            *(int(value) for value in row[3:]),
        )
        for row in rows
    )


def answered_by(
    engine: Engine, tier: Tier, from_utc: datetime | None, to_utc: datetime | None, *, most: int
) -> tuple[Answered, ...]:
    """The last `most` requests that `tier` answered in the range, newest first."""
    a, r = attempt.c, request.c
    query = (
        select(
            a.candidate, a.input_tokens, a.cached_input_tokens, a.output_tokens, func.coalesce(a.work_gpu_ns, 0),
            r.decision, r.world_hash,
        )
        .join_from(request, attempt, and_(a.request_id == r.request_id, a.is_last == 1))
        .where(
            within(r.received_at_us, from_utc, to_utc),
            a.tier == tier.value,
            a.outcome == Outcome.OK.value,
            a.input_tokens.is_not(None),
            _ASKED_FOR,
        )
        .order_by(r.received_at_us.desc())
        .limit(most)
    )  # fmt: skip
    with look(engine) as connection:
        return tuple(Answered(*row) for row in connection.execute(query)) if connection is not None else ()


def count_answered(
    engine: Engine, tier: Tier, from_utc: datetime | None, to_utc: datetime | None
) -> tuple[int, datetime | None, datetime | None]:
    """(requests that `tier` answered in the range, when the first and the last of them began)."""
    a = attempt.c
    query = (
        select(func.count(), func.min(a.opened_at_us), func.max(a.opened_at_us))
        .join_from(attempt, request, a.request_id == request.c.request_id)
        .where(
            within(a.opened_at_us, from_utc, to_utc),
            a.tier == tier.value,
            a.outcome == Outcome.OK.value,
            a.is_last == 1,
            _ASKED_FOR,
        )
    )
    with look(engine) as connection:
        if connection is None:
            return 0, None, None
        count, first, last = connection.execute(query).one()
    return int(count), *(None if at is None else from_us(at) for at in (first, last))  # type: ignore[return-value]


def api_hours(engine: Engine, from_utc: datetime | None = None, to_utc: datetime | None = None) -> tuple[ApiHour, ...]:
    """Cost of API attempts begun in [`from_utc`, `to_utc`), by hour, tenant and model."""
    a = attempt.c
    keys = ((a.opened_at_us // HOUR_US).label("hour"), a.tenant, a.provider, a.model)
    tokens = func.coalesce(func.sum(a.input_tokens + a.output_tokens), 0)
    query = (
        select(*keys, func.count(), tokens, func.sum(a.amount_nanousd))
        .where(within(a.opened_at_us, from_utc, to_utc), a.tier != Tier.LOCAL.value)
        .group_by(*keys)
        .order_by(*keys)
    )
    with look(engine) as connection:
        rows = connection.execute(query).all() if connection is not None else []
    return tuple(ApiHour(int(row[0]) * HOUR_US, *row[1:4], *(int(value) for value in row[4:])) for row in rows)
