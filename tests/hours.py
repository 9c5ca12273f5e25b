"""A ledger's writer and the keeper of its hours on one database, for tests; and what must always hold of them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

from sqlalchemy import func, select

from router.core.attempts import AttemptRecord, Charge, WorkDone
from router.core.energy import EnergyTerms
from router.core.periods import HOUR_US, AssetTerms, OnMode
from router.core.vocabulary import Outcome, Tier
from router.stores.database import Database
from router.stores.engines import parse_url, read_engine
from router.stores.events import Reserved, Settled
from router.stores.periods import PeriodStore
from router.stores.rows import from_us, to_us
from router.stores.schema import attempt, period, posting
from tests.ledger_samples import NOON, hold, settled, tried

GPU = "gpu0"
H0 = to_us(NOON.replace(minute=0, second=0, microsecond=0))
MINUTE_US = 60_000_000
RENTED = AssetTerms(
    GPU, "rented", OnMode.ALWAYS, Decimal("2.50"), Decimal(1), (("rent", Decimal("2.50")),), "rented-2.50"
)
OWNED = replace(
    RENTED,
    kind="owned",
    cost_lines=(("capital", Decimal("2.25")), ("energy", Decimal("0.25"))),
    energy=EnergyTerms(Decimal(2), Decimal("0.125")),
)
COUNTED = replace(RENTED, on=OnMode.WHILE_ENGINE_RUNS)


def local(
    amount: int, ended_us: int, *, ran_us: int = 1_000_000, number: int = 1, outcome: Outcome = Outcome.OK
) -> AttemptRecord:
    """A local attempt of `gpu0` that ended at `ended_us`; its work in GPU-nanoseconds is its amount."""
    record = tried(number, tier=Tier.LOCAL, outcome=outcome, at_utc=from_us(ended_us - ran_us))
    return replace(record, charge=Charge(amount, "rented-2.50/h100", amount, (), GPU), duration_s=ran_us / 1e6)


def note(request_id: str, amount: int, begun_us: int = H0) -> WorkDone:
    return WorkDone(request_id, 1, "acme", "llama-3.1-8b", GPU, from_us(begun_us), amount, amount, "rented-2.50/h100")


class Books:
    """A ledger's writer and the keeper of its hours on one database, without threads."""

    def __init__(self, url: str, *, now_us: int = H0, terms: AssetTerms = RENTED, home: str = "here") -> None:
        self.now_us, self.terms, self.home, self.url = now_us, terms, home, url
        self.lives = 0
        self._begin()

    def _begin(self) -> None:
        self.lives += 1
        self.instance = f"life{self.lives}"
        self.ledger = Database(parse_url(self.url), self.instance, lambda: from_us(self.now_us))
        self.ledger.connect()
        self.ledger.resolve_dead()
        self.store = PeriodStore(self.url)
        self.store.register([self.terms], self.home, self.now_us)

    def restart(self, *, after_us: int = 0, terms: AssetTerms | None = None) -> None:
        """As after kill -9."""
        self.close()
        self.now_us += after_us
        self.terms = terms or self.terms
        self._begin()

    def close(self) -> None:
        self.ledger.close()
        self.store.close()

    def begin(self, request_id: str) -> None:
        at = from_us(self.now_us)
        self.ledger.apply([Reserved(hold(request_id, tier=Tier.LOCAL, reserve_nanousd=0, at_utc=at), self.instance)])

    def settle(self, request_id: str, *attempts: AttemptRecord) -> None:
        self.ledger.apply([Settled(settled(request_id, *attempts, rich=False), True)])

    def advance(self, to_us_: int | None = None) -> None:
        self.now_us = max(self.now_us, to_us_ or 0)
        while self.store.advance(GPU, self.now_us):
            pass

    def hours(self) -> list[tuple[int, int, int, int]]:
        """(minute it began at, invoice, absorbed, unabsorbed) of every closed period."""
        with read_engine(self.url).connect() as connection:
            rows = connection.execute(select(period).order_by(period.c.start_us))
            return [
                ((r.start_us - H0) // MINUTE_US, r.invoice_nanousd, r.absorbed_nanousd, r.unabsorbed_nanousd)
                for r in rows
            ]

    def postings(self) -> list[tuple[str, int, int, int, int | None]]:
        """(request, part, amount, hour, hour it adjusts)."""
        with read_engine(self.url).connect() as connection:
            p = posting.c
            rows = connection.execute(select(posting).order_by(p.request_id, p.number, p.part))
            return [
                (
                    r.request_id,
                    r.part,
                    r.amount_nanousd,
                    (r.period_us - H0) // HOUR_US,
                    None if r.adjusts_us is None else (r.adjusts_us - H0) // HOUR_US,
                )
                for r in rows
            ]


def check(books: Books) -> None:
    with read_engine(books.url).connect() as connection:
        periods = connection.execute(select(period).order_by(period.c.start_us)).all()
        p, a = posting.c, attempt.c
        booked: dict[int, int] = {
            row[0]: row[1]
            for row in connection.execute(select(p.period_us, func.sum(p.amount_nanousd)).group_by(p.period_us))
        }
        charged = {
            row[0]: row[1]
            for row in connection.execute(select(p.request_id, func.sum(p.amount_nanousd)).group_by(p.request_id))
        }
        owed = {row[0]: row[1] for row in connection.execute(select(a.request_id, a.amount_nanousd))}
        by_tenant = sum(
            row[1] for row in connection.execute(select(a.tenant, func.sum(a.amount_nanousd)).group_by(a.tenant))
        )
    for row in periods:
        assert row.absorbed_nanousd + row.unabsorbed_nanousd == row.invoice_nanousd
        assert row.absorbed_nanousd == booked.pop(row.start_us, 0)
        assert row.on_us == row.end_us - row.start_us
    assert not booked  # every posting stands in a closed period
    for earlier, later in pairwise(periods):
        assert earlier.end_us == later.start_us
    # what was noted of requests that still run has no attempt yet
    assert {name: amount for name, amount in charged.items() if name in owed} == {
        name: amount for name, amount in owed.items() if name in charged
    }
    assert all(amount == 0 for name, amount in owed.items() if name not in charged)
    assert by_tenant == sum(owed.values())
