"""Figures of quality against cost, on cases whose value is known."""

from __future__ import annotations

import numpy as np
import pytest

from classifier import metrics

RNG = np.random.default_rng(0)
WEAK = (RNG.random(400) < 0.5).astype(float)
STRONG = (RNG.random(400) < 0.8).astype(float)


def test_a_constant_score_is_exactly_random() -> None:
    assert metrics.apgr(np.zeros(400), WEAK, STRONG) == pytest.approx(0.5)


def test_the_gain_itself_is_the_best_score() -> None:
    best = metrics.apgr(STRONG - WEAK, WEAK, STRONG)
    assert best > 0.8
    assert metrics.apgr(WEAK - STRONG, WEAK, STRONG) == pytest.approx(1.0 - best)


def test_ties_do_not_depend_on_the_order_of_rows() -> None:
    score = RNG.integers(0, 3, 400).astype(float)
    order = RNG.permutation(400)
    assert metrics.apgr(score, WEAK, STRONG) == pytest.approx(metrics.apgr(score[order], WEAK[order], STRONG[order]))


def test_cpt_is_the_least_share_that_recovers_the_gap() -> None:
    weak, strong = np.zeros(10), np.array([1.0] * 4 + [0.0] * 6)
    score = np.arange(10, 0, -1).astype(float)
    assert metrics.cpt(score, weak, strong, 0.5) == 0.2
    assert metrics.cpt(score, weak, strong, 1.0) == 0.4


def test_no_gap_gives_no_number() -> None:
    assert np.isnan(metrics.apgr(np.arange(3.0), np.ones(3), np.zeros(3)))


def test_perfect_probabilities_have_only_the_error_of_chance() -> None:
    p = RNG.random(20_000)
    outcome = (RNG.random(20_000) < p).astype(float)
    assert metrics.ece(p, outcome) < 0.02
    assert metrics.ece(np.clip(p + 0.2, 0, 1), outcome) > 0.1
    assert metrics.ideal_ece(p, draws=5, rng=np.random.default_rng(1)) == pytest.approx(
        metrics.ece(p, outcome), abs=0.01
    )


def test_weights_count_rows_as_often_as_they_stand_for() -> None:
    rng = np.random.default_rng(4)
    p = rng.random(4_000)
    outcome = (rng.random(4_000) < p**2).astype(float)
    twice = rng.random(4_000) < 0.5
    weight = np.where(twice, 2.0, 1.0)
    again = np.concatenate([p, p[twice]]), np.concatenate([outcome, outcome[twice]])
    assert metrics.brier(p, outcome, weight=weight) == pytest.approx(metrics.brier(*again))
    assert metrics.ece(p, outcome, weight=weight) == pytest.approx(metrics.ece(*again), abs=0.003)
    assert metrics.ece(p, outcome, weight=np.ones(4_000)) == pytest.approx(metrics.ece(p, outcome), abs=1e-9)
    predicted, observed, error = metrics.reliability(p, outcome, 5, weight=weight)
    assert np.abs(observed - predicted**2).max() < 0.06 and (error > 0.0).all() and len(error) == 5


def test_the_hull_is_what_mixing_can_reach() -> None:
    hull = metrics.upper_hull([(0.0, 0.2), (1.0, 0.3), (2.0, 1.0), (3.0, 0.9)])
    assert hull.cost.tolist() == [0.0, 2.0]
    assert metrics.cost_at(hull, 0.6) == pytest.approx(1.0)
    assert np.isnan(metrics.cost_at(hull, 1.1))
    assert metrics.aiq(hull, 0.0, 2.0) == pytest.approx(0.6)


def test_routing_by_outcomes_beats_every_single_tier() -> None:
    quality = np.stack([WEAK, STRONG], axis=1)
    cost = np.tile([1.0, 10.0], (400, 1))
    curve = metrics.routed_curve(quality, cost, cost, quality)
    assert curve.quality[-1] > STRONG.mean()
    assert metrics.cost_at(curve, float(STRONG.mean())) < 10.0


def test_the_interval_holds_the_figure() -> None:
    score = STRONG - WEAK + RNG.normal(size=400)
    low, high = metrics.bootstrap(
        lambda i: metrics.apgr(score[i], WEAK[i], STRONG[i]), 400, draws=100, rng=np.random.default_rng(2)
    )
    assert low < metrics.apgr(score, WEAK, STRONG) < high


def test_resampled_curves_are_those_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(5)
    p, quality = rng.random((60, 3)), (rng.random((60, 3)) < 0.6).astype(np.float64)
    cost = np.sort(rng.random((60, 3)), axis=1)
    again = np.random.default_rng(9).multinomial(60, np.full(60, 1 / 60), size=4)
    drawn = list(metrics.resampled_curves(p, cost, cost, quality, draws=4, rng=np.random.default_rng(9)))
    for counts, (curve, single) in zip(again, drawn, strict=True):
        rows = np.repeat(np.arange(60), counts)
        assert np.array(single) == pytest.approx(np.array(metrics.single_tiers(cost[rows], quality[rows])), abs=1e-6)
        grid = np.linspace(cost[rows].mean(axis=0).min(), cost[rows].mean(axis=0).max(), 7)
        # lambda is counted in units of the dearest row, drawn or not: the same hull at slightly other points
        wanted = metrics.routed_curve(p[rows], cost[rows], cost[rows], quality[rows])
        heights = [np.interp(grid, c.cost, c.quality) for c in (curve, wanted)]
        assert heights[0] == pytest.approx(heights[1], abs=0.01)
