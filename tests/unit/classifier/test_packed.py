"""Packed sums and trees: the same numbers as the long way, whatever is counted."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier import registry
from classifier.packed import FACTOR_ONE, OutOfRange, Scaling, Sums
from classifier.scorer import TrainedScorer
from classifier.serving import LEAVES_PER_TREE, ServingModel, from_bytes
from classifier.textstats import COUNT_NAMES, COUNT_PLACES, DENSE_COUNT, VALUE_PLACES, counted
from classifier.trees import TreeBank

DATA = (registry.shipped_folder() / registry.SERVING).read_bytes()
MODEL, TABLE = from_bytes(DATA)
SCALING, TREES = Scaling(MODEL), TreeBank(MODEL)

COUNTS = st.lists(st.integers(0, 5_000), min_size=len(COUNT_PLACES), max_size=len(COUNT_PLACES))
VALUES = st.lists(st.floats(0.0, 10.0, allow_subnormal=False), min_size=len(VALUE_PLACES), max_size=len(VALUE_PLACES))
BY_SUBJECT = st.lists(st.floats(0.0, 1.0, allow_subnormal=False), min_size=3, max_size=3)


def numbers_of(counts: list[int], values: list[float]) -> list[float]:
    numbers = [0.0] * DENSE_COUNT
    for place, name, count in zip(COUNT_PLACES, COUNT_NAMES, counts, strict=True):
        numbers[place] = counted(name, count)
    for place, value in zip(VALUE_PLACES, values, strict=True):
        numbers[place] = value
    return numbers


def scaled(model: ServingModel, numbers: list[float]) -> list[float]:
    return [
        min(max((n - m) / s, -model.clip), model.clip) for n, m, s in zip(numbers, model.mean, model.scale, strict=True)
    ]


def test_every_number_is_either_counted_or_measured() -> None:
    assert sorted((*COUNT_PLACES, *VALUE_PLACES)) == list(range(DENSE_COUNT))


@given(COUNTS, VALUES)
def test_packed_sums_are_the_dot_products(counts: list[int], values: list[float]) -> None:
    rows = MODEL.experts[0]
    columns = list(zip(*rows, strict=True))
    sums = Sums(
        SCALING, lambda d, z: [w * z for w in columns[d]], [columns[d] for d in VALUE_PLACES], [0.5] * len(rows)
    )
    factors = [int(z * FACTOR_ONE) for z in SCALING.values(values)]
    z = scaled(MODEL, numbers_of(counts, values))
    wanted = [0.5 + sum(a * b for a, b in zip(z, row, strict=True)) for row in rows]
    for _ in range(2):  # made, then remembered
        assert sums.of(counts, factors) == pytest.approx(wanted, abs=1e-11)


@given(COUNTS, VALUES, BY_SUBJECT)
def test_the_bit_vector_finds_the_leaves_that_walking_the_trees_finds(
    counts: list[int], values: list[float], by_subject: list[float]
) -> None:
    numbers = [*numbers_of(counts, values), *by_subject]
    alive = [(1 << LEAVES_PER_TREE) - 1] * sum(MODEL.tree_count)
    for number, threshold, tree, left in MODEL.tree_splits:
        if numbers[int(number)] > threshold:
            alive[int(tree)] &= ~int(left)
    leaves = iter([(bits & -bits).bit_length() - 1 for bits in alive])
    wanted = []
    for base, step, count, planes in zip(
        MODEL.tree_baseline, MODEL.tree_step, MODEL.tree_count, MODEL.tree_planes, strict=True
    ):
        at = [LEAVES_PER_TREE * tree + next(leaves) for tree in range(count)]
        wanted.append(base + step * sum((plane >> i & 1) << bit for i in at for bit, plane in enumerate(planes)))
    assert TREES.scores(counts, [*values, *by_subject]) == pytest.approx(wanted, abs=1e-11)


def test_what_a_count_adds_is_remembered_for_a_bounded_number_of_values() -> None:
    sums = Sums(SCALING, lambda _, z: [z], [(1.0,)] * len(VALUE_PLACES), [0.0])
    counts, factors = [0] * len(COUNT_PLACES), [0] * len(VALUE_PLACES)
    for count in range(1_000):
        sums.of([count, *counts[1:]], factors)
    assert len(sums._rows[0]) <= 256
    assert isclose(sums.of([999, *counts[1:]], factors)[0], sums.of([998, *counts[1:]], factors)[0], rel_tol=0.01)


@pytest.mark.parametrize("weight", [1e9, float("inf"), float("nan")])
def test_weights_that_cannot_be_right_are_refused(weight: float) -> None:
    broken = replace(MODEL, experts=(((weight,) * DENSE_COUNT,) * len(MODEL.tiers), *MODEL.experts[1:]))
    with pytest.raises(OutOfRange):
        TrainedScorer(broken, TABLE)
