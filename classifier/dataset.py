"""Labelled logs: read, checked, rid of duplicates, tied into groups and split without leaks.

A row is one line of JSON: `request_id`, `source`, `messages`, `outcomes` (tier -> quality 0..1 of the tiers that were
judged); optional `domain`, `models`, `output_tokens`, `weight`, `received_at`, `label_source`, `conversation`, and for
logs of a running gateway `taken_tier`, `exploration_probability` (of the tier that was taken), `label_probability`,
`observation_probability` (tier -> probability).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.datamodels import DatasetSummary, LabelledExample, RequestFeatures
from classifier.features import features

MAX_INVALID_SHARE = 0.05
MAX_ROWS = 300_000
MAX_LINE_CHARS = 20_000_000
_OPTIONS = re.compile(r"\n[A-P][.)] .*", re.DOTALL)
_NOT_WORD = re.compile(r"[\W_]+")
_CHARS_PER_TOKEN = 4


class DatasetError(ValueError):
    """The labels cannot be used; the message says why and what to do."""


def open_text(path: Path) -> Iterator[str]:
    """Lines of a file, unpacked if its name ends in .gz."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from file
    else:
        with path.open(encoding="utf-8") as file:
            yield from file


def request_features(row: Mapping[str, Any]) -> RequestFeatures:
    """Features of a row, counted as the gateway counts them. Raises ValueError without a list of messages."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("`messages` is not a list of messages")
    texts = [_content(m.get("content")) for m in messages]
    roles = [m.get("role") for m in messages]
    users = [t for t, role in zip(texts, roles, strict=True) if role == "user"]
    known_tokens = row.get("input_tokens")
    response_format = row.get("response_format")
    return features(
        texts=texts,
        system_text="\n".join(t for t, role in zip(texts, roles, strict=True) if role in ("system", "developer")),
        last_user_text=users[-1] if users else "",
        turns=len(users),
        input_tokens=known_tokens if isinstance(known_tokens, int) else sum(map(len, texts)) // _CHARS_PER_TOKEN,
        input_tokens_estimated=not isinstance(known_tokens, int),
        has_tools=bool(row.get("tools")),
        has_images=any(_has_image(m.get("content")) for m in messages),
        wants_json=isinstance(response_format, dict) and response_format.get("type") in ("json_object", "json_schema"),
        max_output_tokens=row["max_tokens"] if isinstance(row.get("max_tokens"), int) else None,
    )


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(p["text"]) for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    return ""


def _has_image(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(p, dict) and p.get("type") == "image_url" for p in content)


def stem(text: str) -> str:
    """What a question asks, whatever its answer options, case and punctuation."""
    asked = _NOT_WORD.sub(" ", _OPTIONS.sub("", text).lower()).strip()
    return asked or text.strip()


def parse_row(row: Any) -> LabelledExample:
    """A checked row; raises ValueError with what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    outcomes = row.get("outcomes")
    if not isinstance(outcomes, dict) or not outcomes:
        raise ValueError("`outcomes` names no tier")
    for tier, quality in outcomes.items():
        if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0.0 <= quality <= 1.0:
            raise ValueError(f"`outcomes.{tier}` is not a number from 0 to 1")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight <= 1e6:
        raise ValueError("`weight` is not a positive number")
    scored = request_features(row)
    received = row.get("received_at")
    return LabelledExample(
        request_id=str(row.get("request_id", "")),
        source=str(row.get("source") or "log"),
        features=scored,
        outcomes={str(t): float(q) for t, q in outcomes.items()},
        domain=str(row.get("domain") or ""),
        models={str(t): str(m) for t, m in (row.get("models") or {}).items()},
        output_tokens={str(t): float(n) for t, n in (row.get("output_tokens") or {}).items() if n is not None},
        weight=float(weight),
        received_at_utc=_instant(received) if received else None,
        label_source=str(row.get("label_source") or ""),
        taken_tier=row.get("taken_tier"),
        observation_probability=_observation(row, outcomes),
        conversation=str(row.get("conversation") or ""),
        stem=stem(scored.text),
    )


def _instant(text: Any) -> datetime:
    at = datetime.fromisoformat(str(text))
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _observation(row: Mapping[str, Any], outcomes: Mapping[str, Any]) -> Mapping[str, float] | None:
    """P(outcome observed) per tier, from what the log says; `None` where it says nothing."""
    given = row.get("observation_probability")
    if isinstance(given, dict):
        return {str(t): _probability(p, "observation_probability") for t, p in given.items()}
    action = row.get("exploration_probability")
    if action is None:
        return None
    label = _probability(row.get("label_probability", 1.0), "label_probability")
    taken = row.get("taken_tier") or (next(iter(outcomes)) if len(outcomes) == 1 else None)
    if taken is None:
        raise ValueError("`exploration_probability` without `taken_tier` in a row with several outcomes")
    return {str(taken): _probability(action, "exploration_probability") * label}


def _probability(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0 or math.isnan(value):
        raise ValueError(f"`{name}` is not in (0, 1]")
    return float(value)


def read_labels(
    path: Path, *, progress: Callable[[int], None] | None = None
) -> tuple[list[LabelledExample], DatasetSummary]:
    """All usable rows of a labels file.

    Exact repetitions are dropped; rows that differ only in their outcomes are merged into their mean and counted as
    contradictory. Raises `DatasetError` where nothing or too little can be read.
    """
    digest = hashlib.sha256()
    examples: list[LabelledExample] = []
    problems: list[str] = []
    read = 0
    for number, line in enumerate(open_text(path), start=1):
        digest.update(line.encode("utf-8", "surrogatepass"))
        if not line.strip():
            continue
        read += 1
        try:
            if len(line) > MAX_LINE_CHARS:
                raise ValueError("the line is too long")
            examples.append(parse_row(json.loads(line)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"line {number}: {error}")
        if progress is not None and read % 1_000 == 0:
            progress(read)
    if not examples:
        raise DatasetError(f"{path.name}: no usable row of {read}" + (f" ({problems[0]})" if problems else ""))
    if len(problems) > MAX_INVALID_SHARE * read:
        shown = "; ".join(problems[:5])
        raise DatasetError(f"{path.name}: {len(problems)} of {read} rows are invalid: {shown}")
    kept, duplicate, contradictory = merge(examples)
    warnings = [f"{len(problems)} invalid rows left out, the first: {problems[0]}"] if problems else []
    if len(kept) > MAX_ROWS:
        warnings.append(f"{len(kept)} rows; an even sample of {MAX_ROWS} is used")
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, MAX_ROWS).astype(int)]
    return kept, summarise(
        kept,
        read=read,
        invalid=len(problems),
        duplicate=duplicate,
        contradictory=contradictory,
        sha256=digest.hexdigest(),
        warnings=warnings,
    )


def merge(examples: Sequence[LabelledExample]) -> tuple[list[LabelledExample], int, int]:
    """One row per (source, models, prompt, logging): repetitions dropped, differing outcomes averaged over all rows."""
    by_prompt: dict[tuple[Any, ...], list[LabelledExample]] = defaultdict(list)
    for e in examples:
        # Rows of a partial log keep their own probabilities and are never averaged: each is one draw of the policy.
        logging = e.request_id if e.observation_probability is not None else ""
        by_prompt[(e.source, tuple(sorted(e.models.items())), e.features, logging)].append(e)
    kept: list[LabelledExample] = []
    duplicate = contradictory = 0
    for rows in by_prompt.values():
        distinct = list({tuple(sorted(r.outcomes.items())): r for r in rows}.values())
        duplicate += len(rows) - len(distinct)
        contradictory += len(distinct) - 1
        if len(distinct) == 1:
            kept.append(distinct[0])
            continue
        tiers = sorted({t for r in rows for t in r.outcomes})
        mean = {t: float(np.mean([r.outcomes[t] for r in rows if t in r.outcomes])) for t in tiers}
        kept.append(replace(distinct[0], outcomes=mean))
    return kept, duplicate, contradictory


def summarise(
    examples: Sequence[LabelledExample],
    *,
    read: int,
    invalid: int,
    duplicate: int,
    contradictory: int,
    sha256: str,
    warnings: Sequence[str],
) -> DatasetSummary:
    """Counts and means of a data set."""
    quality: dict[str, list[float]] = defaultdict(list)
    sources: dict[str, int] = defaultdict(int)
    for e in examples:
        sources[e.source] += 1
        for tier, value in e.outcomes.items():
            quality[tier].append(value)
    times = sorted(e.received_at_utc for e in examples if e.received_at_utc is not None)
    return DatasetSummary(
        rows_read=read,
        rows_kept=len(examples),
        rows_invalid=invalid,
        rows_duplicate=duplicate,
        rows_contradictory=contradictory,
        groups=len(set(groups_of(examples).tolist())),
        outcome_counts={t: len(v) for t, v in sorted(quality.items())},
        outcome_means={t: float(np.mean(v)) for t, v in sorted(quality.items())},
        source_counts=dict(sorted(sources.items())),
        first_at_utc=times[0].isoformat() if times else None,
        last_at_utc=times[-1].isoformat() if times else None,
        sha256=sha256,
        warnings=tuple(warnings),
    )


def groups_of(examples: Sequence[LabelledExample]) -> NDArray[np.int64]:
    """A number per row; rows with the same stem or the same conversation, directly or by way of others, share it."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, e in enumerate(examples):
        for key in (("stem", e.stem), ("conversation", e.conversation)):
            if key[1]:
                parent[root(i)] = root(first.setdefault(key, i))
    return np.array([root(i) for i in range(len(examples))], dtype=np.int64)


def split_by_group(
    examples: Sequence[LabelledExample], *, test_share: float, seed: int
) -> tuple[list[LabelledExample], list[LabelledExample]]:
    """Train and test rows; no stem and no conversation is in both."""
    groups = groups_of(examples)
    unique = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(unique)[: round(test_share * len(unique))]
    in_test = np.isin(groups, chosen)
    return [e for e, t in zip(examples, in_test, strict=True) if not t], [
        e for e, t in zip(examples, in_test, strict=True) if t
    ]


def split_by_time(
    examples: Sequence[LabelledExample], *, test_share: float
) -> tuple[list[LabelledExample], list[LabelledExample]]:
    """Train on the past, test on the newest; rows of a group that began in the past stay in the past."""
    if any(e.received_at_utc is None for e in examples):
        raise DatasetError("a split by time needs `received_at` in every row")
    groups = groups_of(examples)
    begun: dict[int, datetime] = {}
    for g, e in zip(groups.tolist(), examples, strict=True):
        at = e.received_at_utc
        if at is not None:
            begun[g] = min(begun.get(g, at), at)
    order = sorted(begun, key=lambda g: begun[g])
    late = set(order[len(order) - round(test_share * len(order)) :])
    return [e for e, g in zip(examples, groups.tolist(), strict=True) if g not in late], [
        e for e, g in zip(examples, groups.tolist(), strict=True) if g in late
    ]


def stem_hash(example: LabelledExample) -> bytes:
    """Eight bytes that stand for a stem: enough to see that a row was trained on, useless to read it."""
    return hashlib.sha256(example.stem.encode("utf-8", "surrogatepass")).digest()[:8]
