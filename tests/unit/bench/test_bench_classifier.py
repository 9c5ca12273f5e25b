"""The measuring command of the classifier, on made-up labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from bench.classifier import Labels, Predicted, main, ranking, summary
from bench.classifier_speed import prompts
from tests.learning_data import rows, write


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = rows(240, seed=1) + rows(160, seed=2, source="other-app")
    return write(tmp_path_factory.mktemp("labels") / "labels.jsonl", made)


def test_the_page_and_the_figures_are_written(labels_file: Path, tmp_path: Path) -> None:
    arguments = ["--labels", str(labels_file), "--out", str(tmp_path), "--splits", "1", "--parts", "splits,left_out"]
    with threadpool_limits(1):
        assert main(arguments) == 0
    found = json.loads((tmp_path / "classifier.json").read_text())
    mean, _, low, high = found["ranking"]["other-app"]["known"]
    assert low <= mean <= high
    assert found["ranking"]["other-app"]["random"][0] == 0.5
    assert set(found["left_out"]) == {"app", "other-app"}
    page = (tmp_path / "classifier.md").read_text()
    assert "## A source left out of training" in page and "| other-app |" in page


def test_labels_that_are_not_there_are_a_wrong_use(tmp_path: Path) -> None:
    assert main(["--labels", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)]) == 2


def test_splits_share_no_group_and_true_outcomes_rank_like_the_oracle(labels_file: Path) -> None:
    labels = Labels.read(labels_file)
    train, test = labels.split(3)
    assert not set(labels.groups[train]) & set(labels.groups[test])
    truth = labels.outcomes[test]
    found = ranking(labels, Predicted(test, truth, np.zeros_like(truth), np.zeros(len(test))))
    assert found["known"] == found["oracle"]
    assert found["unknown"] == pytest.approx(0.5)


def test_a_summary_holds_mean_spread_and_bounds() -> None:
    mean, spread, low, high = summary([{"x": 1.0}, {"x": 3.0}], [{"x": float(i)} for i in range(101)])["x"]
    assert (mean, spread, low, high) == (2.0, 1.0, 2.5, 97.5)


def test_prompts_to_be_timed_all_differ_and_have_the_size_asked_for() -> None:
    made = prompts([f"question number {i}?" for i in range(40)], 200, 30)
    assert len(set(made)) == 30
    assert {len(p) for p in made} == {200}
