"""Exploration: now and then another tier than the chosen one answers, with a known probability, so that the log can
tell how good the tiers are that the policy does not choose. Pure; the dice are thrown elsewhere and passed in.

Epsilon-greedy over tiers: with n tiers that may be tried besides the chosen one, that one keeps 1 - epsilon and each
of them has epsilon / n. Which tiers may be tried is settled before the draw is looked at, so the probabilities are
those with which the choice was really made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from router.core.budgets import Period, window_at
from router.core.decision import Decision
from router.core.vocabulary import NANO_PER_USD, Reason


@dataclass(frozen=True, slots=True)
class Draw:
    """Who answers: `taken` is one of the tiers given, `probability` maps every tier that might have been taken."""

    taken: str
    probability: Mapping[str, float]


def draw_tier(draw: float, ratio: float, chosen: str, others: Sequence[str]) -> Draw:
    """One throw, `draw` in [0, 1), of the dice of epsilon = `ratio` over the tier `chosen` and the `others`."""
    if not others or ratio <= 0.0:
        return Draw(chosen, {chosen: 1.0})
    each = ratio / len(others)
    probability = {chosen: 1.0 - ratio} | dict.fromkeys(others, each)
    if draw >= ratio:
        return Draw(chosen, probability)
    return Draw(others[min(int(draw / ratio * len(others)), len(others) - 1)], probability)


def extra_nanousd(decision: Decision) -> int:
    """What an explored `decision` is expected to cost above the choice it replaced; 0 for any other, never below 0."""
    if decision.reason is not Reason.EXPLORE or len(decision.ranked) < 2:
        return 0
    taken, usual = (decision.alternative(c.name).marginal_cost_usd or 0.0 for c in decision.ranked[:2])
    return max(0, round((taken - usual) * NANO_PER_USD))


class ExplorationBudget:
    """How much exploring may cost above the usual choice, in expectation, in one UTC day.

    A wall clock that jumps back stays in the day it has left. Used by one thread.
    """

    def __init__(self, limit_nanousd: int) -> None:
        self._limit_nanousd = limit_nanousd
        self._spent_nanousd = 0
        self._ends_at_utc = datetime.min.replace(tzinfo=UTC)

    def left_nanousd(self, now_utc: datetime) -> int:
        """Room for more, never below 0."""
        if now_utc >= self._ends_at_utc:
            self._ends_at_utc = window_at(Period.DAY, now_utc).ends_at_utc
            self._spent_nanousd = 0
        return max(0, self._limit_nanousd - self._spent_nanousd)

    def note(self, nanousd: int, now_utc: datetime) -> None:
        """So much has been spent on it: by a decision now, or today before this process began."""
        self.left_nanousd(now_utc)
        self._spent_nanousd += nanousd
