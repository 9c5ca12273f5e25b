"""Dials: thresholds and nu, and whether the stated confidence holds."""

from __future__ import annotations

import math
from dataclasses import replace

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


def partly_seen(made: CalibrationSample, rng: np.random.Generator, chance: float) -> CalibrationSample:
    """`made` as a log shows it whose policy went by p and otherwise threw dice: doubly robust outcomes."""
    rows = []
    for row in made.rows:
        usual = int(row.p[0] < 0.6)
        taken = usual if rng.random() < 1.0 - chance else 1 - usual
        guess = (0.5 + 0.5 * row.p[0], row.p[1])  # a poor one, too kind to the local tier
        quality = list(guess)
        quality[taken] += (row.quality[taken] - guess[taken]) / (1.0 - chance if taken == usual else chance)
        rows.append(replace(row, quality=tuple(quality)))
    return CalibrationSample(made.tiers, tuple(rows), quality_range=(1.0 - 1.0 / chance, 1.0 / chance))


class World:
    """What a nu really keeps on fresh data: the expected share of premium quality, by the true p."""

    def __init__(self, made: CalibrationSample) -> None:
        self.p = np.array([row.p for row in made.rows])
        self.cost = np.array(
            [
                [PRICES[t].usd(row.input_tokens, row.output_tokens[i]) for i, t in enumerate(made.tiers)]
                for row in made.rows
            ]
        )

    def kept_by(self, nu_usd: float) -> float:
        chosen = np.argmin(self.cost - nu_usd * self.p, axis=1)
        return float(self.p[np.arange(len(chosen)), chosen].sum() / self.p[:, 1].sum())


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


@pytest.mark.parametrize(
    ("count", "runs", "seen"), [(30, 400, 1.0), (60, 300, 1.0), (400, 60, 1.0), (400, 60, 0.3), (60, 200, 0.05)]
)
def test_the_stated_confidence_holds_on_fresh_data_however_few_rows_show_it(count: int, runs: int, seen: float) -> None:
    rng = np.random.default_rng(7)
    world, target, delta = World(sample(20_000, rng)), 0.85, 0.2
    certified = misses = 0
    for _ in range(runs):
        made = sample(count, rng)
        shown = made if seen == 1.0 else partly_seen(made, rng, seen)
        dial = nu_for_target(shown, PRICES, target_ratio=target, confidence_ratio=1.0 - delta)
        certified += dial.certified
        misses += dial.certified and world.kept_by(dial.nu_usd) < target
    assert misses / runs <= delta + 2.0 * math.sqrt(delta * (1.0 - delta) / runs)
    if seen == 1.0:
        assert certified > 0.5 * runs, "a test that certifies nothing shows nothing"


def test_outcomes_of_a_partial_log_are_tested_as_far_out_as_they_can_lie() -> None:
    """Taken for judged ones, which lie in 0..1, a few lucky outcomes of rare tiers would show what is not so."""
    rng = np.random.default_rng(3)
    world, target, delta, runs = World(sample(20_000, rng)), 0.8, 0.1, 150
    wrong = {"as if judged": 0, "as it is": 0}
    for _ in range(runs):
        right = partly_seen(sample(60, rng), rng, 0.02)
        for name, made in (("as if judged", replace(right, quality_range=(0.0, 1.0))), ("as it is", right)):
            dial = nu_for_target(made, PRICES, target_ratio=target, confidence_ratio=1.0 - delta)
            wrong[name] += dial.certified and world.kept_by(dial.nu_usd) < target
    assert wrong["as it is"] <= delta * runs < wrong["as if judged"]


def test_without_evidence_the_safest_setting_is_used_and_said() -> None:
    dial = nu_for_target(sample(20, np.random.default_rng(1)), PRICES, target_ratio=0.99)
    assert not dial.certified
    assert "do not show" in dial.statement
    assert dial.cost_ratio == pytest.approx(1.0)


def test_a_lone_tier_keeps_its_own_quality_without_any_proof() -> None:
    lone = {"local": PRICES["local"]}
    dial = nu_for_target(sample(5, np.random.default_rng(1)), lone, target_ratio=0.99, reference="local")
    assert (dial.certified, dial.kept_ratio, dial.cost_ratio) == (True, 1.0, 1.0)
    assert dial.nu_usd > 0.0 and "the only tier" in dial.statement


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
