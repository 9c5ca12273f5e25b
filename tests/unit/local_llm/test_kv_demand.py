"""How much KV many answers need together: never more than in full, enough for whatever lengths are drawn."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.datamodels import EngineCoefficients, EngineLimits, InflightState, SloTargets
from local_llm.inflight import Inflight
from local_llm.kv_demand import peak_tokens
from local_llm.tightness import tightness

FAST = EngineCoefficients("fast", 1e-4, 1e-7, 1e-10, 1e-8)
COUNTS = st.integers(1, 300)
TOKENS = st.integers(0, 100_000)


@given(COUNTS, TOKENS, TOKENS, st.floats(0, 1e9))
def test_never_more_is_reserved_than_in_full_nor_less_than_is_held(
    n: int, held: int, remaining: int, variance: float
) -> None:
    full = n * (held + remaining)
    peak = peak_tokens(n, n * held, full, n * variance, full**2 / n)
    assert n * held * (1 - 1e-9) <= peak <= full


@given(COUNTS, TOKENS, TOKENS, st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_surer_the_lengths_the_more_is_reserved(n: int, held: int, left: int, one: float, other: float) -> None:
    full = n * (held + left)
    less, more = (
        peak_tokens(n, n * held, full, n * variance, full**2 / n) for variance in sorted((one, other), reverse=True)
    )
    assert less <= more * (1 + 1e-9)


def test_lengths_known_for_sure_and_a_lone_answer_are_reserved_in_full() -> None:
    assert peak_tokens(50, 5_000, 105_000, 0.0, 50 * 2_100**2) == 105_000
    assert peak_tokens(1, 100, 5_100, 1_700.0**2, 5_100**2) == 5_100


@pytest.mark.parametrize("shortest", [0, 2_000, 4_000])
@pytest.mark.parametrize("n", [40, 160])
def test_what_is_reserved_holds_the_greatest_sum_of_answers_drawn_at_random(n: int, shortest: int) -> None:
    """All start at once, the worst that can be: the greatest sum over time of 300 draws, against one closed form and
    the twentieth of the cache that is never given away.
    """
    longest, prompt = 8_000, 300
    dice = random.Random(n + shortest)
    mean, variance = (shortest + longest) / 2, (longest - shortest) ** 2 / 12
    full = n * (prompt + mean)
    reserved = peak_tokens(n, n * prompt, full, n * variance, n * (prompt + mean) ** 2)
    peaks = []
    for _ in range(300):
        lengths = sorted((dice.uniform(shortest, longest) for _ in range(n)), reverse=True)
        peaks.append(max((i + 1) * (prompt + length) for i, length in enumerate(lengths)))
    assert sum(peak > reserved / 0.95 for peak in peaks) <= 0.05 * len(peaks)
    if shortest == 0:
        assert reserved < 0.75 * full, "many independent answers do not end at the same time"


def test_an_engine_has_room_for_more_long_answers_when_their_lengths_are_known_to_differ() -> None:
    limits = EngineLimits(max_num_seqs=1000, kv_tokens=100_000, context_window_tokens=32_000)
    generous = SloTargets(ttft_s=100.0, tpot_s=1.0, slack_s=100.0)

    def admitted(variance: float) -> int:
        inflight = Inflight(FAST, generous)
        while True:
            fit = tightness(
                inflight.state(0.0),
                FAST,
                limits,
                generous,
                prompt_tokens=500,
                expected_output_tokens=4_000,
                output_variance=variance,
                now_s=0.0,
            )
            if fit.u > 1.0:
                return inflight.n
            inflight.enter(0.0, 500, 4_000, output_variance=variance)

    in_full, by_distribution = admitted(0.0), admitted(2_000.0**2)
    assert in_full == 21
    assert in_full < by_distribution <= 2 * in_full


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5_000), st.floats(0, 1e7)), max_size=40))
def test_squares_and_variances_come_back_to_nothing_whatever_the_order(
    steps: list[tuple[int, int, float]],
) -> None:
    inflight, tickets = Inflight(FAST, SloTargets()), []
    for at, (what, tokens, variance) in enumerate(steps):
        now_s = float(at)
        if what == 0 or not tickets:
            tickets.append(inflight.enter(now_s, tokens, 10, output_variance=variance))
        elif what == 1:
            tickets[tokens % len(tickets)].first_token(now_s)
        elif what == 2:
            tickets[tokens % len(tickets)].token(tokens)
        else:
            tickets[tokens % len(tickets)].end(now_s)
        state = inflight.state(now_s)
        assert state.reserved_squares >= 0
        assert state.output_variance >= 0
    for ticket in tickets:
        ticket.end(100.0)
    state = inflight.state(100.0)
    assert (state.reserved_tokens, state.reserved_squares, state.output_variance) == (0, 0, 0)


def test_a_state_without_variances_reserves_as_it_did() -> None:
    state = InflightState(n=2, streaming=2, context_tokens=500, reserved_tokens=90_000)
    limits = EngineLimits(max_num_seqs=8, kv_tokens=100_000, context_window_tokens=100_000)
    fit = tightness(state, FAST, limits, SloTargets(), prompt_tokens=500, expected_output_tokens=500, now_s=0.0)
    assert fit.u == pytest.approx(91_000 / 95_000)


@given(st.integers(1, 200), st.integers(0, 3_000), st.integers(10, 2_000), st.floats(0.05, 0.57))
def test_the_peak_is_the_greatest_value_of_what_is_occupied_over_time(
    n: int, held_each: int, left_each: int, sigma_ratio: float
) -> None:
    sigma = sigma_ratio * left_each
    half = math.sqrt(3.0) * sigma  # of an even spread with that standard deviation
    first, last = left_each - half, left_each + half

    def occupied(tau: float) -> float:
        still = 1.0 if tau <= first else (last - tau) / (last - first)
        return n * still * (held_each + tau)

    greatest = max(occupied(first + (last - first) * i / 300) for i in range(301))
    found = peak_tokens(n, n * held_each, n * (held_each + left_each), n * sigma * sigma, 0.0)
    assert found == pytest.approx(min(greatest, n * (held_each + left_each)), rel=1e-4)
