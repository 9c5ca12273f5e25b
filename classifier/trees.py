"""All trees of all tiers as one bit vector, a byte per tree, as in QuickScorer (Lucchese et al., SIGIR 2015). Pure.

Each threshold that a number passes clears the leaves it rules out; the lowest bit left in a tree's byte is its leaf.
What a number clears is one integer per step between its thresholds, all trees at once. Leaves' values are added by bit:
how many of the leaves taken have it, times what it stands for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, chain, repeat
from operator import and_, getitem, mul, or_

from classifier.packed import RowsByCount
from classifier.serving import LEAF_BITS, LEAVES_PER_TREE, ServingModel
from classifier.textstats import COUNT_NAMES, COUNT_PLACES, DENSE_COUNT, VALUE_PLACES, counted

_ones_of, _of_tier = int.bit_count, int.from_bytes
_Steps = tuple[list[float], list[int]]


class TreeBank:
    """Log-odds of each tier by boosted trees."""

    def __init__(self, model: ServingModel) -> None:
        count = sum(model.tree_count)
        self._bytes = LEAVES_PER_TREE * count // 8
        self._full = (1 << (LEAVES_PER_TREE * count)) - 1
        self._ones = int.from_bytes(b"\x01" * count, "little")
        ends = list(accumulate(model.tree_count))
        spans = [slice(end - own, end) for end, own in zip(ends, model.tree_count, strict=True)]
        weights = [[step * 2.0**bit for bit in range(LEAF_BITS)] for step in model.tree_step]
        self._tiers = list(zip(spans, model.tree_planes, weights, model.tree_baseline, strict=True))
        cleared: dict[int, dict[float, int]] = {}
        for number, threshold, tree, left in model.tree_splits:
            steps = cleared.setdefault(int(number), {})
            steps[threshold] = steps.get(threshold, 0) | int(left) << (LEAVES_PER_TREE * int(tree))
        steps_by_place = {place: _cumulative(steps) for place, steps in cleared.items()}
        never: _Steps = ([], [0])
        self._by_count = [
            _rows_of(name, steps_by_place.get(place, never))
            for name, place in zip(COUNT_NAMES, COUNT_PLACES, strict=True)
        ]
        # Behind the numbers stand those by subject, a tier each.
        by_subject = range(DENSE_COUNT, DENSE_COUNT + len(model.tiers)) if model.subject_intercept else ()
        of_values = [steps_by_place.get(place, never) for place in (*VALUE_PLACES, *by_subject)]
        self._thresholds = [thresholds for thresholds, _ in of_values]
        self._cleared = [cleared for _, cleared in of_values]

    def scores(self, counts: Sequence[int], values: Sequence[float]) -> list[float]:
        """Log-odds per tier. Behind the values of `VALUE_NAMES` stand the numbers by subject, where there are any."""
        passed = map(bisect_left, self._thresholds, values)
        cleared = chain(map(getitem, self._by_count, counts), map(getitem, self._cleared, passed))
        alive = reduce(or_, filter(None, cleared), 0) ^ self._full
        # Every byte has a bit left, so subtracting 1 from each borrows nothing and isolates the lowest bits.
        leaves = (alive & ~(alive - self._ones)).to_bytes(self._bytes, "little")
        return [
            sum(map(mul, weights, map(_ones_of, map(and_, planes, repeat(_of_tier(leaves[span], "little"))))), baseline)
            for span, planes, weights, baseline in self._tiers
        ]


def _cumulative(steps: dict[float, int]) -> _Steps:
    """Distinct thresholds ascending, and what is cleared when the first k of them are passed."""
    thresholds = sorted(steps)
    cleared = [0]
    for threshold in thresholds:
        cleared.append(cleared[-1] | steps[threshold])
    return thresholds, cleared


def _rows_of(name: str, steps: _Steps) -> RowsByCount:
    thresholds, cleared = steps
    return RowsByCount(lambda count: cleared[bisect_left(thresholds, counted(name, count))])
