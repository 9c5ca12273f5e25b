"""Quality against cost, and calibration. Definitions as in RouteLLM (arXiv 2406.18665) and RouterBench (2403.12031).

Ties are broken in expectation: requests with the same score are taken in every order at once, so that a constant score
gives exactly the value of random routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ECE_BINS = 15
_LAMBDA_STEPS = 200


@dataclass(frozen=True, slots=True)
class Curve:
    """Cost ascending, quality: points of a cost-quality curve."""

    cost: Floats
    quality: Floats


def recovered_gap(score: Floats, weak: Floats, strong: Floats) -> Floats:
    """PGR after sending the 0, 1, … n highest scores to the strong model; NaN where strong is no better than weak."""
    gain = strong - weak
    gap = float(gain.mean())
    if gap <= 0.0:
        return np.full(len(score) + 1, np.nan)
    order = np.argsort(-score, kind="stable")
    _, tie, count = np.unique(-score[order], return_inverse=True, return_counts=True)
    even = (np.bincount(tie, weights=gain[order]) / count)[tie]
    return np.concatenate([[0.0], np.cumsum(even)]) / len(score) / gap


def apgr(score: Floats, weak: Floats, strong: Floats) -> float:
    """Area under PGR over the share sent to the strong model: .5 for random routing; an oracle can pass 1."""
    pgr = recovered_gap(score, weak, strong)
    return float(((pgr[1:] + pgr[:-1]) / 2.0).mean())


def cpt(score: Floats, weak: Floats, strong: Floats, target_ratio: float) -> float:
    """Least share of requests sent to the strong model with PGR >= `target_ratio`."""
    pgr = recovered_gap(score, weak, strong)
    reached = np.flatnonzero(pgr >= target_ratio)
    return float(reached[0] / len(score)) if len(reached) else float("nan")


def ece(p: Floats, outcome: Floats, bins: int = ECE_BINS, *, weight: Floats | None = None) -> float:
    """Expected calibration error over bins of equal mass. `weight`: for how many rows each one stands."""
    w = np.ones(len(p)) if weight is None else weight
    parts = _bins(p, bins, weight)
    error = sum(abs(np.average(p[b], weights=w[b]) - np.average(outcome[b], weights=w[b])) * w[b].sum() for b in parts)
    return float(error / w.sum())


def ideal_ece(p: Floats, *, draws: int, rng: np.random.Generator, weight: Floats | None = None) -> float:
    """The ECE that a perfectly calibrated model with these predictions and this many rows would show."""
    return float(np.mean([ece(p, (rng.random(len(p)) < p).astype(np.float64), weight=weight) for _ in range(draws)]))


def brier(p: Floats, outcome: Floats, *, weight: Floats | None = None) -> float:
    """Mean squared error."""
    return float(np.average((p - outcome) ** 2, weights=weight))


def reliability(
    p: Floats, outcome: Floats, bins: int = ECE_BINS, *, weight: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Mean prediction, mean outcome and the latter's standard error per bin of equal mass."""
    w = np.ones(len(p)) if weight is None else weight
    parts = _bins(p, bins, weight)
    predicted = np.array([np.average(p[b], weights=w[b]) for b in parts])
    observed = np.array([np.average(outcome[b], weights=w[b]) for b in parts])
    counts = np.array([w[b].sum() ** 2 / (w[b] ** 2).sum() for b in parts])  # as many even rows say as much
    return predicted, observed, np.sqrt(np.maximum(observed * (1.0 - observed), 0.25 / counts) / counts)


def _bins(p: Floats, bins: int, weight: Floats | None) -> list[NDArray[np.int64]]:
    """Row numbers by rising `p`, in bins of equal mass; empty ones left out."""
    order = np.argsort(p, kind="stable")
    if weight is None:
        return [b for b in np.array_split(order, bins) if len(b)]
    mass = np.cumsum(weight[order])
    cuts = np.searchsorted(mass, mass[-1] * np.arange(1, bins) / bins)
    return [b for b in np.split(order, cuts) if len(b)]


def upper_hull(points: Sequence[tuple[float, float]]) -> Curve:
    """Upper, non-decreasing convex hull of (cost, quality): what can be reached by mixing."""
    hull: list[tuple[float, float]] = []
    for cost, quality in sorted(set(points)):
        while len(hull) >= 2:
            (c0, q0), (c1, q1) = hull[-2], hull[-1]
            if (q1 - q0) * (cost - c0) > (quality - q0) * (c1 - c0):
                break
            hull.pop()
        if hull and cost == hull[-1][0]:
            hull.pop()
        hull.append((cost, quality))
    rising = [hull[0]]
    for point in hull[1:]:
        if point[1] > rising[-1][1]:
            rising.append(point)
    return Curve(np.array([c for c, _ in rising]), np.array([q for _, q in rising]))


def routed_curve(p: Floats, expected_cost: Floats, cost: Floats, quality: Floats) -> Curve:
    """Hull of choosing argmax(p - lambda * expected cost) over all lambda, and of each single tier.

    Arrays are rows x tiers; `expected_cost` is what is known before the call, `cost` what it came to.
    """
    rows = np.arange(len(p))
    points = [
        (float(cost[rows, chosen].mean()), float(quality[rows, chosen].mean()))
        for chosen in route_choices(p, expected_cost)
    ]
    return upper_hull(points + single_tiers(cost, quality))


def route_choices(p: Floats, expected_cost: Floats) -> Iterator[NDArray[np.int64]]:
    """The tier each row goes to, as a column, for lambda from 0 to so high that cost alone counts."""
    spread = float(np.abs(expected_cost).max()) or 1.0
    for price in np.concatenate([[0.0], np.geomspace(1e-4, 1e4, _LAMBDA_STEPS)]) / spread:
        yield np.argmax(p - price * expected_cost, axis=1)


def resampled_curves(
    p: Floats, expected_cost: Floats, cost: Floats, quality: Floats, *, draws: int, rng: np.random.Generator
) -> Iterator[tuple[Curve, list[tuple[float, float]]]]:
    """`routed_curve` and `single_tiers` of `draws` samples of the rows, drawn with replacement.

    What a row chooses does not depend on the sample, so all samples share one walk over lambda.
    """
    rows = np.arange(len(p))
    counts = rng.multinomial(len(p), np.full(len(p), 1.0 / len(p)), size=draws).astype(np.float32)
    tiers = [np.full(len(p), t) for t in range(p.shape[1])]
    seen = [*tiers, *route_choices(p, expected_cost)]
    means = np.empty((draws, len(seen), 2))
    for at, chosen in enumerate(seen):
        both = np.stack([cost[rows, chosen] / cost.max(), quality[rows, chosen]], axis=1).astype(np.float32)
        means[:, at] = counts @ both / len(p)
    means[:, :, 0] *= cost.max()
    for drawn in means.tolist():
        points = [(c, q) for c, q in drawn]
        yield upper_hull(points), points[: len(tiers)]


def single_tiers(cost: Floats, quality: Floats) -> list[tuple[float, float]]:
    """(cost, quality) of sending everything to one tier."""
    return [(float(cost[:, t].mean()), float(quality[:, t].mean())) for t in range(cost.shape[1])]


def cost_at(curve: Curve, quality: float) -> float:
    """Least cost at which a mix on the curve has `quality`; NaN above its top."""
    if quality > curve.quality[-1] + 1e-12:
        return float("nan")
    return float(np.interp(quality, curve.quality, curve.cost))


def aiq(curve: Curve, low_cost: float, high_cost: float) -> float:
    """Mean height of the curve over a cost range shared by all routers compared."""
    grid = np.linspace(low_cost, high_cost, 501)
    height = np.interp(grid, curve.cost, curve.quality)
    return float(((height[1:] + height[:-1]) / 2.0).mean())


def bootstrap(
    figure: Callable[[NDArray[np.int64]], float],
    rows: int,
    *,
    draws: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of `figure(row numbers)` over resampled prompts; draws without a value are left out."""
    values = np.array([figure(rng.integers(0, rows, rows)) for _ in range(draws)])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = (1.0 - confidence) / 2.0
    return float(np.quantile(values, tail)), float(np.quantile(values, 1.0 - tail))
