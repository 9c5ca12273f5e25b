"""Result files of published benchmarks, in miniature, in the layouts that these projects write."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from classifier.dataset import DatasetError, read_labels
from classifier.importers import IMPORTERS, write_rows

MODELS = {"local": "org/small", "premium": "big"}


def read(form: str, *paths: Path, models: dict[str, str] | None = None) -> tuple[list[dict[str, Any]], Counter[str]]:
    """(rows, what was left out)."""
    left_out: Counter[str] = Counter()
    return list(IMPORTERS[form](paths, models or MODELS, left_out)), left_out


def result_of(model: str, records: Any, **more: Any) -> str:
    """A result file of LLMRouterBench."""
    whole = {"performance": 0.5, "time_taken": 1.0, "prompt_tokens": 9, "completion_tokens": 9, "cost": 0.0}
    whole |= {"counts": len(records), "model_name": model, "dataset_name": "aime", "split": "test", "demo": False}
    return json.dumps(whole | {"extra_metrics": {}, "data_fingerprint": "", "records": records} | more)


def record(index: int, question: Any, score: Any, **more: Any) -> dict[str, Any]:
    made = {"index": index, "origin_query": question, "prompt": f"Solve: {question}", "prompt_tokens": 5}
    made |= {"completion_tokens": 9, "cost": 0.0, "score": score, "prediction": "4", "ground_truth": "4"}
    return made | {"raw_output": "4", "extra_fields": {}} | more


def test_routellm_and_routerbench_tables_become_rows(tmp_path: Path) -> None:
    table = tmp_path / "mmlu_anatomy.csv"
    table.write_text("prompt,org/small,big\nWhat is a bone?,False,True\nWhat is a cell?,True,\n")
    found = read("routellm", table)[0]
    assert [r["outcomes"] for r in found] == [{"local": 0.0, "premium": 1.0}, {"local": 1.0}]
    assert (found[0]["source"], found[0]["domain"]) == ("routellm_mmlu", "anatomy")
    bench = tmp_path / "rb.csv"
    bench.write_text("sample_id,prompt,eval_name,org/small,big,big|total_cost\ns1,Add 2 and 2,gsm,0.25,1.0,0.01\n")
    (row,) = read("routerbench", bench)[0]
    assert (row["request_id"], row["outcomes"]) == ("routerbench/rb/s1", {"local": 0.25, "premium": 1.0})
    bench.write_text(
        "sample_id,prompt,eval_name,org/small,big\nm1,\"['Write a poem.', 'Now shorter.']\",mt-bench,0.5,0.9\n"
    )
    (row,) = read("routerbench", bench)[0]
    assert row["messages"] == [{"role": "user", "content": "Write a poem.\n\nNow shorter."}]
    table = tmp_path / "gsm8k_responses.csv"
    table.write_text("prompt,org/small,big,org/small_response,big_response\nAdd 2 and 2,True,False,4,5\n")
    (row,) = read("routellm", table)[0]
    assert (row["source"], row["domain"], row["outcomes"]) == ("routellm_gsm8k", "", {"local": 1.0, "premium": 0.0})
    with pytest.raises(DatasetError, match="no column 'other'"):
        read("routerbench", bench, models={"local": "other"})


def test_tables_are_read_as_spreadsheets_and_archives_keep_them(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    table = tmp_path / "evals" / "mmlu_law.csv"
    table.write_bytes(b'\xef\xbb\xbfprompt,org/small,big\r\n"A ""tort""\nis?\nA. x\nAnswer:",True,False\r\n')
    (tmp_path / "evals" / "mmlu_art.csv.gz").write_bytes(
        gzip.compress(b"prompt,org/small,big\nHue?,,1.0\n,True,True\n")
    )
    (tmp_path / "evals" / "README.md").write_text("no table")
    found, left_out = read("routellm", tmp_path / "evals")
    assert [(r["domain"], r["outcomes"]) for r in found] == [
        ("art", {"premium": 1.0}),
        ("law", {"local": 1.0, "premium": 0.0}),
    ]
    assert found[1]["messages"][0]["content"] == 'A "tort"\nis?\nA. x\nAnswer:'
    assert left_out == {"no prompt": 1}


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.csv", b"prompt,org/small,big\nQ,1,0\nR,7,9\n", r"a.csv: line 3, column 'org/small': '7' is no quality"),
        (
            "a.csv",
            b"prompt,mixtral,big,big_response,big|cost\nQ,1,0,x,1\n",
            r"line 1: .*there are prompt, mixtral, big\.",
        ),
        ("a.csv", b"prompt,org/small,big\nCaf\xe9,1,0\n", "a.csv: after line 0: no table in UTF-8"),
        ("a.pkl", b"\x80\x04\x95\xff", r"a.pkl: .*a pickle, which is never read.*to_csv\('a.csv'"),
        ("a.csv", b"", "a.csv: is empty"),
        ("a.csv.gz", gzip.compress(b"prompt,org/small,big\n" + b"Q,1,0\n" * 99)[:-9], "after line .*cut short"),
        ("a.csv", b'prompt,org/small,big\n"' + b"x" * 16_000_001 + b'",1,0\n', "after line 1: .*quotation mark"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_file_line_and_cure(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=told):
        read("routerbench", tmp_path / name)


def test_what_was_written_before_stays_where_nothing_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious\n")
    for data in ("prompt,org/small,big\nQ,1,0\nR,7,9\n", "org/small,big,prompt\n,\n"):
        (tmp_path / "a.csv").write_text(data)
        with pytest.raises(DatasetError):
            write_rows(IMPORTERS["routellm"]([tmp_path / "a.csv"], MODELS, Counter()), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"
    (tmp_path / "a.csv").write_text("prompt,org/small,big\nQ,1,\nR,1,0\n")
    rows = IMPORTERS["routellm"]([tmp_path / "a.csv"], MODELS, Counter())
    assert write_rows(rows, tmp_path / "out.jsonl") == {"rows": 2, "local": 2, "premium": 1}
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600, "prompts are for their owner"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "out.jsonl"]


def test_judgements_of_mt_bench_are_joined_with_their_questions(tmp_path: Path) -> None:
    judgements, questions = tmp_path / "judgements.jsonl", tmp_path / "question.jsonl"
    said = [("big", 1, 10), ("big", 2, 8), ("org/small", 1, 4), ("org/small", 2, -1), ("other", 1, 3)]
    judgements.write_text(
        "".join(
            json.dumps({"question_id": 81, "model": m, "judge": ["gpt-4", "single-v1"], "turn": t, "score": s}) + "\n"
            for m, t, s in said
        )
    )
    questions.write_text(json.dumps({"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}) + "\n")
    (row,), left_out = read("routellm", judgements, questions)
    assert (row["domain"], row["label_source"], row["messages"][0]["content"]) == ("writing", "judge", "Write.")
    assert row["outcomes"] == {"premium": 0.9, "local": 0.4} and left_out.total() == 2
    with pytest.raises(DatasetError, match=r"question 81.*question\.jsonl"):
        read("routellm", judgements)
    questions.write_text("{\n")
    with pytest.raises(DatasetError, match=r"question\.jsonl: line 1: not JSON"):
        read("routellm", questions)


def test_llmrouterbench_files_are_joined_by_question(tmp_path: Path) -> None:
    for name, model, score in (("a", "org/small", 0.0), ("b", "big", 1.0), ("c", "unasked", 1.0)):
        (tmp_path / f"{name}.json").write_text(result_of(model, [record(1, "x", score)]))
    rows = IMPORTERS["llmrouterbench"]([tmp_path], MODELS, Counter())
    assert write_rows(rows, tmp_path / "out.jsonl")["rows"] == 1
    (example,), _ = read_labels(tmp_path / "out.jsonl")
    assert example.outcomes == {"local": 0.0, "premium": 1.0}
    assert example.output_tokens == {"local": 9.0, "premium": 9.0}
    assert example.features.text == "x"


def test_of_several_runs_the_last_by_its_time_stamp_counts_and_demos_do_not(tmp_path: Path) -> None:
    below = tmp_path / "bench" / "aime"
    for folder, stamp, model, records, demo in (
        ("small", "20250101_000000", "org/small", [record(1, "x", 0.0), record(2, ["a chat"], 1.0)], False),
        ("big", "20250202_000000", "big", [record(1, "x", 1.0)], False),
        ("big", "20250101_000000", "big", [record(1, "x", 0.0), record(3, "old", 0.0)], False),
        ("big", "20250303_000000", "big", [record(1, "x", 0.0)], True),
        ("other", "20250303_000000", "other", [record(1, "x", 0.0)], False),
    ):
        (below / folder).mkdir(parents=True, exist_ok=True)
        (below / folder / f"aime-test-{folder}-{stamp}.json").write_text(result_of(model, records, demo=demo))
    (below / "big" / "result.json").write_text(result_of("big", [record(1, "x", 0.0)]))  # of before there were stamps
    found, left_out = read("llmrouterbench", tmp_path / "bench")
    assert [(r["outcomes"], r["messages"][0]["content"]) for r in found] == [
        ({"premium": 1.0, "local": 0.0}, "x"),
        ({"local": 1.0}, "Solve: ['a chat']"),
    ]
    assert left_out == {"file of another model": 1, "file of a demo run": 1, "file of an earlier run": 2}


def test_a_changed_question_under_the_same_index_is_another_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(result_of("org/small", [record(1, "old wording", None), record(2, "y", 0.0)]))
    (tmp_path / "b.json").write_text(result_of("big", [record(1, "x", 1.0), record(2, "y, reworded", 1.0)]))
    found, left_out = read("llmrouterbench", tmp_path)
    assert sorted(r["messages"][0]["content"] for r in found) == ["x", "y", "y, reworded"]
    assert all(len(r["outcomes"]) == 1 for r in found) and left_out["record without a score"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "not a result file"),
        ('{"model_name": "big",\n "records": [', "a.json: line 2: not JSON"),
        (result_of("big", {"a": 1}), "records that are no list"),
        (result_of("big", [], dataset_name=3), "a name that is no text"),
        (result_of("big", ["x"]), "record 0: not a JSON object"),
        (result_of("big", [record(1, "x", 1.0), record(2, "y", 55)]), r"record 1, `score`: '55' is no quality"),
        (result_of("mid", [record(1, "x", 1.0)]), "no result of org/small, big; there are some of mid"),
    ],
)
def test_a_result_file_that_cannot_be_read_is_refused_with_the_place(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=told):
        read("llmrouterbench", tmp_path / "a.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no file that ends in \.json"):
        read("llmrouterbench", tmp_path / "empty")
