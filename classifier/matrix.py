"""Labelled examples as arrays: which tiers and sources there are, and what each row says of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifier.datamodels import LabelledExample
from classifier.dataset import groups_of
from classifier.offpolicy import inverse_weights
from classifier.scorer import normal_model_name

Floats = NDArray[np.float64]

TIER_ORDER = ("local", "cheap", "premium")
MAX_SOURCES = 8
MIN_SOURCE_ROWS = 100


@dataclass(frozen=True, slots=True)
class Matrix:
    """Examples as arrays.

    `sources` indexes `source_names`; `source_models` are the models behind each source's labels.
    """

    tiers: tuple[str, ...]
    source_names: tuple[str, ...]
    source_models: tuple[Mapping[str, str], ...]
    outcomes: Floats
    weights: Floats
    sources: NDArray[np.int64]
    groups: NDArray[np.int64]


def tiers_of(examples: Sequence[LabelledExample]) -> tuple[str, ...]:
    """Tiers with an outcome, weakest first: the known ones in their order, others by their mean quality.

    What is first and last counts: reports and dials compare the two. So a `tier/model` stands beside its tier, after
    `local` and before any other.
    """
    quality: dict[str, list[float]] = defaultdict(list)
    for e in examples:
        for tier, value in e.outcomes.items():
            quality[tier].append(value)

    def place(name: str) -> tuple[int, bool, float, str]:
        tier = name.partition("/")[0]
        if tier not in TIER_ORDER:
            return len(TIER_ORDER), False, math.fsum(quality[name]) / len(quality[name]), name
        return TIER_ORDER.index(tier), (name == tier) != (tier == TIER_ORDER[0]), 0.0, name

    return tuple(sorted(quality, key=place))


def as_matrix(examples: Sequence[LabelledExample]) -> Matrix:
    """Arrays for the estimator. Small sources, and those beyond `MAX_SOURCES`, are taken together as `other`.

    A source is a name, and the models behind its tiers where labels under that name came from several: labels of one
    data set for two local models are two sources.
    """
    tiers = tiers_of(examples)
    keys = source_keys(examples)
    counts = Counter(keys)
    names = sorted(
        sorted((k for k, n in counts.items() if n >= MIN_SOURCE_ROWS), key=lambda k: (-counts[k], k))[:MAX_SOURCES]
    )
    if len(names) < len(counts):
        names.append("other")
    index = {key: i for i, key in enumerate(names)}
    sources = np.array([index.get(k, len(names) - 1) for k in keys], dtype=np.int64)
    outcomes = np.full((len(examples), len(tiers)), np.nan)
    for i, e in enumerate(examples):
        for tier, quality in e.outcomes.items():
            outcomes[i, tiers.index(tier)] = quality
    return Matrix(
        tiers=tiers,
        source_names=tuple(names),
        source_models=tuple(
            _models_of([e for e, s in zip(examples, sources, strict=True) if s == i]) for i in range(len(names))
        ),
        outcomes=outcomes,
        weights=inverse_weights(examples, tiers),
        sources=sources,
        groups=groups_of(examples),
    )


def source_keys(examples: Sequence[LabelledExample]) -> list[str]:
    """Name of each row's source, with the model of a tier added where several models share name and tier."""
    count: Counter[tuple[str, str, str]] = Counter()
    for e in examples:
        count.update((e.source, tier, normal_model_name(model)) for tier, model in e.models.items())
    several: dict[str, set[str]] = defaultdict(set)
    for (source, tier, model), rows in count.items():
        others = any(
            s == source and t == tier and m != model and n >= MIN_SOURCE_ROWS for (s, t, m), n in count.items()
        )
        if rows >= MIN_SOURCE_ROWS and others:
            several[source].add(tier)
    keys = []
    for e in examples:
        split = sorted(several[e.source] & set(e.models)) if e.source in several else []
        keys.append(" ".join([e.source, *(normal_model_name(e.models[t]) for t in split)]))
    return keys


def _models_of(examples: Sequence[LabelledExample]) -> dict[str, str]:
    """The model of each tier, where all rows that name one agree."""
    named: dict[str, set[str]] = defaultdict(set)
    for e in examples:
        for tier, model in e.models.items():
            named[tier].add(normal_model_name(model))
    return {tier: min(models) for tier, models in sorted(named.items()) if len(models) == 1}
