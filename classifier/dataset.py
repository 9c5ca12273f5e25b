"""Labelled logs: read, rid of duplicates, and tied into groups that must not be split. The rows are those of `rows`."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.datamodels import DatasetSummary, LabelledExample
from classifier.rows import open_text, parse_row, row_of

MAX_INVALID_SHARE = 0.05
MAX_ROWS = 100_000
SHOWN_PROBLEMS = 5
MAX_LINE_CHARS = 20_000_000


class DatasetError(ValueError):
    """The labels cannot be used; the message says why and what to do."""


class StemSample:
    """At most `most` rows of any number, in memory that does not grow: those whose stems have the smallest hashes.

    Whole stems are kept or dropped, so that what belongs together stays together; which ones depends neither on the
    order of the rows nor on anything else in them. `share` is that of all stems that are kept.
    """

    def __init__(self, most: int) -> None:
        self.rows: list[LabelledExample] = []
        self._hashes: list[int] = []
        self._most = most
        self._below = _HASHES

    @property
    def share(self) -> float:
        """Of the rows offered, about how many are kept."""
        return self._below / _HASHES

    def offer(self, example: LabelledExample) -> None:
        """One more row."""
        place = int.from_bytes(stem_hash(example), "big")
        if place >= self._below:
            return
        self.rows.append(example)
        self._hashes.append(place)
        if len(self.rows) > self._most:
            self._below -= self._below // 4
            kept = [i for i, place in enumerate(self._hashes) if place < self._below]
            self.rows, self._hashes = [self.rows[i] for i in kept], [self._hashes[i] for i in kept]


_HASHES = 2**64


def read_labels(
    path: Path, *, progress: Callable[[int], None] | None = None, max_rows: int = MAX_ROWS
) -> tuple[list[LabelledExample], DatasetSummary]:
    """All usable rows of a labels file, or where they are more than `max_rows` an even sample of their stems.

    Exact repetitions are dropped; rows that differ only in their outcomes are merged into their mean and counted as
    contradictory. Raises `DatasetError` where nothing or too little can be read.
    """
    digest = hashlib.sha256()
    sample = StemSample(max_rows)
    problems: list[str] = []
    read = invalid = 0
    for number, line in enumerate(open_text(path), start=1):
        digest.update(line.encode("utf-8", "surrogatepass"))
        if not line.strip():
            continue
        read += 1
        try:
            if len(line) > MAX_LINE_CHARS:
                raise ValueError("the line is too long")
            sample.offer(parse_row(row_of(line)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            invalid += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"line {number}: {error}")
        if progress is not None and read % 1_000 == 0:
            progress(read)
    if invalid < read and not sample.rows:
        raise DatasetError(f"{path.name}: nearly all of {read} rows share one stem: nothing can be held out")
    if invalid == read:
        found = f"no usable row of {read} ({problems[0]})" if problems else "holds no row"
        raise DatasetError(
            f"{path.name}: {found}. A row is a line of JSON with `messages` and `outcomes` (tier -> quality 0..1); "
            "result files of benchmarks become such rows by import-labels, the gateway's own books by export-labels"
        )
    if invalid > MAX_INVALID_SHARE * read:
        raise DatasetError(f"{path.name}: {invalid} of {read} rows are invalid: {'; '.join(problems)}")
    kept, duplicate, contradictory = merge(sample.rows)
    warnings = [f"{invalid} invalid rows left out, the first: {problems[0]}"] if problems else []
    if sample.share < 1.0:
        warnings.append(
            f"{read} rows; those of an even sample of {sample.share:.1%} of their stems are used ({len(kept)} rows); "
            "repetitions are counted among these"
        )
    return kept, summarise(
        kept,
        read=read,
        invalid=invalid,
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


def stem_hash(example: LabelledExample) -> bytes:
    """Eight bytes that stand for a stem: enough to see that a row was trained on, useless to read it."""
    return hashlib.sha256(example.stem.encode("utf-8", "surrogatepass")).digest()[:8]
