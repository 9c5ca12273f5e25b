"""What requests are about: which domains become subjects, and what is expected of each tier in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from classifier import registry
from classifier.rows import request_features
from classifier.subjects import MAX_SUBJECTS, MIN_ROWS, Subjects

RATES = {"law": (0.9, 0.95), "physics": (0.2, 0.7), "cooking": (0.6, 0.6)}


def labelled(domains: list[str], *, about: dict[str, int], seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """A word of its domain and a common one for each row, and outcomes at the rates of that domain's word."""
    rng = np.random.default_rng(seed)
    bag = np.zeros((len(domains), max(about.values()) + 2))
    bag[np.arange(len(domains)), [about[d] for d in domains]] = 1.0
    bag[:, -1] = 1.0
    word_of = {at: name for name, at in reversed(about.items())}
    rates = np.array([RATES.get(word_of[about[d]], (0.5, 0.5)) for d in domains])
    return sp.csr_matrix(bag), (rng.random(rates.shape) < rates).astype(np.float64)


def fitted(domains: list[str], about: dict[str, int]) -> tuple[Subjects, sp.csr_matrix, np.ndarray]:
    bag, outcomes = labelled(domains, about=about)
    subjects, rows = Subjects(), np.arange(len(domains))
    expected = subjects.fit_expected(bag, numberless(bag), domains, rows, outcomes, np.ones_like(outcomes))
    return subjects, bag, expected


def numberless(bag: sp.csr_matrix) -> np.ndarray:
    """Scaled numbers that tell nothing."""
    return np.zeros((bag.shape[0], 2))


def test_each_tier_is_expected_to_do_as_it_did_in_what_the_words_speak_of() -> None:
    domains = [name for name in RATES for _ in range(400)]
    subjects, bag, held_back = fitted(domains, {name: i for i, name in enumerate(RATES)})
    expected = subjects.expected(bag, numberless(bag))
    for name, rates in RATES.items():
        rows = [i for i, d in enumerate(domains) if d == name]
        assert expected[rows].mean(axis=0) == pytest.approx(rates, abs=0.1)
        assert held_back[rows].mean(axis=0) == pytest.approx(rates, abs=0.1)


def test_rare_domains_are_counted_to_the_subject_they_resemble_and_unnamed_rows_to_none() -> None:
    domains = [name for name in RATES for _ in range(MIN_ROWS)] + ["mechanics"] * 20 + [""] * 50
    about = {name: i for i, name in enumerate(RATES)} | {"mechanics": 1, "": 3}
    subjects, bag, expected = fitted(domains, about)
    assert sorted(subjects.names_) == sorted(RATES)
    physics, mechanics = subjects.expected(bag, numberless(bag))[[MIN_ROWS, 3 * MIN_ROWS]]
    assert mechanics == pytest.approx(physics)
    assert expected.shape == (len(domains), 2) and np.isfinite(expected).all()


def test_too_few_domains_make_no_subjects_and_too_many_are_the_most_frequent() -> None:
    none, bag, expected = fitted(["law"] * 300 + ["physics"] * 300 + [""] * 50, {"law": 0, "physics": 1, "": 2})
    assert none.names_ == [] and expected.shape == (650, 0) == none.expected(bag, numberless(bag)).shape
    many = [f"d{i:02d}" for i in range(MAX_SUBJECTS + 2) for _ in range(MIN_ROWS + i)]
    chosen, _, _ = fitted(many, {name: i for i, name in enumerate(sorted(set(many)))})
    assert sorted(chosen.names_) == sorted(set(many))[2:]


def test_where_the_words_tell_nothing_the_numbers_tell_what_a_request_is_about() -> None:
    domains = [name for name in RATES for _ in range(400)]
    _, outcomes = labelled(domains, about={name: i for i, name in enumerate(RATES)})
    bag = sp.csr_matrix((np.random.default_rng(1).random((len(domains), 8)) < 0.5).astype(np.float64))
    scaled = np.array([[{"law": -2.0, "physics": 0.0, "cooking": 2.0}[d], 0.5] for d in domains])
    subjects, rows = Subjects(), np.arange(len(domains))
    held_back = subjects.fit_expected(bag, scaled, domains, rows, outcomes, np.ones_like(outcomes))
    expected = subjects.expected(bag, scaled)
    for name, rates in RATES.items():
        own = [i for i, d in enumerate(domains) if d == name]
        assert expected[own].mean(axis=0) == pytest.approx(rates, abs=0.1)
        assert held_back[own].mean(axis=0) == pytest.approx(rates, abs=0.1)


def test_the_trees_of_a_model_trained_on_domains_look_at_them(model: Path) -> None:
    estimator, scorer = registry.load_estimator(model), registry.load_scorer(model)
    subjects = estimator.base_.subjects_
    assert sorted(subjects.names_) == ["facts", "life", "mathematics"]
    assert len(scorer.model.subject_intercept) == 3
    easy, hard = (
        scorer.unshrunk(request_features({"messages": [{"role": "user", "content": f"tell me the {s} number?"}]}))[0][0]
        for s in ("recipe", "theorem")
    )
    assert easy > hard + 0.2
