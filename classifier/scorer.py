"""A trained model in its serving form. Pure: no I/O, no numpy, no sklearn; never raises on any text.

The arithmetic is that of `pipeline.TierModel`, arranged for one row at a time in plain Python: integers for the words,
a bit vector for the trees (each threshold passed clears the leaves it rules out; the lowest bit left in a tree's byte
is its leaf), short dot products for the rest, and only for sources that are likely.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import reduce
from math import exp, log1p, sqrt
from operator import and_, getitem, mul, sub
from struct import Struct

from classifier.datamodels import RequestFeatures, Score
from classifier.heuristic import P_ADEQUATE, prompt_class
from classifier.serving import (
    FIXED_LANES,
    LANE_BIAS,
    LANE_BITS,
    LANE_ONE,
    LEAVES_PER_TREE,
    ServingModel,
    from_bytes,
)
from classifier.textstats import DENSE_NAMES, dense, words

PRIOR_LENGTH_TILT = 0.02
_LOG_CHARS = DENSE_NAMES.index("log_chars")
_BIT_INDEX = bytes((code & -code).bit_length() - 1 if code else 0 for code in range(256))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    total: float = sum(map(mul, a, b))
    return total


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + exp(-z)) if z >= 0.0 else 1.0 - 1.0 / (1.0 + exp(z))


def normal_model_name(name: str) -> str:
    """`meta-llama/Llama-3.1-8B-Instruct` and `llama-3.1-8b-instruct`, also with `meta-` before it, are one model."""
    return name.rsplit("/", 1)[-1].lower().removeprefix("meta-")


class TreeBank:
    """All trees of all tiers as one bit vector, a byte per tree."""

    def __init__(self, model: ServingModel) -> None:
        self._baseline = model.tree_baseline
        counts = [len(trees) for trees in model.tree_leaves]
        self._bytes = sum(counts)
        self._full = (1 << (LEAVES_PER_TREE * self._bytes)) - 1
        ends = [sum(counts[: t + 1]) for t in range(len(counts))]
        self._spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self._leaf_tables = model.tree_leaves
        self._ones = int.from_bytes(b"\x01" * self._bytes, "little")
        by_number: dict[int, list[tuple[float, int]]] = {}
        for number, threshold, tree, left in model.tree_splits:
            cleared = int(left) << (LEAVES_PER_TREE * int(tree))
            by_number.setdefault(int(number), []).append((threshold, cleared))
        self._numbers = sorted(by_number)
        columns = [_cumulative(by_number[number], self._full) for number in self._numbers]
        self._thresholds = [thresholds for thresholds, _ in columns]
        self._masks = [masks for _, masks in columns]

    def scores(self, numbers: Sequence[float]) -> list[float]:
        """Log-odds per tier."""
        passed = map(bisect_left, self._thresholds, map(numbers.__getitem__, self._numbers))
        alive = reduce(and_, map(getitem, self._masks, passed), self._full)
        # Every byte has a bit left, so subtracting 1 from each borrows nothing and isolates the lowest bits.
        leaves = (alive & ~(alive - self._ones)).to_bytes(self._bytes, "little").translate(_BIT_INDEX)
        return [
            sum(map(getitem, tables, leaves[span]), start)
            for tables, span, start in zip(self._leaf_tables, self._spans, self._baseline, strict=True)
        ]


def _cumulative(splits: list[tuple[float, int]], full: int) -> tuple[list[float], list[int]]:
    """Distinct thresholds ascending, and what is left alive when the first k of them are passed."""
    cleared: dict[float, int] = {}
    for threshold, leaves in splits:
        cleared[threshold] = cleared.get(threshold, 0) | leaves
    thresholds = sorted(cleared)
    masks = [full]
    for threshold in thresholds:
        masks.append(masks[-1] & ~cleared[threshold])
    return thresholds, masks


class TrainedScorer:
    """Scores by a trained model.

    `models` says which model stands behind each tier, where that is known: the answer is then read from labels of
    those models, as far as there are any. Use `bind` to get a scorer for other models that shares the tables.
    """

    def __init__(
        self, model: ServingModel, table: Mapping[bytes, int], models: Mapping[str, str] | None = None
    ) -> None:
        self.model = model
        self.version = model.version
        self._table = table
        self._row_of = table.get
        self._models = dict(models or {})
        self._trees = TreeBank(model)
        self._inverse_scale = tuple(1.0 / s for s in model.scale)
        self._lanes = Struct(f"<{model.lane_count}Q")
        self._bias = sum(LANE_BIAS << (LANE_BITS * i) for i in range(model.lane_count))
        self._alone = [
            [
                tuple(map(sum, zip(shared, own, strict=True)))
                for shared, own in zip(model.linear_shared, rows, strict=True)
            ]
            for rows in model.linear_by_source
        ]
        self._allowed = allowed_sources(model, self._models)

    @classmethod
    def from_bytes(cls, data: bytes, models: Mapping[str, str] | None = None) -> TrainedScorer:
        """Read the serving form; raises `serving.ServingFormatError`."""
        return cls(*from_bytes(data), models)

    def bind(self, models: Mapping[str, str]) -> TrainedScorer:
        """The same model for tiers served by `models` (tier -> model name)."""
        bound = object.__new__(TrainedScorer)
        bound.__dict__.update(self.__dict__, _models=dict(models), _allowed=allowed_sources(self.model, models))
        return bound

    def score(self, features: RequestFeatures) -> Score:
        """P(adequate) per tier, drawn to the prior by as much as the request is unlike the training data."""
        p_model, novelty = self.unshrunk(features)
        tiers = self.model.tiers
        p_adequate = (
            dict(zip(tiers, p_model, strict=True)) if novelty == 0.0 else self._shrunk(p_model, novelty, features)
        )
        return Score(
            complexity_ratio=1.0 - p_adequate.get("local", p_model[0]),
            p_adequate=p_adequate,
            novelty_ratio=novelty,
            model_version=self.version,
            feature_version=self.model.feature_version,
            calibrated=True,
        )

    def unshrunk(self, features: RequestFeatures) -> tuple[list[float], float]:
        """What the model alone says, in the order of its tiers, and how far the request is from its training data."""
        model = self.model
        tokens = words(features.text)
        distinct = set(tokens)
        numbers = dense(features, len(tokens), distinct)
        clip = model.clip
        low = -clip
        scaled = [
            low if z < low else (clip if z > clip else z)  # noqa: FURB136 - min() costs three times as much here
            for z in map(mul, map(sub, numbers, model.mean), self._inverse_scale)
        ]
        found = [row for row in map(self._row_of, distinct) if row is not None]
        lanes = self._word_lanes(found)
        gate = self._gate(scaled, lanes, len(found))
        likely = _floored(gate, model.gate_floor)
        believed = gate if self._allowed is None else _limited(gate, self._allowed)
        share = likely if self._allowed is None else _floored(believed, model.gate_floor)
        nearest = max(range(len(believed)), key=believed.__getitem__)
        novelty = self._novelty(len(distinct), len(found), lanes, scaled, nearest)
        return self._probabilities(numbers, scaled, lanes, likely, share), novelty

    def _word_lanes(self, found: Sequence[int]) -> tuple[float, ...]:
        raw = (sum(found) + self._bias).to_bytes(8 * self.model.lane_count, "little")
        return tuple([(lane - LANE_BIAS) / LANE_ONE for lane in self._lanes.unpack(raw)])

    def _gate(self, scaled: Sequence[float], lanes: Sequence[float], known: int) -> list[float]:
        model = self.model
        if not model.gate:
            return [1.0]
        clip, root = model.clip, sqrt(known) if known else 1.0
        by_words = [
            min(max((lane / root - mean) / scale, -clip), clip)
            for lane, mean, scale in zip(
                lanes[FIXED_LANES + len(model.tiers) :], model.words_mean, model.words_scale, strict=True
            )
        ]
        columns = [*scaled, *by_words]
        logits = [_dot(columns, row) + b for row, b in zip(model.gate, model.gate_intercept, strict=True)]
        top = max(logits)
        odds = [exp(z - top) for z in logits]
        total = sum(odds)
        return [o / total for o in odds]

    def _probabilities(
        self,
        numbers: Sequence[float],
        scaled: Sequence[float],
        lanes: Sequence[float],
        likely: Sequence[tuple[int, float]],
        share: Sequence[tuple[int, float]],
    ) -> list[float]:
        """`likely` is where the request seems to come from, `share` the same among sources with the right models."""
        model = self.model
        norm = sqrt(lanes[0]) if lanes[0] > 0.0 else 1.0
        trees = self._trees.scores(numbers)
        alone = self._alone[likely[0][0]] if len(likely) == 1 else None
        out = []
        for t in range(len(model.tiers)):
            linear = lanes[FIXED_LANES + t] / norm + model.linear_intercept[t]
            if alone is not None:
                linear += _dot(scaled, alone[t]) + model.linear_source_offset[likely[0][0]][t]
            else:
                linear += _dot(scaled, model.linear_shared[t])
                for s, part in likely:
                    linear += part * (_dot(scaled, model.linear_by_source[s][t]) + model.linear_source_offset[s][t])
            (l0, l1, l2), (h0, h1, h2) = model.low[t], model.high[t]
            linear, tree = min(max(linear, l0), h0), min(max(trees[t], l1), h1)
            p = 0.0
            for s, part in share:
                expert = min(max(_dot(scaled, model.experts[s][t]) + model.expert_intercept[s][t], l2), h2)
                a, b, c = model.slopes[s][t]
                p += part * _sigmoid(a * linear + b * tree + c * expert + model.offsets[s][t])
            out.append(p)
        return out

    def _novelty(self, distinct: int, known: int, lanes: Sequence[float], scaled: Sequence[float], s: int) -> float:
        model = self.model
        count = distinct or 1
        unknown = distinct - known if distinct else 1
        away = list(map(mul, map(sub, scaled, model.centre[s]), model.inverse_spread[s]))
        measured = (
            unknown / count,
            (lanes[1] + model.rare_idf * (distinct - known)) / count,
            -(lanes[FIXED_LANES + len(model.tiers) + s] + model.unknown_excess[s] * unknown) / count,
            sqrt(_dot(away, away) / len(scaled)),
        )
        limits = zip(measured, model.novelty_from[s], model.novelty_span[s], strict=True)
        return min(max(0.0, *((m - start) / span for m, start, span in limits)), 1.0)

    def _shrunk(self, p_model: Sequence[float], novelty: float, features: RequestFeatures) -> dict[str, float]:
        prior = self.prior(features)
        return {t: (1.0 - novelty) * p + novelty * q for t, p, q in zip(self.model.tiers, p_model, prior, strict=True)}

    def prior(self, features: RequestFeatures) -> list[float]:
        """The starting prior of each tier (its base rate where there is none), lower tiers a little below it for long
        prompts: length is what is left to rank by on prompts unlike any seen."""
        model = self.model
        chars = max(features.text_chars, len(features.text))
        length = (log1p(chars) - model.mean[_LOG_CHARS]) / model.scale[_LOG_CHARS]
        tilt = PRIOR_LENGTH_TILT * length / (1.0 + abs(length))
        prior = P_ADEQUATE[prompt_class(features)]
        steps = max(1, len(model.tiers) - 1)
        return [
            min(max(prior.get(tier, base) - tilt * (1.0 - i / steps), 0.001), 0.999)
            for i, (tier, base) in enumerate(zip(model.tiers, model.base_rate, strict=True))
        ]


def allowed_sources(model: ServingModel, models: Mapping[str, str]) -> tuple[int, ...] | None:
    """Sources labelled with `models` in every tier both name; `None` where that tells nothing."""
    wanted = {tier: normal_model_name(name) for tier, name in models.items()}
    matching = []
    for s, own in enumerate(model.source_models):
        both = [tier for tier in own if tier in wanted]
        if both and all(normal_model_name(own[tier]) == wanted[tier] for tier in both):
            matching.append(s)
    return tuple(matching) if 0 < len(matching) < len(model.source_models) else None


def _limited(gate: Sequence[float], allowed: Sequence[int]) -> list[float]:
    """P(source) given that it is one of `allowed`; even where all of those are all but impossible."""
    share = [0.0] * len(gate)
    total = sum(gate[s] + 1e-12 for s in allowed)
    for s in allowed:
        share[s] = (gate[s] + 1e-12) / total
    return share


def _floored(gate: Sequence[float], floor: float) -> list[tuple[int, float]]:
    """(source, share) of likely sources, shares summing to 1."""
    kept = [(s, g) for s, g in enumerate(gate) if g >= floor]
    total = sum(g for _, g in kept)
    return [(s, g / total) for s, g in kept]
