"""What a GPU-second of the local tier is worth: the window of value densities behind the congestion price. Pure.

The value density of a request is d = cash of the API it would go to otherwise / GPU-seconds of local work. The last
512 are kept; their quantiles are what `weighing.congestion_usd_per_gpu_s` reads the price off.
"""

from __future__ import annotations

from collections import deque

from router.core.decision import Decision
from router.core.vocabulary import Tier

WINDOW = 512
POINTS = 33
"""Quantiles told, evenly spaced from the least to the greatest."""
REFRESH_EVERY = 32


class DensityWindow:
    """Learns from decisions; sorts once in `REFRESH_EVERY` of them, else O(1).

    In GPU-seconds of `engine` (a candidate's name); of the first engine that a decision weighed, if that is `None`.
    """

    def __init__(self, engine: str | None = None) -> None:
        self._engine = engine
        self._densities: deque[float] = deque(maxlen=WINDOW)
        self._notes = 0
        self.quantiles: tuple[float, ...] = ()
        """Ascending, in usd per GPU-second; empty until enough decisions have been seen."""

    def note(self, decision: Decision) -> bool:
        """Remember a decision that had both a local engine and an eligible API; tells whether `quantiles` is new."""
        work_gpu_s = 0.0
        best_usd = cash_usd = None
        for alternative in decision.alternatives:
            if alternative.tier is Tier.LOCAL:
                if self._engine in (None, alternative.name):
                    work_gpu_s = work_gpu_s or alternative.work_gpu_s or 0.0
            elif alternative.objective_usd is not None and (best_usd is None or alternative.objective_usd < best_usd):
                best_usd, cash_usd = alternative.objective_usd, alternative.expected_cost_usd or 0.0
        if work_gpu_s <= 0.0 or cash_usd is None:
            return False
        self._densities.append(cash_usd / work_gpu_s)
        self._notes += 1
        if self._notes % REFRESH_EVERY:
            return False
        ordered = sorted(self._densities)
        last = len(ordered) - 1
        self.quantiles = tuple(ordered[round(i * last / (POINTS - 1))] for i in range(POINTS))
        return True
