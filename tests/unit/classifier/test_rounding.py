"""What training rounds, so that both forms of a model have the same numbers: weights of words and values of leaves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.serving import FINEST_WEIGHT_STEP, IDF_STEP, LANE_BITS, LEAF_BITS, MOST_WORDS
from classifier.views import on_grid, round_leaves, round_weights

WORDS = 4_000
IDF = on_grid(np.linspace(1.0, 11.0, WORDS), IDF_STEP)


@pytest.mark.parametrize("size", [1e-6, 0.3, 50.0, 1e6])
def test_the_words_of_the_worst_text_fit_their_lane(size: float) -> None:
    coef = np.random.default_rng(0).normal(0.0, size, (1, WORDS + 3))
    head = SimpleNamespace(coef_=coef.copy())
    step = round_weights(head, IDF)
    lanes = np.sort(head.coef_[0, :WORDS] * IDF / (step * IDF_STEP))
    assert np.array_equal(lanes, np.round(lanes)), "a weight is a whole number of steps"
    assert max(lanes[-MOST_WORDS:].sum(), -lanes[:MOST_WORDS].sum()) < 2 ** (LANE_BITS - 1)
    assert step == FINEST_WEIGHT_STEP or np.abs(lanes).sum() > 2 ** (LANE_BITS - 4), "no coarser than need be"
    assert np.array_equal(head.coef_[0, WORDS:], coef[0, WORDS:]), "numbers are not words"


@given(st.lists(st.floats(-100.0, 100.0), min_size=2, max_size=16))
def test_leaves_move_by_half_a_step_at_most_and_span_no_more_bits_than_there_are(values: list[float]) -> None:
    nodes = np.array([(v,) for v in values], dtype=[("value", np.float64)])
    step = round_leaves(SimpleNamespace(_predictors=[[SimpleNamespace(nodes=nodes)]]))
    assert np.abs(nodes["value"] - values).max() <= step / 2
    steps = nodes["value"] / step
    assert np.array_equal(steps, np.round(steps))
    assert steps.max() - steps.min() < 2**LEAF_BITS
