"""Tightness: the formula by hand, its limits one by one, and the ways it may never move."""

from __future__ import annotations

import timeit
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.coefficients import PRESETS
from local_llm.datamodels import (
    Binding,
    EngineCoefficients,
    EngineLimits,
    InflightState,
    SloTargets,
    Tightness,
)
from local_llm.tightness import tightness

ROUND = EngineCoefficients(
    name="round", t0_s=0.010, c_seq_s=1e-4, c_kv_s=1e-7, c_prefill_s=1e-4, c_att_s=2e-9, api_s=0.02
)
LIMITS = EngineLimits(max_num_seqs=100, max_batched_tokens=2048, kv_tokens=100_000)
SLO = SloTargets()


def look(
    state: InflightState, *, prompt: int = 1000, out: int = 200, now_s: float = 0.0, **changes: object
) -> Tightness:
    return tightness(
        state,
        ROUND,
        replace(LIMITS, **changes),  # type: ignore[arg-type]
        SLO,
        prompt_tokens=prompt,
        expected_output_tokens=out,
        now_s=now_s,
    )


def test_the_predictions_of_a_busy_engine_follow_the_formula() -> None:
    state = InflightState(
        n=5, waiting_prompt_tokens=3000, streaming=3, context_tokens=6000, reserved_tokens=10_000, prefill_share=0.1
    )
    found = look(state)
    step = 0.010 + 1e-4 * 3 + 1e-7 * 6000
    ttft = 0.02 + 0.5 * (step + 1e-4 * 2045) + 2 * step + 1e-4 * 4000 + 0.5 * 2e-9 * 1000**2
    share = 1e-4 * 4000 / (200 * 0.05 + 0.5)
    assert share < 0.1
    tpot = (0.010 + 1e-4 * 6 + 1e-7 * (6000 + 4000 + 100)) / (1 - 0.1)
    assert found.ttft_s == pytest.approx(ttft, rel=1e-12)
    assert found.tpot_s == pytest.approx(tpot, rel=1e-12)
    assert found.u == pytest.approx(max(ttft / 0.9, tpot / 0.03), rel=1e-12)


def test_an_idle_engine_is_far_from_tight() -> None:
    found = look(InflightState())
    assert found.u < 0.5
    assert found.ttft_s == pytest.approx(0.02 + 0.005 + 0.010 + 0.1 + 0.001)


def test_a_backlog_of_prompts_binds_the_first_token() -> None:
    found = look(InflightState(n=9, waiting_prompt_tokens=9000))
    assert found.binding is Binding.TTFT
    assert found.u > 1


def test_many_streams_bind_the_time_per_token() -> None:
    found = look(InflightState(n=90, streaming=90, context_tokens=90_000), prompt=10, kv_tokens=None)
    assert found.binding is Binding.TPOT


def test_a_recent_burst_of_prefill_binds_and_drains() -> None:
    state = InflightState(n=1, streaming=1, context_tokens=100, bucket_s=0.6, bucket_at_s=10.0)
    full = look(state, prompt=100, now_s=10.0)
    assert full.binding is Binding.PREFILL_BURST
    assert full.u == pytest.approx((0.6 + 1e-4 * 100 + 1e-9 * 100**2) / 0.5)
    step = 0.010 + 1e-4 + 1e-5
    later = look(state, prompt=100, now_s=10.5)
    assert later.u == pytest.approx((0.6 - 0.5 * (1 - step / 0.03) + 0.01 + 1e-5) / 0.5)
    assert look(state, prompt=100, now_s=20.0).binding is not Binding.PREFILL_BURST


def test_an_empty_bucket_lets_even_a_prompt_longer_than_the_slack_pass() -> None:
    generous = SloTargets(ttft_s=100.0, tpot_s=1.0, slack_s=0.5)
    found = tightness(
        InflightState(), ROUND, LIMITS, generous, prompt_tokens=20_000, expected_output_tokens=500, now_s=0.0
    )
    assert found.u <= 1


def test_reserved_tokens_bind_the_kv_cache_and_an_unknown_size_does_not() -> None:
    state = InflightState(n=2, streaming=2, context_tokens=500, reserved_tokens=95_000)
    found = look(state)
    assert found.binding is Binding.KV
    assert found.u == pytest.approx((95_000 + 1200) / 95_000)
    assert look(state, kv_tokens=None).binding is not Binding.KV
    assert look(state, kv_tokens=0).u == float("inf")


def test_the_last_slot_binds_the_sequences() -> None:
    found = look(InflightState(n=4, streaming=4, context_tokens=40), prompt=10, out=10, max_num_seqs=4)
    assert found.binding is Binding.SEQS
    assert found.u == pytest.approx(5 / 4)


def test_load_by_others_counts_as_our_own() -> None:
    state = InflightState(n=10, waiting_prompt_tokens=500, streaming=9, context_tokens=9000, reserved_tokens=11_000)
    doubled = InflightState(
        n=20, waiting_prompt_tokens=1000, streaming=18, context_tokens=18_000, reserved_tokens=22_000
    )
    assert look(replace(state, unseen_factor=2.0)) == look(doubled)


def test_prefill_share_is_capped() -> None:
    found = look(InflightState(n=1, streaming=1, prefill_share=1.0), prompt=1, out=1)
    assert found.tpot_s == pytest.approx((0.010 + 2e-4 + 1.5e-7) / 0.1)


states = st.builds(
    InflightState,
    n=st.integers(0, 500),
    waiting_prompt_tokens=st.integers(0, 10**6),
    streaming=st.integers(0, 500),
    context_tokens=st.integers(0, 10**6),
    reserved_tokens=st.integers(0, 10**6),
    prefill_share=st.floats(0, 1),
    bucket_s=st.floats(0, 100),
    bucket_at_s=st.just(0.0),
    unseen_factor=st.floats(1, 10),
)
rows = st.sampled_from(sorted(PRESETS.values(), key=lambda row: row.name))
prompts = st.integers(0, 100_000)


def u_of(state: InflightState, row: EngineCoefficients, prompt: int, *, now_s: float = 0.0) -> float:
    return tightness(state, row, LIMITS, SLO, prompt_tokens=prompt, expected_output_tokens=100, now_s=now_s).u


@given(states, rows, prompts, prompts)
def test_a_longer_prompt_is_never_less_tight(
    state: InflightState, row: EngineCoefficients, prompt: int, more: int
) -> None:
    assert u_of(state, row, prompt) <= u_of(state, row, prompt + more) * (1 + 1e-12)


@given(
    states,
    rows,
    prompts,
    st.sampled_from(["n", "waiting_prompt_tokens", "reserved_tokens", "context_tokens", "bucket_s"]),
    st.integers(0, 10_000),
)
def test_more_in_the_engine_is_never_less_tight(
    state: InflightState, row: EngineCoefficients, prompt: int, what: str, more: int
) -> None:
    fuller = replace(state, **{what: getattr(state, what) + more})
    assert u_of(state, row, prompt) <= u_of(fuller, row, prompt) * (1 + 1e-12)


@given(states, rows, prompts, st.floats(0, 1000))
def test_waiting_never_makes_an_engine_tighter(
    state: InflightState, row: EngineCoefficients, prompt: int, later_s: float
) -> None:
    assert u_of(state, row, prompt, now_s=later_s) <= u_of(state, row, prompt) * (1 + 1e-12)


@given(states, rows, prompts, st.floats(1, 5))
def test_more_load_by_others_is_never_less_tight(
    state: InflightState, row: EngineCoefficients, prompt: int, factor: float
) -> None:
    unseen = replace(state, unseen_factor=state.unseen_factor * factor)
    assert u_of(state, row, prompt) <= u_of(unseen, row, prompt) * (1 + 1e-9) or state.streaming >= 2048


def test_one_look_takes_less_than_fifty_microseconds_even_on_a_busy_machine() -> None:
    state = InflightState(n=9, waiting_prompt_tokens=900, streaming=8, context_tokens=8000, bucket_s=0.1)
    best_s = min(timeit.repeat(lambda: look(state), number=200, repeat=20)) / 200
    assert best_s < 50e-6


def test_what_others_have_in_the_engine_adds_to_ours_where_the_factor_says_less() -> None:
    ours = InflightState(n=4, waiting_prompt_tokens=100, streaming=3, context_tokens=900, reserved_tokens=1500)
    seen = replace(ours, others_n=10, others_streaming=8, others_context_tokens=8000, others_waiting_prompt_tokens=2000)
    together = InflightState(
        n=14, waiting_prompt_tokens=2100, streaming=11, context_tokens=8900, reserved_tokens=11_500
    )
    assert look(seen) == look(together)
    assert look(seen, max_num_seqs=15).u == look(together, max_num_seqs=15).u >= 1.0
    assert look(replace(seen, unseen_factor=100.0)) == look(replace(ours, unseen_factor=100.0))


def test_load_by_others_holds_as_much_of_the_kv_cache_for_each_of_our_tokens() -> None:
    ours = InflightState(n=2, context_tokens=500, streaming=2, reserved_tokens=40_000)
    for factor, needed in ((1.0, 41_200), (1.5, 61_200), (2.0, 81_200)):
        found = look(replace(ours, unseen_factor=factor))
        assert found.binding is Binding.KV
        assert found.u == pytest.approx(needed / 95_000)


def test_prompts_that_others_wait_for_are_read_before_ours_where_our_own_backlog_is_known() -> None:
    ours = InflightState(n=1, streaming=1, context_tokens=10, backlog_done_at_s=0.0, lag_s=-5.0)
    seen = replace(ours, others_n=4, others_waiting_prompt_tokens=5000)
    assert look(seen).ttft_s == pytest.approx(look(ours).ttft_s + 5000 * ROUND.c_prefill_s)
