"""What becomes of attempts whose gateway has died: what may have been spent counts as spent, once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, insert, literal, null, select, update

from router.core.vocabulary import Flag, Outcome, Tier
from router.stores.schema import LOST, attempt, open_attempt, posting, request

# Names what the amount of a lost attempt rests on, where a settled one names its price row.
RESERVE_PRICE_VERSION = "reserve"


def owners_of_open_attempts(connection: Connection) -> list[str]:
    """Instances that have left open attempts, dead or alive."""
    return list(connection.scalars(select(open_attempt.c.instance).distinct()))


def resolve(connection: Connection, instance: str) -> int:
    """Book what the dead `instance` left open; how many requests that were. Runs in the caller's transaction.

    An API attempt is booked at its reserve (it may have been spent), flagged; a local one at what was noted of its
    progress: the rest of the GPU time that it used stays in the unabsorbed cost of its hour, nothing is invented.
    """
    opened = open_attempt.c
    mine = opened.instance == instance
    request_ids = select(opened.request_id).where(mine)
    count = connection.scalar(select(func.count(opened.request_id.distinct())).where(mine)) or 0
    booked = select(attempt.c.number).where(
        attempt.c.request_id == opened.request_id, attempt.c.number == opened.number
    )
    _copy(connection, attempt, _lost_attempt(), select_where=mine & ~booked.exists())
    other = attempt.alias("other")
    last = select(func.max(other.c.number)).where(other.c.request_id == attempt.c.request_id).scalar_subquery()
    connection.execute(
        update(attempt)
        .where(attempt.c.request_id.in_(request_ids))
        .values(is_last=case((attempt.c.number == last, 1), else_=0))
    )
    # Made anew if a late line of a spool told of one more attempt of a request resolved before.
    connection.execute(delete(request).where(request.c.resolved == 1, request.c.request_id.in_(request_ids)))
    first = open_attempt.alias("first")
    number = select(func.min(first.c.number)).where(first.c.request_id == opened.request_id).scalar_subquery()
    _copy(connection, request, _lost_request(), select_where=mine & (opened.number == number))
    connection.execute(delete(open_attempt).where(mine))
    return count


def _copy(
    connection: Connection, into: Any, columns: dict[str, ColumnElement[Any]], *, select_where: ColumnElement[bool]
) -> None:
    rows = select(*columns.values()).select_from(open_attempt).where(select_where)
    connection.execute(insert(into).from_select(list(columns), rows, include_defaults=False))


def _lost_attempt() -> dict[str, ColumnElement[Any]]:
    opened = open_attempt.c
    local = opened.tier == Tier.LOCAL.value
    noted = (posting.c.request_id == opened.request_id) & (posting.c.number == opened.number)
    progress = select(func.coalesce(func.sum(posting.c.amount_nanousd), 0)).where(noted).scalar_subquery()
    work_gpu_ns = select(func.sum(posting.c.work_gpu_ns)).where(noted).scalar_subquery()
    kept = ("request_id", "number", "tenant", "candidate", "tier", "provider", "model", "opened_at_us")
    return {
        **{name: opened[name] for name in kept},
        "state": literal(LOST),
        "outcome": literal(Outcome.LOST.value),
        "usage_estimated": case((local, 0), else_=1),
        "usage_flags": literal(""),
        "amount_nanousd": case((local, progress), else_=opened.reserve_nanousd),
        "price_version": case((local, ""), else_=RESERVE_PRICE_VERSION),
        "work_gpu_ns": work_gpu_ns,
        "flags": case((local, Flag.LOST_IN_CRASH.value), else_=f"{Flag.USAGE_ESTIMATED} {Flag.LOST_IN_CRASH}"),
        "is_last": literal(0),
        # Without an asset, since all of it has been posted already.
        "posted": literal(0),
    }


def _lost_request() -> dict[str, ColumnElement[Any]]:
    opened = open_attempt.c
    spent = select(func.sum(attempt.c.amount_nanousd)).where(attempt.c.request_id == opened.request_id)
    return {
        "request_id": opened.request_id,
        "schema_version": literal(1),
        "tenant": opened.tenant,
        "received_at_us": opened.opened_at_us,
        "requested_model": literal(""),
        "stream": literal(0),
        "outcome": literal(Outcome.LOST.value),
        "reason": null(),
        "cost_nanousd": spent.scalar_subquery(),
        "duration_us": literal(0),
        "exploration_probability": literal(0.0),
        "prompt_sha256": literal(""),
        "resolved": literal(1),
    }
