"""No window of any position holds more than its limit, room comes back in time, and giving back makes no room."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.limits import SLOTS, Allowance, KeyLimiter, LimitTerms, SlidingWindow
from router.core.vocabulary import Limit
from router.errors import RateLimited
from tests.fakes import FakeClock

SLOT_S = 60.0 / SLOTS


def limiter(clock: FakeClock | None = None, refused: list[Limit] | None = None, **terms: int) -> KeyLimiter:
    """The limits of one key."""
    note = (refused if refused is not None else []).append
    return KeyLimiter(LimitTerms(**terms), now_s=(clock or FakeClock()).now_s, on_refused=note)


def refusal(of: KeyLimiter, input_tokens: int = 0, output_tokens: int = 0) -> RateLimited:
    """What the next request is refused with."""
    with pytest.raises(RateLimited) as caught, Allowance(of) as allowance:
        allowance.take_tokens(input_tokens, output_tokens)
    return caught.value


def used_up(of: KeyLimiter, requests: int) -> None:
    """So many requests, one after the other."""
    for _ in range(requests):
        with Allowance(of):
            pass


@given(
    most=st.integers(1, 6),
    window_s=st.sampled_from([60.0, 3600.0]),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.6), st.floats(0, 1.2)), min_size=1, max_size=80),
)
def test_any_window_holds_at_most_the_limit_and_nobody_is_refused_longer_than_a_slot_too_long(most, window_s, gaps):
    window, now_s, let_in = SlidingWindow(Limit.REQUESTS_PER_MIN, most, window_s), 1000.0, []
    for gap in gaps:
        now_s += gap * window_s / 2
        wait_s = window.wait_s(1, now_s)
        # a slot and a half of a ten-millionth: the sums of this test are themselves rounded
        sure = [t for t in let_in if t > now_s - window_s + 1e-7]
        late = [t for t in let_in if t > now_s - window_s - window_s / SLOTS - 1e-7]
        if wait_s == 0.0:
            assert len(sure) < most
            window.take(1, now_s)
            let_in.append(now_s)
        else:
            assert len(late) >= most
        assert window.standing(now_s).left == max(0, most - window.used)


@given(
    most=st.integers(1, 40),
    steps=st.lists(
        st.tuples(st.floats(0, 40), st.integers(1, 50), st.integers(0, 60), st.booleans()), min_size=1, max_size=60
    ),
)
def test_tokens_of_any_window_exceed_the_limit_by_no_more_than_answers_exceeded_their_estimates(most, steps):
    clock = FakeClock()
    of = limiter(clock, tokens_per_min=most)
    running, counted, beyond = [], [], 0
    for gap_s, wanted, used, ends in steps:
        clock.tick(gap_s)
        if ends and running:
            allowance, at = running.pop(0)
            taken = counted[at][1]
            allowance.settle(used)
            counted[at] = (counted[at][0], min(taken, used))
            beyond += max(0, used - taken)
        allowance = Allowance(of)
        allowance.__enter__()
        try:
            allowance.take_tokens(min(wanted, most), 0)
        except RateLimited:
            allowance.settle(0)
        else:
            counted.append((clock.t_s, min(wanted, most)))
            running.append((allowance, len(counted) - 1))
        in_window = sum(units for at_s, units in counted if at_s > clock.t_s - 60.0 + 1e-7)
        assert in_window <= most + beyond
        (standing,) = of.standings()
        assert 0 <= standing.left <= most
        assert of.running == len(running)


@given(
    most=st.integers(1, 20),
    moves=st.lists(st.tuples(st.floats(0, 90), st.integers(0, 20), st.integers(0, 40)), max_size=40),
)
def test_giving_back_never_makes_more_room_than_was_taken(most, moves):
    window, now_s, slots = SlidingWindow(Limit.TOKENS_PER_MIN, most, 60.0), 0.0, []
    for gap_s, units, back in moves:
        now_s += gap_s
        if window.wait_s(min(units, most), now_s) == 0.0:
            slots.append(window.take(min(units, most), now_s))
        for slot in slots:
            window.give_back(slot, back)
        assert 0 <= window.used <= most
        assert window.standing(now_s).left <= most


def test_what_has_left_the_window_can_not_be_given_back():
    window = SlidingWindow(Limit.TOKENS_PER_MIN, 100, 60.0)
    old = window.take(80, 0.0)
    window.take(100, 61.0)
    window.give_back(old, 80)
    assert window.used == 100
    assert window.wait_s(1, 61.0) > 0.0


@given(at_s=st.floats(0, 1e6), limit=st.sampled_from([Limit.REQUESTS_PER_MIN, Limit.REQUESTS_PER_HOUR]))
def test_who_comes_back_when_told_to_is_let_in(at_s, limit):
    clock = FakeClock(at_s)
    of = limiter(clock, **{limit.value: 20})
    used_up(of, 20)
    told_s = refusal(of).retry_after_s
    assert told_s is not None
    window_s = 60.0 if limit is Limit.REQUESTS_PER_MIN else 3600.0
    assert window_s < told_s + 1e-6 <= window_s + window_s / SLOTS + 2e-6
    clock.t_s = at_s + told_s - 1e-3
    refusal(of)
    clock.t_s = at_s + told_s + 1e-6
    used_up(of, 20)


def test_a_burst_over_the_edge_of_a_minute_is_no_way_round_the_limit():
    clock = FakeClock(59.9)
    of = limiter(clock, requests_per_min=10)
    used_up(of, 10)
    clock.tick(0.2)
    assert refusal(of).code == "rate_limit_exceeded"


def test_a_clock_that_steps_back_gives_no_room():
    clock = FakeClock(1000.0)
    of = limiter(clock, requests_per_min=2)
    used_up(of, 1)
    clock.t_s = 500.0
    used_up(of, 1)
    refusal(of)
    clock.t_s = 1000.0
    refusal(of)
    (standing,) = of.standings()
    assert standing.reset_s is not None
    assert standing.reset_s > 60.0


def test_the_error_names_the_limit_its_value_and_the_cure():
    refused: list[Limit] = []
    of = limiter(refused=refused, requests_per_min=3)
    used_up(of, 3)
    message = refusal(of).message
    assert message.startswith("This key may make 3 requests per minute (requests_per_min in the gateway's server.auth)")
    assert "has made 3. Try again in 61 s" in message
    assert refused == [Limit.REQUESTS_PER_MIN]


def test_of_two_limits_the_one_that_takes_longest_is_told():
    of = limiter(requests_per_min=2, requests_per_hour=2)
    used_up(of, 2)
    error = refusal(of)
    assert "per hour" in error.message
    assert error.retry_after_s is not None
    assert error.retry_after_s > 3600


def test_seats_are_taken_by_those_under_way_and_come_back_however_they_end():
    of = limiter(concurrency_max=2)
    with ExitStack() as under_way:
        allowances = [under_way.enter_context(Allowance(of)) for _ in range(2)]
        error = refusal(of)
        assert "2 requests under way at once" in error.message
        assert error.retry_after_s == 1.0
        allowances[0].settle(0)
        assert of.running == 1
        used_up(of, 5)
        with pytest.raises(RuntimeError), Allowance(of):
            raise RuntimeError("a bug")
    assert of.running == 0


def test_settling_twice_counts_once():
    of = limiter(concurrency_max=2, tokens_per_min=100)
    with Allowance(of), Allowance(of) as second:
        second.take_tokens(50, 0)
        second.settle(20)
        second.settle(0)
        assert of.running == 1
        assert [s.left for s in of.standings()] == [80, 1]
    assert of.running == 0


def test_a_request_that_its_tokens_keep_out_counts_nowhere():
    of = limiter(requests_per_min=2, tokens_per_min=100, concurrency_max=1)
    with Allowance(of) as first:
        first.take_tokens(60, 40)
        first.settle(100)
    for _ in range(3):
        assert "needs about 10, 5 of them for its prompt" in refusal(of, 5, 5).message
    assert [s.left for s in of.standings()] == [1, 0, 1]


def test_tokens_not_used_are_given_back_and_those_beyond_the_estimate_are_owed():
    clock = FakeClock()
    of = limiter(clock, tokens_per_min=100)
    with Allowance(of) as allowance:
        allowance.take_tokens(20, 50)
        assert of.standings()[0].left == 30
        allowance.settle(25)
    assert of.standings()[0].left == 75
    with Allowance(of) as allowance:
        allowance.take_tokens(10, 10)
        allowance.settle(200)
    assert of.standings()[0].left == 0
    error = refusal(of, 1, 0)
    assert error.retry_after_s is not None
    clock.tick(error.retry_after_s)
    with Allowance(of) as allowance:
        allowance.take_tokens(1, 0)


def test_a_guess_at_the_answer_keeps_nobody_out_but_a_prompt_beyond_the_limit_never_fits():
    of = limiter(tokens_per_min=100)
    with Allowance(of) as allowance:
        allowance.take_tokens(30, 1024)
        allowance.settle(40)
    assert of.standings()[0].left == 60
    error = refusal(of, 101, 0)
    assert error.retry_after_s is None
    assert "about 101 tokens" in error.message
    assert "100 tokens per minute" in error.message


def test_a_request_that_used_nothing_costs_no_tokens_but_counts_as_a_request():
    of = limiter(requests_per_min=5, tokens_per_min=100)
    with Allowance(of) as allowance:
        allowance.take_tokens(30, 30)
    assert [s.left for s in of.standings()] == [4, 100]


def test_a_limit_below_one_is_a_mistake():
    with pytest.raises(ValueError, match="at least 1"):
        limiter(requests_per_min=0)
