"""From the sklearn estimator to the serving form, once, when a model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifier.features import FEATURE_VERSION
from classifier.pipeline import TierModel
from classifier.serving import (
    LANE_BITS,
    LEAF_BITS,
    LEAVES_PER_TREE,
    MOST_WORDS,
    SUBJECT_STEP,
    ServingModel,
    to_bytes,
)
from classifier.views import DENSE_CLIP, GATE_FLOOR, GATE_SCALE, SHARED_SCALE


def compile_model(model: TierModel, *, version: str, source_models: Sequence[Mapping[str, str]]) -> bytes:
    """The bytes of the serving form of a fitted `model`."""
    base, around = model.base_, model.neighbourhood_
    tier_count, source_count = len(model.tiers), len(model.sources)
    number_count = len(base.mean_)
    vocabulary, idf = base.vectorizer_.vocabulary_, base.vectorizer_.idf_
    word_count = len(vocabulary)
    subjects = base.subjects_
    expected_count = len(subjects.mean_)
    coefs = np.zeros((tier_count, word_count + number_count * (1 + source_count) + source_count + expected_count))
    intercepts = np.zeros(tier_count)
    for t, head in enumerate(base.linear_):
        if isinstance(head, float):
            intercepts[t] = head
        else:
            coefs[t], intercepts[t] = head.coef_[0], head.intercept_[0]
    ends = np.cumsum([word_count, number_count * (1 + source_count), source_count])
    on_words, on_numbers, on_gate, on_subjects = np.split(coefs, ends, axis=1)
    on_subjects = on_subjects / subjects.scale_
    intercepts -= on_subjects @ subjects.mean_
    blocks = on_numbers.reshape(tier_count, 1 + source_count, number_count)
    gate_coef, gate_intercept = _gate(base.gate_, source_count, number_count + source_count)
    trees, splits = _trees(base.trees_, base.leaf_steps_)
    serving = ServingModel(
        version=version,
        feature_version=FEATURE_VERSION,
        tiers=tuple(model.tiers),
        sources=tuple(model.sources),
        source_models=tuple(dict(m) for m in source_models),
        mean=_plain(base.mean_),
        scale=_plain(base.scale_),
        words_mean=_plain(base.words_mean_),
        words_scale=_plain(base.words_scale_),
        gate=_plain(gate_coef),
        gate_intercept=_plain(gate_intercept),
        linear_shared=_plain(blocks[:, 0] * SHARED_SCALE),
        linear_by_source=_plain(np.swapaxes(blocks[:, 1:], 0, 1) * GATE_SCALE),
        linear_source_offset=_plain(on_gate.T),
        linear_by_subject=_plain(on_subjects),
        linear_intercept=_plain(intercepts),
        weight_step=tuple(base.weight_steps_),
        experts=_plain(base.expert_coef_),
        expert_intercept=_plain(base.expert_intercept_),
        tree_baseline=tuple(head.baseline for head in trees),
        tree_step=tuple(base.leaf_steps_),
        tree_count=tuple(head.count for head in trees),
        tree_planes=tuple(head.planes for head in trees),
        tree_splits=splits,
        low=_plain(model.low_),
        high=_plain(model.high_),
        slopes=_plain(model.slopes_),
        offsets=_plain(model.offsets_),
        centre=_plain(around.centre_),
        inverse_spread=_plain(around.inverse_spread_),
        unknown_excess=_plain(base.source_words_.unknown_excess_),
        rare_idf=float(idf.max()) + 1.0,
        novelty_from=_plain(around.from_),
        novelty_span=_plain(around.span_),
        subject_numbers=_plain(subjects.number_weights_),
        subject_intercept=_plain(subjects.intercept_),
        subject_quality=_plain(subjects.quality_.T),
        base_rate=_plain(model.base_rate_),
        gate_floor=GATE_FLOOR,
        clip=DENSE_CLIP,
    )
    weights = on_words * idf[None]
    excess, about = base.source_words_.excess_, subjects.word_weights_ * SUBJECT_STEP
    rows = {
        word: (1.0, idf[i] ** 2, idf[i], *weights[:, i], *excess[:, i], *about[:, i]) for word, i in vocabulary.items()
    }
    _check_lanes(list(rows.values()), serving.lane_steps)
    return to_bytes(serving, {word: tuple(map(float, row)) for word, row in rows.items()})


def _plain(array: Any) -> tuple[Any, ...]:
    return tuple(_plain(row) if np.ndim(row) else float(row) for row in np.asarray(array))


def _gate(gate: Any, source_count: int, column_count: int) -> tuple[Any, Any]:
    """Softmax rows over all sources. Two classes are one row in sklearn; classes never seen are made impossible."""
    if source_count == 1:
        return np.zeros((0, column_count)), np.zeros(0)
    coef, intercept = np.zeros((source_count, column_count)), np.full(source_count, -1e9)
    if isinstance(gate, int):
        intercept[gate] = 0.0
    elif len(gate.classes_) == 2:
        intercept[gate.classes_[0]] = 0.0
        coef[gate.classes_[1]], intercept[gate.classes_[1]] = gate.coef_[0], gate.intercept_[0]
    else:
        coef[gate.classes_], intercept[gate.classes_] = gate.coef_, gate.intercept_
    return coef, intercept


def _check_lanes(rows: Sequence[Any], steps: Sequence[float]) -> None:
    """Raise `ValueError` where a text's words could add up to more than a lane holds, even the worst of all texts."""
    lanes = np.sort(np.asarray(rows, dtype=np.float64), axis=0) / np.asarray(steps)
    worst = max(lanes[-MOST_WORDS:].clip(0.0).sum(axis=0).max(), -lanes[:MOST_WORDS].clip(None, 0.0).sum(axis=0).min())
    if worst >= 1 << (LANE_BITS - 1):
        raise ValueError("weights of words are too large for the serving form")


@dataclass(frozen=True)
class _Head:
    """The trees of one tier: what the lowest leaves give, how many trees, and the leaves' bits above that."""

    baseline: float
    count: int
    planes: tuple[int, ...]


def _trees(heads: Sequence[Any], steps: Sequence[float]) -> tuple[list[_Head], tuple[tuple[float, ...], ...]]:
    """Each tier's trees, and the splits of all; trees are numbered over all tiers."""
    found: list[_Head] = []
    splits: list[tuple[float, ...]] = []
    number = 0
    for head, step in zip(heads, steps, strict=True):
        if isinstance(head, float):
            found.append(_Head(head, 0, ()))
            continue
        leaves = []
        for (predictor,) in head._predictors:
            own: list[float] = []
            _walk(predictor.nodes, 0, number, own, splits)
            if len(own) > LEAVES_PER_TREE:
                raise ValueError(f"a tree has {len(own)} leaves; the serving form holds {LEAVES_PER_TREE}")
            leaves.append([round(value / step) for value in own])
            number += 1
        lowest = min(map(min, leaves))
        baseline = float(head._baseline_prediction.ravel()[0]) + len(leaves) * lowest * step
        found.append(_Head(baseline, len(leaves), _planes(leaves, lowest)))
    return found, tuple(splits)


def _planes(leaves: Sequence[Sequence[int]], lowest: int) -> tuple[int, ...]:
    """For each bit of what leaves add to `lowest` a bit vector, a byte per tree: which leaves have it."""
    planes = [0] * LEAF_BITS
    for tree, values in enumerate(leaves):
        for leaf, value in enumerate(values):
            for bit in range(LEAF_BITS):
                planes[bit] |= ((value - lowest) >> bit & 1) << (LEAVES_PER_TREE * tree + leaf)
            if (value - lowest) >> LEAF_BITS:
                raise ValueError("leaves differ by more than the serving form holds")
    return tuple(planes)


def _walk(nodes: Any, at: int, tree: int, leaves: list[float], splits: list[tuple[float, ...]]) -> int:
    """Number the leaves from left to right; returns the bits of the leaves below `at`."""
    node = nodes[at]
    if node["is_leaf"]:
        leaves.append(float(node["value"]))
        return 1 << (len(leaves) - 1)
    left = _walk(nodes, int(node["left"]), tree, leaves, splits)
    splits.append((int(node["feature_idx"]), float(node["num_threshold"]), tree, left))
    return left | _walk(nodes, int(node["right"]), tree, leaves, splits)
