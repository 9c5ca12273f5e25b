"""Dials: thresholds and nu, and whether the stated confidence holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from classifier.calibrate import (
    CalibrationRow,
    CalibrationSample,
    TokenPrices,
    mean_is_positive,
    nu_for_target,
    threshold_for_share,
)

PRICES = {"local": TokenPrices(0.02, 0.05), "premium": TokenPrices(1.25, 5.0)}


def sample(count: int, rng: np.random.Generator) -> CalibrationSample:
    made = []
    for _ in range(count):
        p_local = float(rng.beta(2, 1))
        p = (p_local, 0.5 + 0.5 * p_local)
        quality = tuple(float(rng.random() < x) for x in p)
        made.append(CalibrationRow(p, quality, int(rng.integers(50, 500)), (100.0, 100.0)))
    return CalibrationSample(("local", "premium"), tuple(made))


def kept_by(nu_usd: float, made: CalibrationSample) -> float:
    """Expected share of premium quality, by the true p."""
    got = best = 0.0
    for row in made.rows:
        cost = [PRICES[t].usd(row.input_tokens, row.output_tokens[i]) for i, t in enumerate(made.tiers)]
        chosen = min((0, 1), key=lambda i: cost[i] - nu_usd * row.p[i])
        got, best = got + row.p[chosen], best + row.p[1]
    return got / best


def test_the_threshold_sends_the_wanted_share() -> None:
    scores = [i / 100 for i in range(100)]
    cut = threshold_for_share(scores, 0.2)
    assert sum(s >= cut for s in scores) == 20
    assert threshold_for_share(scores, 0.0) == math.inf
    assert threshold_for_share(scores, 1.0) == 0.0
    with pytest.raises(ValueError, match="no scores"):
        threshold_for_share([], 0.5)


def test_a_higher_target_costs_more_and_keeps_more() -> None:
    made = sample(2_000, np.random.default_rng(0))
    dials = [nu_for_target(made, PRICES, target_ratio=t) for t in (0.8, 0.9, 0.95)]
    assert all(d.certified for d in dials)
    assert [d.nu_usd for d in dials] == sorted(d.nu_usd for d in dials)
    assert [d.cost_ratio for d in dials] == sorted(d.cost_ratio for d in dials)
    assert all(d.kept_lower_ratio >= d.target_ratio - 0.006 for d in dials)


def test_the_stated_confidence_holds_on_fresh_data() -> None:
    rng = np.random.default_rng(7)
    world = sample(20_000, rng)
    misses = 0
    runs = 60
    for _ in range(runs):
        dial = nu_for_target(sample(400, rng), PRICES, target_ratio=0.85, confidence_ratio=0.8)
        misses += dial.certified and kept_by(dial.nu_usd, world) < 0.85
    assert misses / runs <= 0.2


def test_without_evidence_the_safest_setting_is_used_and_said() -> None:
    dial = nu_for_target(sample(20, np.random.default_rng(1)), PRICES, target_ratio=0.99)
    assert not dial.certified
    assert "do not show" in dial.statement
    assert dial.cost_ratio == pytest.approx(1.0)


def test_prices_move_nu() -> None:
    made = sample(1_000, np.random.default_rng(2))
    dearer = PRICES | {"premium": TokenPrices(12.5, 50.0)}
    assert (
        nu_for_target(made, dearer, target_ratio=0.9).nu_usd > 5 * nu_for_target(made, PRICES, target_ratio=0.9).nu_usd
    )


def test_missing_reference_or_sample_is_said() -> None:
    with pytest.raises(ValueError, match="premium"):
        nu_for_target(sample(10, np.random.default_rng(0)), {"local": PRICES["local"]}, target_ratio=0.9)
    with pytest.raises(ValueError, match="empty"):
        nu_for_target(CalibrationSample(("local", "premium"), ()), PRICES, target_ratio=0.9)


def test_a_mean_of_zero_is_seldom_called_positive() -> None:
    rng = np.random.default_rng(3)
    called = sum(
        mean_is_positive(rng.choice([-0.9, 0.0, 0.9], size=300).tolist(), low=-0.9, high=1.0, delta=0.1)
        for _ in range(200)
    )
    assert called / 200 <= 0.1


def test_a_clearly_positive_mean_is_seen() -> None:
    rng = np.random.default_rng(4)
    assert mean_is_positive(
        rng.choice([-0.9, 0.0, 0.9], p=[0.05, 0.65, 0.3], size=500).tolist(), low=-0.9, high=1.0, delta=0.1
    )
