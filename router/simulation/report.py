"""What a simulated run cost and kept: one row a policy, and a plot of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from xml.sax.saxutils import escape

from local_llm.datamodels import SloTargets
from router.core.datamodels import PriceRow
from router.core.pricing import estimate_usd
from router.simulation.runner import Run
from router.simulation.traces import TraceRequest

STABLE = ("policy", "spend_ratio", "slo_miss_ratio", "ttft_p95_s", "local_share_ratio", "gpu_utilization_ratio")
"""The columns that programs may rely on."""
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One policy over one trace.

    spend_ratio: API spend over that of sending everything to the API; slo_miss_ratio: local requests that broke their
    promise over all requests; ttft_p95_s: of all requests, wherever they were answered; tpot_p95_s: of local requests;
    local_share_ratio: share of requests answered locally; gpu_utilization_ratio: share of the time the engine was busy.
    """

    policy: str
    spend_ratio: float
    slo_miss_ratio: float
    ttft_p95_s: float
    local_share_ratio: float
    gpu_utilization_ratio: float
    local_ttft_p95_s: float
    tpot_p95_s: float
    spend_usd: Decimal
    preemptions: int

    def stable(self) -> dict[str, Any]:
        """The columns of `STABLE`, rounded to six digits."""
        return {
            name: round(value, _DIGITS) if isinstance(value := getattr(self, name), float) else value
            for name in STABLE
        }


def api_costs_usd(trace: Sequence[TraceRequest], price: PriceRow) -> list[Decimal]:
    """What each request of `trace` costs at the API."""
    return [estimate_usd(price, request.prompt_tokens, request.output_tokens) for request in trace]


def row_of(policy: str, played: Run, costs_usd: Sequence[Decimal], slo: SloTargets) -> Row:
    """The figures of one run; `costs_usd` as `api_costs_usd` gives them for its trace."""
    stays = played.stays
    local = [stay for stay in stays if stay.admitted]
    spend_usd = sum((cost for cost, stay in zip(costs_usd, stays, strict=True) if not stay.admitted), Decimal(0))
    always_usd = sum(costs_usd, Decimal(0))
    count = max(1, len(stays))
    return Row(
        policy=policy,
        spend_ratio=float(spend_usd / always_usd) if always_usd else 0.0,
        slo_miss_ratio=sum(stay.misses(slo) for stay in local) / count,
        ttft_p95_s=percentile([stay.ttft_s for stay in stays], 0.95),
        local_share_ratio=len(local) / count,
        gpu_utilization_ratio=min(1.0, played.busy_s / played.duration_s) if played.duration_s > 0 else 0.0,
        local_ttft_p95_s=percentile([stay.ttft_s for stay in local], 0.95),
        tpot_p95_s=percentile([stay.tpot_s for stay in local if stay.request.output_tokens > 1], 0.95),
        spend_usd=spend_usd,
        preemptions=played.preemptions,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of `values` do not exceed; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def shown(row: Row) -> Mapping[str, Any]:
    """The same for people: percent and milliseconds."""
    return {
        "policy": row.policy,
        "API spend %": f"{100 * row.spend_ratio:.1f}",
        "API spend $": f"{row.spend_usd:.4f}",
        "SLO misses %": f"{100 * row.slo_miss_ratio:.2f}",
        "local %": f"{100 * row.local_share_ratio:.1f}",
        "TTFT p95 ms": f"{1000 * row.ttft_p95_s:.0f}",
        "local TTFT p95 ms": f"{1000 * row.local_ttft_p95_s:.0f}",
        "TPOT p95 ms": f"{1000 * row.tpot_p95_s:.1f}",
        "GPU busy %": f"{100 * row.gpu_utilization_ratio:.1f}",
        "preempted": str(row.preemptions),
    }


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 440, 70, 150, 50, 60
_COLOURS = ("#1b7837", "#b2182b", "#2166ac", "#e08214", "#762a83", "#4d4d4d")


def svg(rows: Sequence[Row], *, title: str) -> str:
    """A picture: API spend to the right, missed promises upward. Down and to the left is better."""
    top_miss = max([row.slo_miss_ratio for row in rows] + [0.01])
    y_max = min(1.0, math.ceil(top_miss * 1.1 * 20) / 20)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(ratio: float) -> float:
        return _LEFT + wide * min(1.0, ratio)

    def y(ratio: float) -> float:
        return _TOP + high * (1.0 - ratio / y_max)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="28" font-size="15">{escape(title)}</text>',
        f'<text x="{_LEFT + wide / 2:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">'
        "API spend, % of sending everything to the API</text>",
        f'<text transform="translate(20 {_TOP + high / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "SLO misses, % of all requests</text>",
    ]
    for tick in range(6):
        share = tick / 5
        parts += [
            f'<line x1="{x(share):.1f}" y1="{_TOP}" x2="{x(share):.1f}" y2="{_TOP + high}" stroke="#ddd"/>',
            f'<text x="{x(share):.1f}" y="{_TOP + high + 20}" text-anchor="middle">{100 * share:.0f}</text>',
            f'<line x1="{_LEFT}" y1="{y(share * y_max):.1f}" x2="{_LEFT + wide}" y2="{y(share * y_max):.1f}" '
            'stroke="#ddd"/>',
            f'<text x="{_LEFT - 8}" y="{y(share * y_max) + 4:.1f}" text-anchor="end">{100 * share * y_max:.3g}</text>',
        ]
    for index, row in enumerate(rows):
        colour = _COLOURS[index % len(_COLOURS)]
        cx, cy = x(row.spend_ratio), y(row.slo_miss_ratio)
        label = f"{row.policy} {100 * row.spend_ratio:.1f} / {100 * row.slo_miss_ratio:.2f}"
        parts += [
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="6" fill="{colour}"/>',
            f'<text x="{cx + 10:.1f}" y="{cy - 8:.1f}" fill="{colour}">{escape(label)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
