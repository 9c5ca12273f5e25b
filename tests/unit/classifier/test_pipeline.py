"""The estimator: who believes whom, what is limited to whom, and that the same data gives the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from classifier import cli, registry
from classifier.novelty import SourceWords
from classifier.pipeline import blended, design, trust
from classifier.rows import request_features
from classifier.views import foreign, limited, mixture
from tests.unit.classifier.conftest import NOW


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=9))
def test_a_source_believes_the_common_views_more_the_more_rows_it_has(rows: list[int]) -> None:
    share = trust(np.array(rows))
    assert ((share >= 0.0) & (share <= 1.0)).all()
    assert (np.diff(share[np.argsort(rows, kind="stable")]) >= -1e-12).all()


def test_a_lone_source_believes_the_common_views_wholly() -> None:
    assert trust(np.array([250])) == pytest.approx([1.0])
    assert trust(np.array([600, 14_000]))[0] < 0.15


def test_whom_the_common_views_tell_nothing_believes_its_expert() -> None:
    slopes = blended(np.array([0.5, 0.4, 0.2]), np.array([0.0, 1.0]))
    assert slopes.tolist() == [[0.0, 0.0, 1.0], [0.5, 0.4, 0.2]]


def test_sources_of_other_models_get_no_share_even_where_they_are_all_that_is_likely() -> None:
    gate = np.array([[0.0, 1.0, 0.0], [0.3, 0.4, 0.3]])
    assert limited(gate, [0, 2]).tolist() == [[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]]
    assert mixture(np.array([[0.01, 0.99]]), None).tolist() == [[0.0, 1.0]]


def test_the_less_likely_all_sources_of_our_models_are_the_more_foreign_a_request_is() -> None:
    gate = np.array([[0.9, 0.1, 0.0], [0.2, 0.1, 0.7], [0.0, 0.0, 1.0]])
    assert foreign(gate, None).tolist() == [0.0, 0.0, 0.0]
    assert foreign(gate, [0, 1]) == pytest.approx([0.0, -np.log(0.3), -np.log(1e-6)])


def test_a_training_row_is_not_known_by_its_own_words() -> None:
    bag = sp.csr_matrix(np.eye(4)[[0, 0, 1, 2, 2, 3]])
    words = SourceWords(source_count=2)
    without = words.fit_evidence(bag, np.array([0, 0, 0, 1, 1, 1]), np.arange(6))
    seen = words.evidence(bag)
    assert (without[:3, 0] < seen[:3, 0]).all() and (without[3:, 1] < seen[3:, 1]).all()
    assert without[:3, 1] == pytest.approx(seen[:3, 1])


def test_a_question_labelled_in_two_sources_betrays_neither() -> None:
    bag = sp.csr_matrix(np.eye(3)[[0, 1, 0, 2]])  # the first and the third row are one question
    words = SourceWords(source_count=2)
    without = words.fit_evidence(bag, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 2]))
    seen = words.evidence(bag)
    assert (without[0] < seen[0]).all() and (without[2] < seen[2]).all()
    assert without[1, 1] == pytest.approx(seen[1, 1])


def test_words_of_every_alphabet_reach_the_vectorizer_as_text() -> None:
    texts, _ = design(
        [request_features({"messages": [{"role": "user", "content": "\u041f\u0440\u0438 caf\u00e9 A1"}]})]
    )
    assert texts == [["\u043f\u0440\u0438", "caf\u00e9", "a1"]]


def test_the_same_labels_give_the_same_bytes(model: Path, labels: Path, tmp_path: Path) -> None:
    cli.train(labels, tmp_path / "again", now_utc=NOW, with_card=False)
    assert (tmp_path / "again" / registry.SERVING).read_bytes() == (model / registry.SERVING).read_bytes()
