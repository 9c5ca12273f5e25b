"""`python -m bench.classifier --labels F`: what the classifier is worth, measured again from nothing but labels.

Splits by question stem, 70 % to train and 30 % to test, one model for all sources, scored by the serving form with the
models behind the tiers known and not known; few labels; a source left out of training; a model for each source alone;
and CPU time for distinct prompts. Every figure stands beside length only, the heuristic, a random mix and an oracle.
Intervals (95 %) come from resampling prompts, jointly in all splits. Writes `classifier.json` and `classifier.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.classifier_report import markdown
from bench.classifier_speed import latency
from classifier import metrics
from classifier.compiler import compile_model
from classifier.datamodels import LabelledExample
from classifier.dataset import groups_of, read_labels
from classifier.evaluate import DEFAULT_PRICES
from classifier.heuristic import HeuristicScorer
from classifier.matrix import tiers_of
from classifier.scorer import TrainedScorer
from classifier.train import fit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What one test is made of: several sources of one kind may count as one.
POOLS = {
    "MMLU": ("routellm_mmlu",),
    "MMLU-Pro": ("mmlu_pro",),
    "GSM8K": ("routellm_gsm8k",),
    "ZeroEval pooled": ("zeroeval_crux", "zeroeval_gsm", "zeroeval_math_l5"),
}
FEW_LABELS = {"MMLU": (1_531, 250)}
THREE_TIERS = ("mmlu_pro",)
SAME_QUESTIONS = {"GSM8K, both sets of labels": ("routellm_gsm8k", "zeroeval_gsm")}
INSTRUCTION_TOKENS = 700  # what stands before each question of the three-tier figure
TEST_SHARE = 0.3
BOOTSTRAP_DRAWS = 100
IDEAL_DRAWS = 40
MIN_ROWS = 30


@dataclass(frozen=True)
class Labels:
    """All examples as arrays; rows x tiers where two-dimensional."""

    examples: Sequence[LabelledExample]
    tiers: tuple[str, ...]
    outcomes: Floats
    source: NDArray[np.str_]
    groups: Ints
    length: Floats
    heuristic: Floats
    cost_usd: Floats

    @classmethod
    def read(cls, path: Path) -> Labels:
        """Read a labels file as `train` does."""
        examples, _ = read_labels(path)
        tiers = tiers_of(examples)
        prior = HeuristicScorer()
        tokens = np.array([[e.output_tokens.get(t, np.nan) for t in tiers] for e in examples])
        mean = np.array([np.nanmean(c) if not np.isnan(c).all() else 200.0 for c in tokens.T])
        inputs = np.array([e.features.text_chars / 4 + INSTRUCTION_TOKENS for e in examples])
        prices = [DEFAULT_PRICES[t] for t in tiers]
        cost = inputs[:, None] * [p.input_usd_per_mtok for p in prices] + np.where(np.isnan(tokens), mean, tokens) * [
            p.output_usd_per_mtok for p in prices
        ]
        return cls(
            examples=examples,
            tiers=tiers,
            outcomes=np.array([[e.outcomes.get(t, np.nan) for t in tiers] for e in examples]),
            source=np.array([e.source for e in examples]),
            groups=groups_of(examples),
            length=np.array([e.features.text_chars for e in examples], dtype=np.float64),
            heuristic=np.array([prior.score(e.features).complexity_ratio for e in examples]),
            cost_usd=cost / 1e6,
        )

    def split(self, seed: int) -> tuple[Ints, Ints]:
        """Train and test rows; no stem and no conversation is in both."""
        unique = np.unique(self.groups)
        chosen = np.random.default_rng(seed).permutation(unique)[: round(TEST_SHARE * len(unique))]
        in_test = np.isin(self.groups, chosen)
        return np.flatnonzero(~in_test), np.flatnonzero(in_test)

    def rows_of(self, sources: Sequence[str], rows: Ints) -> Ints:
        """Those of `rows` that stem from `sources`."""
        return rows[np.isin(self.source[rows], sources)]


@dataclass(frozen=True)
class Predicted:
    """Predictions for some rows, aligned with them."""

    rows: Ints
    known: Floats
    unknown: Floats
    novelty: Floats  # models known

    def of(self, labels: Labels, sources: Sequence[str]) -> Predicted:
        """Only rows of `sources`."""
        keep = np.isin(labels.source[self.rows], sources)
        return Predicted(self.rows[keep], self.known[keep], self.unknown[keep], self.novelty[keep])

    def take(self, at: Ints) -> Predicted:
        """Rows by position, repeated as `at` says."""
        return Predicted(self.rows[at], self.known[at], self.unknown[at], self.novelty[at])


def fit_and_predict(labels: Labels, train: Ints, test: Ints) -> Predicted:
    """Train on some rows and score others by the serving form."""
    model, matrix, _ = fit([labels.examples[i] for i in train])
    scorer = TrainedScorer.from_bytes(compile_model(model, version="measured", source_models=matrix.source_models))
    bound: dict[tuple[tuple[str, str], ...], TrainedScorer] = {}
    at = [scorer.model.tiers.index(t) if t in scorer.model.tiers else -1 for t in labels.tiers]

    def row(score: Any) -> list[float]:
        p = score.p_adequate
        return [p[t] if i >= 0 else np.nan for t, i in zip(labels.tiers, at, strict=True)]

    known, unknown, novelty = [], [], []
    for i in test.tolist():
        e = labels.examples[i]
        key = tuple(sorted(e.models.items()))
        if key not in bound:
            bound[key] = scorer.bind(e.models)
        told = bound[key].score(e.features)
        known.append(row(told))
        unknown.append(row(scorer.score(e.features)))
        novelty.append(told.novelty_ratio)
    return Predicted(test, np.array(known), np.array(unknown), np.array(novelty))


def ranking(labels: Labels, found: Predicted) -> dict[str, float]:
    """Two tiers: APGR, CPT50, CPT80 and what is free."""
    weak, strong = labels.outcomes[found.rows, 0], labels.outcomes[found.rows, -1]
    gains = {name: p[:, -1] - p[:, 0] for name, p in (("known", found.known), ("unknown", found.unknown))}
    return {
        "known": metrics.apgr(gains["known"], weak, strong),
        "unknown": metrics.apgr(gains["unknown"], weak, strong),
        "length": metrics.apgr(labels.length[found.rows], weak, strong),
        "heuristic": metrics.apgr(labels.heuristic[found.rows], weak, strong),
        "random": 0.5,
        "oracle": metrics.apgr(strong - weak, weak, strong),
        "cpt50": metrics.cpt(gains["known"], weak, strong, 0.5),
        "cpt80": metrics.cpt(gains["known"], weak, strong, 0.8),
    }


def three_tiers(labels: Labels, found: Predicted) -> dict[str, float]:
    """Cost at 95/98/100 % of always-premium quality as a share of its cost; expected costs use each tier's mean."""
    found = found.take(np.flatnonzero(~np.isnan(labels.outcomes[found.rows]).any(axis=1)))
    quality, cost = labels.outcomes[found.rows], labels.cost_usd[found.rows]
    expected = np.broadcast_to(cost.mean(axis=0), cost.shape)
    curves = {
        "known": metrics.routed_curve(found.known, expected, cost, quality),
        "unknown": metrics.routed_curve(found.unknown, expected, cost, quality),
        "static": metrics.upper_hull(metrics.single_tiers(cost, quality)),
        "oracle": metrics.routed_curve(quality, cost, cost, quality),
    }
    top, spent = quality[:, -1].mean(), cost[:, -1].mean()
    return {
        f"{name} {share:.0%}": metrics.cost_at(curve, share * top) / spent
        for name, curve in curves.items()
        for share in (0.95, 0.98, 1.0)
    }


def calibration(labels: Labels, found: Predicted, seed: int) -> dict[str, dict[str, float]]:
    """ECE and Brier per tier, pooled and per source, and what a perfectly calibrated model of the same p would show."""
    rng = np.random.default_rng(seed)
    parts = {"all": found} | {s: found.of(labels, [s]) for s in np.unique(labels.source[found.rows]).tolist()}
    out: dict[str, dict[str, float]] = {}
    for name, part in parts.items():
        for t, tier in enumerate(labels.tiers):
            y = labels.outcomes[part.rows, t]
            seen = ~np.isnan(y)
            if seen.sum() < MIN_ROWS:
                continue
            figures = out.setdefault(f"{name} / {tier}", {})
            for kind, p in (("known", part.known[seen, t]), ("unknown", part.unknown[seen, t])):
                ideal = metrics.ideal_ece(p, draws=IDEAL_DRAWS, rng=rng)
                figures |= {f"{kind} ece": metrics.ece(p, y[seen]), f"{kind} excess": metrics.ece(p, y[seen]) - ideal}
            out[f"{name} / {tier}"] = figures | {"brier": metrics.brier(part.known[seen, t], y[seen])}
    return out


def summary(values: Sequence[dict[str, float]], draws: Sequence[dict[str, float]] = ()) -> dict[str, list[float]]:
    """Per figure: mean, standard deviation over splits, and bounds of the mean over resampled prompts (NaN: none)."""
    found = {}
    for name in values[0]:
        own = np.array([v[name] for v in values])
        spread = np.array([d[name] for d in draws]) if draws else np.array([np.nan])
        low, high = np.nanquantile(spread, [0.025, 0.975]) if not np.isnan(spread).all() else (np.nan, np.nan)
        found[name] = [float(np.nanmean(own)), float(np.nanstd(own)), float(low), float(high)]
    return found


def resampled(count: int, splits: Sequence[Predicted], seed: int) -> Iterator[list[Predicted]]:
    """The splits' predictions on prompts drawn with replacement, the same prompts in each split."""
    rng = np.random.default_rng(seed)
    for _ in range(BOOTSTRAP_DRAWS):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        yield [found.take(np.repeat(np.arange(len(found.rows)), times[found.rows])) for found in splits]


def _mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([v[name] for v in values])) for name in values[0]}


def measured(labels: Labels, splits: Sequence[Predicted], pools: dict[str, Sequence[str]]) -> dict[str, Any]:
    """Ranking per pool and the three-tier cost, with intervals."""
    present = {n: s for n, s in pools.items() if np.isin(labels.source, s).any()}
    draws = list(resampled(len(labels.examples), splits, seed=1))
    out: dict[str, Any] = {"ranking": {}}
    for name, sources in present.items():
        out["ranking"][name] = summary(
            [ranking(labels, f.of(labels, sources)) for f in splits],
            [_mean([ranking(labels, f.of(labels, sources)) for f in draw]) for draw in draws],
        )
    if np.isin(labels.source, THREE_TIERS).any() and len(labels.tiers) > 2:
        out["three_tiers"] = summary(
            [three_tiers(labels, f.of(labels, THREE_TIERS)) for f in splits],
            [_mean([three_tiers(labels, f.of(labels, THREE_TIERS)) for f in draw]) for draw in draws[:20]],
        )
    parts = [calibration(labels, f, seed=2) for f in splits]
    out["calibration"] = {name: summary([p[name] for p in parts if name in p]) for name in parts[0]}
    return out


def few_labels(labels: Labels, splits: int, draws: int, say: Any) -> dict[str, Any]:
    """Models of few labels of one pool, tested on the split's rows of that pool."""
    out = {}
    for pool, sizes in FEW_LABELS.items():
        for size in sizes:
            found = []
            for draw in range(draws):
                train, test = (labels.rows_of(POOLS[pool], rows) for rows in labels.split(draw % splits))
                if len(train) < size:
                    break
                say(f"{pool}, {size} labels, draw {draw + 1} of {draws}")
                some = np.random.default_rng(100 + draw).permutation(train)[:size]
                found.append(ranking(labels, fit_and_predict(labels, np.sort(some), test)))
            if found:
                out[f"{pool}, {size} labels"] = summary(found)
    return out


def left_out(labels: Labels, say: Any) -> dict[str, Any]:
    """Each source in turn taken out of training, and tested on. Questions it shares with others stay in theirs."""
    out = {}
    for name, away in ({s: (s,) for s in np.unique(labels.source).tolist()} | SAME_QUESTIONS).items():
        inside = np.isin(labels.source, away)
        if not inside.any() or inside.all():
            continue
        say(f"left out: {name}")
        found = fit_and_predict(labels, np.flatnonzero(~inside), np.flatnonzero(inside))
        far = {"novelty": float(found.novelty.mean()), "novelty over .1": float((found.novelty > 0.1).mean())}
        draws = [ranking(labels, d[0]) for d in resampled(len(labels.examples), [found], seed=3)]
        out[name] = summary([ranking(labels, found)], draws) | summary([far])
    return out


def own_models(labels: Labels, splits: int, say: Any) -> dict[str, Any]:
    """A model for each source alone, its predictions put together."""
    found = []
    for seed in range(splits):
        train, test = labels.split(seed)
        parts = []
        for source in np.unique(labels.source).tolist():
            say(f"a model of its own: {source}, split {seed + 1} of {splits}")
            parts.append(fit_and_predict(labels, labels.rows_of([source], train), labels.rows_of([source], test)))
        found.append(Predicted(*(np.concatenate([getattr(p, f) for p in parts]) for f in Predicted.__annotations__)))
    pools = {n: s for n, s in POOLS.items() if np.isin(labels.source, s).any()}
    return {n: summary([ranking(labels, f.of(labels, s)) for f in found]) for n, s in pools.items()}


def all_splits(labels: Labels, count: int, say: Any) -> dict[str, Any]:
    """One model for all sources: ranking per pool and per source, three tiers, calibration."""
    splits = []
    for seed in range(count):
        say(f"split {seed + 1} of {count}")
        splits.append(fit_and_predict(labels, *labels.split(seed)))
    alone = {sources for sources in POOLS.values() if len(sources) == 1}
    others = {s: (s,) for s in np.unique(labels.source).tolist() if (s,) not in alone}
    return measured(labels, splits, POOLS | others)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 2 where the labels cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m bench.classifier", description=__doc__)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--draws", type=int, default=8, help="draws of few labels")
    parser.add_argument("--parts", default="latency,splits,few,left_out,own")
    parser.add_argument("--own-splits", type=int, default=2)
    options = parser.parse_args(arguments)
    parts = set(options.parts.split(","))
    began_s = time.monotonic()

    def say(what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:6.0f} s  {what}\n")

    if not options.labels.is_file():
        say(f"{options.labels}: no such file")
        return 2
    labels = Labels.read(options.labels)
    found: dict[str, Any] = {"rows": len(labels.examples), "tiers": labels.tiers, "splits": options.splits}
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "latency": lambda: {"latency": latency([e.features.text for e in labels.examples])},
        "splits": lambda: all_splits(labels, options.splits, say),
        "few": lambda: {"few_labels": few_labels(labels, options.splits, options.draws, say)},
        "left_out": lambda: {"left_out": left_out(labels, say)},
        "own": lambda: {"own_models": own_models(labels, options.own_splits, say)},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for part, step in steps.items():
        if part in parts:
            found |= step()
            # After each part, because all of them take long.
            (options.out / "classifier.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (options.out / "classifier.md").write_text(markdown(found), encoding="utf-8")
    sys.stdout.write(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
