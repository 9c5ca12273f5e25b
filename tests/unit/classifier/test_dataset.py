"""Labels files: what is read, refused, merged and split."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from classifier.dataset import DatasetError, StemSample, groups_of, read_labels
from classifier.matrix import as_matrix
from classifier.pipeline import TierModel
from classifier.rows import parse_row, stem
from tests.learning_data import rows, write


def row(text: str = "what is it?", **more: Any) -> dict[str, Any]:
    return {"request_id": "r", "messages": [{"role": "user", "content": text}], "outcomes": {"local": 1.0}} | more


def test_packed_and_plain_files_read_alike(tmp_path: Path) -> None:
    made = rows(30)
    plain = write(tmp_path / "a.jsonl", made)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    assert read_labels(plain) == read_labels(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ([], "not a JSON object"),
        ({"request_id": "r"}, "names no tier"),
        (row(outcomes={"local": 1.5}), "0 to 1"),
        (row(outcomes={"local": 1.0, " ": 1.0}), "name is empty"),
        (row(output_tokens={"local": float("nan")}), "output_tokens.local"),
        (row(output_tokens={"local": 10**400}), "output_tokens.local"),
        (row(outcomes={"local": "good"}), "0 to 1"),
        (row(outcomes={"local": float("nan")}), "0 to 1"),
        (row(messages="hi"), "list of messages"),
        (row(weight=0), "positive"),
        (row(exploration_probability=0.0), r"\(0, 1\]"),
        (row(outcomes={"local": 1.0, "cheap": 1.0}, exploration_probability=0.5), "taken_tier"),
    ],
)
def test_a_wrong_row_says_what_is_wrong(broken: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_row(broken)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no row"):
        read_labels(write(tmp_path / "e.jsonl", []))


def test_many_broken_rows_are_refused_and_few_are_reported(tmp_path: Path) -> None:
    good = [json.dumps(r) for r in rows(40)]
    (tmp_path / "few.jsonl").write_text("\n".join([*good, "{broken"]) + "\n")
    kept, summary = read_labels(tmp_path / "few.jsonl")
    assert (len(kept), summary.rows_invalid) == (40, 1)
    assert "line 41" in summary.warnings[0]
    (tmp_path / "many.jsonl").write_text("\n".join([*good, *["{broken"] * 10]) + "\n")
    with pytest.raises(DatasetError, match="10 of 50 rows are invalid: line 41"):
        read_labels(tmp_path / "many.jsonl")


def test_a_packed_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(write(tmp_path / "a.jsonl", rows(200)).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(OSError, match=r"cut\.jsonl\.gz: damaged or cut short"):
        read_labels(tmp_path / "cut.jsonl.gz")


def test_a_byte_order_mark_and_bytes_that_are_no_utf_8_cost_at_most_their_line(tmp_path: Path) -> None:
    good = [json.dumps(r).encode() for r in rows(40)]
    (tmp_path / "l.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([*good, b'{"messages": "\xff"}']))
    kept, summary = read_labels(tmp_path / "l.jsonl")
    assert (len(kept), summary.rows_invalid) == (40, 1)
    assert "line 41: the line is not UTF-8" in summary.warnings[0]


def test_repetitions_are_dropped_and_contradictions_averaged(tmp_path: Path) -> None:
    made = [row(), row(request_id="again"), row(outcomes={"local": 0.0}), row("another one")]
    kept, summary = read_labels(write(tmp_path / "d.jsonl", made))
    assert (summary.rows_kept, summary.rows_duplicate, summary.rows_contradictory) == (2, 1, 1)
    assert kept[0].outcomes == {"local": pytest.approx(2 / 3)}


def test_a_partial_log_keeps_every_draw(tmp_path: Path) -> None:
    made = [row(request_id=str(i), exploration_probability=0.1) for i in range(3)]
    kept, _ = read_labels(write(tmp_path / "p.jsonl", made))
    assert len(kept) == 3
    assert kept[0].observation_probability == {"local": 0.1}


def test_action_and_label_probability_multiply() -> None:
    example = parse_row(row(exploration_probability=0.2, label_probability=0.5))
    assert example.observation_probability == {"local": pytest.approx(0.1)}


def test_options_and_case_do_not_make_another_stem() -> None:
    assert stem("What is 2+2?\nA. 3\nB. 4\nAnswer:") == stem("what is 2 + 2?\nA. 9\nB. 4")
    assert stem("What is 2+2?") != stem("What is 2+3?")


def test_no_stem_and_no_conversation_is_on_both_sides_of_a_fold() -> None:
    made = rows(60)
    for i, r in enumerate(made):
        r["conversation"] = f"c{i // 3}"
    made += [r | {"request_id": r["request_id"] + "b", "outcomes": {"local": 0.5}} for r in made[:10]]
    examples = [parse_row(r) for r in made]
    folds = TierModel()._folds(as_matrix(examples).groups)
    assert sorted(i for _, test in folds for i in test) == list(range(len(made)))
    for train, test in folds:
        for said in (lambda e: e.stem, lambda e: e.conversation):
            assert not {said(examples[i]) for i in train} & {said(examples[i]) for i in test}


def test_rows_tied_through_others_are_one_group() -> None:
    examples = [
        parse_row(row("first question", conversation="a")),
        parse_row(row("second question", conversation="a")),
        parse_row(row("second question", conversation="b")),
        parse_row(row("third question", conversation="c")),
    ]
    groups = groups_of(examples).tolist()
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_of_very_many_rows_an_even_sample_of_whole_stems_is_read_in_bounded_memory(tmp_path: Path) -> None:
    made = [row(request_id=str(i), messages=[{"role": "user", "content": f"word{i // 2}"}]) for i in range(4_000)]
    kept, summary = read_labels(write(tmp_path / "many.jsonl", made), max_rows=500)
    assert summary.rows_read == 4_000 and 150 < len(kept) <= 250
    assert summary.rows_duplicate == len(kept)  # each stem stands twice, and both came or neither
    assert "even sample" in summary.warnings[0]
    shuffled, _ = read_labels(write(tmp_path / "shuffled.jsonl", made[::-1]), max_rows=500)
    assert {e.stem for e in shuffled} == {e.stem for e in kept}
    sample = StemSample(500)
    most = 0
    for example in (parse_row(r) for r in made):
        sample.offer(example)
        most = max(most, len(sample.rows))
    assert most <= 500
    one = [row(request_id=str(i)) for i in range(600)]
    with pytest.raises(DatasetError, match="nearly all of 600 rows share one stem"):
        read_labels(write(tmp_path / "one.jsonl", one), max_rows=500)
