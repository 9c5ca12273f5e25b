"""Labels that stand in the prompt: found where one word or number decides, not where a word merely tells something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier.dataset import read_labels
from classifier.leaks import Leak, find, near_copy_share, warnings
from tests.learning_data import TIERS, rows, write


def found_in(made: list[dict[str, Any]], tmp_path: Path) -> list[Leak]:
    return find(read_labels(write(tmp_path / "labels.jsonl", made))[0], TIERS)


def test_words_that_only_tell_something_are_no_leak(tmp_path: Path) -> None:
    for seed in range(5):
        assert found_in(rows(400, seed=seed), tmp_path) == []


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_word_that_stands_only_where_an_answer_failed_is_named(tmp_path: Path, share: float) -> None:
    made = rows(400, seed=6)
    rng = np.random.default_rng(0)
    for r in made:
        if not r["outcomes"]["local"] and rng.random() < share:
            r["messages"][0]["content"] = "ticket " + r["messages"][0]["content"]
    leak, *rest = found_in(made, tmp_path)
    assert (leak.tier, leak.what, leak.quality_ratio) == ("local", "ticket", 0.0) and rest == []
    assert leak.rows > 20 and leak.usual_ratio > 0.3
    (said,) = warnings(read_labels(tmp_path / "labels.jsonl")[0], TIERS)
    assert "labels may leak into the prompts" in said and "'ticket'" in said and "train again" in said


def test_a_grade_beside_the_prompt_is_named_by_its_pair_of_words(tmp_path: Path) -> None:
    made = rows(400, seed=7)
    for r in made:
        text = r["messages"][0]["content"]
        r["messages"][0]["content"] = f"from 0 to 1: correct: {r['outcomes']['local']:.0f}, {text}"
    assert {leak.what for leak in found_in(made, tmp_path)} == {"correct 1", "correct 0"}


def test_a_number_that_gives_the_label_away_is_named(tmp_path: Path) -> None:
    made = rows(400, seed=8)
    for r in made:
        r["max_tokens"] = 100 if r["outcomes"]["cheap"] else 200
    assert {(leak.tier, leak.what) for leak in found_in(made, tmp_path)} == {("cheap", "log_max_output_tokens")}


def test_a_source_whose_answers_are_all_good_is_no_leak(tmp_path: Path) -> None:
    easy = rows(200, seed=9, source="easy")
    for r in easy:
        r["outcomes"] = dict.fromkeys(TIERS, 1.0)
        r["messages"][0]["content"] += " lightweight"
    assert found_in(rows(200, seed=10) + easy, tmp_path) == []


def test_prompts_that_differ_in_their_numbers_alone_are_counted_unless_they_are_tied_together(tmp_path: Path) -> None:
    made = rows(100, seed=11)
    for i, r in enumerate(made[:50]):
        r["messages"][0]["content"] = f"Order {i} is late: what now?"
    examples, _ = read_labels(write(tmp_path / "labels.jsonl", made))
    assert near_copy_share(examples) == 0.5
    assert "50% of the prompts differ from others only in their numbers" in warnings(examples, TIERS)[0]
    for r in made[:50]:
        r["conversation"] = "orders"
    assert near_copy_share(read_labels(write(tmp_path / "labels.jsonl", made))[0]) == 0.0
