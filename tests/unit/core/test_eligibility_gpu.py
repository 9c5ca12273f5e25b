"""What the readings of a card mean for the engine on it: health, a hard cap where asked for, and never fullness."""

from __future__ import annotations

from dataclasses import replace

import pytest

from local_llm.datamodels import GpuReading
from router.core.decision import PolicyConfig
from router.core.eligibility import engine_problems
from router.core.policy import decide
from router.core.vocabulary import Reject
from tests.fakes import ALL, EASY, LOCAL, engine, facts, reasons_of, snapshot

BUSY = GpuReading(0, "H100", utilization_ratio=1.0, memory_total_bytes=80 * 2**30, memory_used_bytes=79 * 2**30)
NOW_S = 1000.0


def against(*gpus: GpuReading, cap: float | None = None, age_s: float = 0.5) -> list[Reject]:
    seen = engine(gpus=gpus, gpus_taken_at_s=NOW_S - age_s, max_gpu_utilization_ratio=cap)
    return engine_problems(seen, NOW_S)


def test_full_utilisation_and_memory_alone_keep_nothing_out() -> None:
    assert against(BUSY) == []
    busy = snapshot(engines={LOCAL.name: engine(gpus=(BUSY,), gpus_taken_at_s=NOW_S)})
    assert decide(facts(), EASY, ALL, busy, PolicyConfig()).chosen == LOCAL


@pytest.mark.parametrize(
    ("reading", "age_s", "rejected"),
    [
        (0.79, 0.5, []),
        (0.80, 0.5, []),
        (0.81, 0.5, [Reject.GPU_SHARED_CAP]),
        (None, 0.5, [Reject.METRICS_STALE]),
        (0.10, 10.0, [Reject.METRICS_STALE]),
    ],
)
def test_a_cap_for_a_shared_card_needs_a_fresh_reading_below_it(
    reading: float | None, age_s: float, rejected: list[Reject]
) -> None:
    assert against(replace(BUSY, utilization_ratio=reading), cap=0.8, age_s=age_s) == rejected


def test_a_cap_without_any_card_to_read_is_never_met() -> None:
    assert against(cap=0.8) == [Reject.METRICS_STALE]


@pytest.mark.parametrize(("clock_mhz", "rejected"), [(1980, []), (990, []), (661, []), (659, [Reject.GPU_THROTTLED])])
def test_a_slowed_card_is_used_until_it_runs_at_a_third_of_its_clock(clock_mhz: int, rejected: list[Reject]) -> None:
    hot = replace(BUSY, throttle_reasons=("hw_thermal_slowdown",), sm_clock_mhz=clock_mhz, sm_clock_max_mhz=1980)
    assert against(hot) == rejected


def test_a_card_that_is_too_slow_spills_and_says_why() -> None:
    hot = replace(BUSY, throttle_reasons=("hw_slowdown",), sm_clock_mhz=300, sm_clock_max_mhz=1980)
    d = decide(
        facts(), EASY, ALL, snapshot(engines={LOCAL.name: engine(gpus=(hot,), gpus_taken_at_s=NOW_S)}), PolicyConfig()
    )
    assert d.chosen != LOCAL
    assert reasons_of(d)[LOCAL.name] == ["GPU_THROTTLED"]
