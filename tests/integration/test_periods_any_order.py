"""Requests, aborts, crashes, on-times, meters, closes in any order: the invariants of the books hold at every step."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select

from router.core.energy import Basis, EnergyTerms, Stretch
from router.core.periods import HOUR_US, AssetTerms, OnMode, fully_loaded
from router.core.vocabulary import Outcome
from router.stores.engines import read_engine
from router.stores.events import Settled
from router.stores.reports import Hours, hours
from router.stores.rows import from_us
from router.stores.schema import attempt, posting
from tests.hours import GPU, H0, MINUTE_US, RENTED, Books, local, note
from tests.ledger_samples import settled

AMOUNTS = st.integers(0, 3_000_000_000)
ENDS = st.sampled_from([Outcome.OK, Outcome.CLIENT_GONE, Outcome.BROKEN, Outcome.TIMEOUT])


class AnyOrder(RuleBasedStateMachine):
    """One gateway's life after the other on one SQLite file."""

    @initialize(
        on=st.sampled_from(list(OnMode)),
        metered=st.booleans(),
        usd=st.sampled_from(["2.50", "0.333333333", "7"]),
    )
    def begin(self, on: OnMode, metered: bool, usd: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        lines = (("capital", Decimal(usd) - Decimal("0.1")), ("energy", Decimal("0.1")))
        energy = EnergyTerms(Decimal(1), Decimal("0.1")) if metered else None
        self.terms: AssetTerms = replace(
            RENTED, on=on, usd_per_hour=Decimal(usd), cost_lines=lines, energy=energy, version=f"v{usd}"
        )
        self.books = Books(f"sqlite:///{self.folder.name}/ledger.db", terms=self.terms)
        self.running: dict[str, int] = {}
        self.told: list[Settled] = []  # what a spool may hold, and replay
        self.untold: list[Settled] = []  # settled in a spool while the gateway was dead, not replayed yet
        self.number = self.joules = 0
        self.metered_us = H0
        self.last: list[tuple[int, int, int, int]] = []

    def teardown(self) -> None:
        if hasattr(self, "books"):
            self.close_hours(130)
            self.nothing_is_charged_twice()
            self.books.close()
            self.folder.cleanup()

    # --- what may happen -------------------------------------------------------------------------------------------

    @rule()
    def a_request_comes(self) -> None:
        self.number += 1
        name = f"r{self.number}"
        self.books.begin(name)
        self.running[name] = self.books.now_us

    @precondition(lambda self: self.running)
    @rule(pick=st.randoms(use_true_random=False), amounts=st.lists(AMOUNTS, min_size=1, max_size=3), outcome=ENDS)
    def it_ends(self, pick: object, amounts: list[int], outcome: Outcome) -> None:
        name = pick.choice(sorted(self.running))  # type: ignore[attr-defined]
        self.told.append(self._settlement(name, amounts, outcome))
        self.books.ledger.apply(self.told[-1:])

    @precondition(lambda self: self.running)
    @rule(pick=st.randoms(use_true_random=False), amount=AMOUNTS)
    def it_ends_but_only_the_spool_knows(self, pick: object, amount: int) -> None:
        name = pick.choice(sorted(self.running))  # type: ignore[attr-defined]
        self.untold.append(self._settlement(name, [amount], Outcome.OK))

    def _settlement(self, name: str, amounts: list[int], outcome: Outcome) -> Settled:
        ran_us = self.books.now_us - self.running.pop(name)
        tries = [
            local(amount, self.books.now_us, ran_us=ran_us, number=at, outcome=outcome)
            for at, amount in enumerate(amounts, 1)
        ]
        tenant = f"t{len(name) % 3}"
        return Settled(settled(name, *tries, tenant=tenant, rich=False, outcome=outcome), True)

    @rule(amount=st.integers(0, 10_000))
    def the_hour_ends_and_what_runs_is_noted(self, amount: int) -> None:
        hour_us = self.books.now_us - self.books.now_us % HOUR_US
        notes = [note(name, amount, begun) for name, begun in self.running.items() if begun < hour_us]
        self.books.store.note_progress(notes, hour_us - 1)

    @rule(minutes=st.integers(1, 200))
    def close_hours(self, minutes: int) -> None:
        self.books.advance(self.books.now_us + minutes * MINUTE_US)

    @rule(minutes=st.integers(0, 300), usd=st.sampled_from([None, "1", "4.000000001"]))
    def the_gateway_dies_and_comes_back(self, minutes: int, usd: str | None) -> None:
        self.running.clear()
        if usd is not None:
            lines = (("capital", Decimal(usd) - Decimal("0.1")), ("energy", Decimal("0.1")))
            self.terms = replace(self.terms, usd_per_hour=Decimal(usd), cost_lines=lines, version=f"v{usd}")
        self.books.restart(after_us=minutes * MINUTE_US, terms=self.terms)

    @precondition(lambda self: self.told or self.untold)
    @rule()
    def the_spool_is_replayed(self) -> None:
        self.told += self.untold
        self.untold.clear()
        self.books.ledger.apply(self.told)

    @rule(back=st.integers(0, 90), minutes=st.integers(0, 90))
    def the_engine_was_on(self, back: int, minutes: int) -> None:
        if self.terms.on is OnMode.WHILE_ENGINE_RUNS:
            from_us = self.books.now_us - back * MINUTE_US
            self.books.store.note_on(GPU, from_us, min(self.books.now_us, from_us + minutes * MINUTE_US))

    @rule(minutes=st.integers(1, 90), joules=st.integers(0, 10**6))
    def the_meter_is_read(self, minutes: int, joules: int) -> None:
        until_us = min(self.books.now_us, self.metered_us + minutes * MINUTE_US)
        if self.terms.energy is not None and until_us > self.metered_us:
            drawn = Stretch("A", self.metered_us, until_us, joules * 1000, Basis.COUNTER, None, 1)
            self.books.store.note_energy(GPU, [drawn], "boot")
            self.metered_us = until_us
            self.joules += joules

    # --- what must hold --------------------------------------------------------------------------------------------

    def _found(self) -> Hours:
        return hours(read_engine(self.books.url), from_us(self.books.now_us))

    @invariant()
    def every_period_balances_and_no_closed_one_changes(self) -> None:
        if not hasattr(self, "books"):
            return
        found = self._found()
        for period in found.periods:
            assert period.absorbed_nanousd + period.unabsorbed_nanousd == period.invoice_nanousd
            assert sum(period.invoice_lines().values()) == period.invoice_nanousd
            assert 0 <= period.on_us <= period.end_us - period.start_us
            if period.energy is None or period.energy.measured_mj == 0:
                exact = Fraction(period.usd_per_hour) * period.on_us / HOUR_US * 10**9
                assert abs(period.invoice_nanousd - exact) <= 1
            mine = [g.amount_nanousd for g in found.groups if g.period_us == period.start_us]
            assert sum(mine) == period.absorbed_nanousd
            loaded = fully_loaded(period.invoice_nanousd, mine)
            assert loaded is None or sum(loaded) == period.invoice_nanousd
        closed = self.books.hours()
        assert closed[: len(self.last)] == self.last
        self.last = closed
        measured = sum(p.energy.measured_mj for p in found.periods if p.energy is not None)
        assert measured <= self.joules * 1000

    @invariant()
    def nothing_is_charged_twice(self) -> None:
        if not hasattr(self, "books"):
            return
        with read_engine(self.books.url).connect() as connection:
            p, a = posting.c, attempt.c
            posted = {
                (row[0], row[1]): int(row[2])
                for row in connection.execute(
                    select(p.request_id, p.number, func.sum(p.amount_nanousd)).group_by(p.request_id, p.number)
                )
            }
            rows = connection.execute(select(a.request_id, a.number, a.amount_nanousd, a.posted, a.state)).all()
        owed = {(row[0], row[1]): row for row in rows}
        for key, row in owed.items():
            # posted means that exactly what it cost stands in the periods; lost means what was noted stands there
            if row.posted or row.state == "lost":
                assert posted.get(key, 0) == row.amount_nanousd
        settled_for = {s.record.request_id: s.record.cost_nanousd for s in self.told}
        booked: dict[str, int] = {}
        for row in rows:
            booked[row.request_id] = booked.get(row.request_id, 0) + row.amount_nanousd
        for name, cost in settled_for.items():
            assert booked[name] == cost


AnyOrder.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

TestTheBooksInAnyOrder = AnyOrder.TestCase
