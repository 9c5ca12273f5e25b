"""Bad labels: a clear error or an honest report; what was there stays."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from classifier import cli, registry
from classifier.calibrate import TokenPrices
from classifier.datamodels import LoggedOutcome, Score
from classifier.dataset import DatasetError, read_labels
from classifier.labels import combine
from classifier.rows import parse_row
from classifier.told import LearningError, UsageError
from tests.learning_data import TIERS, rows, write

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ODD_COUNTS: list[dict[str, Any]] = [{}, {"input_tokens": 10**400}, {"input_tokens": -5}, {"max_tokens": True}]

CONTRADICTORY = [
    r | {"outcomes": {t: abs(side - q) for t, q in r["outcomes"].items()}} for side in (0.0, 1.0) for r in rows(60)
]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([], "holds no row"),
        ([{"prompt": "hi", "label": 1}] * 50, "`outcomes` names no tier.*A row is a line of JSON with `messages`"),
        (CONTRADICTORY, "the 60 labels come to one half each.*contradict each other"),
        (rows(10), "at least 40"),
        ([r | {"outcomes": {"local": 1.0, "premium": 1.0}} for r in rows(60)], "all 60 labels say adequate"),
        ([r | {"conversation": "one"} for r in rows(60)], "share one stem or conversation"),
        (rows(60) + [{"outcomes": "?"}] * 20, "20 of 80 rows are invalid"),
    ],
)
def test_labels_that_teach_nothing_are_refused_and_the_old_model_stays(
    made: list[dict[str, Any]], says: str, model: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(model, tmp_path / "out"))
    before = registry.file_hashes(out)
    with pytest.raises(LearningError, match=says):
        cli.train(write(tmp_path / "bad.jsonl", made), out, now_utc=NOW, with_card=False)
    assert registry.file_hashes(out) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".draft")] == []


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"outcomes": {"a\nb": 1.0}}, r"tier whose name is empty, too long or not printable: 'a\\nb'"),
        ({"outcomes": {"t" * 201: 1.0}}, "too long"),
        ({"models": ["small"]}, "`models` is not an object with a value for each tier"),
        ({"output_tokens": 7}, "`output_tokens` is not an object"),
        ({"received_at": "yesterday"}, "`received_at` is no time: 'yesterday'; write 2026"),
        ({"taken_tier": ["local"]}, "`taken_tier` is not the name of a tier"),
        ({"outcomes": {"local": 1.0}, "exploration_probability": 1e-300}, "`exploration_probability` is not in"),
    ],
)
def test_an_odd_value_is_named_with_its_line(odd: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"line 1: .*{says}"):
        read_labels(write(tmp_path / "odd.jsonl", [rows(1)[0] | odd]))


def test_a_packed_file_is_unpacked_whatever_its_name(tmp_path: Path) -> None:
    plain = write(tmp_path / "misnamed.jsonl.gz", rows(3))
    assert len(read_labels(plain)[0]) == 3
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(plain.read_bytes()))
    assert len(read_labels(tmp_path / "packed.jsonl")[0]) == 3


def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    labels, told = write(tmp_path / "labels.jsonl", rows(60)), list[str]()
    with pytest.raises(LearningError, match=r"labels\.jsonl: File exists"):
        cli.train(labels, labels / "model", now_utc=NOW, progress=lambda step, _: told.append(step))
    assert told == []


def test_tiers_without_a_price_are_named_where_cost_is_shown(tmp_path: Path) -> None:
    made = [
        r | {"outcomes": {"a": r["outcomes"]["local"], "b": r["outcomes"]["premium"]}, "models": {}} for r in rows(120)
    ]
    cli.train(write(tmp_path / "l.jsonl", made), tmp_path / "m", now_utc=NOW, with_card=False)
    fresh = [r | {"outcomes": {"a": r["outcomes"]["local"], "b": r["outcomes"]["premium"]}} for r in rows(80, seed=3)]
    labels = write(tmp_path / "f.jsonl", fresh)
    found = cli.evaluate(labels, tmp_path / "r", model=tmp_path / "m", draws=5, with_plots=False)
    assert "no price of a, b: figures of cost are without; give --price a=INPUT/OUTPUT" in found["notes"]
    assert "Not shown: it takes two tiers with a price" in (tmp_path / "r" / "report.md").read_text()
    prices = {"a": TokenPrices(0.1, 0.2), "b": TokenPrices(1.0, 2.0)}
    found = cli.evaluate(labels, tmp_path / "r", model=tmp_path / "m", prices=prices, draws=5, with_plots=False)
    assert found["cost"]["tiers"] == ["a", "b"]
    assert "in/out: a 0.1/0.2, b 1/2." in (tmp_path / "r" / "report.md").read_text()
    with pytest.raises(UsageError, match="best tier is b, which has no price: give --price b="):
        cli.calibrate_threshold(model=tmp_path / "m", prices={"a": prices["a"]}, quality_target_ratio=0.9)


def test_a_missing_file_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        cli.train(tmp_path / "none.jsonl", tmp_path / "out", now_utc=NOW, with_card=False)


def test_a_folder_that_holds_anything_but_a_model_is_never_replaced(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.jsonl", rows(60))
    with pytest.raises(UsageError, match=r"holds labels\.jsonl, which a new model would replace"):
        cli.train(labels, tmp_path, now_utc=NOW, with_card=False)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.jsonl"]


def test_a_model_is_replaced_by_the_next_one_and_nothing_is_left_over(model: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(model, tmp_path / "out"))
    told = cli.train(write(tmp_path / "labels.jsonl", rows(60)), out, now_utc=NOW, with_card=False)
    assert registry.load_scorer(out).version == told["version"]
    assert not (out / "card.md").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.jsonl", "out"]


def test_predictions_never_overwrite_their_input(tmp_path: Path) -> None:
    asked = write(tmp_path / "in.jsonl", rows(3))
    before = asked.read_bytes()
    with pytest.raises(UsageError, match="is the input too"):
        cli.classify(asked, tmp_path / "." / "in.jsonl", model=registry.shipped_folder())
    assert asked.read_bytes() == before


def test_each_line_that_cannot_be_scored_costs_itself_alone(tmp_path: Path) -> None:
    fine = {"request_id": "fine", "messages": [{"role": "user", "content": "hi"}]}
    lines = [b"[]", b"\xff", b"null", b"{", *(json.dumps(fine | odd).encode() for odd in ODD_COUNTS)]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    told = cli.classify(tmp_path / "in.jsonl", tmp_path / "out.jsonl", model=registry.shipped_folder())
    assert (told["rows"], told["failed"]) == (len(lines), 4)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [f["error"] for f in found[:3]] == ["not a JSON object", "the line is not UTF-8", "not a JSON object"]
    assert {json.dumps(f) for f in found[4:]} == {json.dumps(found[4])}, "what is no count is left out of account"


def test_a_few_hundred_rows_give_costs_dials_and_intervals(model: Path, tmp_path: Path) -> None:
    found = cli.evaluate(
        write(tmp_path / "few.jsonl", rows(140, seed=6)), tmp_path / "r", model=model, draws=20, with_plots=False
    )
    assert found["cost"]["tiers"] == list(TIERS)
    assert [d["target_ratio"] for d in found["quality_dials"]] == [0.9, 0.95, 0.99]
    for tier in found["calibration"].values():
        assert tier["ece_interval"][0] < tier["ece"] < tier["ece_interval"][1]
        assert tier["brier_interval"][0] < tier["brier"] < tier["brier_interval"][1]


def test_dials_are_those_of_the_tiers_that_the_labels_judge(model: Path, tmp_path: Path) -> None:
    made = rows(140, seed=6)
    for r in made:
        r["outcomes"] = {t: r["outcomes"][t] for t in ("local", "premium")}
    labels = write(tmp_path / "two.jsonl", made)
    found = cli.evaluate(labels, tmp_path / "r", model=model, draws=20, with_plots=False)
    assert found["cost"]["tiers"] == ["local", "premium"]
    assert [d["target_ratio"] for d in found["quality_dials"]] == [0.9, 0.95, 0.99]
    for r in made:
        r["outcomes"]["premium"] = 0.0
    labels = write(tmp_path / "bad.jsonl", made)
    found = cli.evaluate(labels, tmp_path / "r", model=model, draws=20, with_plots=False)
    assert found["quality_dials"] == [], "no share of nothing"


def test_labels_of_other_tiers_name_both_and_the_cure(model: Path, tmp_path: Path) -> None:
    made = rows(60, seed=6)
    foreign = [r | {"outcomes": {"tiny": 1.0, "huge": 0.0}} for r in made]
    with pytest.raises(LearningError, match=r"judge huge, tiny; the model predicts local, cheap, premium.*--model"):
        cli.evaluate(write(tmp_path / "foreign.jsonl", foreign), tmp_path / "r", model=model)
    mixed = [r | {"outcomes": r["outcomes"] | {"huge": 1.0}} for r in made] + foreign[:7]
    labels = write(tmp_path / "mixed.jsonl", [r | {"source": f"s{i}"} for i, r in enumerate(mixed)])
    found = cli.evaluate(labels, tmp_path / "r", model=model, draws=5, with_plots=False)
    assert found["rows"] == 60
    assert (
        found["notes"][0].endswith("judgements of huge, tiny are left out") and "7 rows judge no" in found["notes"][1]
    )


def test_training_and_evaluating_tell_their_steps_and_leave_the_other_cores_alone(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    threads: set[int] = set()

    def progress(step: str, done_ratio: float | None) -> None:
        told.append((step, done_ratio))
        threads.update(pool["num_threads"] for pool in threadpool_info())

    with threadpool_limits(3):
        labels = write(tmp_path / "labels.jsonl", rows(120))
        cli.train(labels, tmp_path / "m", now_utc=NOW, progress=progress)
        fresh = write(tmp_path / "fresh.jsonl", rows(60, seed=1))
        cli.evaluate(fresh, tmp_path / "r", model=tmp_path / "m", draws=5, with_plots=False, progress=progress)
        assert max(pool["num_threads"] for pool in threadpool_info()) == 3, "what was set is set again"
    assert threads == {1}
    steps = [step for step, _ in told]
    assert "fitting, part 2 of 6: 96 rows" in steps and "scoring 60 prompts" in steps
    shares = [share for step, share in told if share is not None and not step.startswith("scoring")]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] < 1.0


def test_a_model_of_prompts_of_one_pattern_goes_by_what_it_learned_of_them(tmp_path: Path) -> None:
    made = rows(600, seed=4)
    for i, r in enumerate(made):
        kind = "poem" if i % 2 else "proof"
        r["outcomes"] = {t: float(i % 2 or t == "premium") for t in TIERS} | {"premium": float(i % 9 > 0)}
        r["messages"][0]["content"] = f"Write a {kind} number {i} in four lines about rivers and gardens, please."
    own, fresh = made[:400], made[400:]
    cli.train(write(tmp_path / "pattern.jsonl", own), tmp_path / "m", now_utc=NOW, with_card=False)
    scorer = registry.load_scorer(tmp_path / "m")

    def scored(r: dict[str, Any]) -> Score:
        return scorer.score(parse_row(r).features)

    for prompts in (own, fresh):
        assert np.mean([scored(r).novelty_ratio for r in prompts]) < 0.05, "each has a number no other has"
    poem, proof = (np.mean([scored(r).p_adequate["local"] for r in fresh[kind::2]]) for kind in (1, 0))
    assert poem > 0.8 and proof < 0.2
    assert scored(rows(1, seed=9)[0]).novelty_ratio == 1.0, "a prompt of another kind is novel"
    assert cli.gate(tmp_path / "m", None).gain > 0.1


def test_pure_noise_gives_a_model_that_claims_nothing(tmp_path: Path) -> None:
    made = rows(300, seed=4)
    rng = np.random.default_rng(0)
    for r in made:
        r["outcomes"] = {t: float(rng.random() < 0.7) for t in TIERS}
    cli.train(write(tmp_path / "noise.jsonl", made), tmp_path / "m", now_utc=NOW, with_card=False)
    scorer = registry.load_scorer(tmp_path / "m")
    cli.classify(write(tmp_path / "in.jsonl", rows(100, seed=5)), tmp_path / "out.jsonl", model=tmp_path / "m")
    p = [json.loads(line)["p_adequate"]["local"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scorer.model.tiers == TIERS
    assert np.std(p) < 0.08
    assert np.mean(p) == pytest.approx(0.7, abs=0.08)


def test_rows_the_model_has_seen_are_left_out_of_its_evaluation(model: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="500 of 500 rows share their stem with training data"):
        cli.evaluate(labels, tmp_path / "r", model=model, draws=10)
    found = cli.evaluate(labels, tmp_path / "r", model=model, draws=10, include_seen=True, with_plots=False)
    assert "flatter" in found["notes"][1]


def test_a_leaking_label_in_the_prompt_shows_as_a_model_too_good_to_be_true(tmp_path: Path) -> None:
    made = rows(300, seed=6)
    for r in made:
        word = "zeta" if r["outcomes"]["local"] else "omega"
        r["messages"][0]["content"] += f" {word}"
    told = cli.train(write(tmp_path / "leak.jsonl", made), tmp_path / "m", now_utc=NOW, with_card=False)
    assert any("too good to be true" in w for w in told["warnings"])
    assert any("'zeta'" in w and "'omega'" in w for w in told["warnings"])


def test_poisoned_feedback_of_one_key_does_not_pass_the_gate(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    cli.promote(model, registry_root=root, now_utc=NOW)
    made = rows(400, seed=20)
    honest = [
        LoggedOutcome(r["request_id"], t, q, "feedback", f"user{i % 50}")
        for i, r in enumerate(made)
        for t, q in r["outcomes"].items()
    ]
    attack = [LoggedOutcome(r["request_id"], "local", 0.0, "feedback", "attacker") for r in made * 25]
    report = combine(honest + attack)
    poisoned = [
        r | {"outcomes": {t: label.quality_ratio for t, label in report.labels[r["request_id"]].items()}} for r in made
    ]
    cli.train(write(tmp_path / "p.jsonl", poisoned), tmp_path / "p", now_utc=NOW, with_card=False)
    clean = write(tmp_path / "checks.jsonl", rows(400, seed=21))
    with pytest.raises(LearningError, match="not promoted"):
        cli.promote(tmp_path / "p", registry_root=root, now_utc=NOW, labels=clean)


def test_a_model_can_have_any_tiers(tmp_path: Path) -> None:
    made = rows(200, seed=8)
    for r in made:
        r["outcomes"] = {"tiny": r["outcomes"]["local"], "huge/big-1t": r["outcomes"]["premium"]}
    cli.train(write(tmp_path / "t.jsonl", made), tmp_path / "m", now_utc=NOW, with_card=False)
    assert registry.load_scorer(tmp_path / "m").model.tiers == ("tiny", "huge/big-1t"), "the better one last"


def test_the_whole_loop_by_its_commands(model: Path, tmp_path: Path) -> None:
    fresh = write(tmp_path / "fresh.jsonl", [*rows(250, seed=30), {"outcomes": {"local": 1.0}, "messages": []}])
    told = cli.classify(fresh, tmp_path / "pred.jsonl", model=model)
    assert (told["rows"], told["failed"]) == (251, 0)
    first = json.loads((tmp_path / "pred.jsonl").read_text().splitlines()[0])
    assert set(first) == {"request_id", "complexity_ratio", "p_adequate", "novelty_ratio"}
    found = cli.evaluate(fresh, tmp_path / "report", model=model, draws=50)
    assert found["pooled"]["apgr"] > found["pooled"]["baselines"]["length_only"]
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "report.json",
        "report.md",
        "cost_quality.png",
        "reliability.png",
    }
    prices = {"local": TokenPrices(0.02, 0.05), "cheap": TokenPrices(0.1, 0.4), "premium": TokenPrices(1.0, 5.0)}
    dial = cli.calibrate_threshold(model=model, prices=prices, quality_target_ratio=0.8)
    assert dial["certified"]
    assert cli.calibrate_threshold(model=model, prices=prices, premium_share=0.3)["rows"] > 100
    with pytest.raises(UsageError, match="either"):
        cli.calibrate_threshold(model=model, prices=prices)


def test_labels_may_come_through_a_pipe_packed_or_not(tmp_path: Path) -> None:
    made = write(tmp_path / "l.jsonl", rows(300)).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    for data in (made, gzip.compress(made)):
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit((tmp_path / "pipe").write_bytes, data)
            examples, summary = read_labels(tmp_path / "pipe")
            assert written.result() == len(data)
        assert (len(examples), summary.rows_invalid) == (300, 0)
