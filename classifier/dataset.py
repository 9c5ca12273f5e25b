"""Labelled logs: read, rid of duplicates, tied into groups and split without leaks. The rows are those of `rows`."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.datamodels import DatasetSummary, LabelledExample
from classifier.rows import open_text, parse_row

MAX_INVALID_SHARE = 0.05
MAX_ROWS = 300_000
MAX_LINE_CHARS = 20_000_000


class DatasetError(ValueError):
    """The labels cannot be used; the message says why and what to do."""


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
