"""The learning loop by its commands: train, classify, evaluate, promote, roll back."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.learning_data import TIERS, rows, write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(f"server: {{data_dir: {tmp_path / 'data'}}}\ntiers: {{local: {{engine: embedded}}}}\n")
    return file


def test_a_model_is_learned_judged_promoted_and_taken_back(run: Run, config: Path, tmp_path: Path) -> None:
    labels, fresh = write(tmp_path / "labels.jsonl", rows(300)), write(tmp_path / "fresh.jsonl", rows(100, seed=1))
    model, predictions, report = tmp_path / "model", tmp_path / "predictions.jsonl", tmp_path / "report"

    code, out, err = run("train", "--labels", labels, "--out", model)
    assert (code, err) == (0, "")
    version = json.loads(out)["version"]

    code, out, _ = run("classify", "--input", fresh, "--output", predictions, "--model", model)
    assert (code, json.loads(out)) == (0, {"rows": 100, "failed": 0, "model_version": version})
    assert set(json.loads(predictions.read_text().splitlines()[0])["p_adequate"]) == set(TIERS)

    code, out, _ = run("evaluate", "--labels", fresh, "--model", model, "--out", report)
    assert code == 0
    assert json.loads(out)["pooled"]["apgr"] > 0.5
    assert (report / "report.md").is_file()

    code, out, _ = run("promote", model, "--config", config, "--force")
    assert (code, json.loads(out)["version"], json.loads(out)["warnings"]) == (0, version, [])
    _, out, _ = run("classify", "--input", fresh, "--output", predictions, "--config", config)
    assert json.loads(out)["model_version"] == version

    code, out, _ = run("rollback", "--config", config)
    assert (code, json.loads(out)["version"]) == (0, "shipped")
    code, _, err = run("rollback", "--config", config)
    assert code == 1
    assert "shipped model is in force" in err


def test_too_few_labels_are_a_failure_and_a_missing_file_is_wrong_use(run: Run, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", rows(10))
    code, _, err = run("train", "--labels", few, "--out", tmp_path / "model")
    assert (code, (tmp_path / "model").exists()) == (1, False)
    assert "at least 40" in err
    assert run("train", "--labels", tmp_path / "none.jsonl", "--out", tmp_path / "model")[0] == 2


def test_without_its_libraries_training_names_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['sklearn'] = None; from router.cli import main; main(sys.argv[1:])"
    labels = write(tmp_path / "labels.jsonl", rows(60))
    command = [sys.executable, "-c", code, "train", "--labels", str(labels), "--out", str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sklearn is not installed" in done.stderr and "[learn]" in done.stderr


def test_on_a_terminal_a_bar_names_the_step(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.jsonl", rows(60))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "router", "train", "--labels", str(labels), "--out", str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as running:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal is gone with whom it was for
            while part := os.read(ours, 65_536):
                shown += part
    os.close(ours)
    assert running.returncode == 0
    assert b"writing the card" in shown, "what is shown last; of shorter steps some come and go between two looks"
