"""The measuring commands of learning, on a few rows: what they print is measured, and all there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import classifier_scale, classifier_steering
from tests.learning_data import rows, write


def test_what_training_on_rows_takes_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.jsonl"
    assert classifier_scale.main(["--rows", "150", "--labels", str(labels)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["told"]["rows"] == found["told"]["rows_read"] == 150
    assert found["cpu_s"] > 0 and found["peak_memory_mb"] > 50


def test_steering_is_measured_for_each_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write(tmp_path / "labels.jsonl", rows(30))
    assert classifier_steering.main(["--labels", str(labels), "--questions", "10", "--words", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["worst_words"]) == classifier_steering.WORST
    for preset in classifier_steering.TARGETS:
        for steered in found[preset].values():
            assert steered["rise"] == pytest.approx(steered["steered_share"] - steered["share"], abs=2e-3)
