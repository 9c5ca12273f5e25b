"""The life of an engine, with a clock that is only a number."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from local_llm.datamodels import EngineKind, ProcessState
from local_llm.supervision import (
    Action,
    Event,
    Exited,
    Healthy,
    RestartPolicy,
    StartAsked,
    StopAsked,
    Supervised,
    Tick,
    Unhealthy,
    backoff_s,
    policy_for,
    step,
)

POLICY = RestartPolicy(ready_timeout_s=30, max_failures=3, rest_s=600, unhealthy_after=3)
READY = Supervised(phase=ProcessState.READY, alive=True, since_s=0.0, starts=1)


def run(state: Supervised, *events: tuple[float, Event]) -> tuple[Supervised, list[Action]]:
    actions: list[Action] = []
    for now_s, event in events:
        state, more = step(state, event, now_s, POLICY)
        actions += more
    return state, actions


def test_an_engine_is_started_and_becomes_ready_when_it_answers() -> None:
    state, actions = run(Supervised(), (0, StartAsked()), (1, Unhealthy("loading")), (2, Healthy()))
    assert state.phase is ProcessState.READY
    assert state.problem is None
    assert actions == [Action.SPAWN]


def test_asking_twice_starts_once() -> None:
    _, actions = run(Supervised(), (0, StartAsked()), (0, StartAsked()), (1, Healthy()), (2, StartAsked()))
    assert actions == [Action.SPAWN]


def test_a_crash_is_followed_by_a_start_after_the_back_off() -> None:
    state, actions = run(READY, (10, Exited("killed")))
    assert (state.phase, state.alive, state.problem, actions) == (ProcessState.DOWN, False, "killed", [])
    assert state.retry_at_s == 11
    early, actions = run(state, (10.9, Tick()))
    assert (early, actions) == (state, [])
    again, actions = run(state, (11, Tick()))
    assert (again.phase, actions) == (ProcessState.STARTING, [Action.SPAWN])
    assert again.starts == 2


def test_back_off_doubles_up_to_its_bound() -> None:
    policy = RestartPolicy(backoff_first_s=1, backoff_max_s=10)
    assert [backoff_s(policy, failures) for failures in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]
    assert backoff_s(policy, 10_000) == 10


def test_too_many_failures_in_a_row_give_up_and_try_once_after_a_rest() -> None:
    state, _ = run(Supervised(), (0, StartAsked()))
    now_s = 0.0
    for _ in range(POLICY.max_failures - 1):
        state, _ = run(state, (now_s, Exited("no memory")))
        assert state.phase is ProcessState.DOWN
        now_s = state.retry_at_s
        state, _ = run(state, (now_s, Tick()))
    state, actions = run(state, (now_s, Exited("no memory")))
    assert (state.phase, actions) == (ProcessState.FAILED, [])
    assert state.retry_at_s == now_s + 600
    state, actions = run(state, (now_s + 600, Tick()), (now_s + 601, Exited("no memory")))
    assert (state.phase, actions) == (ProcessState.FAILED, [Action.SPAWN])


def test_asking_again_forgives_an_engine_that_was_given_up() -> None:
    given_up = Supervised(phase=ProcessState.FAILED, failures=3, retry_at_s=600, problem="no memory")
    state, actions = run(given_up, (1, StartAsked()))
    assert (state.phase, state.failures, actions) == (ProcessState.STARTING, 0, [Action.SPAWN])


def test_an_engine_that_does_not_become_ready_in_time_is_killed() -> None:
    state, actions = run(Supervised(), (0, StartAsked()), (29.9, Tick()))
    assert (state.phase, actions) == (ProcessState.STARTING, [Action.SPAWN])
    assert state.wake_at_s(POLICY) == 30
    state, actions = run(state, (30, Tick()))
    assert (state.phase, actions) == (ProcessState.DOWN, [Action.KILL])
    assert "not ready after 30 s" in (state.problem or "")


def test_a_long_good_run_forgives_earlier_failures_and_a_short_one_does_not() -> None:
    bruised = Supervised(phase=ProcessState.READY, alive=True, failures=2, since_s=0.0)
    short, _ = run(bruised, (5, Exited("x")))
    assert short.phase is ProcessState.FAILED
    long, _ = run(bruised, (60, Exited("x")))
    assert (long.phase, long.failures) == (ProcessState.DOWN, 1)


def test_a_few_missed_health_checks_are_borne_and_more_are_not() -> None:
    state, actions = run(READY, (1, Unhealthy("timeout")), (2, Unhealthy("timeout")), (3, Healthy()))
    assert (state.phase, actions, state.unhealthy_in_a_row) == (ProcessState.READY, [], 0)
    state, actions = run(READY, *((second, Unhealthy("timeout")) for second in (1, 2, 3)))
    assert (state.phase, actions) == (ProcessState.DOWN, [Action.KILL])


def test_an_engine_that_says_it_is_dead_is_killed_at_once() -> None:
    state, actions = run(READY, (1, Unhealthy("/health answers 503", fatal=True)))
    assert (state.phase, actions) == (ProcessState.DOWN, [Action.KILL])


def test_stopping_kills_what_lives_and_cancels_the_next_start() -> None:
    state, actions = run(READY, (1, StopAsked()), (1, Exited("as asked")), (1000, Tick()))
    assert (state.phase, actions) == (ProcessState.STOPPED, [Action.KILL])
    state, actions = run(READY, (1, Exited("x")), (2, StopAsked()), (1000, Tick()))
    assert (state.phase, actions) == (ProcessState.STOPPED, [])


def test_vllm_is_given_the_time_to_load_and_download() -> None:
    assert policy_for(EngineKind.VLLM).ready_timeout_s >= 1800
    assert policy_for(EngineKind.EMBEDDED).ready_timeout_s <= 120


events = st.one_of(
    st.sampled_from([StartAsked(), StopAsked(), Healthy(), Tick()]),
    st.builds(Unhealthy, st.just("ill"), st.booleans()),
    st.just(Exited("gone")),
)


@given(st.lists(st.tuples(st.floats(0, 100), events), max_size=60))
def test_in_any_order_there_is_never_more_than_one_engine(steps: list[tuple[float, Event]]) -> None:
    state, now_s, running = Supervised(), 0.0, 0
    for passed_s, event in steps:
        now_s += passed_s
        if isinstance(event, Exited):
            running = 0
        state, actions = step(state, event, now_s, POLICY)
        for action in actions:
            running = 0 if action is Action.KILL else running + 1
        assert running <= 1
        assert state.alive == (running == 1)
        assert state.alive == (state.phase in (ProcessState.STARTING, ProcessState.READY))
        if state.phase in (ProcessState.DOWN, ProcessState.FAILED):
            assert state.since_s < state.retry_at_s <= state.since_s + max(POLICY.backoff_max_s, POLICY.rest_s)
        else:
            assert state.retry_at_s == math.inf
