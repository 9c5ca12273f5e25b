"""A trained model in its serving form. Pure: no I/O, no numpy, no sklearn; never raises on any text.

The arithmetic is that of `pipeline.TierModel`, arranged for one row at a time in plain Python: integers with a lane per
weight for the words and for the numbers (`packed`), a bit vector for the trees (`trees`), and the common views and the
experts only of sources that are likely. What would be drawn to the prior wholly is not computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from math import exp, log, log1p, sqrt
from operator import add, mul, sub
from struct import Struct
from typing import NamedTuple

from classifier.datamodels import RequestFeatures, Score
from classifier.heuristic import P_ADEQUATE, prompt_class
from classifier.packed import FACTOR_ONE, Scaling, Sums
from classifier.serving import (
    FIXED_LANES,
    LANE_BIAS,
    LANE_BITS,
    LEAST_SHARE,
    ServingModel,
    from_bytes,
)
from classifier.textstats import DENSE_COUNT, DENSE_NAMES, VALUE_PLACES, measured, words
from classifier.trees import TreeBank

PRIOR_LENGTH_TILT = 0.02
_LOG_CHARS = DENSE_NAMES.index("log_chars")
_FACTOR = float(FACTOR_ONE)
_IMPOSSIBLE = -1e4  # log-odds of a source never seen: its share is 0, and sums still fit their lanes


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    total: float = sum(map(mul, a, b))
    return total


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + exp(-z)) if z >= 0.0 else 1.0 - 1.0 / (1.0 + exp(z))


def normal_model_name(name: str) -> str:
    """`meta-llama/Llama-3.1-8B-Instruct` and `llama-3.1-8b-instruct`, also with `meta-` before it, are one model."""
    return name.rsplit("/", 1)[-1].lower().removeprefix("meta-")


class _Seen(NamedTuple):
    """What is known of a request before its tiers are looked at. `lanes` are sums over its known words."""

    counts: Sequence[int]
    values: Sequence[float]
    factors: Sequence[int]
    lanes: Sequence[float]
    gate: Sequence[float]
    novelty: float


class TrainedScorer:
    """Scores by a trained model.

    `models` says which model stands behind each tier, where that is known: the answer is then read from labels of
    those models, as far as there are any. Use `bind` to get a scorer for other models that shares the tables.
    Raises `packed.OutOfRange` for weights that cannot be right.
    """

    def __init__(
        self, model: ServingModel, table: Mapping[bytes, int], models: Mapping[str, str] | None = None
    ) -> None:
        self.model = replace(model, tree_splits=())  # what the trees below have taken in is not kept twice
        self.version = model.version
        self._table = table
        self._row_of = table.get
        self._allowed = sources_with(model.source_models, models or {})
        self._lane_steps = model.lane_steps
        lane_count = len(self._lane_steps)
        self._lane_bytes = LANE_BITS // 8 * lane_count
        self._lanes = Struct(f"<{lane_count}I")
        self._bias = sum(LANE_BIAS << (LANE_BITS * i) for i in range(lane_count))
        self._excess_from = FIXED_LANES + len(model.tiers)
        self._subjects_from = self._excess_from + len(model.sources)
        self._words_usual = [(m, 1.0 / s) for m, s in zip(model.words_mean, model.words_scale, strict=True)]
        self._novelty_limits = [
            [(start, 1.0 / span) for start, span in zip(*of_source, strict=True)]
            for of_source in zip(model.novelty_from, model.novelty_span, strict=True)
        ]
        self._trees = TreeBank(model)
        self._scaling = Scaling(model)
        self._whence = _whence(model, self._scaling)
        self._about = _about(model, self._scaling) if model.subject_intercept else None
        self._views = [_views(model, self._scaling, s) for s in range(len(model.sources))]
        self._value_centres = [
            ([centre[d] for d in VALUE_PLACES], [inverse[d] for d in VALUE_PLACES])
            for centre, inverse in zip(model.centre, model.inverse_spread, strict=True)
        ]

    @classmethod
    def from_bytes(cls, data: bytes, models: Mapping[str, str] | None = None) -> TrainedScorer:
        """Read the serving form; raises `serving.ServingFormatError`."""
        return cls(*from_bytes(data), models)

    def bind(self, models: Mapping[str, str]) -> TrainedScorer:
        """The same model for tiers served by `models` (tier -> model name)."""
        bound = object.__new__(TrainedScorer)
        bound.__dict__.update(self.__dict__, _allowed=sources_with(self.model.source_models, models))
        return bound

    def score(self, features: RequestFeatures) -> Score:
        """P(adequate) per tier, drawn to the prior by as much as the request is unlike the training data."""
        seen = self._see(features)
        novelty = seen.novelty
        # The model's own word is not asked where it would count for nothing, nor is the prior's.
        p = self._probabilities(seen) if novelty < 1.0 else self.prior(features)
        if 0.0 < novelty < 1.0:
            p = [(1.0 - novelty) * x + novelty * q for x, q in zip(p, self.prior(features), strict=True)]
        p_adequate = dict(zip(self.model.tiers, p, strict=True))
        return Score(
            complexity_ratio=1.0 - p_adequate.get("local", p[0]),
            p_adequate=p_adequate,
            novelty_ratio=novelty,
            model_version=self.version,
            feature_version=self.model.feature_version,
            calibrated=True,
        )

    def as_served(self, features: RequestFeatures, p: Mapping[str, float]) -> dict[str, float]:
        """What was said of the request out of fold (`p`, by tier), drawn to the prior as its own word would be."""
        novelty, prior = self._see(features).novelty, self.prior(features)
        drawn = zip(self.model.tiers, prior, strict=True)
        return {tier: (1.0 - novelty) * p[tier] + novelty * q for tier, q in drawn if tier in p}

    def unshrunk(self, features: RequestFeatures) -> tuple[list[float], float]:
        """What the model alone says, in the order of its tiers, and how far the request is from its training data."""
        seen = self._see(features)
        return self._probabilities(seen), seen.novelty

    def _see(self, features: RequestFeatures) -> _Seen:
        tokens = words(features.text)
        distinct = set(tokens)
        counts, values = measured(features, len(tokens), distinct)
        scaled = self._scaling.values(values)
        factors = [int(z * _FACTOR) for z in scaled]
        lanes = self._word_lanes(distinct)
        known = int(lanes[0])
        whence = self._whence.of(counts, [*factors, *self._word_factors(lanes, known)])
        gate = _shares(whence[: len(self._words_usual)])
        believed = gate if self._allowed is None else _limited(gate, self._allowed)
        nearest = believed.index(max(believed))
        centre, inverse = self._value_centres[nearest]
        away = list(map(mul, map(sub, scaled, centre), inverse))
        square = whence[nearest - len(gate)] + _dot(away, away)
        novelty = self._novelty(len(distinct), known, lanes, square, _foreign(gate, self._allowed), nearest)
        return _Seen(counts, values, factors, lanes, gate, novelty)

    def _word_lanes(self, distinct: Iterable[bytes]) -> list[float]:
        """Sums over those words that are known: how many they are, idf squared, idf; by tier, source, subject."""
        total = sum(map(self._row_of, distinct, repeat(0)), self._bias)
        lanes = self._lanes.unpack(total.to_bytes(self._lane_bytes, "little"))
        return [(lane - LANE_BIAS) * step for lane, step in zip(lanes, self._lane_steps, strict=True)]

    def _word_factors(self, lanes: Sequence[float], known: int) -> list[int]:
        """What the words say of each source as in naive Bayes, standardised and clipped."""
        high, per_root = self.model.clip, 1.0 / sqrt(known or 1)
        low = -high
        excess = lanes[self._excess_from : self._subjects_from]
        standard = [
            (lane * per_root - mean) * inverse for lane, (mean, inverse) in zip(excess, self._words_usual, strict=True)
        ]
        return [int((low if z < low else (high if z > high else z)) * _FACTOR) for z in standard]  # noqa: FURB136

    def _by_subject(self, seen: _Seen) -> list[float]:
        """Each tier's quality in the subjects the request seems to be about; nothing without subjects."""
        if self._about is None:
            return []
        per_root = 1.0 / sqrt(seen.lanes[0] or 1.0)
        of_words = map(mul, seen.lanes[self._subjects_from :], repeat(per_root))
        shares = _shares(list(map(add, of_words, self._about.of(seen.counts, seen.factors))))
        return [_dot(shares, quality) for quality in self.model.subject_quality]

    def _novelty(
        self, distinct: int, known: int, lanes: Sequence[float], square: float, elsewhere: float, s: int
    ) -> float:
        """`square`: of the distance from source `s` in standard deviations of its numbers, summed over them;
        `elsewhere`: how much the request is like sources of other models.
        """
        unknown = distinct - known if distinct else 1
        per_word = 1.0 / (distinct or 1)
        model, (a, b, c, d, e) = self.model, self._novelty_limits[s]
        far = max(
            0.0,
            (unknown * per_word - a[0]) * a[1],
            ((lanes[2] + model.rare_idf * (distinct - known)) * per_word - b[0]) * b[1],
            ((lanes[self._excess_from + s] + model.unknown_excess[s] * unknown) * -per_word - c[0]) * c[1],
            (sqrt(square / DENSE_COUNT) - d[0]) * d[1],
            (elsewhere - e[0]) * e[1],
        )
        return min(far, 1.0)

    def _probabilities(self, seen: _Seen) -> list[float]:
        """What the model says of each tier, as if nothing were novel."""
        model, lanes = self.model, seen.lanes
        tiers = range(len(model.tiers))
        likely = _floored(seen.gate, model.gate_floor)
        share = likely if self._allowed is None else _floored(_limited(seen.gate, self._allowed), model.gate_floor)
        views = {s: self._views[s].of(seen.counts, seen.factors) for s in {*dict(likely), *dict(share)}}
        norm = sqrt(lanes[1]) if lanes[1] > 0.0 else 1.0
        by_subject = self._by_subject(seen)
        log_odds = [log(q / (1.0 - q)) for q in by_subject]
        trees = self._trees.scores(seen.counts, [*seen.values, *by_subject])
        out = []
        for t in tiers:
            linear = lanes[FIXED_LANES + t] / norm + model.linear_intercept[t]
            linear += _dot(model.linear_by_subject[t], log_odds)
            for s, part in likely:
                linear += part * (views[s][t] + model.linear_source_offset[s][t])
            (l0, l1, l2), (h0, h1, h2) = model.low[t], model.high[t]
            linear, tree = min(max(linear, l0), h0), min(max(trees[t], l1), h1)
            p = 0.0
            for s, part in share:
                expert = min(max(views[s][t - len(tiers)] + model.expert_intercept[s][t], l2), h2)
                a, b, c = model.slopes[s][t]
                p += part * _sigmoid(a * linear + b * tree + c * expert + model.offsets[s][t])
            out.append(p)
        return out

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


def _whence(model: ServingModel, scaling: Scaling) -> Sums:
    """For each source the log-odds that a request stems from it; then for each source how far the counts are from it,
    squared. Factors: the values, and what the words say of each source."""
    sources = range(len(model.sources))
    gate = model.gate or [[0.0] * (DENSE_COUNT + len(sources))]  # a lone source is sure
    intercept = [max(z, _IMPOSSIBLE) for z in model.gate_intercept] or [0.0]

    def terms(d: int, z: float) -> list[float]:
        away = [((z - c[d]) * i[d]) ** 2 for c, i in zip(model.centre, model.inverse_spread, strict=True)]
        return [weights[d] * z for weights in gate] + away

    columns = [[weights[at] for weights in gate] for at in (*VALUE_PLACES, *(DENSE_COUNT + s for s in sources))]
    return Sums(scaling, terms, columns, [*intercept, *(0.0 for _ in sources)])


def _about(model: ServingModel, scaling: Scaling) -> Sums:
    """For each subject the log-odds that the numbers tell of it. Factors: the values."""
    columns = list(zip(*model.subject_numbers, strict=True))
    return Sums(
        scaling,
        lambda d, z: [weight * z for weight in columns[d]],
        [columns[d] for d in VALUE_PLACES],
        model.subject_intercept,
    )


def _views(model: ServingModel, scaling: Scaling, s: int) -> Sums:
    """For each tier the linear view of the numbers as in source `s`, then for each tier the expert of that source.

    Shares of likely sources sum to 1, so that the slopes all sources share may be added to each source's own.
    """
    slopes = zip(model.linear_shared, model.linear_by_source[s], strict=True)
    linear = [[a + b for a, b in zip(shared, own, strict=True)] for shared, own in slopes]
    columns = list(zip(*linear, *model.experts[s], strict=True))
    constants = [0.0] * len(columns[0])
    return Sums(
        scaling, lambda d, z: [weight * z for weight in columns[d]], [columns[d] for d in VALUE_PLACES], constants
    )


def sources_with(source_models: Sequence[Mapping[str, str]], models: Mapping[str, str]) -> tuple[int, ...] | None:
    """Sources labelled with `models` in every tier both name; `None` where that tells nothing."""
    wanted = {tier: normal_model_name(name) for tier, name in models.items()}
    matching = []
    for s, own in enumerate(source_models):
        both = [tier for tier in own if tier in wanted]
        if both and all(normal_model_name(own[tier]) == wanted[tier] for tier in both):
            matching.append(s)
    return tuple(matching) if 0 < len(matching) < len(source_models) else None


def _limited(gate: Sequence[float], allowed: Sequence[int]) -> list[float]:
    """P(source) given that it is one of `allowed`; even where all of those are all but impossible."""
    share = [0.0] * len(gate)
    total = sum(gate[s] + 1e-12 for s in allowed)
    for s in allowed:
        share[s] = (gate[s] + 1e-12) / total
    return share


def _shares(log_odds: Sequence[float]) -> list[float]:
    """Probabilities of alternatives."""
    top = max(log_odds)
    odds = [exp(z - top) for z in log_odds]
    total = sum(odds)
    return [o / total for o in odds]


def _foreign(gate: Sequence[float], allowed: Sequence[int] | None) -> float:
    """How much a request is like sources of other models: minus the logarithm of P(`allowed`)."""
    return 0.0 if allowed is None else -log(max(sum([gate[s] for s in allowed]), LEAST_SHARE))


def _floored(gate: Sequence[float], floor: float) -> list[tuple[int, float]]:
    """(source, share) of likely sources, shares summing to 1."""
    kept = [(s, g) for s, g in enumerate(gate) if g >= floor]
    total = sum(g for _, g in kept)
    return [(s, g / total) for s, g in kept]
