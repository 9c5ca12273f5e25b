"""Alarms."""

from __future__ import annotations

import random

from classifier.drift import drift, premium_jump

QUANTILES = tuple(i / 10 for i in range(1, 10))


def test_traffic_like_the_training_data_is_no_alarm() -> None:
    rng = random.Random(0)
    p = [rng.random() for _ in range(2_000)]
    report = drift(
        training_quantiles=QUANTILES,
        scores=p,
        novelty=[0.01] * 2_000,
        labelled=[(x, float(rng.random() < x)) for x in p],
    )
    assert not report.retrain
    assert report.psi is not None
    assert report.psi < 0.05


def test_each_kind_of_drift_is_named() -> None:
    rng = random.Random(0)
    report = drift(
        training_quantiles=QUANTILES,
        scores=[rng.random() ** 4 for _ in range(1_000)],
        novelty=[0.5] * 1_000,
        labelled=[(0.9, float(rng.random() < 0.6)) for _ in range(500)],
    )
    assert report.retrain
    assert [a.split()[0] for a in report.alarms] == ["scores", "probabilities", "requests"]


def test_little_traffic_says_nothing() -> None:
    report = drift(training_quantiles=QUANTILES, scores=[0.9] * 10, novelty=[1.0] * 10, labelled=[])
    assert (report.psi, report.ece, report.novelty_ratio, report.alarms) == (None, None, None, ())


def test_a_jump_of_the_premium_share_is_an_alarm() -> None:
    assert premium_jump(usual_share=0.2, recent_premium=150, recent=300)
    assert not premium_jump(usual_share=0.2, recent_premium=80, recent=300)
    assert not premium_jump(usual_share=0.2, recent_premium=9, recent=10)
