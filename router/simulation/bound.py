"""What no rule can do without: the least spend that the reading of prompts alone leaves, everything known beforehand.

Every prompt kept must be read within the promised time to first token of its arrival, on one GPU. Each interval of time
holds no more reading than it is long, so the work that is kept, y, obeys for all requests i <= j in order of arrival

    y_i + ... + y_j  <=  (arrival_j + TTFT) - arrival_i

Those sets form a polymatroid, on which taking requests greedily by what they are worth per second of work is optimal.
Requests may be kept in part, and writing the answers costs nothing here: a bound from below, not a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from local_llm.steptime import prefill_s
from router.simulation.traces import TraceRequest


def least_spend_ratio(
    trace: Sequence[TraceRequest],
    costs_usd: Sequence[Decimal],
    *,
    coefficients: EngineCoefficients,
    limits: EngineLimits,
    slo: SloTargets,
) -> float:
    """The share of `costs_usd`, one a request of `trace` in order of arrival, that is spent whatever the rule."""
    total = float(sum(costs_usd, Decimal(0)))
    if total <= 0.0:
        return 0.0
    chunk_s = coefficients.t0_s / limits.max_batched_tokens  # every chunk is a step
    work_s = [prefill_s(coefficients, r.prompt_tokens) + chunk_s * r.prompt_tokens for r in trace]
    worth = [float(cost) for cost in costs_usd]
    room_s = max(0.0, slo.ttft_s - coefficients.api_s)
    arrivals = [request.at_s for request in trace]
    ends, begins = _Tree([-at_s for at_s in arrivals]), _Tree(arrivals)
    kept = 0.0
    for index in sorted(range(len(trace)), key=lambda i: (-worth[i] / max(work_s[i], 1e-12), i)):
        # What the tightest interval around it leaves: over all i <= index <= j.
        left_s = room_s - (ends.greatest(index, len(trace)) + begins.greatest(0, index + 1))
        done_s = min(work_s[index], max(0.0, left_s))
        if done_s > 0.0:
            ends.add(index, len(trace), done_s)
            begins.add(index + 1, len(trace), -done_s)
            kept += worth[index] * done_s / work_s[index]
    return max(0.0, 1.0 - kept / total)


class _Tree:
    """Values by position: add to a range, ask for the greatest of one; O(log n) each."""

    def __init__(self, values: Sequence[float]) -> None:
        self._size = 1
        while self._size < max(1, len(values)):
            self._size *= 2
        nothing = float("-inf")
        self._greatest = [nothing] * self._size + list(values) + [nothing] * (self._size - len(values))
        for node in range(self._size - 1, 0, -1):
            self._greatest[node] = max(self._greatest[2 * node], self._greatest[2 * node + 1])
        self._added = [0.0] * (2 * self._size)

    def add(self, first: int, after: int, amount: float) -> None:
        """`amount` to every value from `first` up to before `after`."""
        left, right = first + self._size, after + self._size
        low, high = left, right
        while left < right:
            if left & 1:
                self._apply(left, amount)
                left += 1
            if right & 1:
                right -= 1
                self._apply(right, amount)
            left //= 2
            right //= 2
        if first < after:
            self._pull(low)
            self._pull(high - 1)

    def greatest(self, first: int, after: int) -> float:
        """The greatest value from `first` up to before `after`."""
        return max(
            (self._along(node) for node in self._cover(first + self._size, after + self._size)),
            default=float("-inf"),
        )

    def _cover(self, left: int, right: int) -> list[int]:
        nodes: list[int] = []
        while left < right:
            if left & 1:
                nodes.append(left)
                left += 1
            if right & 1:
                right -= 1
                nodes.append(right)
            left //= 2
            right //= 2
        return nodes

    def _along(self, node: int) -> float:
        found = self._greatest[node]
        node //= 2
        while node:
            found += self._added[node]
            node //= 2
        return found

    def _apply(self, node: int, amount: float) -> None:
        self._greatest[node] += amount
        self._added[node] += amount

    def _pull(self, node: int) -> None:
        node //= 2
        while node:
            below = max(self._greatest[2 * node], self._greatest[2 * node + 1])
            self._greatest[node] = below + self._added[node]
            node //= 2
