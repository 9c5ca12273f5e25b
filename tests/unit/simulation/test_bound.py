"""The least spend that no rule can avoid: by hand, against every subset, and below what the product spends."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from local_llm.simulated_engine import LIMITS
from router.core.snapshot import PriceRow, PriceTier
from router.simulation.bound import least_spend_ratio
from router.simulation.product import ProductConfig, ProductPolicy
from router.simulation.report import api_costs_usd, row_of
from router.simulation.runner import run
from router.simulation.traces import TraceRequest
from router.simulation.workloads import six

READING = EngineCoefficients("reading", t0_s=0.0, c_seq_s=0.0, c_kv_s=0.0, c_prefill_s=1e-3)
ROOM, SLO = EngineLimits(), SloTargets(ttft_s=1.0)


def least(trace: list[TraceRequest], costs: list[int]) -> float:
    return least_spend_ratio(trace, [Decimal(c) for c in costs], coefficients=READING, limits=ROOM, slo=SLO)


def test_of_what_comes_at_once_a_second_of_reading_is_kept_and_the_dearest_of_it() -> None:
    at_once = [TraceRequest(0.0, 600, 1), TraceRequest(0.0, 600, 1), TraceRequest(0.0, 400, 1)]
    assert least(at_once, [6, 12, 4]) == pytest.approx(1 - (12 + 4 * 1.0) / 22)
    assert least([TraceRequest(0.0, 2000, 1)], [1]) == pytest.approx(0.5)


def test_what_comes_slowly_enough_is_all_kept() -> None:
    assert least([TraceRequest(float(at), 900, 1) for at in range(20)], [1] * 20) == 0.0
    assert least([], []) == 0.0


requests = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=7).map(
    sorted
)


@settings(max_examples=60)
@given(requests)
def test_no_choice_of_whole_requests_spends_less(drawn: list[tuple[int, int, int]]) -> None:
    trace = [TraceRequest(at / 10, 100 * size, 1) for at, size, _ in drawn]
    costs = [cost for _, _, cost in drawn]
    bound = least(trace, costs)
    for chosen in itertools.product((False, True), repeat=len(trace)):
        free_at_s, feasible = 0.0, True
        for kept, request in zip(chosen, trace, strict=True):
            if kept:
                free_at_s = max(free_at_s, request.at_s) + 1e-3 * request.prompt_tokens
                feasible = feasible and free_at_s <= request.at_s + 1.0 + 1e-9
        if feasible:
            spent = sum(cost for kept, cost in zip(chosen, costs, strict=True) if not kept)
            assert bound <= spent / sum(costs) + 1e-9


def test_the_product_comes_near_it_and_never_below() -> None:
    price = PriceTier(0, Decimal("0.1"), Decimal("0.5"))
    row = PriceRow("api", "host", (price,), datetime(2026, 1, 1, tzinfo=UTC), None, "test", "1")
    truth, limits = PRESETS["h100-8b-fp16"], LIMITS["h100-8b-fp16"]
    code = next(workload for workload in six(requests=1500) if workload.name == "code 1.3")
    costs = api_costs_usd(code.trace, row)
    product = ProductPolicy(ProductConfig(truth, limits, SloTargets(), row))
    spent = row_of("p", run(code.trace, product, coefficients=truth, limits=limits), costs, SloTargets()).spend_ratio
    bound = least_spend_ratio(code.trace, costs, coefficients=truth, limits=limits, slo=SloTargets())
    assert bound < spent < bound + 0.15
