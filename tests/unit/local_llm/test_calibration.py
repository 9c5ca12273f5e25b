"""Coefficients that are wrong get right by looking, and a measured run gives back what it was made of."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from local_llm.calibration import Calibration, CalibrationError, DecodeRun, PrefillRun, fit
from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, SloTargets
from local_llm.inflight import Inflight
from local_llm.steptime import prefill_s, step_s

H100 = PRESETS["h100-8b-fp16"]


def scaled(row: EngineCoefficients, factor: float) -> EngineCoefficients:
    return replace(
        row,
        t0_s=row.t0_s * factor,
        c_seq_s=row.c_seq_s * factor,
        c_kv_s=row.c_kv_s * factor,
        c_prefill_s=row.c_prefill_s * factor,
        c_att_s=row.c_att_s * factor,
        calibrated=False,
    )


@pytest.mark.parametrize("wrong_by", [0.4, 0.7, 1.0, 1.3, 2.5])
def test_wrong_coefficients_come_near_the_truth_and_err_on_the_careful_side(wrong_by: float) -> None:
    dice = random.Random(7)
    start = scaled(H100, wrong_by)
    learner = Calibration(start)
    for _ in range(600):
        noise = dice.lognormvariate(0.0, 0.1)
        learner.observe_prefill(observed_s=0.2 * noise, predicted_s=0.2 * wrong_by * learner.prefill_factor)
        learner.observe_gap(observed_s=0.01 * noise, predicted_s=0.01 * wrong_by * learner.decode_factor)
    found = learner.coefficients
    assert 1.0 < found.c_prefill_s / H100.c_prefill_s < 1.25
    assert 1.0 < found.t0_s / H100.t0_s < 1.25
    assert found.calibrated


def test_the_factors_stay_within_a_quarter_and_four_times() -> None:
    slow, fast = Calibration(H100), Calibration(H100)
    for _ in range(2000):
        slow.observe_prefill(observed_s=9.0, predicted_s=0.1)
        fast.observe_gap(observed_s=0.0, predicted_s=0.1)
    assert slow.prefill_factor == 4.0
    assert fast.decode_factor == 0.25
    assert slow.decode_factor == 1.0


@pytest.mark.parametrize(
    ("observed_s", "predicted_s"),
    [(-1.0, 0.1), (float("nan"), 0.1), (float("inf"), 0.1), (0.1, 0.0), (0.1, -1.0), (0.1, float("nan"))],
)
def test_nonsense_teaches_nothing(observed_s: float, predicted_s: float) -> None:
    learner = Calibration(H100)
    learner.observe_prefill(observed_s=observed_s, predicted_s=predicted_s)
    learner.observe_gap(observed_s=observed_s, predicted_s=predicted_s)
    assert (learner.prefill_factor, learner.decode_factor) == (1.0, 1.0)


def test_an_engine_in_use_teaches_its_own_coefficients() -> None:
    truth, start = H100, scaled(H100, 0.4)
    inflight = Inflight(start, SloTargets(), calibration=Calibration(start))
    now_s = 0.0
    for _ in range(400):
        ticket = inflight.enter(now_s, 1000, 50)
        now_s += truth.api_s + 1.5 * truth.t0_s + prefill_s(truth, 1000)
        ticket.first_token(now_s)
        for token in range(10):
            now_s += step_s(truth, streaming=1, context_tokens=1000 + token)
            ticket.token(1, now_s)
        ticket.end(now_s, ok=True)
        now_s += 1.0
    assert inflight.coefficients.c_prefill_s == pytest.approx(truth.c_prefill_s, rel=0.15)
    assert inflight.coefficients.t0_s == pytest.approx(truth.t0_s, rel=0.1)


def test_a_careful_start_is_slower_than_the_base_until_the_first_answers_tell() -> None:
    learner = Calibration(H100, careful=True)
    inflight = Inflight(H100, SloTargets(), calibration=learner)
    assert inflight.coefficients.c_prefill_s == 2 * H100.c_prefill_s
    assert inflight.coefficients.t0_s == 1.5 * H100.t0_s
    for _ in range(12):
        learner.observe_prefill(observed_s=0.1, predicted_s=0.1 * learner.prefill_factor)
        learner.observe_gap(observed_s=0.01, predicted_s=0.01 * learner.decode_factor)
    assert learner.prefill_factor < 1.2
    assert learner.decode_factor < 1.3


def test_an_engine_believed_too_slow_for_every_prompt_is_tried_in_the_end() -> None:
    inflight = Inflight(H100, SloTargets(), calibration=Calibration(scaled(H100, 2.5), careful=True))
    first_s = inflight.coefficients.c_prefill_s
    turned_away = 0
    while inflight.coefficients.c_prefill_s * 16_000 > 0.9:
        inflight.turned_away()
        turned_away += 1
    assert first_s == pytest.approx(5 * H100.c_prefill_s)
    assert 40 <= turned_away <= 60


def test_nothing_is_relaxed_while_something_runs_nor_once_enough_has_been_seen() -> None:
    learner = Calibration(H100, careful=True)
    inflight = Inflight(H100, SloTargets(), calibration=learner)
    ticket = inflight.enter(0.0, 10, 10)
    inflight.turned_away()
    assert learner.prefill_factor == 2.0
    ticket.end(1.0)
    for _ in range(10):
        learner.observe_prefill(observed_s=0.1, predicted_s=0.1)
    seen = learner.prefill_factor
    inflight.turned_away()
    assert learner.prefill_factor == seen


def test_a_gap_with_a_prefill_in_it_is_not_learnt_from() -> None:
    learner = Calibration(H100)
    inflight = Inflight(H100, SloTargets(), calibration=learner)
    ticket = inflight.enter(0.0, 10, 50)
    ticket.first_token(0.1)
    ticket.token(1, 0.2)
    assert learner.gap_observations == 0
    ticket.token(1, 0.3)
    assert learner.gap_observations == 1
    other = inflight.enter(0.35, 5000, 50)
    ticket.token(1, 0.6)
    other.first_token(0.65)
    ticket.token(1, 0.7)
    assert learner.gap_observations == 1
    ticket.token(1, 0.8)
    assert learner.gap_observations == 2


def test_a_measured_run_gives_back_the_coefficients_it_was_made_of() -> None:
    truth = PRESETS["a100-8b-fp16"]
    decode = [
        DecodeRun(n, n * context, step_s(truth, streaming=n, context_tokens=n * context))
        for n in (1, 4, 16, 64)
        for context in (128, 1024, 4096)
    ]
    prefill = [
        PrefillRun(n, truth.api_s + truth.t0_s * (0.5 + -(-n // 2048)) + prefill_s(truth, n))
        for n in (64, 512, 2048, 4096, 7000)
    ]
    found = fit("measured", decode, prefill, practical_batch=100, max_batched_tokens=2048)
    for name in ("t0_s", "c_seq_s", "c_kv_s", "c_prefill_s", "c_att_s", "api_s"):
        assert getattr(found.coefficients, name) == pytest.approx(getattr(truth, name), rel=1e-6), name
    assert found.decode_error_ratio < 1e-6
    assert found.prefill_error_ratio < 1e-6
    assert found.coefficients.calibrated


def test_noise_never_makes_a_coefficient_negative() -> None:
    dice = random.Random(3)
    decode = [DecodeRun(n, n * 100, 0.01 * dice.uniform(0.5, 1.5)) for n in (1, 2, 4, 8, 16)]
    prefill = [PrefillRun(n, 0.05 * dice.uniform(0.5, 1.5)) for n in (10, 100, 1000, 2000)]
    found = fit("noisy", decode, prefill, practical_batch=8, max_batched_tokens=512).coefficients
    assert min(found.t0_s, found.c_seq_s, found.c_kv_s, found.c_prefill_s, found.c_att_s, found.api_s) >= 0
    assert found.t0_s > 0


def test_too_short_a_run_is_refused() -> None:
    with pytest.raises(CalibrationError, match="has 1 of decode and 0 of prefill"):
        fit("short", [DecodeRun(1, 10, 0.1), DecodeRun(1, 10, 0.0)], [], practical_batch=8, max_batched_tokens=512)


def test_a_prompt_is_never_read_for_nothing() -> None:
    bent = [PrefillRun(n, 0.01 + 2e-8 * n * n) for n in (100, 300, 600, 1200)]
    decode = [DecodeRun(n, 100.0 * n, 0.01 + 1e-4 * n) for n in (1, 4, 16)]
    row = fit("bent", decode, bent, practical_batch=16.0, max_batched_tokens=2048).coefficients
    assert row.c_prefill_s > 0.0
    assert row.c_att_s == 0.0


def test_a_step_is_never_made_for_nothing_but_what_is_held() -> None:
    decode = [DecodeRun(1, 100, 0.001), DecodeRun(1, 1000, 0.01), DecodeRun(4, 2000, 0.02), DecodeRun(4, 4000, 0.04)]
    prompts = [PrefillRun(tokens, 0.05 + 1e-4 * tokens) for tokens in (100, 500, 1000)]
    row = fit("noisy", decode, prompts, practical_batch=4, max_batched_tokens=1024).coefficients
    assert row.t0_s + row.c_seq_s > 0.0
