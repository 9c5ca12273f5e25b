"""The simulated engine: step times by hand, who gets a turn, and books that balance whatever comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, EngineLimits
from local_llm.simulated_engine import LIMITS, EngineRequest, SimulatedEngine

ROUND = EngineCoefficients("round", t0_s=0.010, c_seq_s=1e-3, c_kv_s=1e-6, c_prefill_s=1e-4, c_att_s=2e-8)
ROOM = EngineLimits(max_num_seqs=64, max_batched_tokens=512, kv_tokens=16_384, context_window_tokens=8192)


def play(
    engine: SimulatedEngine[EngineRequest], requests: Sequence[EngineRequest] = ()
) -> dict[EngineRequest, tuple[float, float]]:
    """Submit all at once and run dry: request -> (seconds to its first token, seconds to its last)."""
    for request in requests:
        engine.submit(request)
    first: dict[EngineRequest, float] = {}
    last: dict[EngineRequest, float] = {}
    now_s = 0.0
    for _ in range(200_000):
        if engine.idle:
            break
        now_s += engine.start_step()
        started, done = engine.end_step()
        for request in started:
            first.setdefault(request, now_s)
        last.update(dict.fromkeys(done, now_s))
    return {request: (first[request], last[request]) for request in last}


def test_a_lone_request_takes_what_the_formula_says() -> None:
    request = EngineRequest(100, 3)
    engine = SimulatedEngine[EngineRequest](ROUND, ROOM)
    times = play(engine, [request])
    prefill_s = 0.010 + 1e-4 * 100 + 2e-8 * 0.5 * 100 * 100
    decode_s = 2 * 0.010 + 2 * 1e-3 + 1e-6 * (101 + 102)
    assert times[request] == (pytest.approx(prefill_s), pytest.approx(prefill_s + decode_s))
    assert engine.busy_s == pytest.approx(prefill_s + decode_s)


def test_a_long_prompt_is_read_in_chunks_that_see_what_was_read_before() -> None:
    request = EngineRequest(1200, 1)
    times = play(SimulatedEngine(ROUND, ROOM), [request])
    attention = 512 * 256 + 512 * (512 + 256) + 176 * (1024 + 88)
    assert times[request][0] == pytest.approx(3 * 0.010 + 1e-4 * 1200 + 2e-8 * attention)


def test_those_who_stream_take_their_tokens_out_of_the_budget_first() -> None:
    engine = SimulatedEngine[EngineRequest](replace(ROUND, c_att_s=0.0), replace(ROOM, max_batched_tokens=64))
    for _ in range(4):
        engine.submit(EngineRequest(10, 50))
    engine.start_step()
    engine.end_step()
    engine.submit(EngineRequest(500, 2))
    before = engine.prefill_tokens
    took_s = engine.start_step()
    assert engine.prefill_tokens - before == 60
    assert took_s == pytest.approx(0.010 + 4 * 1e-3 + 4 * 11 * 1e-6 + 60 * 1e-4)


def test_first_come_is_first_served() -> None:
    requests = [EngineRequest(700, 5), EngineRequest(10, 5), EngineRequest(900, 5), EngineRequest(1, 5)]
    times = play(SimulatedEngine(ROUND, ROOM), requests)
    order = [times[request][0] for request in requests]
    assert order == sorted(order)
    assert order[0] < order[2]


def test_prompts_that_share_a_chunk_have_their_first_token_together() -> None:
    short, other = EngineRequest(20, 5), EngineRequest(30, 5)
    times = play(SimulatedEngine(ROUND, ROOM), [short, other])
    assert times[short][0] == times[other][0]


def test_no_more_run_at_once_than_there_are_slots() -> None:
    engine = SimulatedEngine[EngineRequest](ROUND, replace(ROOM, max_num_seqs=2))
    for _ in range(5):
        engine.submit(EngineRequest(10, 10))
    engine.start_step()
    assert (engine.running, engine.waiting) == (2, 3)


def test_who_started_last_gives_way_when_blocks_run_out_and_everyone_is_answered() -> None:
    engine = SimulatedEngine[EngineRequest](ROUND, replace(ROOM, kv_tokens=1600))
    requests = [EngineRequest(300, 600) for _ in range(4)]
    times = play(engine, requests)
    assert len(times) == 4
    assert engine.preemptions > 0
    assert requests[0].preemptions == 0
    assert engine.prefill_tokens > 4 * 300
    assert engine.output_tokens == 4 * 600
    assert engine.kv_usage_ratio == 0.0


def test_a_request_that_never_fits_is_refused() -> None:
    engine = SimulatedEngine[EngineRequest](ROUND, replace(ROOM, kv_tokens=1600))
    assert not engine.fits(1500, 200)
    with pytest.raises(ValueError, match="never fit"):
        engine.submit(EngineRequest(1500, 200))
    with pytest.raises(ValueError, match="room"):
        SimulatedEngine(ROUND, replace(ROOM, max_num_seqs=0))


def test_an_idle_engine_takes_no_time() -> None:
    engine = SimulatedEngine[EngineRequest](ROUND, ROOM)
    assert engine.idle
    assert engine.start_step() == 0.0


def test_every_gpu_whose_coefficients_are_known_has_its_limits() -> None:
    assert set(LIMITS) == set(PRESETS)


lengths = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 120)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1100, 6000), st.integers(8, 600), st.integers(1, 12))
def test_every_request_gets_all_its_tokens_and_gives_all_its_blocks_back(
    pairs: list[tuple[int, int]], kv_tokens: int, budget: int, slots: int
) -> None:
    limits = replace(ROOM, kv_tokens=kv_tokens, max_batched_tokens=budget, max_num_seqs=slots)
    engine = SimulatedEngine[EngineRequest](ROUND, limits)
    requests = [EngineRequest(prompt, output) for prompt, output in pairs]
    times = play(engine, requests)
    assert set(times) == set(requests)
    assert all(request.emitted_tokens == request.output_tokens for request in requests)
    assert engine.output_tokens == sum(output for _, output in pairs)
    assert engine.prefill_tokens >= sum(prompt for prompt, _ in pairs)
    assert engine.idle
    assert engine.running == engine.waiting == 0
    assert engine.kv_usage_ratio == 0.0
    assert sum(request.preemptions for request in requests) == engine.preemptions
