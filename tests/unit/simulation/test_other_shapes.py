"""Traffic, engines and beliefs that the admission was not made for: promises are kept, and the engine is used."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from local_llm.coefficients import PRESETS, UNKNOWN
from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from local_llm.simulated_engine import LIMITS
from local_llm.steptime import tokens_per_step
from router.core.snapshot import PriceRow, PriceTier
from router.simulation.product import ProductConfig, ProductPolicy
from router.simulation.report import Row, api_costs_usd, row_of
from router.simulation.runner import run
from router.simulation.workloads import Workload, shapes

SLO = SloTargets()
PRICE = PriceRow(
    "api", "host", (PriceTier(0, Decimal("0.1"), Decimal("0.5")),), datetime(2026, 1, 1, tzinfo=UTC), None, "test", "1"
)
H100, A100 = PRESETS["h100-8b-fp16"], PRESETS["a100-8b-fp16"]
SMALL = EngineCoefficients("24gb", 0.0175, 6e-5, 1.6e-7, 1.1e-4, 5e-10, 100.0, True, 0.015)
SMALL_ROOM = replace(LIMITS["h100-8b-fp16"], max_num_seqs=256, kv_tokens=40_000)


def played(
    workload: Workload, truth: EngineCoefficients, believed: EngineCoefficients, room: EngineLimits | None = None
) -> Row:
    room = room or LIMITS[truth.name]
    limits = replace(room, max_batched_tokens=tokens_per_step(believed, SLO))
    product = ProductPolicy(ProductConfig(believed, limits, SLO, PRICE))
    result = run(workload.trace, product, coefficients=truth, limits=limits, seed=1)
    return row_of(workload.name, result, api_costs_usd(workload.trace, PRICE), SLO)


def slower(row: EngineCoefficients, factor: float) -> EngineCoefficients:
    return replace(
        row,
        t0_s=row.t0_s * factor,
        c_seq_s=row.c_seq_s * factor,
        c_kv_s=row.c_kv_s * factor,
        c_prefill_s=row.c_prefill_s * factor,
        c_att_s=row.c_att_s * factor,
    )


@pytest.mark.parametrize(
    ("truth", "believed", "rate_factor", "most"),
    [
        (H100, H100, 1.0, 0.005),
        (H100, slower(H100, 0.4), 1.0, 0.011),
        (H100, slower(H100, 2.5), 1.0, 0.011),
        (PRESETS["h100-8b-fp8"], PRESETS["h100-8b-fp8"], 1.3, 0.005),
        (A100, H100, 0.5, 0.011),
    ],
)
def test_whatever_the_shape_of_the_traffic_and_the_belief_promises_are_kept(
    truth: EngineCoefficients, believed: EngineCoefficients, rate_factor: float, most: float
) -> None:
    for workload in shapes(seed=4, requests=800, rate_factor=rate_factor):
        row = played(workload, truth, believed)
        # One or two may be broken by learning that the engine is slower than was believed, however short the trace.
        assert row.slo_miss_ratio <= max(most, 2 / len(workload.trace)), workload.name


def test_answers_of_thousands_of_tokens_do_not_overrun_the_kv_cache_of_a_small_card() -> None:
    reasoning = next(workload for workload in shapes(seed=2, rate_factor=0.35) if workload.name == "reasoning")
    row = played(reasoning, SMALL, SMALL, SMALL_ROOM)
    assert row.slo_miss_ratio <= 0.005
    assert row.local_share_ratio > 0.2


def test_a_card_of_which_nothing_is_known_is_used_all_the_same() -> None:
    poisson = next(workload for workload in shapes(requests=1500, rate_factor=0.35) if workload.name == "poisson")
    row = played(poisson, SMALL, PRESETS[UNKNOWN], SMALL_ROOM)
    assert row.spend_ratio < 0.5
    assert row.slo_miss_ratio <= 0.005


def test_long_prompts_are_tried_on_a_gpu_that_is_believed_too_slow_for_them() -> None:
    long_prompts = next(workload for workload in shapes() if workload.name == "long prompts")
    row = played(long_prompts, H100, slower(H100, 2.5))
    assert row.local_share_ratio > 0.1
    assert row.slo_miss_ratio <= 0.01
