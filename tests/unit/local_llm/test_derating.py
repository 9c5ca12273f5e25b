"""How much slower a card is that is kept from running at its speed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from local_llm.calibration import Calibration
from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineLimits, GpuReading, SloTargets
from local_llm.derating import slowdown_ratio, slowed
from local_llm.inflight import Inflight
from local_llm.tightness import tightness

H100 = PRESETS["h100-8b-fp16"]
WELL = GpuReading(0, "H100", sm_clock_mhz=1980, sm_clock_max_mhz=1980)


def test_a_card_in_order_is_not_derated_however_low_its_idle_clock() -> None:
    assert slowdown_ratio([]) == 1.0
    assert slowdown_ratio([WELL, replace(WELL, sm_clock_mhz=345)]) == 1.0


def test_a_power_cap_is_everyday_life() -> None:
    assert slowdown_ratio([replace(WELL, throttle_reasons=("sw_power_cap",), sm_clock_mhz=1500)]) == 1.0


def test_the_lost_clock_tells_how_much() -> None:
    hot = replace(WELL, throttle_reasons=("hw_thermal_slowdown",), sm_clock_mhz=1320)
    assert slowdown_ratio([WELL, hot]) == pytest.approx(1.5)


@pytest.mark.parametrize(("reason", "ratio"), [("hw_slowdown", 2.0), ("sw_thermal_slowdown", 1.25)])
def test_without_clocks_the_reason_tells(reason: str, ratio: float) -> None:
    assert slowdown_ratio([GpuReading(0, "H100", throttle_reasons=("sw_power_cap", reason))]) == ratio


def test_a_slowed_engine_is_slower_in_all_it_does_but_its_front_end() -> None:
    half = slowed(H100, 2.0)
    assert (half.t0_s, half.c_seq_s, half.c_kv_s) == (2 * H100.t0_s, 2 * H100.c_seq_s, 2 * H100.c_kv_s)
    assert (half.c_prefill_s, half.c_att_s) == (2 * H100.c_prefill_s, 2 * H100.c_att_s)
    assert half.api_s == H100.api_s
    assert slowed(H100, 1.0) == H100


def test_slowing_a_card_never_loosens_its_engine() -> None:
    slo, limits = SloTargets(), EngineLimits(max_num_seqs=256)
    fits = []
    for ratio in (1.0, 1.5, 2.0, 3.0):
        inflight = Inflight(H100, slo)
        inflight.slowdown = ratio
        for _ in range(5):
            inflight.enter(0.0, 500, 100).first_token(0.1)
        fit = tightness(
            inflight.state(0.2),
            inflight.coefficients,
            limits,
            slo,
            prompt_tokens=500,
            expected_output_tokens=100,
            now_s=0.2,
        )
        fits.append(fit.u)
    assert fits == sorted(fits)
    assert fits[-1] > fits[0]


def test_what_is_learnt_on_a_slowed_card_is_the_speed_of_one_in_order() -> None:
    inflight = Inflight(H100, SloTargets(), calibration=Calibration(H100))
    inflight.slowdown = 2.0
    now_s = 0.0
    for _ in range(400):  # a card that is really two times slower, each prompt alone
        ticket = inflight.enter(now_s, 1000, 10)
        now_s += H100.api_s + 2.0 * (0.5 * H100.t0_s + H100.t0_s + 1000 * H100.c_prefill_s)
        ticket.first_token(now_s)
        ticket.end(now_s)
        now_s += 10.0
    assert inflight.coefficients.c_prefill_s == pytest.approx(2.0 * H100.c_prefill_s, rel=0.15)
    inflight.slowdown = 1.0
    assert inflight.coefficients.c_prefill_s == pytest.approx(H100.c_prefill_s, rel=0.15)
