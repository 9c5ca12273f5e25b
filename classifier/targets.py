"""What a quality target costs and keeps, on labels: nu from one half of the rows, measured on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from classifier.calibrate import CalibrationRow, CalibrationSample, TokenPrices, nu_for_target

if TYPE_CHECKING:
    from classifier.evaluate import Evaluated

TARGETS = (0.90, 0.95, 0.99)
MIN_COST_ROWS = 30  # figures of so few have wide intervals, which stand beside them


def sample_of(data: Evaluated, rows: NDArray[np.int64]) -> CalibrationSample:
    """Rows on which every tier was judged, as a calibration sample."""
    rows = rows[~np.isnan(data.outcomes[rows]).any(axis=1)]
    with np.errstate(all="ignore"):
        mean = [float(np.nanmean(c)) if not np.isnan(c).all() else 200.0 for c in data.output_tokens.T]
    return CalibrationSample(
        data.tiers,
        tuple(
            CalibrationRow(
                tuple(data.p[i].tolist()),
                tuple(data.outcomes[i].tolist()),
                int(data.input_tokens[i]),
                tuple(m if np.isnan(x) else float(x) for x, m in zip(data.output_tokens[i], mean, strict=True)),
            )
            for i in rows.tolist()
        ),
        data.quality_range,
    )


def quality_dials(
    data: Evaluated, prices: Mapping[str, TokenPrices], confidence_ratio: float, seed: int
) -> list[dict[str, Any]]:
    """Target against kept quality and cost: nu from one half of the rows, what it keeps measured on the other.

    Between the tiers that these labels judge. Empty where fewer than `MIN_COST_ROWS` rows a half judge all of them.
    """
    judged = [i for i in range(len(data.tiers)) if not np.isnan(data.outcomes[:, i]).all()]
    data = replace(
        data,
        tiers=tuple(data.tiers[i] for i in judged),
        p=data.p[:, judged],
        outcomes=data.outcomes[:, judged],
        output_tokens=data.output_tokens[:, judged],
    )
    complete = np.flatnonzero(~np.isnan(data.outcomes).any(axis=1))
    if len(complete) < 2 * MIN_COST_ROWS or not (data.outcomes[complete, -1] > 0.0).any():
        return []
    order = np.random.default_rng(seed).permutation(complete)
    fit, test = sample_of(data, order[: len(order) // 2]), sample_of(data, order[len(order) // 2 :])
    if data.tiers[-1] not in prices:
        return []
    found = []
    for target in TARGETS:
        dial = nu_for_target(
            fit, prices, target_ratio=target, confidence_ratio=confidence_ratio, reference=data.tiers[-1]
        )
        kept, cost = _at_nu(test, prices, dial.nu_usd)
        found.append(
            {
                "target_ratio": target,
                "nu_usd": dial.nu_usd,
                "certified": dial.certified,
                "confidence_ratio": confidence_ratio,
                "kept_on_other_half_ratio": kept,
                "cost_on_other_half_ratio": cost,
                "statement": dial.statement,
            }
        )
    return found


def _at_nu(sample: CalibrationSample, prices: Mapping[str, TokenPrices], nu_usd: float) -> tuple[float, float]:
    columns = [i for i, t in enumerate(sample.tiers) if t in prices]
    quality = cost = best_quality = best_cost = 0.0
    for row in sample.rows:
        usd = {i: prices[sample.tiers[i]].usd(row.input_tokens, row.output_tokens[i]) for i in columns}
        chosen = min(columns, key=lambda i, usd=usd, row=row: (usd[i] - nu_usd * row.p[i], usd[i]))  # type: ignore[misc]
        quality, cost = quality + row.quality[chosen], cost + usd[chosen]
        best_quality, best_cost = best_quality + row.quality[columns[-1]], best_cost + usd[columns[-1]]
    return (quality / best_quality if best_quality > 0.0 else 1.0), cost / best_cost
