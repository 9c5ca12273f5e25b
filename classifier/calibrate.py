"""From scores to dials: thresholds for a wanted share, and nu for a wanted quality with a stated confidence. Pure.

nu is what a unit of missing quality costs in dollars: the choice minimises cost + nu * (p_max - p). A larger nu buys
quality. The least nu that keeps a target is found by learn-then-test (arXiv 2110.01052) with fixed-sequence testing:
from the safest nu downwards, each is kept only if a test rejects "quality is below target" at level delta, and the
first that fails ends the walk; so the chance that the nu returned misses the target on fresh data is at most delta.
The test is betting (arXiv 2010.09686): it holds for bounded outcomes of any distribution and any number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt

NU_STEPS = 60
BET_CAP = 0.75


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One held-out request: predicted p, judged quality and tokens of each tier, in the order of the sample's tiers."""

    p: tuple[float, ...]
    quality: tuple[float, ...]
    input_tokens: int
    output_tokens: tuple[float, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """Held-out predictions with outcomes; small enough to travel with the model."""

    tiers: tuple[str, ...]
    rows: tuple[CalibrationRow, ...]


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """USD per million tokens of one tier, as the decision sees it (marginal: 0 for an idle local engine)."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """Cost of one call."""
        return (input_tokens * self.input_usd_per_mtok + output_tokens * self.output_usd_per_mtok) / 1e6


@dataclass(frozen=True, slots=True)
class QualityDial:
    """nu for a quality target, and how sure it is.

    `certified` says that kept quality is at least the target on fresh data of the same kind with `confidence_ratio`;
    where it is not, `nu_usd` is the safest value tried (all but always the best tier) and `statement` says why.
    """

    nu_usd: float
    target_ratio: float
    confidence_ratio: float
    certified: bool
    kept_ratio: float
    kept_lower_ratio: float
    cost_ratio: float
    rows: int
    statement: str


def threshold_for_share(scores: Sequence[float], share: float) -> float:
    """The score at and above which `share` of requests lie (a quantile): what is sent to the strong tier."""
    if not scores:
        raise ValueError("no scores to take a quantile of")
    if share <= 0.0:
        return inf
    ordered = sorted(scores, reverse=True)
    return ordered[min(len(ordered), max(1, round(share * len(ordered)))) - 1]


def nu_for_target(
    sample: CalibrationSample,
    prices: Mapping[str, TokenPrices],
    *,
    target_ratio: float,
    confidence_ratio: float = 0.9,
    reference: str = "premium",
) -> QualityDial:
    """The least nu whose choice keeps `target_ratio` of the quality of always `reference`, certified on `sample`.

    Tiers without a price are not chosen from. Raises ValueError where `reference` or the sample is missing.
    """
    columns = [i for i, tier in enumerate(sample.tiers) if tier in prices]
    if reference not in prices or reference not in sample.tiers:
        raise ValueError(f"tier {reference!r} has no price or no calibration data")
    if not sample.rows:
        raise ValueError("the calibration sample is empty")
    ref = columns.index(sample.tiers.index(reference))
    rows = [_priced(row, columns, [prices[sample.tiers[i]] for i in columns]) for row in sample.rows]
    delta = 1.0 - confidence_ratio
    best: float | None = None
    ladder = _ladder(rows)
    for nu in ladder:
        margins = [quality[k] - target_ratio * quality[ref] for quality, k in _choices(rows, nu)]
        if not mean_is_positive(margins, low=-target_ratio, high=1.0, delta=delta):
            break
        best = nu
    certified = best is not None
    nu_usd = best if best is not None else ladder[0]
    chosen = _choices(rows, nu_usd)
    base_quality = sum(q[ref] for q, _ in chosen)
    kept = sum(q[k] for q, k in chosen) / base_quality if base_quality else 1.0
    base_cost = sum(cost[ref] for _, cost, _ in rows)
    cost_ratio = sum(row[1][k] for row, (_, k) in zip(rows, chosen, strict=True)) / base_cost if base_cost else 0.0
    lower = _kept_lower(chosen, ref, delta)
    return QualityDial(
        nu_usd=nu_usd,
        target_ratio=target_ratio,
        confidence_ratio=confidence_ratio,
        certified=certified,
        kept_ratio=kept,
        kept_lower_ratio=lower,
        cost_ratio=cost_ratio,
        rows=len(rows),
        statement=_statement(certified, target_ratio, confidence_ratio, reference, len(rows)),
    )


_Row = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _priced(row: CalibrationRow, columns: Sequence[int], prices: Sequence[TokenPrices]) -> _Row:
    """p, cost and quality of the priced tiers."""
    cost = tuple(price.usd(row.input_tokens, row.output_tokens[i]) for i, price in zip(columns, prices, strict=True))
    return tuple(row.p[i] for i in columns), cost, tuple(row.quality[i] for i in columns)


def _ladder(rows: Sequence[_Row]) -> list[float]:
    """nu from so high that cost hardly matters, downwards, even in the logarithm."""
    costs = [max(cost) - min(cost) for _, cost, _ in rows]
    typical = sorted(costs)[len(costs) // 2] or max(costs) or 1e-9
    return [typical * 10.0 ** (5.0 - 6.0 * step / (NU_STEPS - 1)) for step in range(NU_STEPS)]


def _choices(rows: Sequence[_Row], nu_usd: float) -> list[tuple[tuple[float, ...], int]]:
    """(quality per tier, tier chosen) of every row."""
    return [
        (quality, min(range(len(p)), key=lambda t, p=p, cost=cost: (cost[t] - nu_usd * p[t], cost[t])))  # type: ignore[misc]
        for p, cost, quality in rows
    ]


def mean_is_positive(values: Sequence[float], *, low: float, high: float, delta: float) -> bool:
    """Whether the mean is shown to exceed 0 with confidence 1 - delta; values lie in [low, high], low < 0 < high.

    Capital grows by 1 + bet * value; under a mean <= 0 it is a supermartingale, so it reaches 1/delta with
    probability at most delta (Ville). Bets use only the past.
    """
    capital = total = 0.0
    squares = (high - low) ** 2 / 16.0
    threshold = log(1.0 / delta)
    cap = BET_CAP / -low
    for count, value in enumerate(values, start=1):
        capital += log(1.0 + min(sqrt(2.0 * threshold * count / (squares * len(values))), cap) * value)
        if capital >= threshold:
            return True
        squares += (value - total / count) ** 2
        total += value
    return False


def _kept_lower(chosen: Sequence[tuple[tuple[float, ...], int]], ref: int, delta: float) -> float:
    """The highest share of the reference's quality that the same test would certify, to .005."""
    low, high = 0.0, 1.2
    while high - low > 0.005:
        middle = (low + high) / 2.0
        margins = [q[k] - middle * q[ref] for q, k in chosen]
        if mean_is_positive(margins, low=-max(middle, 1e-6), high=1.0, delta=delta):
            low = middle
        else:
            high = middle
    return low


def _statement(certified: bool, target: float, confidence: float, reference: str, rows: int) -> str:
    if certified:
        return (
            f"with confidence {confidence:.0%} at least {target:.1%} of the quality of always {reference} is kept "
            f"on fresh requests of the same kind ({rows} held-out requests)"
        )
    return (
        f"{rows} held-out requests do not show, with confidence {confidence:.0%}, that {target:.1%} of the quality of "
        f"always {reference} is kept; the safest setting is used. More labels, a lower target or less confidence help"
    )
