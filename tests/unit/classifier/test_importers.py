"""Result files of published benchmarks, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from classifier.dataset import DatasetError, read_labels
from classifier.importers import IMPORTERS, write_rows

MODELS = {"local": "org/small", "premium": "big"}


def test_routellm_and_routerbench_tables_become_rows(tmp_path: Path) -> None:
    table = tmp_path / "mmlu_anatomy.csv"
    table.write_text("prompt,org/small,big\nWhat is a bone?,False,True\nWhat is a cell?,True,\n")
    found = list(IMPORTERS["routellm"]([table], MODELS))
    assert [r["outcomes"] for r in found] == [{"local": 0.0, "premium": 1.0}, {"local": 1.0}]
    assert (found[0]["source"], found[0]["domain"]) == ("routellm_mmlu", "anatomy")
    bench = tmp_path / "rb.csv"
    bench.write_text("sample_id,prompt,eval_name,org/small,big,big|total_cost\ns1,Add 2 and 2,gsm,0.25,1.0,0.01\n")
    (row,) = IMPORTERS["routerbench"]([bench], MODELS)
    assert (row["request_id"], row["outcomes"]) == ("routerbench/rb/s1", {"local": 0.25, "premium": 1.0})
    bench.write_text(
        "sample_id,prompt,eval_name,org/small,big\nm1,\"['Write a poem.', 'Now shorter.']\",mt-bench,0.5,0.9\n"
    )
    (row,) = IMPORTERS["routerbench"]([bench], MODELS)
    assert row["messages"] == [{"role": "user", "content": "Write a poem.\n\nNow shorter."}]
    table = tmp_path / "gsm8k_responses.csv"
    table.write_text("prompt,org/small,big,org/small_response,big_response\nAdd 2 and 2,True,False,4,5\n")
    (row,) = IMPORTERS["routellm"]([table], MODELS)
    assert (row["source"], row["domain"], row["outcomes"]) == ("routellm_gsm8k", "", {"local": 1.0, "premium": 0.0})
    with pytest.raises(DatasetError, match="no column 'other'"):
        list(IMPORTERS["routerbench"]([bench], {"local": "other"}))


def test_llmrouterbench_files_are_joined_by_prompt(tmp_path: Path) -> None:
    for name, model, score in (("a", "org/small", 0.0), ("b", "big", 1.0), ("c", "unasked", 1.0)):
        record = {"index": 1, "origin_query": "Solve x", "score": score, "completion_tokens": 9}
        whole = {"model_name": model, "dataset_name": "aime", "records": [record]}
        (tmp_path / f"{name}.json").write_text(json.dumps(whole))
    found = IMPORTERS["llmrouterbench"](sorted(tmp_path.glob("*.json")), MODELS)
    assert write_rows(found, tmp_path / "out.jsonl") == 1
    (example,), _ = read_labels(tmp_path / "out.jsonl")
    assert example.outcomes == {"local": 0.0, "premium": 1.0}
    assert example.output_tokens == {"local": 9.0, "premium": 9.0}
    for name, demo, split, score in (("z1", True, "test", 1.0), ("z2", False, "hard", 1.0), ("z3", False, "hard", 0.5)):
        whole = {"model_name": "big", "dataset_name": "aime", "split": split, "demo": demo}
        whole["records"] = [{"index": 1, "origin_query": "Solve y", "score": score, "completion_tokens": 9}]
        (tmp_path / f"{name}.json").write_text(json.dumps(whole))
    found = list(IMPORTERS["llmrouterbench"](sorted(tmp_path.glob("*.json")), MODELS))
    assert [r["outcomes"] for r in found] == [{"local": 0.0, "premium": 1.0}, {"premium": 0.5}]
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DatasetError, match="not a result file"):
        list(IMPORTERS["llmrouterbench"]([tmp_path / "a.json"], MODELS))
