"""Result files of published routing benchmarks, read as labelled rows, for users who have them.

None of their data is shipped. Each importer is told which model stands for which tier; a model that no tier names is
left out. Pickles are never read: RouterBench publishes one, to be saved as CSV first.

The layouts are those of lm-sys/RouteLLM (`routellm/evals/*/*.csv`), withmartian/routerbench (the columns its own
`evaluate_routers.py` reads) and ynulihao/LLMRouterBench (what `data_collector/storage.py` writes).
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from classifier.dataset import DatasetError

csv.field_size_limit(16_000_000)
_TRUE = frozenset({"true", "1", "1.0"})
_FALSE = frozenset({"false", "0", "0.0"})


def _row(
    request_id: str, source: str, domain: str, prompt: str, outcomes: Mapping[str, float], models: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "source": source,
        "domain": domain,
        "messages": [{"role": "user", "content": prompt}],
        "outcomes": dict(outcomes),
        "models": {t: m for t, m in models.items() if t in outcomes},
        "label_source": "exact_check",
    }


def _quality(cell: str | None) -> float | None:
    """A cell as quality 0..1, `None` where it is empty or no number."""
    text = (cell or "").strip().lower()
    if text in _TRUE:
        return 1.0
    if text in _FALSE:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None


def _prompt(cell: str) -> str:
    """A prompt of a cell; one with several turns stands there as a Python list of texts."""
    if cell[:2] not in {"['", '["'}:
        return cell
    try:
        turns = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return "\n\n".join(map(str, turns)) if isinstance(turns, list) else cell


def _from_csv(
    path: Path, models: Mapping[str, str], source: str, domain_of: Callable[[Mapping[str, str]], str]
) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [m for m in ("prompt", *models.values()) if m not in columns]
        if missing:
            raise DatasetError(f"{path.name}: no column {missing[0]!r}; there are {', '.join(columns[:20])}")
        for number, cells in enumerate(reader):
            judged = {tier: _quality(cells.get(model)) for tier, model in models.items()}
            outcomes = {tier: q for tier, q in judged.items() if q is not None}
            if outcomes:
                sample = cells.get("sample_id") or str(number)
                request_id, prompt = f"{source}/{path.stem}/{sample}", _prompt(cells["prompt"])
                yield _row(request_id, source, domain_of(cells), prompt, outcomes, models)


def routellm(paths: Sequence[Path], models: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """RouteLLM's responses: CSV with `prompt` and a column of True/False per model; the file's name is the domain."""
    for path in paths:
        _, _, name = path.stem.partition("_")
        domain = "" if name == "responses" else name  # gsm8k_responses.csv has none
        yield from _from_csv(path, models, f"routellm_{path.stem.split('_', 1)[0]}", lambda _, domain=domain: domain)  # type: ignore[misc]


def routerbench(paths: Sequence[Path], models: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """RouterBench saved as CSV: `sample_id`, `prompt`, `eval_name` and a column of scores 0..1 per model."""
    for path in paths:
        yield from _from_csv(path, models, "routerbench", lambda cells: cells.get("eval_name", ""))


def llmrouterbench(paths: Sequence[Path], models: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """LLMRouterBench: one JSON file per model and data set, joined by data set, split and index.

    Of several runs of one model the last file counts (their names end in a time stamp); demo runs do not.
    """
    tier_of = {model: tier for tier, model in models.items()}
    joined: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in sorted(paths):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            model, dataset, records = raw["model_name"], raw["dataset_name"], raw["records"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{path.name}: not a result file with model_name, dataset_name and records: {error}"
            ) from error
        if model not in tier_of or raw.get("demo") is True:
            continue
        split = str(raw.get("split") or "")
        for record in records:
            score = _quality(str(record.get("score")))
            prompt = record.get("origin_query") or record.get("prompt")
            if score is None or not isinstance(prompt, str) or not prompt:
                continue
            key = (dataset, split, str(record.get("index")))
            row = joined.setdefault(
                key, _row("/".join(("llmrouterbench", *key)), "llmrouterbench", dataset, prompt, {}, {})
            )
            row["outcomes"][tier_of[model]], row["models"][tier_of[model]] = score, model
            if isinstance(record.get("completion_tokens"), int):
                row.setdefault("output_tokens", {})[tier_of[model]] = record["completion_tokens"]
    yield from joined.values()


IMPORTERS: Mapping[str, Callable[[Sequence[Path], Mapping[str, str]], Iterator[dict[str, Any]]]] = {
    "routellm": routellm,
    "routerbench": routerbench,
    "llmrouterbench": llmrouterbench,
}


def write_rows(rows: Iterator[dict[str, Any]], target: Path) -> int:
    """Rows as a labels file; returns how many."""
    count = 0
    with target.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
            count += 1
    return count
