"""Partial logs with a known truth: what is biased, what is not, and when to refuse."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from classifier.datamodels import LabelledExample
from classifier.evaluate import calibration, collect, report
from classifier.matrix import as_matrix
from classifier.offpolicy import NoOverlap, check_overlap, inverse_weights, pseudo_outcomes, tier_quality
from classifier.pipeline import TierModel
from classifier.report import markdown
from classifier.rows import parse_row
from tests.learning_data import SUBJECTS, rows, truth

TIERS = ("local", "premium")


def logged(count: int, *, exploration: float, seed: int) -> tuple[list[LabelledExample], list[str]]:
    """A log in which easy subjects went to the local tier; with `exploration` the other tier was tried."""
    rng = np.random.default_rng(seed)
    examples, subjects = [], []
    for row in rows(count, seed=seed, tiers=TIERS):
        subject = row["subject"]
        greedy = "local" if truth(subject)["local"] > 0.6 else "premium"
        other = "premium" if greedy == "local" else "local"
        explore = rng.random() < exploration
        taken = other if explore else greedy
        row |= {"outcomes": {taken: row["outcomes"][taken]}, "taken_tier": taken}
        row["exploration_probability"] = exploration if explore else 1.0 - exploration
        if exploration == 0.0:
            row["exploration_probability"] = 1.0
        examples.append(parse_row(row))
        subjects.append(subject)
    return examples, subjects


TRUE_LOCAL = float(np.mean([truth(s)["local"] for s in SUBJECTS]))


def test_the_naive_mean_is_biased_and_ours_are_not() -> None:
    examples, _ = logged(4_000, exploration=0.1, seed=3)
    guess = np.full(len(examples), 0.6)  # a poor guess: the probabilities must carry it
    found = tier_quality(examples, "local", guess)
    low, high = found["naive"].interval()
    assert not low <= TRUE_LOCAL <= high
    for name in ("ips", "dr"):
        low, high = found[name].interval(2.6)
        assert low <= TRUE_LOCAL <= high, name


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(40):
        examples, _ = logged(800, exploration=0.2, seed=100 + seed)
        low, high = tier_quality(examples, "local", np.full(800, 0.6))["dr"].interval()
        hits += low <= TRUE_LOCAL <= high
    assert hits >= 34


def test_a_calibrated_model_looks_calibrated_on_a_partial_log_too() -> None:
    """By what was judged, weighed; single doubly robust outcomes lie far outside 0..1 and tell nothing."""
    examples, subjects = logged(3_000, exploration=0.1, seed=6)
    p = np.array([[truth(s)[t] for t in TIERS] for s in subjects])
    data = collect(examples, TIERS, p, np.zeros(len(p)))
    assert data.partial and data.outcomes.max() > 2.0
    found = calibration(data, np.arange(len(p)), rng=np.random.default_rng(0))
    for tier in TIERS:
        assert found[tier]["ece"] < found[tier]["ece_if_perfect"] + 0.03
        assert 0.0 < found[tier]["brier"] <= found[tier]["brier_of_mean"] <= 0.25
    wrong = collect(examples, TIERS, np.clip(p - 0.25, 0.0, 1.0), np.zeros(len(p)))
    worse = calibration(wrong, np.arange(len(p)), rng=np.random.default_rng(0))
    assert all(worse[t]["ece"] > worse[t]["ece_if_perfect"] + 0.1 for t in TIERS)
    whole = report(data, draws=5)
    assert whole["pooled"]["baselines"]["oracle"] is None and "nobody knows the best answer" in markdown(whole)


def test_a_retrained_model_is_right_on_prompts_the_old_policy_kept_from_the_tier() -> None:
    """The learner sees no words here, so that its form is wrong and only the weights can save the mean."""
    examples, _ = logged(2_000, exploration=0.1, seed=7)
    blind = [replace(e, features=msgspec.structs.replace(e.features, text="same")) for e in examples]
    matrix = as_matrix(blind)
    common = {"sources": matrix.sources, "groups": np.arange(len(blind))}
    naive, ours = (TierModel(tiers=list(TIERS), sources=["app"], tree_count=40) for _ in range(2))
    naive.fit([e.features for e in blind], matrix.outcomes, **common)
    ours.fit([e.features for e in blind], matrix.outcomes, weights=matrix.weights, **common)
    some = [e.features for e in blind[:5]]
    assert naive.predict_proba(some)[:, 0].mean() > TRUE_LOCAL + 0.1
    assert ours.predict_proba(some)[:, 0].mean() == pytest.approx(TRUE_LOCAL, abs=0.05)


def test_without_exploration_evaluation_refuses_and_says_why() -> None:
    examples, _ = logged(500, exploration=0.0, seed=1)
    with pytest.raises(NoOverlap, match="exploration_ratio"):
        check_overlap(examples, TIERS)


def test_without_probabilities_evaluation_refuses_and_says_why() -> None:
    examples = [replace(e, observation_probability=None) for e in logged(500, exploration=0.2, seed=1)[0]]
    with pytest.raises(NoOverlap, match="exploration_probability"):
        check_overlap(examples, TIERS)


def test_a_kind_of_traffic_that_never_explored_is_noticed() -> None:
    explored, _ = logged(600, exploration=0.3, seed=1)
    never, _ = logged(600, exploration=0.0, seed=2)
    with pytest.raises(NoOverlap, match="of the traffic"):
        check_overlap(explored + never, TIERS)


def test_full_labels_need_no_probabilities() -> None:
    examples = [parse_row(r) for r in rows(50, tiers=TIERS)]
    check_overlap(examples, TIERS)
    assert inverse_weights(examples, TIERS).tolist() == [[1.0, 1.0]] * 50
    pseudo = pseudo_outcomes(examples, TIERS, np.full((50, 2), 0.5))
    assert pseudo[:, 0].tolist() == [e.outcomes["local"] for e in examples]


def test_rare_outcomes_do_not_get_unbounded_weight() -> None:
    example = parse_row(rows(1, tiers=("local",))[0] | {"exploration_probability": 1e-6})
    assert inverse_weights([example], ("local",)).max() == 100.0
