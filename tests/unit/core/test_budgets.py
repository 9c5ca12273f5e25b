"""No window is ever overspent by what was reserved, clocks may jump, and the pace follows the spending."""

import asyncio
import random
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.budgets import (
    PACE_MAX,
    PACE_MIN,
    PACE_START,
    BudgetBook,
    Period,
    next_pace,
    share_passed,
    window_at,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
USD = 10**9


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def book(wall: Wall | None = None, spent: dict[Period, int] | None = None, **limits: int) -> BudgetBook:
    return BudgetBook(
        {Period(name): usd * USD for name, usd in limits.items()}, now_utc=wall or Wall(), spent_nanousd=spent
    )


def spent(b: BudgetBook, now: datetime = NOON) -> dict[str, int]:
    return {state.scope: state.spent_nanousd for state in b.states(now)}


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        (Period.DAY, "2026-11-22T00:00:00", "2026-11-22", "2026-11-23"),
        (Period.DAY, "2026-11-22T23:59:59.999999", "2026-11-22", "2026-11-23"),
        (Period.DAY, "2026-12-31T12:00:00", "2026-12-31", "2027-01-01"),
        (Period.MONTH, "2026-02-28T23:59:59", "2026-02-01", "2026-03-01"),
        (Period.MONTH, "2028-02-29T00:00:00", "2028-02-01", "2028-03-01"),
        (Period.MONTH, "2026-12-01T00:00:00", "2026-12-01", "2027-01-01"),
    ],
)
def test_windows_are_half_open_days_and_months_of_utc(period, at, start, end):
    window = window_at(period, datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert window.starts_at_utc == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert window.ends_at_utc == datetime.fromisoformat(end).replace(tzinfo=UTC)


def test_a_moment_told_in_another_zone_falls_in_its_utc_day():
    late_in_new_york = datetime(2026, 11, 21, 20, tzinfo=timezone(timedelta(hours=-5)))
    assert window_at(Period.DAY, late_in_new_york).starts_at_utc == datetime(2026, 11, 22, tzinfo=UTC)


def test_room_is_taken_in_every_window_or_in_none():
    b = book(day=10, month=5)
    assert not b.try_reserve(6 * USD)
    assert b.reserved_nanousd == 0
    assert b.try_reserve(5 * USD)
    assert not b.try_reserve(1)


def test_settling_gives_the_reservation_back_and_books_what_was_spent():
    b = book(day=10, month=100)
    assert b.try_reserve(10 * USD)
    b.settle(reserved_nanousd=10 * USD, spent_nanousd=3 * USD)
    assert spent(b) == {"day": 3 * USD, "month": 3 * USD}
    assert b.reserved_nanousd == 0
    assert b.try_reserve(7 * USD)
    assert not b.try_reserve(1)


def test_a_reservation_of_nothing_passes_even_when_all_is_spent():
    b = book(day=1, spent={Period.DAY: 5 * USD})
    assert b.try_reserve(0)
    assert not b.try_reserve(1)
    assert b.states(NOON)[0].left_nanousd == 0


def test_without_a_budget_everything_passes():
    b = book()
    assert b.try_reserve(10**18)
    assert b.states(NOON) == ()


def test_a_budget_of_zero_lets_no_cash_through():
    assert not book(day=0).try_reserve(1)


def test_spending_starts_from_what_the_ledger_shows():
    b = book(day=10, month=100, spent={Period.DAY: 9 * USD, Period.MONTH: 50 * USD})
    assert not b.try_reserve(2 * USD)
    assert b.try_reserve(1 * USD)


def test_spending_of_the_open_windows_can_be_carried_over_from_the_ledger():
    b = book(day=10, month=100)
    assert b.windows == {Period.DAY: window_at(Period.DAY, NOON), Period.MONTH: window_at(Period.MONTH, NOON)}
    b.carry_over({Period.DAY: 9 * USD, Period.MONTH: 95 * USD})
    assert spent(b) == {"day": 9 * USD, "month": 95 * USD}
    assert not b.try_reserve(2 * USD)
    b.carry_over({Period.MONTH: 5 * USD})
    assert spent(b) == {"day": 9 * USD, "month": 100 * USD}
    with pytest.raises(ValueError, match="negative"):
        b.carry_over({Period.DAY: -1})


def test_money_carried_over_is_not_taken_for_spending_of_the_last_minute():
    wall = Wall()
    b = book(wall, day=1440)
    b.carry_over({Period.DAY: 1000 * USD})
    wall.now += timedelta(minutes=1)
    assert b.states(wall.now)[0].pace < PACE_START


def test_the_truth_is_booked_even_where_it_exceeds_the_reservation():
    b = book(day=10)
    b.try_reserve(1 * USD)
    b.settle(reserved_nanousd=1 * USD, spent_nanousd=12 * USD)
    assert spent(b) == {"day": 12 * USD}
    assert not b.try_reserve(1)


@pytest.mark.parametrize("amount", [-1, -(10**12)])
def test_negative_amounts_are_refused(amount):
    b = book(day=10)
    with pytest.raises(ValueError, match="negative"):
        b.try_reserve(amount)
    with pytest.raises(ValueError, match="negative"):
        b.settle(reserved_nanousd=0, spent_nanousd=amount)
    with pytest.raises(ValueError, match="negative"):
        book(day=amount)


def test_a_reservation_settled_twice_never_makes_room_that_is_not_there():
    b = book(day=10)
    b.try_reserve(10 * USD)
    for _ in range(3):
        b.settle(reserved_nanousd=10 * USD, spent_nanousd=0)
    assert b.reserved_nanousd == 0
    assert not b.try_reserve(11 * USD)


def test_a_new_day_starts_with_nothing_spent_and_the_month_goes_on():
    wall = Wall()
    b = book(wall, day=10, month=15)
    b.try_reserve(10 * USD)
    b.settle(reserved_nanousd=10 * USD, spent_nanousd=10 * USD)
    assert not b.try_reserve(1)
    wall.now = datetime(2026, 11, 22, 23, 59, 59, 999_999, tzinfo=UTC)
    assert not b.try_reserve(1)
    wall.now = datetime(2026, 11, 23, tzinfo=UTC)
    assert b.try_reserve(5 * USD)
    assert not b.try_reserve(1)
    assert spent(b, wall.now) == {"day": 0, "month": 10 * USD}


def test_an_open_reservation_is_carried_into_the_next_window():
    wall = Wall()
    b = book(wall, day=10)
    b.try_reserve(6 * USD)
    wall.now += timedelta(days=1)
    assert not b.try_reserve(5 * USD)
    b.settle(reserved_nanousd=6 * USD, spent_nanousd=6 * USD)
    assert spent(b, wall.now) == {"day": 6 * USD}


@pytest.mark.parametrize("hours", [-1, -25, -24 * 40])
def test_a_clock_that_jumps_back_opens_no_window_again(hours):
    wall = Wall(datetime(2026, 12, 1, 0, 30, tzinfo=UTC))
    b = book(wall, day=10, month=10)
    b.try_reserve(10 * USD)
    b.settle(reserved_nanousd=10 * USD, spent_nanousd=10 * USD)
    wall.now += timedelta(hours=hours)
    assert not b.try_reserve(1)
    assert spent(b, wall.now) == {"day": 10 * USD, "month": 10 * USD}


def test_a_clock_that_jumps_over_midnight_and_back_does_not_spend_twice():
    wall = Wall(datetime(2026, 11, 22, 23, 30, tzinfo=UTC))
    b = book(wall, day=10)
    wall.now += timedelta(hours=1)
    assert b.try_reserve(10 * USD)
    b.settle(reserved_nanousd=10 * USD, spent_nanousd=10 * USD)
    for hours in (-1, 1):
        wall.now += timedelta(hours=hours)
        assert not b.try_reserve(1)


async def test_200_parallel_requests_with_room_for_10_let_10_through():
    b = book(day=50)
    peak = 0

    async def request(rng: random.Random) -> bool:
        nonlocal peak
        if not b.try_reserve(5 * USD):
            return False
        peak = max(peak, b.reserved_nanousd)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        b.settle(reserved_nanousd=5 * USD, spent_nanousd=5 * USD)
        return True

    done = await asyncio.gather(*[request(random.Random(n)) for n in range(200)])
    assert sum(done) == 10
    assert spent(b) == {"day": 50 * USD}
    assert b.reserved_nanousd == 0
    assert peak <= 50 * USD


@given(st.integers(0, 2**32), st.integers(0, 50 * USD))
def test_reserving_and_settling_200_requests_in_any_order_never_exceeds_the_limit(seed, limit):
    rng = random.Random(seed)
    requests = [(rng.choice([0, 1, rng.randrange(3 * USD)]), rng.random()) for _ in range(200)]
    b = BudgetBook({Period.DAY: limit, Period.MONTH: 2 * limit}, now_utc=Wall())
    held: list[tuple[int, int]] = []
    expected = 0
    for reserve, share in requests:
        if b.try_reserve(reserve):
            held.append((reserve, int(reserve * share)))
        while held and rng.random() < 0.4:
            reserved, cost = held.pop(rng.randrange(len(held)))
            b.settle(reserved_nanousd=reserved, spent_nanousd=cost)
            expected += cost
        day = b.states(NOON)[0]
        assert day.spent_nanousd + day.reserved_nanousd <= limit
        assert day.spent_nanousd == expected
        assert day.reserved_nanousd == sum(reserved for reserved, _ in held)


@given(st.lists(st.tuples(st.timedeltas(timedelta(hours=-30), timedelta(hours=60)), st.integers(0, USD)), max_size=60))
def test_whatever_the_clock_does_no_window_spends_more_than_its_limit(steps):
    wall = Wall()
    b = book(wall, day=2, month=3)
    seen: dict[datetime, int] = {}
    for jump, amount in steps:
        wall.now += jump
        if b.try_reserve(amount):
            b.settle(reserved_nanousd=amount, spent_nanousd=amount)
            for state in b.states(wall.now):
                if state.scope == "day":
                    ends = state.window_ends_at_utc
                    seen[ends] = seen.get(ends, 0) + amount
    assert all(total <= 2 * USD for total in seen.values())


def test_the_pace_rises_when_spending_runs_ahead_and_falls_when_it_lags():
    assert next_pace(0.01, 200, 100.0) == pytest.approx(0.01 * 2.718281828**0.2)
    assert next_pace(0.01, 0, 100.0) == pytest.approx(0.01 * 2.718281828**-0.2)
    assert next_pace(0.01, 100, 100.0) == 0.01


def test_the_pace_stays_within_its_bounds():
    assert next_pace(0.01, 10**15, 1.0) == PACE_MAX
    assert next_pace(0.01, 0, 100.0, intervals=1e9) == PACE_MIN
    assert next_pace(0.01, 1, 0.0) == PACE_MAX
    assert next_pace(0.01, 0, 0.0) == 0.01


def test_the_pace_of_a_window_follows_its_spending_minute_by_minute():
    wall = Wall()
    b = book(wall, day=1440)  # a dollar a minute
    assert b.states(wall.now)[0].pace == PACE_START
    paces = []
    for dollars in (2, 2, 1, 0):
        b.settle(reserved_nanousd=0, spent_nanousd=dollars * USD)
        wall.now += timedelta(seconds=30)
        before = b.states(wall.now)[0].pace
        wall.now += timedelta(seconds=30)
        paces.append(b.states(wall.now)[0].pace)
        assert before == (paces[-2] if len(paces) > 1 else PACE_START)
    assert PACE_START < paces[0] < paces[1]
    assert paces[2] == pytest.approx(paces[1])
    assert paces[3] < paces[2]


def test_a_long_sleep_counts_as_the_minutes_it_was():
    wall = Wall()
    b = book(wall, day=1440)
    wall.now += timedelta(hours=2)
    assert b.states(wall.now)[0].pace == PACE_MIN


def test_the_pace_survives_midnight():
    wall = Wall(datetime(2026, 11, 22, 23, 58, tzinfo=UTC))
    b = book(wall, day=1440)
    b.settle(reserved_nanousd=0, spent_nanousd=10 * USD)
    wall.now += timedelta(minutes=1)
    pace = b.states(wall.now)[0].pace
    wall.now += timedelta(minutes=1, seconds=5)
    assert b.states(wall.now)[0].pace == pace > PACE_START


def test_the_share_of_a_day_follows_the_curve_of_its_hours():
    office = [0.0] * 8 + [1.0] * 10 + [0.0] * 6
    day = window_at(Period.DAY, NOON)

    def at(hour: float) -> float:
        return share_passed(day, day.starts_at_utc + timedelta(hours=hour), office)

    assert [at(h) for h in (0, 8, 13, 18, 24)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert at(8.5) == pytest.approx(0.05)
    assert share_passed(day, NOON) == 0.5


@given(st.lists(st.floats(0, 10), min_size=24, max_size=24).filter(lambda w: sum(w) > 0.01), st.integers(0, 44_640))
def test_the_share_of_a_month_rises_from_0_to_1(weights, minute):
    month = window_at(Period.MONTH, datetime(2026, 12, 9, tzinfo=UTC))

    def at(m: int) -> float:
        return share_passed(month, month.starts_at_utc + timedelta(minutes=m), weights)

    assert 0.0 <= at(minute) <= at(minute + 1) + 1e-12
    assert at(0) == 0.0
    assert at(31 * 24 * 60) == pytest.approx(1.0)


@pytest.mark.parametrize("weights", [[1.0] * 23, [0.0] * 24, [-1.0] + [1.0] * 23])
def test_a_curve_that_is_none_is_refused(weights):
    with pytest.raises(ValueError, match="24 weights"):
        share_passed(window_at(Period.DAY, NOON), NOON, weights)
