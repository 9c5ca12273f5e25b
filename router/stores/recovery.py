"""What becomes of reservations whose gateway has died: what may have been spent counts as spent, once."""

from __future__ import annotations

from sqlalchemy import Connection, case, func, insert, select, update

from router.core.datamodels import Flag, Outcome, Tier
from router.stores.schema import COUNTED, DISPATCHED, LOST, OPEN, RESOLVED, attempt, hold, request

# Names what the amount of a lost attempt rests on, where a settled one names its price row.
RESERVE_PRICE_VERSION = "reserve"


def owners_of_open_holds(connection: Connection) -> list[str]:
    """Instances that have left open holds, dead or alive."""
    return list(connection.scalars(select(hold.c.instance).where(hold.c.state == OPEN).distinct()))


def resolve(connection: Connection, instance: str) -> int:
    """Book what the dead `instance` left open; how many holds that were. Runs in the caller's transaction.

    An API attempt is booked at its reserve (it may have been spent), flagged; a local one at 0: the GPU time that it
    used stays in the unabsorbed cost of its hour, nothing is invented.
    """
    open_ids = select(hold.c.request_id).where(hold.c.state == OPEN, hold.c.instance == instance)
    local = attempt.c.tier == Tier.LOCAL.value
    other = attempt.alias("other")
    last = select(func.max(other.c.number)).where(other.c.request_id == attempt.c.request_id).scalar_subquery()
    connection.execute(
        update(attempt)
        .where(attempt.c.state == DISPATCHED, attempt.c.request_id.in_(open_ids))
        .values(
            state=LOST,
            outcome=Outcome.LOST.value,
            amount_nanousd=case((local, 0), else_=attempt.c.reserve_nanousd),
            usage_estimated=case((local, 0), else_=1),
            price_version=case((local, ""), else_=RESERVE_PRICE_VERSION),
            flags=case((local, Flag.LOST_IN_CRASH.value), else_=f"{Flag.USAGE_ESTIMATED} {Flag.LOST_IN_CRASH}"),
        )
    )
    connection.execute(
        update(attempt)
        .where(attempt.c.state == LOST, attempt.c.request_id.in_(open_ids))
        .values(is_last=case((attempt.c.number == last, 1), else_=0))
    )
    # A request resolved before may have been opened again by a late line of a spool; its row is made anew.
    connection.execute(request.delete().where(request.c.resolved == 1, request.c.request_id.in_(open_ids)))
    spent = (
        select(func.coalesce(func.sum(attempt.c.amount_nanousd), 0))
        .where(attempt.c.request_id == hold.c.request_id, attempt.c.state.in_(COUNTED))
        .scalar_subquery()
    )
    done = select(request.c.request_id).where(request.c.request_id == hold.c.request_id).exists()
    columns = {
        "request_id": hold.c.request_id,
        "schema_version": 1,
        "tenant": hold.c.tenant,
        "received_at_us": hold.c.reserved_at_us,
        "requested_model": "",
        "stream": 0,
        "outcome": Outcome.LOST.value,
        "cost_nanousd": spent,
        "duration_us": 0,
        "exploration_probability": 0.0,
        "prompt_sha256": "",
        "resolved": 1,
    }
    rows = select(*columns.values()).where(hold.c.state == OPEN, hold.c.instance == instance, ~done)  # type: ignore[call-overload]
    connection.execute(insert(request).from_select(list(columns), rows, include_defaults=False))
    closed = connection.execute(
        update(hold).where(hold.c.state == OPEN, hold.c.instance == instance).values(state=RESOLVED)
    )
    return closed.rowcount
