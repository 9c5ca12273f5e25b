"""`export-labels`, `import-labels`, `calibrate-threshold` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.learning_data import rows, write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"server: {{data_dir: {tmp_path / 'data'}}}\n"
        f"classifier: {{registry_dir: {tmp_path / 'models'}}}\n"
        "tiers:\n"
        "  local: {engine: embedded}\n"
        "  premium: {model: openai/gpt-6.1-sol, price: {input_usd_per_mtok: 2, output_usd_per_mtok: 10}}\n"
    )
    return file


def test_books_without_labels_say_what_to_switch_on_and_leave_no_file(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    code, stdout, err = run("export-labels", "--out", out, "--config", config)
    assert code == 1 and not out.exists()
    out.write_text("those of last month\n")
    assert run("export-labels", "--out", out, "--from", "2026-01-01", "--config", config)[0] == 1
    assert out.read_text() == "those of last month\n"
    assert json.loads(stdout)["rows"] == 0 and "no answered request" in err
    assert run("export-labels", "--out", out, "--from", "yesterday", "--config", config)[0] == 2


def test_a_published_table_becomes_labels_that_train_reads(run: Run, tmp_path: Path) -> None:
    table, out = tmp_path / "mmlu_anatomy.csv", tmp_path / "labels.jsonl"
    table.write_text("prompt,small,big\n" + "".join(f"Bone {i}?,{i % 2 == 0},True\n" for i in range(3)))
    asked = ("import-labels", "--format", "routellm", "--input", table, "--out", out)
    code, stdout, _ = run(*asked, "--model", "local=small", "--model", "premium=big")
    assert (code, json.loads(stdout)["rows"]) == (0, 3)
    assert json.loads(out.read_text().splitlines()[1])["outcomes"] == {"local": 0.0, "premium": 1.0}
    code, _, err = run(*asked, "--model", "local=unknown")
    assert code == 1 and "no column 'unknown'" in err and len(out.read_text().splitlines()) == 3, "what was there stays"
    assert run(*asked, "--model", "small")[0] == 2
    assert run("import-labels", "--format", "csv", "--input", table, "--out", out, "--model", "local=small")[0] == 2


def test_nu_for_a_target_comes_with_kept_quality_cost_and_confidence(run: Run, config: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert run("train", "--labels", write(tmp_path / "labels.jsonl", rows(300)), "--out", model)[0] == 0
    asked = ("calibrate-threshold", "--model", model, "--config", config)
    code, stdout, _ = run(*asked, "--target", 0.8, "--price", "cheap=0.1/0.5")
    found = json.loads(stdout)
    assert code == 0 and found["certified"] and found["kept_ratio"] >= found["kept_lower_ratio"] >= 0.8
    assert found["nu_usd"] > 0 and 0 < found["cost_ratio"] < 1 and "confidence 90%" in found["statement"]
    assert found["usd_per_mtok"]["premium"] == {"input": 2.0, "output": 10.0}

    code, stdout, _ = run(*asked, "--target", 0.8, "--price", "cheap=1/5", "--price", "premium=20/100")
    assert json.loads(stdout)["nu_usd"] == pytest.approx(10 * found["nu_usd"])
    code, stdout, _ = run(*asked, "--premium-share", 0.25)
    assert code == 0 and json.loads(stdout)["premium_share"] == 0.25
    code, stdout, _ = run("promote", model, "--force", "--config", config)
    told = json.loads(stdout)
    assert code == 0 and told["quality_target"]["target_ratio"] == 0.95 and told["quality_target"]["certified"]
    assert run("rollback", "--config", config)[0] == 0
    strict = tmp_path / "strict.yaml"
    strict.write_text(config.read_text() + "policy: {quality_target_ratio: 1.0}\n")
    told = json.loads(run("promote", model, "--force", "--config", strict)[1])
    assert "do not show, with confidence 90%, that 100.0%" in told["warnings"][-1], "what it will cost is told at once"
    code, stdout, _ = run("calibrate-threshold", "--config", config, "--target", 0.8, "--price", "cheap=0.1/0.5")
    assert code == 0 and json.loads(stdout)["nu_usd"] == found["nu_usd"], "the promoted model is the default"
    for wrong in (("--target", 2), ("--price", "cheap"), ("--price", "cheap=1"), ("--price", "cheap=-1/2")):
        assert run(*asked, *wrong)[0] == 2
