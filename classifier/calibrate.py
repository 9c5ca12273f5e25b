"""From scores to dials: thresholds for a wanted share, and nu for a wanted quality with a stated confidence. Pure.

nu is what a unit of missing quality costs in dollars: the choice minimises cost + nu * (p_max - p). A larger nu buys
quality. The least nu that keeps a target is found by learn-then-test (arXiv 2110.01052) with fixed-sequence testing:
from the safest nu downwards, each is kept only if a test rejects "quality is below target" at level delta, and the
first that fails ends the walk; so the chance that the nu returned misses the target on fresh data is at most delta.
The test is betting (arXiv 2010.09686): it holds for bounded outcomes of any distribution and any number of rows, so
that few rows make a target hard to show, and never wrongly shown more often than delta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt

NU_STEPS = 60
BET_CAP = 0.75
LEAST_NU_USD = 1e-10


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
    """Held-out predictions with outcomes; small enough to travel with the model.

    `quality_range` bounds the quality of a row: 0..1 where it was judged. A doubly robust one of a partial log can lie
    as far out as the least likely observation puts it (`offpolicy.pseudo_range`), and what is shown must bear that.
    """

    tiers: tuple[str, ...]
    rows: tuple[CalibrationRow, ...]
    quality_range: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """USD per million tokens of one tier, as the decision sees it (marginal: 0 for an idle local engine)."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    request_usd: float = 0.0

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """Cost of one call."""
        tokens_usd = (input_tokens * self.input_usd_per_mtok + output_tokens * self.output_usd_per_mtok) / 1e6
        return tokens_usd + self.request_usd


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
    (dial,) = nu_for_targets(
        sample, prices, target_ratios=(target_ratio,), confidence_ratio=confidence_ratio, reference=reference
    )
    return dial


def nu_for_targets(
    sample: CalibrationSample,
    prices: Mapping[str, TokenPrices],
    *,
    target_ratios: Sequence[float],
    confidence_ratio: float = 0.9,
    reference: str = "premium",
) -> tuple[QualityDial, ...]:
    """The same for several targets on one walk down the ladder; a dial for each, in their order."""
    columns = [i for i, tier in enumerate(sample.tiers) if tier in prices]
    if reference not in prices or reference not in sample.tiers:
        raise ValueError(f"tier {reference!r} has no price or no calibration data")
    if not sample.rows:
        raise ValueError("the calibration sample is empty")
    ref = columns.index(sample.tiers.index(reference))
    if len(columns) == 1:
        return tuple(_only(reference, target, confidence_ratio, len(sample.rows)) for target in target_ratios)
    rows = [_priced(row, columns, [prices[sample.tiers[i]] for i in columns]) for row in sample.rows]
    walk = _Walk(rows, ref)
    first = walk.chosen()
    delta = 1.0 - confidence_ratio
    best: dict[float, tuple[float, list[int]]] = {}
    open_targets = set(target_ratios)
    for nu in walk.ladder:
        moved = walk.descend(nu)
        for target in sorted(open_targets):
            known = not moved and target in best
            low, high = _margin_range(sample.quality_range, target)
            if known or mean_is_positive(walk.margins(target), low=low, high=high, delta=delta):
                best[target] = nu, walk.chosen()
            else:
                open_targets.discard(target)
        if not open_targets:
            break
    return tuple(
        _dial(
            rows,
            ref,
            reference,
            target,
            confidence_ratio,
            best.get(target),
            (walk.ladder[0], first),
            sample.quality_range,
        )
        for target in target_ratios
    )


_Row = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _only(reference: str, target: float, confidence: float, rows: int) -> QualityDial:
    """Where there is nothing to choose from, all of the reference's quality is kept, whatever a unit of it costs."""
    return QualityDial(
        nu_usd=LEAST_NU_USD,
        target_ratio=target,
        confidence_ratio=confidence,
        certified=True,
        kept_ratio=1.0,
        kept_lower_ratio=1.0,
        cost_ratio=1.0,
        rows=rows,
        statement=f"{reference} is the only tier to choose from: all of its quality is kept",
    )


def _dial(
    rows: Sequence[_Row],
    ref: int,
    reference: str,
    target: float,
    confidence: float,
    found: tuple[float, list[int]] | None,
    safest: tuple[float, list[int]],
    quality_range: tuple[float, float],
) -> QualityDial:
    nu, chosen = found if found is not None else safest
    kept = [quality[k] for (_, _, quality), k in zip(rows, chosen, strict=True)]
    base = [quality[ref] for _, _, quality in rows]
    base_cost = sum(cost[ref] for _, cost, _ in rows)
    cost = sum(cost[k] for (_, cost, _), k in zip(rows, chosen, strict=True))
    return QualityDial(
        nu_usd=nu,
        target_ratio=target,
        confidence_ratio=confidence,
        certified=found is not None,
        kept_ratio=sum(kept) / sum(base) if sum(base) else 1.0,
        kept_lower_ratio=_kept_lower(kept, base, 1.0 - confidence, quality_range),
        cost_ratio=cost / base_cost if base_cost else 0.0,
        rows=len(rows),
        statement=_statement(found is not None, target, confidence, reference, len(rows)),
    )


def _priced(row: CalibrationRow, columns: Sequence[int], prices: Sequence[TokenPrices]) -> _Row:
    """p, cost and quality of the priced tiers."""
    cost = tuple(price.usd(row.input_tokens, row.output_tokens[i]) for i, price in zip(columns, prices, strict=True))
    return tuple(row.p[i] for i in columns), cost, tuple(row.quality[i] for i in columns)


def _ladder(rows: Sequence[_Row]) -> list[float]:
    """nu from so high that cost hardly matters, downwards, even in the logarithm."""
    costs = [max(cost) - min(cost) for _, cost, _ in rows]
    typical = sorted(costs)[len(costs) // 2] or max(costs) or 1e-9
    return [typical * 10.0 ** (5.0 - 6.0 * step / (NU_STEPS - 1)) for step in range(NU_STEPS)]


class _Walk:
    """What every row chooses as nu falls. A row changes its mind at most once for each cheaper tier, so that a step of
    the ladder touches only those that do."""

    def __init__(self, rows: Sequence[_Row], ref: int) -> None:
        self.ladder = _ladder(rows)
        top = self.ladder[0]
        self._rows = rows
        self._ref = [quality[ref] for _, _, quality in rows]
        self._chosen = [
            min(range(len(p)), key=lambda t, p=p, cost=cost: (cost[t] - top * p[t], cost[t]))  # type: ignore[misc]
            for p, cost, _ in rows
        ]
        self._kept = [quality[k] for (_, _, quality), k in zip(rows, self._chosen, strict=True)]
        self._switches = sorted(
            (switch for number, row in enumerate(rows) for switch in _switches(row, self._chosen[number], number)),
            reverse=True,
        )
        self._at = 0

    def descend(self, nu_usd: float) -> bool:
        """Go down to `nu_usd`; whether any row chooses otherwise there."""
        start = self._at
        while self._at < len(self._switches) and self._switches[self._at][0] >= nu_usd:
            _, _, number, tier = self._switches[self._at]
            self._chosen[number] = tier
            self._kept[number] = self._rows[number][2][tier]
            self._at += 1
        return self._at > start

    def chosen(self) -> list[int]:
        """The tier each row chooses, as a column."""
        return list(self._chosen)

    def margins(self, target: float) -> list[float]:
        """By how much each row's quality exceeds `target` times that of the reference."""
        return [kept - target * base for kept, base in zip(self._kept, self._ref, strict=True)]


def _switches(row: _Row, chosen: int, number: int) -> list[tuple[float, int, int, int]]:
    """(nu at and below which, order among equals, row, tier chosen from there on), nu falling."""
    p, cost, _ = row
    found: list[tuple[float, int, int, int]] = []
    while True:
        cheaper = [t for t in range(len(p)) if cost[t] < cost[chosen] and p[t] < p[chosen]]
        if not cheaper:
            return found
        nu, _, chosen = max(((cost[chosen] - cost[t]) / (p[chosen] - p[t]), -cost[t], t) for t in cheaper)
        found.append((nu, -len(found), number, chosen))


def mean_is_positive(values: Sequence[float], *, low: float, high: float, delta: float) -> bool:
    """Whether the mean is shown to exceed 0 with confidence 1 - delta; values lie in [low, high], low < 0 < high.

    Capital grows by 1 + bet * value; under a mean <= 0 it is a supermartingale, so it reaches 1/delta with
    probability at most delta (Ville). Bets use only the past.
    """
    total, capital, wanted = 0.0, 1.0, 1.0 / delta
    squares = (high - low) ** 2 / 16.0
    growth = 2.0 * log(wanted) / len(values)
    cap = BET_CAP / -low
    for count, value in enumerate(values, start=1):
        bet = sqrt(growth * count / squares)
        capital *= 1.0 + (min(cap, bet)) * value
        if capital >= wanted:
            return True
        squares += (value - total / count) ** 2
        total += value
    return False


def _margin_range(quality_range: tuple[float, float], target: float) -> tuple[float, float]:
    """What quality less `target` times the reference's can come to."""
    low, high = quality_range
    return low - target * high, high - target * low


def _kept_lower(
    kept: Sequence[float], base: Sequence[float], delta: float, quality_range: tuple[float, float]
) -> float:
    """The highest share of the reference's quality that the same test would certify, to .005."""
    low, high = 0.0, 1.2
    while high - low > 0.005:
        middle = (low + high) / 2.0
        margins = [q - middle * ref for q, ref in zip(kept, base, strict=True)]
        least, most = _margin_range(quality_range, max(middle, 1e-6))
        if mean_is_positive(margins, low=least, high=most, delta=delta):
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
