"""Budgets over days and months of UTC: room is taken before a call, and given back when the call is settled.

Only cash counts; a local answer reserves nothing and always passes. Windows are half-open, [start, end), with stored
boundaries: a wall clock that jumps back stays in the window it has left, so no money can be spent twice. A reservation
that outlives its window is carried into the next, and money is booked in the window in which it is settled.

Each window paces its spending by a multiplier on cash, lambda_B (adaptive pacing, Balseiro and Gur 2019):
lambda <- clip(lambda * exp(eta * (spend / target - 1))) once a minute, where target is the budget's share of that
minute. The windows adapt independently; the larger multiplier counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import exp

from router.core.snapshot import BudgetState

PACE_INTERVAL_S = 60.0
PACE_STEP = 0.2
PACE_START = 0.01
PACE_MIN = 0.001
PACE_MAX = 10.0
_MAX_EXPONENT = 50.0
_HOURS = 24


class Period(StrEnum):
    """What a budget is over."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Window:
    """[starts_at_utc, ends_at_utc)."""

    starts_at_utc: datetime
    ends_at_utc: datetime

    def elapsed_ratio(self, now_utc: datetime) -> float:
        """Share of the window that has passed, 0..1."""
        return min(1.0, max(0.0, (now_utc - self.starts_at_utc) / (self.ends_at_utc - self.starts_at_utc)))


def window_at(period: Period, at_utc: datetime) -> Window:
    """The UTC day or calendar month that holds `at_utc` (aware)."""
    at_utc = at_utc.astimezone(UTC)
    midnight = at_utc.replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return Window(midnight, midnight + timedelta(days=1))
    first = midnight.replace(day=1)
    return Window(first, (first + timedelta(days=32)).replace(day=1))


def share_passed(window: Window, now_utc: datetime, hourly_shares: Sequence[float] | None = None) -> float:
    """Share of the window's budget that should be spent by `now_utc`, 0..1.

    `hourly_shares` are the 24 relative weights of the hours of a day (UTC); without them spending is even.
    """
    if hourly_shares is None:
        return window.elapsed_ratio(now_utc)
    if len(hourly_shares) != _HOURS or min(hourly_shares) < 0 or sum(hourly_shares) <= 0:
        raise ValueError("hourly_shares must be 24 weights, none negative and not all 0")
    now_utc = min(max(now_utc, window.starts_at_utc), window.ends_at_utc)
    days = (window.ends_at_utc - window.starts_at_utc) // timedelta(days=1)
    whole_days, rest = divmod(now_utc - window.starts_at_utc, timedelta(days=1))
    hours, part = divmod(rest, timedelta(hours=1))
    of_day = sum(hourly_shares[:hours])
    if part:
        of_day += hourly_shares[hours] * (part / timedelta(hours=1))
    return (whole_days + of_day / sum(hourly_shares)) / days


def next_pace(pace: float, spent_nanousd: int, target_nanousd: float, intervals: float = 1.0) -> float:
    """lambda_B after `intervals` minutes in which `spent_nanousd` went out where `target_nanousd` was meant to."""
    if target_nanousd <= 0:
        return PACE_MAX if spent_nanousd > 0 else pace
    exponent = PACE_STEP * intervals * (spent_nanousd / target_nanousd - 1.0)
    return min(PACE_MAX, max(PACE_MIN, pace * exp(min(_MAX_EXPONENT, max(-_MAX_EXPONENT, exponent)))))


@dataclass(slots=True)
class _Account:
    """One budget in its window. `paced_*` is where the pace was last looked at."""

    period: Period
    limit_nanousd: int
    window: Window
    spent_nanousd: int
    pace: float
    paced_at_utc: datetime
    paced_spent_nanousd: int

    def room_nanousd(self, reserved_nanousd: int) -> int:
        return self.limit_nanousd - self.spent_nanousd - reserved_nanousd


class BudgetBook:
    """All budgets of the process, exact as long as one event loop (or thread) uses it: no call gives way half-done.

    `limits_nanousd` says which periods have a budget; `spent_nanousd` what the ledger shows as spent in the windows of
    now. `now_utc` is the wall clock.
    """

    def __init__(
        self,
        limits_nanousd: Mapping[Period, int],
        *,
        now_utc: Callable[[], datetime],
        spent_nanousd: Mapping[Period, int] | None = None,
        hourly_shares: Sequence[float] | None = None,
    ) -> None:
        now = now_utc()
        already = spent_nanousd or {}
        for period, limit in limits_nanousd.items():
            if limit < 0 or already.get(period, 0) < 0:
                raise ValueError(f"limit and spending of the {period} budget must not be negative")
        self._now_utc = now_utc
        self._hourly_shares = hourly_shares
        self._reserved_nanousd = 0
        self._accounts = [
            _Account(
                period=Period(period),
                limit_nanousd=limit,
                window=window_at(Period(period), now),
                spent_nanousd=already.get(period, 0),
                pace=PACE_START,
                paced_at_utc=now,
                paced_spent_nanousd=already.get(period, 0),
            )
            for period, limit in limits_nanousd.items()
        ]

    @property
    def windows(self) -> Mapping[Period, Window]:
        """The window each budget is in."""
        return {account.period: account.window for account in self._accounts}

    def carry_over(self, spent_nanousd: Mapping[Period, int]) -> None:
        """Add what the books show as spent in these windows before this process began; once, at start."""
        if any(amount < 0 for amount in spent_nanousd.values()):
            raise ValueError("what was spent must not be negative")
        for account in self._accounts:
            account.spent_nanousd += spent_nanousd.get(account.period, 0)
            account.paced_spent_nanousd += spent_nanousd.get(account.period, 0)

    @property
    def reserved_nanousd(self) -> int:
        """Sum of the open reservations."""
        return self._reserved_nanousd

    def try_reserve(self, nanousd: int) -> bool:
        """Take room in every window, or nothing. A reservation of 0 always passes."""
        if nanousd < 0:
            raise ValueError(f"a reservation must not be negative: {nanousd}")
        self._roll(self._now_utc())
        if nanousd and any(account.room_nanousd(self._reserved_nanousd) < nanousd for account in self._accounts):
            return False
        self._reserved_nanousd += nanousd
        return True

    def settle(self, *, reserved_nanousd: int, spent_nanousd: int) -> None:
        """Give the reservation back and book what was really spent; once per reservation. Never goes below 0."""
        if reserved_nanousd < 0 or spent_nanousd < 0:
            raise ValueError(f"amounts must not be negative: reserved {reserved_nanousd}, spent {spent_nanousd}")
        self._roll(self._now_utc())
        self._reserved_nanousd = max(0, self._reserved_nanousd - reserved_nanousd)
        for account in self._accounts:
            account.spent_nanousd += spent_nanousd

    def states(self, now_utc: datetime) -> tuple[BudgetState, ...]:
        """One frozen look at every budget; rolls windows that have ended and adapts the pace once a minute."""
        self._roll(now_utc)
        for account in self._accounts:
            self._adapt_pace(account, now_utc)
        return tuple(
            BudgetState(
                scope=account.period.value,
                limit_nanousd=account.limit_nanousd,
                spent_nanousd=account.spent_nanousd,
                reserved_nanousd=self._reserved_nanousd,
                window_ends_at_utc=account.window.ends_at_utc,
                pace=account.pace,
            )
            for account in self._accounts
        )

    def _roll(self, now_utc: datetime) -> None:
        """Open a new window only where the stored one has ended: a clock that jumps back changes nothing."""
        for account in self._accounts:
            if now_utc >= account.window.ends_at_utc:
                account.window = window_at(account.period, now_utc)
                account.spent_nanousd = account.paced_spent_nanousd = 0
                account.paced_at_utc = account.window.starts_at_utc

    def _adapt_pace(self, account: _Account, now_utc: datetime) -> None:
        passed_s = (now_utc - account.paced_at_utc).total_seconds()
        if passed_s < PACE_INTERVAL_S:
            return
        share = share_passed(account.window, now_utc, self._hourly_shares) - share_passed(
            account.window, account.paced_at_utc, self._hourly_shares
        )
        account.pace = next_pace(
            account.pace,
            account.spent_nanousd - account.paced_spent_nanousd,
            share * account.limit_nanousd,
            passed_s / PACE_INTERVAL_S,
        )
        account.paced_at_utc = now_utc
        account.paced_spent_nanousd = account.spent_nanousd
