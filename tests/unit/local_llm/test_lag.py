"""What streams that show their tokens tell: how far the engine has read, and who is behind the promised pace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.coefficients import PRESETS
from local_llm.datamodels import Binding, EngineCoefficients, EngineLimits, InflightState, SloTargets, Tightness
from local_llm.inflight import Inflight
from local_llm.tightness import tightness

ROUND = EngineCoefficients("round", t0_s=0.010, c_seq_s=0.0, c_kv_s=0.0, c_prefill_s=1e-4, api_s=0.02)
LIMITS = EngineLimits(max_num_seqs=1000, max_batched_tokens=1000, kv_tokens=None)
SLO = SloTargets()


def look(state: InflightState, *, prompt: int = 100, now_s: float = 0.0, limits: EngineLimits = LIMITS) -> Tightness:
    return tightness(state, ROUND, limits, SLO, prompt_tokens=prompt, expected_output_tokens=100, now_s=now_s)


def fresh() -> Inflight:
    return Inflight(ROUND, SLO, max_batched_tokens=1000)


def test_the_backlog_is_done_when_every_prompt_has_been_read_in_turn() -> None:
    inflight = fresh()
    inflight.enter(0.0, 2000, 10)
    inflight.enter(0.0, 1000, 10)
    assert inflight.state(0.0).backlog_done_at_s == pytest.approx(0.02 + 3 * (0.1 + 0.010))


def test_a_first_token_says_how_far_the_engine_has_got() -> None:
    inflight = fresh()
    early, _late = inflight.enter(0.0, 1000, 10), inflight.enter(0.0, 2000, 10)
    early.first_token(5.0)
    assert inflight.state(5.0).backlog_done_at_s == pytest.approx(5.0 + 2 * (0.1 + 0.010))


def test_the_wait_for_a_first_token_shrinks_while_prompts_are_read() -> None:
    inflight = fresh()
    inflight.enter(0.0, 4000, 10)
    before, after = look(inflight.state(0.0)), look(inflight.state(0.2), now_s=0.2)
    assert before.ttft_s - after.ttft_s == pytest.approx(0.2)


def test_a_stream_is_behind_by_its_time_less_what_its_tokens_are_worth() -> None:
    inflight = fresh()
    stream = inflight.enter(0.0, 10, 100)
    stream.first_token(1.0)
    assert inflight.state(1.0).lag_s == pytest.approx(0.0)
    stream.token(4, 1.1)
    assert inflight.state(1.1).lag_s == pytest.approx(0.1 - 4 * 0.05)
    assert inflight.state(3.1).lag_s == pytest.approx(2.1 - 4 * 0.05)


def test_the_slowest_stream_counts_until_it_ends() -> None:
    inflight = fresh()
    ahead = inflight.enter(0.0, 10, 100)
    ahead.first_token(0.0)
    ahead.token(100, 1.0)
    late = inflight.enter(1.0, 10, 100)
    late.first_token(1.0)
    for step in range(1, 5):  # a burst: each step gives both a token and takes 0.15 s
        for stream in (ahead, late):
            stream.token(1, 1.0 + 0.15 * step)
    assert inflight.state(1.6).lag_s == pytest.approx(0.6 - 4 * 0.05)
    late.end(1.6)
    assert inflight.state(1.6).lag_s == pytest.approx(1.6 - 104 * 0.05)


def test_an_answer_that_comes_at_once_shows_nothing_and_nothing_is_made_up() -> None:
    inflight = fresh()
    inflight.enter(0.0, 10, 100, streamed=False)
    state = inflight.state(10.0)
    assert state.streaming == 1
    assert state.lag_s is None
    assert state.backlog_done_at_s is None


def test_what_is_known_of_streams_is_gone_with_the_last_of_them() -> None:
    inflight = fresh()
    stream = inflight.enter(0.0, 1000, 10)
    stream.first_token(1.0)
    stream.token(5, 1.5)
    stream.end(2.0)
    state = inflight.state(2.0)
    assert (state.lag_s, state.backlog_done_at_s) == (None, None)


def test_a_burst_binds_when_it_would_put_the_slowest_stream_behind_its_slack() -> None:
    lagging = InflightState(n=1, streaming=1, context_tokens=10, backlog_done_at_s=0.0, lag_s=0.45, taken_at_s=0.0)
    found = look(lagging, prompt=2000)
    assert found.binding is Binding.PREFILL_BURST
    burst_s = 0.005 + 3 * 0.010 + 0.2  # half a step to wait, then three chunks in a room of 999
    chunk_s = 0.010 + 0.0999
    assert found.u == pytest.approx((0.45 + burst_s * (1 - 0.05 / chunk_s)) / 0.5)
    assert look(replace(lagging, lag_s=0.0), prompt=2000).u < 1


def test_chunks_that_take_less_than_a_token_is_worth_put_nobody_behind() -> None:
    lagging = InflightState(n=1, streaming=1, context_tokens=10, backlog_done_at_s=0.0, lag_s=0.4)
    found = look(lagging, prompt=6000, limits=replace(LIMITS, max_batched_tokens=300))
    assert found.binding is Binding.TTFT


def test_an_engine_too_quick_to_be_measured_puts_nobody_behind_and_is_no_error() -> None:
    """A calibration on a busy machine may give all of a prompt to its square: then an idle step takes no time."""
    measured = EngineCoefficients("noisy", t0_s=0.0, c_seq_s=1e-3, c_kv_s=0.0, c_prefill_s=0.0, c_att_s=1e-6)
    lagging = InflightState(n=1, backlog_done_at_s=0.0, lag_s=0.4, waiting_prompt_tokens=10.0)
    found = tightness(lagging, measured, LIMITS, SLO, prompt_tokens=100, expected_output_tokens=100, now_s=0.0)
    assert found.u == pytest.approx(0.4 / SLO.slack_s)


def test_streams_that_are_far_ahead_can_wait_for_those_whose_prompt_is_read_now() -> None:
    ahead = InflightState(n=2, streaming=2, context_tokens=10, backlog_done_at_s=0.0, lag_s=-5.0)
    waiting = replace(ahead, waiting_prompt_tokens=10.0)
    slow_chunks = replace(LIMITS, max_batched_tokens=100_000)
    assert look(ahead, prompt=5000, limits=slow_chunks).binding is Binding.TTFT
    assert look(waiting, prompt=5000, limits=slow_chunks).binding is Binding.PREFILL_BURST


states = st.builds(
    InflightState,
    n=st.integers(1, 200),
    waiting_prompt_tokens=st.floats(0, 1e5),
    streaming=st.integers(0, 200),
    context_tokens=st.floats(0, 1e5),
    reserved_tokens=st.floats(0, 1e5),
    backlog_done_at_s=st.floats(0, 20),
    lag_s=st.none() | st.floats(-10, 10),
    unseen_factor=st.floats(1, 5),
)
rows = st.sampled_from(sorted(PRESETS.values(), key=lambda row: row.name))


def u_of(state: InflightState, row: EngineCoefficients, prompt: int, now_s: float = 0.0) -> float:
    limits = EngineLimits(max_num_seqs=256, max_batched_tokens=2048, kv_tokens=400_000)
    return tightness(state, row, limits, SLO, prompt_tokens=prompt, expected_output_tokens=100, now_s=now_s).u


@given(states, rows, st.integers(0, 20_000), st.integers(0, 20_000), st.floats(0, 10))
def test_with_streams_too_more_is_never_less_tight_and_waiting_never_tighter(
    state: InflightState, row: EngineCoefficients, prompt: int, more: int, seconds: float
) -> None:
    u = u_of(state, row, prompt)
    assert u >= 0.0
    slightly_less = u * (1 - 1e-12)
    assert u_of(state, row, prompt + more) >= slightly_less
    assert u_of(state, row, prompt, now_s=seconds) <= u * (1 + 1e-12)
    assert u_of(replace(state, waiting_prompt_tokens=state.waiting_prompt_tokens + more), row, prompt) >= slightly_less
    assert state.backlog_done_at_s is not None
    later = replace(state, backlog_done_at_s=state.backlog_done_at_s + seconds)
    assert u_of(later, row, prompt) >= slightly_less
    if state.lag_s is not None:
        assert u_of(replace(state, lag_s=state.lag_s + seconds), row, prompt) >= slightly_less


def test_prompts_that_come_together_teach_what_they_took_together() -> None:
    seen: list[tuple[float, float, float]] = []

    class Listener:
        coefficients = ROUND

        def observe_prefill(self, *, observed_s: float, predicted_s: float, prefill_ratio: float) -> None:
            seen.append((observed_s, predicted_s, prefill_ratio))

        def observe_gap(self, *, observed_s: float, predicted_s: float, decode_ratio: float = 1.0) -> None:
            raise AssertionError("no token but the first came")

        def relax(self) -> bool:
            raise AssertionError("nobody was turned away")

    inflight = Inflight(ROUND, SLO, max_batched_tokens=1000, calibration=Listener())
    both = [inflight.enter(0.0, 300, 10), inflight.enter(0.0, 400, 10)]
    for ticket in both:
        ticket.first_token(0.02 + 0.080)
    assert len(seen) == 1
    observed_s, predicted_s, prefill_ratio = seen[0]
    assert observed_s == pytest.approx(0.080)
    assert predicted_s == pytest.approx(0.070 + 0.010)
    assert prefill_ratio == pytest.approx(0.070 / 0.080)


def test_a_request_that_leaves_the_queue_teaches_nothing() -> None:
    class Deaf:
        coefficients = ROUND
        told = 0

        def observe_prefill(self, *, observed_s: float, predicted_s: float, prefill_ratio: float) -> None:
            self.told += 1

        def observe_gap(self, *, observed_s: float, predicted_s: float, decode_ratio: float = 1.0) -> None:
            self.told += 1

        def relax(self) -> bool:
            self.told += 1
            return False

    deaf = Deaf()
    inflight = Inflight(ROUND, SLO, max_batched_tokens=1000, calibration=deaf)
    inflight.enter(0.0, 300, 10).end(0.5)
    assert deaf.told == 0
