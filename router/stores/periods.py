"""Keeps the hours of the local tier's hardware: what was on, what is posted where, what is closed.

Beside the ledger's writer and with connections of its own, in short transactions. All of it may be interrupted
anywhere and done again: postings are found by what is not marked as posted, a part is the total less the parts before,
and a period is closed in the same transaction that moves the asset's `closed_until_us` past it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    Row,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from router.core.attempts import WorkDone
from router.core.energy import CardLook, EnergyTerms, Stretch
from router.core.periods import (
    AssetTerms,
    OnInterval,
    OnMode,
    Period,
    Posting,
    Rate,
    due,
    hour_of,
    next_part,
    on_us,
    settle_period,
    status_of,
)
from router.core.vocabulary import Outcome
from router.stores import metered
from router.stores.claims import AssetClaims
from router.stores.engines import parse_url, write_engine
from router.stores.rows import storable
from router.stores.schema import LOST, asset, asset_on, asset_rate, attempt, period, posting

POSTED_AT_ONCE = 100  # a few milliseconds: reservations wait for it meanwhile
_CLOSED_AT_ONCE = 500
_UNPOSTED = literal_column("posted") == literal_column("0")  # literal, so that the partial index is used
_lines_decoder = msgspec.json.Decoder(list[tuple[str, Decimal]])


class PeriodStore:
    """Synchronous: call it off the event loop. Needs the schema to be in place, and its owner to be the one writer."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = write_engine(parse_url(url))
        self._claims = AssetClaims(self.engine)

    def close(self) -> None:
        """Drop the connections, and with them the claims."""
        self._claims.release()
        self.engine.dispose()

    def renew_claims(self) -> None:
        """See that this gateway still holds its hardware's names. Raises AssetInUse."""
        self._claims.renew()

    def register(self, terms: Sequence[AssetTerms], home: str, now_us: int) -> None:
        """Begin a life of a gateway with these assets: new ones are on from now, a new rate holds from now.

        What this `home` had before and has no more is off from now on, unless another gateway has it now. Raises
        AssetInUse where another gateway keeps hardware of the same name.
        """
        with self._claims.taking(terms), self.engine.begin() as connection:
            for one in terms:
                self._register(connection, one, home, now_us)
            names = [one.asset for one in terms]
            left = connection.scalars(select(asset.c.asset).where(asset.c.home == home, asset.c.asset.not_in(names)))
            gone = [name for name in left if not self._claims.elsewhere(name)]
            self._switch_off(connection, asset_on.c.asset.in_(gone), now_us)

    def _register(self, connection: Connection, terms: AssetTerms, home: str, now_us: int) -> None:
        known = _lock(connection, terms.asset)
        facts = {
            "home": home,
            "kind": terms.kind,
            "on_mode": terms.on.value,
            "shared_engine": terms.shared_engine,
        }
        if known is None:
            start = {"asset": terms.asset, "first_on_us": now_us, "closed_until_us": hour_of(now_us)}
            connection.execute(insert(asset).values(**facts, **start))
        else:
            connection.execute(update(asset).where(asset.c.asset == terms.asset).values(**facts))
        latest = max(rates_of(connection, terms.asset), key=lambda rate: rate.from_us, default=None)
        told = (terms.version, terms.usd_per_hour, terms.energy)
        same = latest is not None and (latest.version, latest.usd_per_hour, latest.energy) == told
        # A clock that was set back must not put a rate into periods that are closed.
        from_us = max(now_us, latest.from_us + 1, known.closed_until_us) if latest and known else now_us
        if not same:
            connection.execute(
                insert(asset_rate).values(
                    asset=terms.asset,
                    from_us=from_us,
                    usd_per_hour=str(terms.usd_per_hour),
                    practical_capacity_ratio=str(terms.practical_capacity_ratio),
                    cost_lines=_lines_json(terms.cost_lines),
                    version=terms.version,
                    power_kw=str(terms.energy.power_kw) if terms.energy is not None else None,
                    wall_usd_per_kwh=str(terms.energy.wall_usd_per_kwh) if terms.energy is not None else None,
                )
            )
        mine = asset_on.c.asset == terms.asset
        if terms.on is OnMode.WHILE_ENGINE_RUNS:
            self._switch_off(connection, mine, now_us)
        elif connection.scalar(select(func.count()).where(mine, asset_on.c.to_us.is_(None))) == 0:
            self._keep_on(connection, terms.asset, now_us, None)

    @staticmethod
    def _switch_off(connection: Connection, which: Any, now_us: int) -> None:
        open_ended = and_(which, asset_on.c.to_us.is_(None))
        connection.execute(delete(asset_on).where(open_ended, asset_on.c.from_us >= now_us))
        connection.execute(update(asset_on).where(open_ended).values(to_us=now_us))

    @staticmethod
    def _keep_on(connection: Connection, name: str, from_us: int, to_us: int | None) -> None:
        mine = and_(asset_on.c.asset == name, asset_on.c.from_us == from_us)
        if connection.scalar(select(func.count()).where(mine)):
            shorter = asset_on.c.to_us < to_us if to_us is not None else asset_on.c.to_us.is_not(None)
            connection.execute(update(asset_on).where(mine, shorter).values(to_us=to_us))
        else:
            connection.execute(insert(asset_on).values(asset=name, from_us=from_us, to_us=to_us))

    def assets_of(self, home: str) -> list[str]:
        """Every asset that `home` answers for, those it has no more included."""
        with self.engine.begin() as connection:
            return list(connection.scalars(select(asset.c.asset).where(asset.c.home == home)))

    def note_on(self, name: str, from_us: int, to_us: int) -> None:
        """The asset was on from `from_us` to `to_us` at least; told again and again while it stays on."""
        with self.engine.begin() as connection:
            _lock(connection, name)
            self._keep_on(connection, name, from_us, to_us)

    def note_energy(self, name: str, stretches: Sequence[Stretch], boot: str) -> None:
        """What was measured of the asset's energy in the life `boot` of the machine; told again as it grows."""
        with self.engine.begin() as connection:
            _lock(connection, name)
            metered.keep(connection, name, stretches, boot)

    def last_looks(self, name: str, boot: str) -> list[CardLook]:
        """What each card's counter said when it was last looked at, in the life `boot` of the machine."""
        with self.engine.begin() as connection:
            return metered.last_looks(connection, name, boot)

    def note_progress(self, notes: Sequence[WorkDone], done_us: int) -> None:
        """Book what running attempts have done by `done_us` (the last microsecond of a period)."""
        for name in sorted({note.asset for note in notes}):
            mine = [note for note in notes if note.asset == name]
            with self.engine.begin() as connection:
                state = _State.load(connection, name)
                if state is None:
                    continue
                keys = [(note.request_id, note.number) for note in mine]
                ended = _done_with(connection, keys)
                earlier = _earlier(connection, keys)
                rows = []
                for note in mine:
                    key = (note.request_id, note.number)
                    if key in ended:  # it has ended meanwhile, and all of it is booked
                        continue
                    part = state.part(key, note.amount_nanousd, note.work_gpu_ns, earlier.get(key), done_us)
                    if part is not None:
                        facts = {"tenant": storable(note.tenant) or "", "model": note.model, "status": "running"}
                        rows.append(_posting_row(part, name, note.price_version, facts))
                if rows:
                    connection.execute(insert(posting), rows)

    def advance(self, name: str, now_us: int) -> bool:
        """Post what has ended and close what is due; True if there is more to do at once."""
        with self.engine.begin() as connection:
            state = _State.load(connection, name)
            if state is None:
                return False
            if self._post(connection, state):
                return True
            return self._close(connection, state, now_us)

    @staticmethod
    def _post(connection: Connection, state: _State) -> bool:
        """Post up to `POSTED_AT_ONCE` attempts; True if there may be more."""
        a = attempt.c
        found = connection.execute(
            select(
                a.request_id, a.number, a.tenant, a.model, a.outcome, a.opened_at_us, a.duration_us, a.work_gpu_ns,
                a.amount_nanousd, a.price_version,
            ).where(_UNPOSTED, a.asset == state.name).limit(POSTED_AT_ONCE)
        ).all()  # fmt: skip
        if not found:
            return False
        earlier = _earlier(connection, [(row.request_id, row.number) for row in found])
        rows = []
        for row in found:
            key = (row.request_id, row.number)
            done_us = row.opened_at_us + (row.duration_us or 0)
            part = state.part(key, row.amount_nanousd, row.work_gpu_ns or 0, earlier.get(key), done_us)
            if part is not None:
                status = status_of(Outcome(row.outcome))
                facts = {"tenant": row.tenant, "model": row.model, "status": status}
                rows.append(_posting_row(part, state.name, row.price_version, facts))
        if rows:
            connection.execute(insert(posting), rows)
        connection.execute(
            update(attempt).where(a.request_id == bindparam("key"), a.number == bindparam("try")).values(posted=1),
            [{"key": row.request_id, "try": row.number} for row in found],
        )
        return len(found) == POSTED_AT_ONCE

    @staticmethod
    def _close(connection: Connection, state: _State, now_us: int) -> bool:
        """Close what is due, up to `_CLOSED_AT_ONCE` periods; True if there may be more."""
        rows, count, until_us = [], 0, state.closed_until_us
        booked = _booked(connection, state.name, state.closed_until_us)
        stretches = metered.stretches_of(connection, state.name, state.closed_until_us)
        for span in due(state.rates, state.closed_until_us, now_us):
            count += 1
            until_us = span.end_us
            on_for_us = on_us(state.on, span.start_us, span.end_us)
            absorbed, work, postings = booked.get(span.start_us, (0, 0, 0))
            # An hour in which it was off and did nothing is no period of its books.
            if on_for_us or postings:
                closed = settle_period(
                    state.name,
                    span,
                    on_for_us=on_for_us,
                    absorbed_nanousd=absorbed,
                    work_gpu_ns=work,
                    stretches=stretches,
                )
                rows.append(_period_row(closed, now_us))
            if count == _CLOSED_AT_ONCE:
                break
        if rows:
            connection.execute(insert(period), rows)
        if count:
            connection.execute(update(asset).where(asset.c.asset == state.name).values(closed_until_us=until_us))
        return count == _CLOSED_AT_ONCE


@dataclass(frozen=True, slots=True)
class _State:
    """One asset as its books have it, its row locked."""

    name: str
    closed_until_us: int
    rates: list[Rate]
    on: list[OnInterval]

    @classmethod
    def load(cls, connection: Connection, name: str) -> _State | None:
        row = _lock(connection, name)
        if row is None:
            return None
        return cls(name, row.closed_until_us, rates_of(connection, name), on_of(connection, name, row.closed_until_us))

    def part(
        self, key: tuple[str, int], amount: int, work: int, earlier: tuple[int, int, int] | None, done_us: int
    ) -> Posting | None:
        return next_part(
            *key,
            total_nanousd=amount,
            total_gpu_ns=work,
            earlier=earlier or (0, 0, 0),
            done_us=done_us,
            rates=self.rates,
            closed_until_us=self.closed_until_us,
        )


def _lock(connection: Connection, name: str) -> Row[Any] | None:
    """The asset's row, nobody else's until the end of the transaction (SQLite's are exclusive from the start)."""
    return connection.execute(select(asset).where(asset.c.asset == name).with_for_update()).one_or_none()


def rates_of(connection: Connection, name: str) -> list[Rate]:
    """The asset's rates, ascending."""
    query = select(asset_rate).where(asset_rate.c.asset == name).order_by(asset_rate.c.from_us)
    return [
        Rate(row.from_us, Decimal(row.usd_per_hour), row.version, lines_of(row.cost_lines), _energy_terms(row))
        for row in connection.execute(query)
    ]


def _energy_terms(row: Row[Any]) -> EnergyTerms | None:
    if row.power_kw is None:
        return None
    return EnergyTerms(Decimal(row.power_kw), Decimal(row.wall_usd_per_kwh))


def on_of(connection: Connection, name: str, since_us: int) -> list[OnInterval]:
    """When the asset was on, as far as it reaches past `since_us`."""
    on = asset_on.c
    query = select(on.from_us, on.to_us).where(on.asset == name, or_(on.to_us.is_(None), on.to_us > since_us))
    return [OnInterval(row.from_us, row.to_us) for row in connection.execute(query.order_by(on.from_us))]


def lines_of(text: str) -> tuple[tuple[str, Decimal], ...]:
    """Cost lines as kept."""
    return tuple(_lines_decoder.decode(text))


def _lines_json(lines: Sequence[tuple[str, Decimal]]) -> str:
    return msgspec.json.encode([(name, str(usd)) for name, usd in lines]).decode()


def _done_with(connection: Connection, keys: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of `keys` whose charge stands whole in the books: posted, or lost and settled by recovery."""
    a = attempt.c
    whole = or_(a.posted == literal_column("1"), a.state == LOST)
    query = select(a.request_id, a.number).where(tuple_(a.request_id, a.number).in_(keys), whole)
    return {(row[0], row[1]) for row in connection.execute(query)}


def _earlier(connection: Connection, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int, int]]:
    """(parts, nano-dollars, GPU-nanoseconds) booked of each attempt; those of other numbers of a request come along."""
    p = posting.c
    query = (
        select(p.request_id, p.number, func.count(), func.sum(p.amount_nanousd), func.sum(p.work_gpu_ns))
        .where(p.request_id.in_({request_id for request_id, _ in keys}))
        .group_by(p.request_id, p.number)
    )
    return {(row[0], row[1]): (row[2], int(row[3]), int(row[4])) for row in connection.execute(query)}


def _booked(connection: Connection, name: str, since_us: int) -> dict[int, tuple[int, int, int]]:
    """(nano-dollars, GPU-nanoseconds, postings) of the asset's periods from `since_us` on."""
    p = posting.c
    query = (
        select(p.period_us, func.sum(p.amount_nanousd), func.sum(p.work_gpu_ns), func.count())
        .where(p.asset == name, p.period_us >= since_us)
        .group_by(p.period_us)
    )
    return {row[0]: (int(row[1]), int(row[2]), row[3]) for row in connection.execute(query)}


def _posting_row(part: Posting, name: str, price_version: str, facts: dict[str, str]) -> dict[str, Any]:
    return {
        "request_id": part.request_id,
        "number": part.number,
        "part": part.part,
        "asset": name,
        "period_us": part.period_us,
        "adjusts_us": part.adjusts_us,
        "done_us": part.done_us,
        "work_gpu_ns": part.work_gpu_ns,
        "amount_nanousd": part.amount_nanousd,
        "price_version": price_version,
        **facts,
    }


def _period_row(closed: Period, now_us: int) -> dict[str, Any]:
    return {
        "asset": closed.asset,
        "start_us": closed.start_us,
        "end_us": closed.end_us,
        "on_us": closed.on_us,
        "usd_per_hour": str(closed.usd_per_hour),
        "rate_version": closed.rate_version,
        "cost_lines": _lines_json(closed.cost_lines),
        "invoice_nanousd": closed.invoice_nanousd,
        "absorbed_nanousd": closed.absorbed_nanousd,
        "unabsorbed_nanousd": closed.unabsorbed_nanousd,
        "work_gpu_ns": closed.work_gpu_ns,
        "closed_at_us": now_us,
        **metered.columns_of(closed.energy),
    }
