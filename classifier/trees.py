"""All trees of all tiers as one bit vector, a byte per tree, as in QuickScorer (Lucchese et al., SIGIR 2015). Pure.

Each threshold that a number passes clears the leaves it rules out; the lowest bit left in a tree's byte is its leaf.
What a number clears is one integer per step between its thresholds, all trees at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import reduce
from itertools import chain
from operator import getitem, or_

from classifier.packed import RowsByCount
from classifier.serving import LEAVES_PER_TREE, ServingModel
from classifier.textstats import COUNT_NAMES, COUNT_PLACES, VALUE_PLACES, counted

_BIT_INDEX = bytes((code & -code).bit_length() - 1 if code else 0 for code in range(256))
_Steps = tuple[list[float], list[int]]


class TreeBank:
    """Log-odds of each tier by boosted trees."""

    def __init__(self, model: ServingModel) -> None:
        self._baseline = model.tree_baseline
        counts = [len(trees) for trees in model.tree_leaves]
        self._bytes = sum(counts)
        self._full = (1 << (LEAVES_PER_TREE * self._bytes)) - 1
        ends = [sum(counts[: t + 1]) for t in range(len(counts))]
        self._spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self._leaf_tables = model.tree_leaves
        self._ones = int.from_bytes(b"\x01" * self._bytes, "little")
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
        of_values = [steps_by_place.get(place, never) for place in VALUE_PLACES]
        self._thresholds = [thresholds for thresholds, _ in of_values]
        self._cleared = [cleared for _, cleared in of_values]

    def scores(self, counts: Sequence[int], values: Sequence[float]) -> list[float]:
        """Log-odds per tier."""
        passed = map(bisect_left, self._thresholds, values)
        cleared = chain(map(getitem, self._by_count, counts), map(getitem, self._cleared, passed))
        alive = reduce(or_, filter(None, cleared), 0) ^ self._full
        # Every byte has a bit left, so subtracting 1 from each borrows nothing and isolates the lowest bits.
        leaves = (alive & ~(alive - self._ones)).to_bytes(self._bytes, "little").translate(_BIT_INDEX)
        return [
            sum(map(getitem, tables, leaves[span]), start)
            for tables, span, start in zip(self._leaf_tables, self._spans, self._baseline, strict=True)
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
