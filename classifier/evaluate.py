"""How good is a model against what is free? Quality against cost, calibration; per source and domain."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier import metrics
from classifier.calibrate import TokenPrices
from classifier.datamodels import LabelledExample, Score
from classifier.dataset import stem_hash
from classifier.heuristic import HeuristicScorer
from classifier.labels import ONE_SIDED
from classifier.offpolicy import (
    check_overlap,
    inverse_weights,
    is_partial,
    matrices,
    pseudo_outcomes,
    pseudo_range,
    tier_quality,
)
from classifier.progress import Progress, unheard
from classifier.scorer import TrainedScorer
from classifier.targets import MIN_COST_ROWS, quality_dials
from classifier.told import LearningError

Floats = NDArray[np.float64]

DEFAULT_PRICES: Mapping[str, TokenPrices] = {
    "local": TokenPrices(0.02, 0.05),
    "cheap": TokenPrices(0.075, 0.30),
    "premium": TokenPrices(1.25, 5.0),
}
QUALITY_SHARES = (0.95, 0.98, 1.0)
MIN_SLICE_ROWS = 100
MIN_FRESH_ROWS = 30
CALIBRATION_DRAWS = 100
CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Everything figures are computed from: rows x tiers."""

    tiers: tuple[str, ...]
    p: Floats
    outcomes: Floats  # doubly robust where the log is partial; NaN where not judged
    novelty: Floats
    length: Floats
    heuristic: Floats
    source: NDArray[np.str_]
    domain: NDArray[np.str_]
    input_tokens: Floats
    output_tokens: Floats  # NaN where unknown
    judged: Floats  # outcomes as judged; NaN where they were not
    weight: Floats | None = None  # of a partial log: for how many rows of the traffic each judged outcome stands
    quality_range: tuple[float, float] = (0.0, 1.0)  # what `outcomes` can come to

    @property
    def partial(self) -> bool:
        """Whether a policy decided what is seen. Single outcomes mean nothing then, only their means do."""
        return self.weight is not None


def of_these_tiers(
    examples: Sequence[LabelledExample], tiers: Sequence[str]
) -> tuple[list[LabelledExample], list[str]]:
    """Rows that judge a tier the model knows, and a note on what else the labels judge."""
    judged = {t for e in examples for t in e.outcomes}
    foreign = sorted(judged - set(tiers))
    if not judged & set(tiers):
        raise LearningError(
            f"the labels judge {', '.join(foreign)}; the model predicts {', '.join(tiers)}: no tier is in both. Name "
            "the tiers in `outcomes` as the model does, or train a model on labels of these tiers and give it with "
            "--model"
        )
    kept = [e for e in examples if not set(e.outcomes).isdisjoint(tiers)]
    notes = [f"the model predicts {', '.join(tiers)}; judgements of {', '.join(foreign)} are left out"] * bool(foreign)
    if len(kept) < len(examples):
        notes.append(f"{len(examples) - len(kept)} rows judge no tier of the model and are left out")
    return kept, notes


def without_price(tiers: Sequence[str], prices: Mapping[str, TokenPrices]) -> list[str]:
    """A note on tiers that have no price."""
    missing = [tier for tier in tiers if tier not in prices]
    if not missing:
        return []
    return [f"no price of {', '.join(missing)}: figures of cost are without; give --price {missing[0]}=INPUT/OUTPUT"]


def not_seen(
    examples: Sequence[LabelledExample], seen: frozenset[bytes], *, include_seen: bool
) -> tuple[list[LabelledExample], list[str]]:
    """Rows whose stem the model was not trained on (all, if `include_seen`), with a note on the others."""
    fresh = [e for e in examples if stem_hash(e) not in seen]
    told = f"{len(examples) - len(fresh)} of {len(examples)} rows share their stem with training data"
    if include_seen:
        return list(examples), [told, "these rows are included: the figures flatter the model"]
    if len(fresh) < MIN_FRESH_ROWS:
        raise LearningError(f"{told}; {len(fresh)} fresh rows are too few to say anything")
    return fresh, [told]


def usable(examples: Sequence[LabelledExample]) -> tuple[list[LabelledExample], list[str]]:
    """Rows that a figure can be computed from, and notes on how many were left out.

    Rows known by retries alone are left out: such labels only ever say no. So are those that hold one tier's outcome
    and no probability; where these are the majority all rows are returned, so that the overlap check refuses and says
    why.
    """
    judged = [e for e in examples if e.label_source != ONE_SIDED]
    notes = []
    if judged and len(judged) < len(examples):
        notes = [f"{len(examples) - len(judged)} rows known by retries alone are left out: such labels only say no"]
        examples = judged
    known = [e for e in examples if not is_partial(e) or e.observation_probability is not None]
    left_out = len(examples) - len(known)
    if left_out == 0 or 2 * left_out > len(examples):
        return list(examples), notes
    note = f"{left_out} rows with one outcome and no probability of its choice tell nothing and are left out"
    return known, [*notes, note]


def predict(scorer: TrainedScorer, examples: Sequence[LabelledExample], progress: Progress = unheard) -> list[Score]:
    """Scores of the serving form, bound to the models a row names."""
    bound: dict[tuple[tuple[str, str], ...], TrainedScorer] = {}
    scores = []
    for number, e in enumerate(examples):
        key = tuple(sorted(e.models.items()))
        if key not in bound:
            bound[key] = scorer.bind(e.models)
        scores.append(bound[key].score(e.features))
        if number % 500 == 0:
            progress(f"scoring {len(examples)} prompts", number / len(examples))
    return scores


def collect(examples: Sequence[LabelledExample], tiers: Sequence[str], p: Floats, novelty: Floats) -> Evaluated:
    """Arrays for the figures. Raises `offpolicy.NoOverlap` for a partial log that cannot be evaluated."""
    judged, _ = matrices(examples, tiers)
    outcomes, weight, quality_range = judged, None, (0.0, 1.0)
    if any(is_partial(e) for e in examples):
        check_overlap(examples, tiers)
        outcomes, quality_range = pseudo_outcomes(examples, tiers, p), pseudo_range(examples, tiers)
        weight = inverse_weights([replace(e, weight=1.0) for e in examples], tiers)
    prior = HeuristicScorer()
    tokens = np.array([[e.output_tokens.get(t, np.nan) for t in tiers] for e in examples], dtype=np.float64)
    return Evaluated(
        tiers=tuple(tiers),
        p=p,
        outcomes=outcomes,
        novelty=novelty,
        length=np.array([e.features.text_chars for e in examples], dtype=np.float64),
        heuristic=np.array([prior.score(e.features).complexity_ratio for e in examples]),
        source=np.array([e.source for e in examples]),
        domain=np.array([e.domain for e in examples]),
        input_tokens=np.array([e.features.input_tokens for e in examples], dtype=np.float64),
        output_tokens=tokens,
        judged=judged,
        weight=weight,
        quality_range=quality_range,
    )


def traffic_quality(
    examples: Sequence[LabelledExample], tiers: Sequence[str], p: Floats
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of a partial log: each tier's mean quality over all traffic, naive, by inverse propensity and doubly robust, each
    with its 95 % interval. Empty for complete labels."""
    if not any(is_partial(e) for e in examples):
        return {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for t, tier in enumerate(tiers):
        if any(tier in e.outcomes for e in examples):
            estimates = tier_quality(examples, tier, p[:, t])
            found[tier] = {k: {"value": e.value, "interval": list(e.interval())} for k, e in estimates.items()}
    return found


def two_tier(
    data: Evaluated, rows: NDArray[np.int64], *, draws: int, rng: np.random.Generator
) -> dict[str, Any] | None:
    """APGR, CPT50, CPT80 of weak (first tier) against strong (last), beside free baselines; `None` where undefined."""
    ends = data.outcomes[:, [0, -1]]
    rows = rows[~np.isnan(ends[rows]).any(axis=1)]
    if len(rows) < 2 or len(data.tiers) < 2:
        return None
    weak, strong = ends[rows, 0], ends[rows, 1]
    if strong.mean() <= weak.mean():
        return {"rows": len(rows), "note": "the strong tier is no better here: nothing to route"}
    score = data.p[rows, -1] - data.p[rows, 0]
    low, high = metrics.bootstrap(lambda i: metrics.apgr(score[i], weak[i], strong[i]), len(rows), draws=draws, rng=rng)
    value = metrics.apgr(score, weak, strong)
    return {
        "rows": len(rows),
        "weak": data.tiers[0],
        "strong": data.tiers[-1],
        "weak_quality": float(weak.mean()),
        "strong_quality": float(strong.mean()),
        "apgr": value,
        "apgr_interval": [low, high],
        "better_than_chance": bool(low > CHANCE),
        "cpt50": metrics.cpt(score, weak, strong, 0.5),
        "cpt80": metrics.cpt(score, weak, strong, 0.8),
        "baselines": {
            "length_only": metrics.apgr(data.length[rows], weak, strong),
            "heuristic": metrics.apgr(data.heuristic[rows], weak, strong),
            "complexity_only": metrics.apgr(1.0 - data.p[rows, 0], weak, strong),
            "random": CHANCE,
            "oracle": None if data.partial else metrics.apgr(strong - weak, weak, strong),
        },
    }


def costs(data: Evaluated, rows: NDArray[np.int64], prices: Mapping[str, TokenPrices]) -> tuple[Floats, Floats]:
    """(expected, actual) cost per row and priced tier in USD. What is expected uses the tier's mean output."""
    columns = [i for i, t in enumerate(data.tiers) if t in prices]
    tokens = data.output_tokens[rows][:, columns]
    with np.errstate(all="ignore"):
        mean = np.array([np.nanmean(c) if not np.isnan(c).all() else 200.0 for c in tokens.T])
    price_in = np.array([prices[data.tiers[i]].input_usd_per_mtok for i in columns])
    price_out = np.array([prices[data.tiers[i]].output_usd_per_mtok for i in columns])
    base = data.input_tokens[rows, None] * price_in
    return (base + mean * price_out) / 1e6, (base + np.where(np.isnan(tokens), mean, tokens) * price_out) / 1e6


def many_tiers(
    data: Evaluated, rows: NDArray[np.int64], prices: Mapping[str, TokenPrices], *, draws: int, rng: np.random.Generator
) -> dict[str, Any] | None:
    """Cost at shares of the best tier's quality and AIQ, over the tiers judged, beside static hull and oracle.

    `None` below two that are judged and priced.
    """
    columns = [i for i, t in enumerate(data.tiers) if t in prices and not np.isnan(data.outcomes[rows][:, i]).all()]
    prices = {data.tiers[i]: prices[data.tiers[i]] for i in columns}
    if len(columns) < 2:
        return None
    rows = rows[~np.isnan(data.outcomes[rows][:, columns]).any(axis=1)]
    if len(rows) < MIN_COST_ROWS:
        return None
    p, quality = data.p[rows][:, columns], data.outcomes[rows][:, columns]
    expected, actual = costs(data, rows, prices)
    found = _cost_figures(p, expected, actual, quality)
    if data.partial:  # the best of single doubly robust outcomes is the best of their noise
        found["oracle"] = None
    samples = [
        _on_curve(curve, low=min(c for c, _ in single), spent=single[-1][0], top=single[-1][1])
        for curve, single in metrics.resampled_curves(p, expected, actual, quality, draws=draws, rng=rng)
    ]
    found["routed_interval"] = {
        key: [float(q) for q in np.nanquantile([s[key] for s in samples], [0.025, 0.975])] for key in found["routed"]
    }
    return {"rows": len(rows), "tiers": [data.tiers[i] for i in columns], **found}


def _cost_figures(p: Floats, expected: Floats, actual: Floats, quality: Floats) -> dict[str, Any]:
    top, spent = float(quality[:, -1].mean()), float(actual[:, -1].mean())
    curves = {
        "routed": metrics.routed_curve(p, expected, actual, quality),
        "static": metrics.upper_hull(metrics.single_tiers(actual, quality)),
        "oracle": metrics.routed_curve(quality, actual, actual, quality),
    }
    low = float(actual.mean(axis=0).min())
    return {name: _on_curve(curve, low=low, spent=spent, top=top) for name, curve in curves.items()}


def _on_curve(curve: metrics.Curve, *, low: float, spent: float, top: float) -> dict[str, float]:
    """Cost at shares of quality `top`, of what always the best tier costs (`spent`), and AIQ from cost `low` up."""
    figures = {f"cost_at_{share:.0%}": metrics.cost_at(curve, share * top) / spent for share in QUALITY_SHARES}
    return figures | {"aiq": metrics.aiq(curve, low, spent)}


def calibration(data: Evaluated, rows: NDArray[np.int64], *, rng: np.random.Generator) -> dict[str, Any]:
    """ECE (with that of a perfectly calibrated model of the same predictions), Brier and counts per tier.

    Of a partial log what was judged counts, each outcome as often as it stands for others (inverse propensity).
    """
    found = {}
    for t, tier in enumerate(data.tiers):
        seen = rows[~np.isnan(data.judged[rows, t])]
        if len(seen) >= 2 * metrics.ECE_BINS:
            p, y = data.p[seen, t], data.judged[seen, t]
            w = data.weight[seen, t] if data.weight is not None else None
            drawn = [rng.integers(0, len(seen), len(seen)) for _ in range(CALIBRATION_DRAWS)]
            again = [(p[i], y[i], None if w is None else w[i]) for i in drawn]
            ece, brier = metrics.ece(p, y, weight=w), metrics.brier(p, y, weight=w)
            found[tier] = {
                "rows": len(seen),
                "ece": ece,
                "ece_interval": _interval(ece, [metrics.ece(q, z, weight=v) for q, z, v in again]),
                "brier_interval": _interval(brier, [metrics.brier(q, z, weight=v) for q, z, v in again]),
                "ece_if_perfect": metrics.ideal_ece(p, draws=20, rng=rng, weight=w),
                "brier": brier,
                "brier_of_mean": metrics.brier(np.full(len(y), np.average(y, weights=w)), y, weight=w),
            }
    return found


def _interval(value: float, redrawn: Sequence[float]) -> list[float]:
    """95 % interval of a figure >= 0. A resample has the noise twice, which an ECE counts as error: the draws are moved
    by what they are above the figure in the mean."""
    moved = np.quantile(redrawn, [0.025, 0.975]) - np.mean(redrawn) + value
    return [max(0.0, float(q)) for q in moved]


def slices(data: Evaluated) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Row numbers by source, and by domain where it is large enough."""
    by_source = {str(s): np.flatnonzero(data.source == s) for s in np.unique(data.source)}
    names = defaultdict(list)
    for i, (s, d) in enumerate(zip(data.source.tolist(), data.domain.tolist(), strict=True)):
        if d:
            names[f"{s}/{d}"].append(i)
    by_domain = {k: np.array(v) for k, v in sorted(names.items()) if len(v) >= MIN_SLICE_ROWS}
    return {"sources": by_source, "domains": by_domain}


def report(
    data: Evaluated,
    *,
    prices: Mapping[str, TokenPrices] | None = None,
    draws: int = 300,
    seed: int = 0,
    confidence_ratio: float = 0.9,
) -> dict[str, Any]:
    """The whole report as plain data. The same rows and seed give the same report."""
    rng = np.random.default_rng(seed)
    used = prices or DEFAULT_PRICES
    everything = np.arange(len(data.p))
    parts = slices(data)
    found: dict[str, Any] = {
        "rows": len(data.p),
        "tiers": list(data.tiers),
        "partial": data.partial,
        "pooled": two_tier(data, everything, draws=draws, rng=rng),
        "cost": many_tiers(data, everything, used, draws=min(draws, 100), rng=rng),
        "calibration": calibration(data, everything, rng=rng),
        "novelty_mean_ratio": float(data.novelty.mean()),
        "quality_dials": quality_dials(data, used, confidence_ratio, seed),
        "prices_usd_per_mtok": {t: [p.input_usd_per_mtok, p.output_usd_per_mtok] for t, p in used.items()},
    }
    for kind, by_name in parts.items():
        found[kind] = {}
        for name, rows in by_name.items():
            found[kind][name] = {"two_tier": two_tier(data, rows, draws=draws if kind == "sources" else 100, rng=rng)}
            if kind == "sources":
                found[kind][name]["cost"] = many_tiers(data, rows, used, draws=min(draws, 100), rng=rng)
                found[kind][name]["calibration"] = calibration(data, rows, rng=rng)
                found[kind][name]["novelty_mean_ratio"] = float(data.novelty[rows].mean())
    found["no_better_than_chance"] = sorted(
        name
        for kind in parts
        for name, part in found[kind].items()
        if part["two_tier"] is not None and not part["two_tier"].get("better_than_chance", True)
    )
    return found


def write_report(found: Mapping[str, Any], folder: Path) -> None:
    """`report.json` and `report.md`."""
    from classifier.report import markdown

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(found), encoding="utf-8")
