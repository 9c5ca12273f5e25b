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
            name: round(value, _DIGITS) if isinstance(value := getattr(self, name), float) else value for name in STABLE
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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 28, title, "start"),
        _text(_LEFT + wide / 2, _HEIGHT - 14, "API spend, % of sending everything to the API", "middle"),
        f'<g transform="translate(20 {_TOP + high / 2:.0f}) rotate(-90)">',
        _text(0, 0, "SLO misses, % of all requests", "middle"),
        "</g>",
    ]
    for tick in range(6):
        share = tick / 5
        parts += [
            _line(x(share), _TOP, x(share), _TOP + high),
            _text(x(share), _TOP + high + 20, f"{100 * share:.0f}", "middle"),
            _line(_LEFT, y(share * y_max), _LEFT + wide, y(share * y_max)),
            _text(_LEFT - 8, y(share * y_max) + 4, f"{100 * share * y_max:.3g}", "end"),
        ]
    for index, row in enumerate(rows):
        colour = _COLOURS[index % len(_COLOURS)]
        cx, cy = x(row.spend_ratio), y(row.slo_miss_ratio)
        label = f"{row.policy} {100 * row.spend_ratio:.1f} / {100 * row.slo_miss_ratio:.2f}"
        parts += [
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="6" fill="{colour}"/>',
            _text(cx + 10, cy - 8, label, "start", colour),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'
