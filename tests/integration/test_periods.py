"""The hours in a real database: posted once, closed once and in order, whatever happens in between."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from router.core.attempts import Charge
from router.core.periods import GRACE_US, HOUR_US
from router.stores.engines import read_engine
from router.stores.events import Settled
from router.stores.periods import rates_of
from router.stores.rows import to_us
from router.stores.schema import asset_on, attempt
from router.stores.sql import SqlLedger
from tests.hours import COUNTED, GPU, H0, MINUTE_US, RENTED, Books, check, local, note
from tests.ledger_samples import NOON, WallClock, settled


@pytest.fixture
def books(url: str) -> Iterator[Books]:
    kept = Books(url)
    yield kept
    kept.close()


def test_the_worked_hour(tmp_path: Path) -> None:
    """20 000 complete answers, 1 000 aborted ones, 50 aborted in the queue; a thousand attempts to a request."""
    books = Books(f"sqlite:///{tmp_path}/ledger.db")
    amounts = [63_889] * 20_000 + [27_986] * 1_000 + [0] * 50
    for start in range(0, len(amounts), 1_000):
        part = amounts[start : start + 1_000]
        books.settle(f"r{start}", *(local(amount, H0 + start + i, number=i) for i, amount in enumerate(part, 1)))
    books.advance(H0 + HOUR_US + GRACE_US)
    assert books.hours() == [(0, 2_500_000_000, 1_305_766_000, 1_194_234_000)]
    books.close()


def test_an_hour_is_closed_after_its_grace_and_never_again(books: Books) -> None:
    books.settle("a", local(1_000, H0 + 5 * MINUTE_US))
    books.advance(H0 + HOUR_US + GRACE_US - 1)
    assert books.hours() == []
    books.advance(H0 + HOUR_US + GRACE_US)
    once = [(0, 2_500_000_000, 1_000, 2_499_999_000)]
    assert books.hours() == once
    books.advance()
    books.restart()
    books.advance()
    assert books.hours() == once


def test_hours_in_which_the_gateway_was_down_are_closed_at_the_start_with_nothing_absorbed(books: Books) -> None:
    books.settle("a", local(1_000, H0 + MINUTE_US))
    books.restart(after_us=4 * HOUR_US + GRACE_US)
    books.advance()
    idle = [(60 * hour, 2_500_000_000, 0, 2_500_000_000) for hour in (1, 2, 3)]
    assert books.hours() == [(0, 2_500_000_000, 1_000, 2_499_999_000), *idle]


def test_a_year_of_absence_is_caught_up(tmp_path: Path) -> None:
    books = Books(f"sqlite:///{tmp_path}/ledger.db")
    books.restart(after_us=8_766 * HOUR_US + GRACE_US)
    books.advance()
    assert len(books.hours()) == 8_766
    assert sum(invoice for _, invoice, _, _ in books.hours()) == 8_766 * 2_500_000_000
    books.close()


def test_what_is_on_from_twenty_past_is_invoiced_for_forty_minutes(url: str) -> None:
    books = Books(url, now_us=H0 + 20 * MINUTE_US)
    books.advance(H0 + HOUR_US + GRACE_US)
    assert books.hours() == [(0, 1_666_666_667, 0, 1_666_666_667)]
    books.close()


def test_an_engine_that_is_counted_while_it_runs_is_billed_for_that_and_idle_hours_are_none(url: str) -> None:
    books = Books(url, terms=COUNTED)
    for until in (10, 20, 30):
        books.store.note_on(GPU, H0 + 5 * MINUTE_US, H0 + until * MINUTE_US)
    books.store.note_on(GPU, H0 + 5 * MINUTE_US, H0 + 25 * MINUTE_US)  # an older word, arriving late
    books.store.note_on(GPU, H0 + 170 * MINUTE_US, H0 + 180 * MINUTE_US)
    books.advance(H0 + 4 * HOUR_US)
    assert [(minute, invoice) for minute, invoice, _, _ in books.hours()] == [(0, 1_041_666_667), (120, 416_666_667)]
    books.close()


def test_an_hour_that_was_off_is_a_period_where_work_is_booked_in_it(url: str) -> None:
    books = Books(url, terms=COUNTED)  # its on-time was never told: what it sold stands there all the same
    books.settle("a", local(1_000, H0 + 65 * MINUTE_US))
    books.advance(H0 + 3 * HOUR_US + GRACE_US)
    assert books.hours() == [(60, 0, 1_000, -1_000)]
    books.close()


def test_work_over_the_boundary_is_booked_where_it_was_done_and_once(books: Books) -> None:
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.store.note_progress([note("a", 900)], H0 + 2 * HOUR_US - 1)
    books.settle("a", local(1_000, H0 + 2 * HOUR_US + 5, ran_us=2 * HOUR_US))
    books.advance(H0 + 3 * HOUR_US + GRACE_US)
    assert books.postings() == [("a", 0, 400, 0, None), ("a", 1, 500, 1, None), ("a", 2, 100, 2, None)]
    assert [absorbed for _, _, absorbed, _ in books.hours()] == [400, 500, 100]


def test_progress_told_twice_or_after_the_end_changes_nothing(books: Books) -> None:
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.settle("a", local(1_000, H0 + HOUR_US + 5, ran_us=HOUR_US))
    books.advance(H0 + HOUR_US + MINUTE_US)
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    assert books.postings() == [("a", 0, 400, 0, None), ("a", 1, 600, 1, None)]


def test_an_answer_that_turns_out_cheaper_than_noted_is_corrected_downwards(books: Books) -> None:
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.settle("a", local(350, H0 + HOUR_US + 5, ran_us=HOUR_US))
    books.advance()
    assert books.postings() == [("a", 0, 400, 0, None), ("a", 1, -50, 1, None)]


def test_a_late_charge_goes_to_the_next_period_and_says_which_it_adjusts(books: Books) -> None:
    books.advance(H0 + 2 * HOUR_US + GRACE_US)
    books.settle("late", local(1_000, H0 + MINUTE_US))
    books.advance(H0 + 3 * HOUR_US + GRACE_US)
    assert books.postings() == [("late", 0, 1_000, 2, 0)]
    assert [absorbed for _, _, absorbed, _ in books.hours()] == [0, 0, 1_000]


def test_a_lost_attempt_keeps_what_was_noted_and_the_rest_is_unabsorbed(books: Books) -> None:
    books.begin("a")
    books.begin("b")
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.restart(after_us=2 * HOUR_US + GRACE_US)
    books.advance()
    assert books.postings() == [("a", 0, 400, 0, None)]
    with read_engine(books.url).connect() as connection:
        a = attempt.c
        rows = connection.execute(select(a.request_id, a.outcome, a.amount_nanousd).order_by(a.request_id)).all()
    assert [tuple(row) for row in rows] == [("a", "lost", 400), ("b", "lost", 0)]
    assert books.hours()[0] == (0, 2_500_000_000, 400, 2_499_999_600)


def test_a_settlement_found_after_the_crash_replaces_the_loss_and_is_charged_once(books: Books) -> None:
    books.begin("a")
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.restart(after_us=2 * HOUR_US + GRACE_US)
    books.advance()
    for _ in range(2):  # the spool may be replayed twice
        books.settle("a", local(1_000, H0 + HOUR_US + MINUTE_US, ran_us=HOUR_US))
        books.advance()
    assert books.postings() == [("a", 0, 400, 0, None), ("a", 1, 600, 2, 1)]


def test_a_new_rate_splits_the_hour_in_which_the_gateway_was_restarted_with_it(books: Books) -> None:
    books.settle("cheap", local(10, H0 + MINUTE_US))
    books.restart(
        after_us=15 * MINUTE_US, terms=replace(RENTED, usd_per_hour=Decimal(4), version="rented-4", cost_lines=())
    )
    books.settle("dear", local(20, H0 + 30 * MINUTE_US))
    books.advance(H0 + HOUR_US + GRACE_US)
    assert books.hours() == [
        (0, 625_000_000, 10, 624_999_990),
        (15, 3_000_000_000, 20, 2_999_999_980),
    ]


def test_a_new_rate_is_not_put_into_closed_hours_by_a_clock_that_was_set_back(books: Books) -> None:
    books.advance(H0 + 2 * HOUR_US + GRACE_US)
    closed = books.hours()
    books.restart(after_us=-(HOUR_US + GRACE_US), terms=replace(RENTED, usd_per_hour=Decimal(4), version="rented-4"))
    with read_engine(books.url).connect() as connection:
        assert [rate.from_us for rate in rates_of(connection, GPU)] == [H0, H0 + 2 * HOUR_US]
    books.advance(H0 + 3 * HOUR_US + GRACE_US)
    assert books.hours() == [*closed, (120, 4_000_000_000, 0, 4_000_000_000)]


def test_hardware_that_left_the_config_is_off_and_its_last_hour_is_closed(books: Books) -> None:
    books.now_us = H0 + 30 * MINUTE_US
    books.store.register([replace(RENTED, asset="gpu1")], "here", books.now_us)
    assert sorted(books.store.assets_of("here")) == [GPU, "gpu1"]
    books.advance(H0 + 5 * HOUR_US)
    assert books.hours() == [(0, 1_250_000_000, 0, 1_250_000_000)]


def test_another_installation_does_not_switch_it_off(books: Books) -> None:
    books.store.register([], "elsewhere", H0 + MINUTE_US)
    with read_engine(books.url).connect() as connection:
        still_on = select(func.count()).select_from(asset_on).where(asset_on.c.to_us.is_(None))
        assert connection.scalar(still_on) == 1


async def test_an_attempt_of_the_first_schema_is_never_posted(books: Books) -> None:
    unpriced = replace(local(10, H0 + 1), charge=Charge(10, "rented-2.50", 10))
    books.settle("old", unpriced)
    books.advance(H0 + HOUR_US + GRACE_US)
    assert books.postings() == []


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqlLedger]:
    kept = await SqlLedger.open(f"sqlite:///{tmp_path}/ledger.db", tmp_path, clock=WallClock(NOON))
    yield kept
    await kept.close()


async def test_the_asset_of_a_charge_is_kept_with_it(ledger: SqlLedger) -> None:
    record = settled("a", local(10, to_us(NOON)))
    ledger.settle(record, hold_open=False)
    assert await ledger.record("a") == record


operations = st.lists(
    st.one_of(
        st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 3_000_000_000)),
        st.tuples(st.just("begin"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("sweep"), st.just(0), st.integers(0, 10_000)),
        st.tuples(st.just("wait"), st.just(0), st.integers(1, 200)),
        st.tuples(st.just("crash"), st.just(0), st.integers(0, 300)),
        st.tuples(st.just("rate"), st.just(0), st.integers(1, 9)),
        st.tuples(st.just("replay"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations)
def test_the_books_balance_under_any_interleaving(steps: list[tuple[str, int, int]]) -> None:
    """Absorbed + unabsorbed = invoice; nothing charged twice; replays change nothing; by tenant = by request."""
    with tempfile.TemporaryDirectory() as folder:
        books = Books(f"sqlite:///{folder}/ledger.db")
        done: list[Settled] = []
        running: dict[str, int] = {}
        for count, (what, who, how_much) in enumerate(steps):
            name = f"r{who}"
            if what == "begin" and name not in running and not any(s.record.request_id == name for s in done):
                books.begin(name)
                running[name] = books.now_us
            elif what == "settle" and name in running:
                ran_us = books.now_us - running.pop(name)
                record = settled(name, local(how_much, books.now_us, ran_us=ran_us), tenant=f"t{who % 3}", rich=False)
                done.append(Settled(record, True))
                books.ledger.apply(done[-1:])
            elif what == "sweep":
                hour_us = books.now_us - books.now_us % HOUR_US
                notes = [note(n, how_much + count, begun) for n, begun in running.items() if begun < hour_us]
                books.store.note_progress(notes, hour_us - 1)
            elif what == "wait":
                books.advance(books.now_us + how_much * MINUTE_US)
            elif what == "crash":
                running.clear()
                books.restart(after_us=how_much * MINUTE_US)
            elif what == "rate":
                usd = Decimal(how_much)
                books.restart(terms=replace(RENTED, usd_per_hour=usd, version=f"v{count}"))
                running.clear()
            elif what == "replay" and done:
                books.ledger.apply(done)
        books.advance(books.now_us + 2 * HOUR_US + GRACE_US)
        check(books)
        before = books.hours(), books.postings()
        if done:
            books.ledger.apply(done)
        books.advance()
        assert (books.hours(), books.postings()) == before
        books.close()
