"""The breaker opens on failures, waits, probes once, and is fair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.health import (
    COOL_DOWN_S,
    CREDENTIALS_COOL_DOWN_S,
    RATE_LIMIT_DEFAULT_S,
    RETRY_AFTER_MAX_S,
    after,
    begin_probe,
    is_open,
)
from router.core.snapshot import ProviderHealth
from router.core.vocabulary import CircuitState, Outcome

FRESH = ProviderHealth()
FAILURES = [Outcome.TIMEOUT, Outcome.UNAVAILABLE, Outcome.BROKEN]
NEUTRAL = [Outcome.REFUSED, Outcome.CLIENT_GONE, Outcome.CONTEXT_TOO_LONG, Outcome.INTERNAL, Outcome.LOST]


def run(*outcomes: Outcome, health: ProviderHealth = FRESH, now_s: float = 0.0) -> ProviderHealth:
    for outcome in outcomes:
        health = after(health, outcome, now_s)
    return health


def opened(now_s: float = 0.0) -> ProviderHealth:
    return run(*[Outcome.UNAVAILABLE] * 3, now_s=now_s)


@pytest.mark.parametrize("failure", FAILURES)
def test_three_failures_in_a_row_open_and_two_do_not(failure):
    assert not is_open(run(failure, failure), 0.0)
    health = run(failure, failure, failure)
    assert health.state is CircuitState.OPEN
    assert health.cause == failure.value
    assert is_open(health, COOL_DOWN_S - 0.001)
    assert not is_open(health, COOL_DOWN_S)


def test_a_success_in_between_starts_the_count_again():
    health = run(Outcome.TIMEOUT, Outcome.TIMEOUT, Outcome.OK, Outcome.TIMEOUT, Outcome.TIMEOUT)
    assert health.state is CircuitState.CLOSED
    assert health.consecutive_failures == 2


@pytest.mark.parametrize("outcome", NEUTRAL)
def test_what_is_not_the_targets_fault_never_counts_against_it(outcome):
    assert run(*[outcome] * 10) == FRESH
    assert run(Outcome.TIMEOUT, Outcome.TIMEOUT, outcome).consecutive_failures == 2


def test_one_probe_at_a_time_once_the_cool_down_is_over():
    probing = begin_probe(opened(), COOL_DOWN_S)
    assert probing.state is CircuitState.HALF_OPEN
    assert probing.probe_in_flight
    assert is_open(probing, COOL_DOWN_S + 1.0)


def test_a_probe_whose_end_is_never_told_blocks_for_one_cool_down_only():
    probing = begin_probe(opened(), 20.0)
    assert is_open(probing, 20.0 + COOL_DOWN_S - 0.001)
    assert not is_open(probing, 20.0 + COOL_DOWN_S)


def test_a_good_probe_closes():
    health = after(begin_probe(opened(), 10.0), Outcome.OK, 11.0)
    assert (health.state, health.consecutive_failures, health.cause) == (CircuitState.CLOSED, 0, None)
    assert not health.probe_in_flight


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.CONTEXT_TOO_LONG])
def test_a_probe_that_is_answered_properly_closes_whatever_was_wrong_with_the_request(outcome):
    assert after(begin_probe(opened(), 10.0), outcome, 11.0).state is CircuitState.CLOSED


def test_a_failed_probe_opens_for_another_cool_down():
    health = after(begin_probe(opened(), 10.0), Outcome.TIMEOUT, 12.0)
    assert is_open(health, 12.0 + COOL_DOWN_S - 0.001)
    assert not is_open(health, 12.0 + COOL_DOWN_S)


def test_a_probe_whose_caller_has_gone_makes_room_for_another_at_once():
    health = after(begin_probe(opened(), 10.0), Outcome.CLIENT_GONE, 11.0)
    assert not is_open(health, 11.0)
    assert not health.probe_in_flight
    assert health.state is CircuitState.OPEN


@pytest.mark.parametrize("outcome", [Outcome.CREDENTIALS, Outcome.NOT_SERVED])
def test_what_people_have_to_cure_opens_at_once_with_its_cause_and_for_longer(outcome):
    health = run(outcome)
    assert health.cause == outcome.value
    assert is_open(health, CREDENTIALS_COOL_DOWN_S - 1)
    assert not is_open(health, CREDENTIALS_COOL_DOWN_S)


@pytest.mark.parametrize(
    ("asked", "waits"), [(7.0, 7.0), (None, RATE_LIMIT_DEFAULT_S), (1e9, RETRY_AFTER_MAX_S), (-5.0, 0.0), (0.0, 0.0)]
)
def test_a_rate_limit_opens_until_the_time_it_asked_for(asked, waits):
    health = after(FRESH, Outcome.RATE_LIMITED, 100.0, asked)
    assert health.open_until_at_s == 100.0 + waits
    assert not is_open(health, 100.0 + waits)
    assert health.consecutive_failures == 0


def test_a_rate_limit_is_no_step_towards_opening():
    health = run(Outcome.TIMEOUT, Outcome.TIMEOUT)
    health = after(health, Outcome.RATE_LIMITED, 0.0, 1.0)
    assert health.consecutive_failures == 2


def test_a_shorter_wait_never_shortens_a_longer_one():
    health = run(Outcome.CREDENTIALS)
    assert after(health, Outcome.RATE_LIMITED, 1.0, 2.0).open_until_at_s == CREDENTIALS_COOL_DOWN_S
    assert after(health, Outcome.RATE_LIMITED, 1.0, 2.0).cause == "credentials"


def test_an_answer_from_before_the_opening_does_not_close():
    assert run(Outcome.OK, health=opened(), now_s=1.0).state is CircuitState.OPEN


def test_failures_from_before_the_opening_do_not_prolong_it():
    assert run(*[Outcome.TIMEOUT] * 5, health=opened(), now_s=5.0).open_until_at_s == COOL_DOWN_S


def test_a_closed_circuit_needs_no_probe():
    assert begin_probe(FRESH, 1.0) is FRESH


def test_noting_a_success_of_a_healthy_target_changes_nothing():
    assert after(FRESH, Outcome.OK, 1.0) is FRESH


def test_the_failure_ratio_follows_what_happens_and_returns_to_exactly_zero():
    health = FRESH
    for n in range(2000):  # every tenth fails
        health = after(health, Outcome.RATE_LIMITED if n % 10 == 0 else Outcome.OK, float(n), 0.0)
        health = after(begin_probe(health, float(n)), Outcome.OK, float(n)) if n % 10 == 0 else health
    assert 0.02 < health.failure_ratio < 0.2
    for n in range(500):
        health = after(health, Outcome.OK, float(n))
    assert health.failure_ratio == 0.0


@given(st.lists(st.tuples(st.sampled_from(list(Outcome)), st.floats(0, 30), st.booleans())))
def test_whatever_happens_the_ratio_is_a_ratio_and_the_target_is_asked_again_some_day(events):
    health, now_s = FRESH, 0.0
    for outcome, gap_s, probe in events:
        now_s += gap_s
        if probe and not is_open(health, now_s):
            health = begin_probe(health, now_s)
        health = after(health, outcome, now_s, gap_s)
        assert 0.0 <= health.failure_ratio <= 1.0
        assert (health.state is CircuitState.HALF_OPEN) == health.probe_in_flight
        assert not is_open(health, now_s + CREDENTIALS_COOL_DOWN_S)


def test_a_probe_that_is_told_to_wait_waits_that_long_and_no_longer():
    probing = begin_probe(opened(), COOL_DOWN_S)
    told = after(probing, Outcome.RATE_LIMITED, COOL_DOWN_S + 1.0, retry_after_s=2.0)
    assert (told.state, told.probe_in_flight, told.open_until_at_s) == (CircuitState.OPEN, False, COOL_DOWN_S + 3.0)
