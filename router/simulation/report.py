"""What a simulated run cost and kept: one row a policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from local_llm.datamodels import SloTargets
from router.core.pricing import estimate_usd
from router.core.snapshot import PriceRow
from router.simulation.runner import Run
from router.simulation.traces import TraceRequest

STABLE = ("policy", "spend_ratio", "slo_miss_ratio", "ttft_p95_s", "local_share_ratio", "gpu_utilization_ratio")
"""The columns that programs may rely on."""
ALL = "all"
"""The name of what all workloads of a set come to together."""
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


@dataclass(frozen=True, slots=True)
class Result:
    """What one policy made of one workload, in figures and request by request."""

    workload: str
    row: Row
    played: Run
    costs_usd: Sequence[Decimal]


def pooled(results: Sequence[Result], slo: SloTargets) -> list[Result]:
    """A result a policy over all its workloads, named `ALL`; its misses are those of the worst workload."""
    found: list[Result] = []
    for policy in dict.fromkeys(result.row.policy for result in results):
        own = [result for result in results if result.row.policy == policy]
        runs = [result.played for result in own]
        together = Run(
            stays=[stay for run in runs for stay in run.stays],
            duration_s=sum(run.duration_s for run in runs),
            busy_s=sum(run.busy_s for run in runs),
            preemptions=sum(run.preemptions for run in runs),
        )
        costs_usd = [cost for result in own for cost in result.costs_usd]
        row = row_of(policy, together, costs_usd, slo)
        worst_ratio = max(result.row.slo_miss_ratio for result in own)
        found.append(Result(ALL, replace(row, slo_miss_ratio=worst_ratio), together, costs_usd))
    return found


def summary_table(results: Sequence[Result], totals: Sequence[Result]) -> list[dict[str, str]]:
    """A line a policy, a column a workload: API spend % / misses %; then the spend of all, and the worst misses."""
    table: list[dict[str, str]] = []
    for total in totals:
        rows = {r.workload: r.row for r in results if r.row.policy == total.row.policy}
        cells = {name: f"{100 * row.spend_ratio:.1f} / {100 * row.slo_miss_ratio:.2f}" for name, row in rows.items()}
        last = {"all: spend %": f"{100 * total.row.spend_ratio:.1f}"}
        last["worst misses %"] = f"{100 * total.row.slo_miss_ratio:.2f}"
        table.append({"policy": total.row.policy, **cells, **last})
    return table
