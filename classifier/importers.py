"""Result files of published routing benchmarks, read as labelled rows, for users who have them.

None of their data is shipped. Each importer is told which model stands for which tier; a model that no tier names is
left out. Pickles are never read: RouterBench publishes one, to be saved as CSV first.

The layouts are those of lm-sys/RouteLLM (`routellm/evals`: `mmlu/responses/mmlu_*.csv`, `gsm8k/gsm8k_responses.csv`,
`mt_bench/judgements.jsonl` with `question.jsonl`), withmartian/routerbench (the columns its own `evaluate_routers.py`
reads) and ynulihao/LLMRouterBench (what `data_collector/storage.py` writes).
"""

from __future__ import annotations

import ast
import csv
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from classifier.dataset import DatasetError
from classifier.rows import open_text, text_of
from classifier.whole_file import whole_file

csv.field_size_limit(16_000_000)
_TRUE = frozenset({"true", "1", "1.0"})
_FALSE = frozenset({"false", "0", "0.0"})
_NOTHING = frozenset({"", "nan", "none", "null"})
_MT_BENCH_BEST = 10.0
_TOLD_EVERY = 1_000
_STAMPED = re.compile(r"(\d{8}_\d{6})\.json$")

LeftOut = Counter[str]
"""What was read and gave no row, by cause."""
Importer = Callable[[Sequence[Path], Mapping[str, str], LeftOut], Iterator[dict[str, Any]]]


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


def _quality(cell: Any, where: str) -> float | None:
    """A cell as quality 0..1, `None` where it is empty. Raises `DatasetError`, naming `where`, on anything else."""
    text = "" if cell is None else str(cell).strip().lower()
    if text in _NOTHING:
        return None
    if text in _TRUE:
        return 1.0
    if text in _FALSE:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise DatasetError(
            f"{where}: {text[:40]!r} is no quality: True, False, a number from 0 to 1, or nothing where the answer "
            "was not judged; divide scores of another scale by their greatest"
        )
    return value


def _files(paths: Sequence[Path], *endings: str) -> list[Path]:
    """The files given, and of each folder given all below it that end so. Raises `DatasetError` where one has none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(endings))
        if not below:
            raise DatasetError(f"{path}: no file that ends in {' or '.join(endings)} in this folder or below it")
        found += below
    return found


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


# --- tables: a column per model ---------------------------------------------------------------------------------------


def _prompt(cell: str) -> str:
    """A prompt of a cell; one with several turns stands there as a Python list of texts."""
    if cell[:2] not in {"['", '["'}:
        return cell
    try:
        turns = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return "\n\n".join(map(str, turns)) if isinstance(turns, list) else cell


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(number of the last line, cells by column) of each record. Raises `DatasetError`, with the line, on what is no
    table."""
    line = 0
    try:
        with text_of(path, newline="", errors="strict") as file:
            reader = csv.DictReader(file)
            if not reader.fieldnames:
                raise DatasetError(f"{path.name}: is empty; give a table (CSV) with a line of column names")
            yield 1, dict.fromkeys(reader.fieldnames, "")
            line = 1
            for cells in reader:
                line = reader.line_num
                yield line, cells
    except UnicodeDecodeError as error:
        pickle = path.suffix in {".pkl", ".pickle"}
        cure = f"; with pandas: read_pickle(...).to_csv('{_stem(path)}.csv', index=False)" if pickle else ""
        kind = "a pickle, which is never read" if pickle else "no table in UTF-8"
        raise DatasetError(f"{path.name}: after line {line}: {kind} ({error.reason}). Save it as CSV{cure}") from error
    except csv.Error as error:
        raise DatasetError(f"{path.name}: after line {line}: {error}. Is a quotation mark left open there?") from error
    except (EOFError, zlib.error) as error:
        raise DatasetError(f"{path.name}: after line {line}: damaged or cut short; fetch it again") from error


def _from_csv(
    path: Path,
    models: Mapping[str, str],
    source: str,
    domain_of: Callable[[Mapping[str, str | None]], str],
    left_out: LeftOut,
) -> Iterator[dict[str, Any]]:
    records = _lines(path)
    _, columns = next(records)
    missing = [m for m in ("prompt", *models.values()) if m not in columns]
    if missing:
        named = [c for c in columns if "|" not in c and not c.endswith("_response")]
        raise DatasetError(
            f"{path.name}: line 1: no column {missing[0]!r}; there are {', '.join(named[:20])}. Name models as "
            "the table does, such as --model local=COLUMN"
        )
    for number, (line, cells) in enumerate(records):
        where = f"{path.name}: line {line}"
        judged = {t: _quality(cells.get(m), f"{where}, column {m!r}") for t, m in models.items()}
        outcomes = {tier: q for tier, q in judged.items() if q is not None}
        prompt = cells.get("prompt")
        if not outcomes or not prompt:
            left_out["no answer of these models judged" if not outcomes else "no prompt"] += 1
            continue
        sample = cells.get("sample_id") or str(number)
        yield _row(f"{source}/{_stem(path)}/{sample}", source, domain_of(cells), _prompt(prompt), outcomes, models)


def routellm(paths: Sequence[Path], models: Mapping[str, str], left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """RouteLLM's responses: CSV with `prompt` and a column of True/False per model; the file's name is the domain.

    Files of JSON lines are MT-Bench's: judgements, and the questions they are about.
    """
    found = _files(paths, ".csv", ".csv.gz")
    for path in found:
        if ".jsonl" in path.suffixes:
            continue
        kind, _, name = _stem(path).partition("_")
        domain = "" if name == "responses" else name  # gsm8k_responses.csv has none
        yield from _from_csv(path, models, f"routellm_{kind}", lambda _, domain=domain: domain, left_out)  # type: ignore[misc]
    yield from _mt_bench([path for path in found if ".jsonl" in path.suffixes], models, left_out)


def routerbench(paths: Sequence[Path], models: Mapping[str, str], left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """RouterBench saved as CSV: `sample_id`, `prompt`, `eval_name` and a column of scores 0..1 per model."""
    for path in _files(paths, ".csv", ".csv.gz"):
        yield from _from_csv(path, models, "routerbench", lambda cells: cells.get("eval_name") or "", left_out)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _mt_bench(paths: Sequence[Path], models: Mapping[str, str], left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """Judgements from 1 to 10 by question, model and turn, over 10; the mean of the turns counts, for the first turn's
    question, which is what is routed."""
    tier_of = {model: tier for tier, model in models.items()}
    questions: dict[str, tuple[str, str]] = {}
    marks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for line, raw in _objects(path):
            where, number = f"{path.name}: line {line}", str(raw.get("question_id"))
            turns = raw.get("turns")
            if isinstance(turns, list) and turns and isinstance(turns[0], str):
                questions[number] = (turns[0], str(raw.get("category") or ""))
            elif "score" not in raw or "question_id" not in raw:
                raise DatasetError(f"{where}: neither a question with `turns` nor a judgement with a `score`")
            elif raw.get("model") in tier_of and raw["score"] != -1:  # -1: the judge's mark could not be read
                score = raw["score"] if isinstance(raw["score"], int | float) else -1.0
                mark = _quality(score / _MT_BENCH_BEST, f"{where}, `score` over 10")
                marks[number][tier_of[raw["model"]]] += [] if mark is None else [mark]
            else:
                left_out["judgement of another model, or without a mark"] += 1
    for number, by_tier in marks.items():
        if number not in questions:
            raise DatasetError(
                f"the judgements are about question {number}, whose text is in none of the files; give "
                "MT-Bench's question.jsonl with another --input"
            )
        outcomes = {tier: sum(m) / len(m) for tier, m in by_tier.items() if m}
        if outcomes:
            text, category = questions[number]
            row = _row(f"routellm_mt_bench/{number}", "routellm_mt_bench", category, text, outcomes, models)
            yield row | {"label_source": "judge"}


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(open_text(path), start=1):
        if line.strip():
            try:
                raw = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{path.name}: line {number}: not JSON: {error}") from error
            if not isinstance(raw, dict):
                raise DatasetError(f"{path.name}: line {number}: not a JSON object")
            yield number, raw


def llmrouterbench(paths: Sequence[Path], models: Mapping[str, str], left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """LLMRouterBench: one JSON file per model and data set, joined by data set, split, index and question.

    Of several runs of one model on one split the last counts, by the time stamp in their names; demo runs do not.
    """
    tier_of = {model: tier for tier, model in models.items()}
    latest: dict[tuple[str, str, str], Path] = {}
    others: set[str] = set()
    for path in sorted(_files(paths, ".json"), key=_stamp):
        raw = _result_file(path)
        if raw["model_name"] not in tier_of or raw.get("demo") is True:
            left_out["file of another model" if raw.get("demo") is not True else "file of a demo run"] += 1
            others.add(raw["model_name"])
            continue
        run = (raw["model_name"], raw["dataset_name"], str(raw.get("split") or ""))
        left_out["file of an earlier run"] += run in latest
        latest[run] = path
    if not latest:
        raise DatasetError(f"no result of {', '.join(tier_of)}; there are some of {', '.join(sorted(others)[:20])}")
    joined: dict[tuple[str, ...], dict[str, Any]] = {}
    for (model, dataset, split), path in latest.items():
        for number, record in enumerate(_result_file(path)["records"]):
            where = f"{path.name}: record {number}"
            if not isinstance(record, dict):
                raise DatasetError(f"{where}: not a JSON object")
            score = _quality(record.get("score"), f"{where}, `score`")
            texts = (record.get("origin_query"), record.get("prompt"))
            prompt = next((text for text in texts if isinstance(text, str) and text), None)
            if score is None or prompt is None:
                left_out["record without a score" if score is None else "record without a text to ask"] += 1
                continue
            key = (dataset, split, str(record.get("index")), prompt)
            row = joined.setdefault(
                key, _row("/".join(("llmrouterbench", *key[:3])), "llmrouterbench", dataset, prompt, {}, {})
            )
            row["outcomes"][tier_of[model]], row["models"][tier_of[model]] = score, model
            if isinstance(record.get("completion_tokens"), int):
                row.setdefault("output_tokens", {})[tier_of[model]] = record["completion_tokens"]
    yield from joined.values()


def _stamp(path: Path) -> tuple[str, str]:
    """Files without a time stamp (of the project's first releases) are older than those with one."""
    stamped = _STAMPED.search(path.name)
    return (stamped[1] if stamped else "", str(path))


def _result_file(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(raw["model_name"], str) or not isinstance(raw["dataset_name"], str):
            raise TypeError("a name that is no text")
        if not isinstance(raw["records"], list):
            raise TypeError("records that are no list")
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path.name}: line {error.lineno}: not JSON: {error.msg}; is the file whole?") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{path.name}: not a result file with model_name, dataset_name and records: {error}; give those "
            "under results/bench, or that folder"
        ) from error
    return cast(dict[str, Any], raw)


IMPORTERS: Mapping[str, Importer] = {
    "routellm": routellm,
    "routerbench": routerbench,
    "llmrouterbench": llmrouterbench,
}


def write_rows(
    rows: Iterator[dict[str, Any]], target: Path, progress: Callable[[int, int | None], None] | None = None
) -> Mapping[str, int]:
    """Rows as a labels file, for its owner's eyes; returns how many judge each tier, under `rows` how many there are.

    What was at `target` stays if anything goes wrong, or there is no row.
    """
    judged: Counter[str] = Counter()
    count = 0
    with whole_file(target) as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
            judged.update(row["outcomes"].keys())
            count += 1
            if progress is not None and count % _TOLD_EVERY == 0:
                progress(count, None)
        if not count:
            raise DatasetError("no answer of the models named is judged in these files")
    return {"rows": count, **judged}
