"""The plan of attempts, driven by hand: no server, no clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.attempts import Attempt, AttemptResult
from router.core.decision import Alternative, Candidate, Decision
from router.core.fallback import RetryConfig, attempts
from router.core.vocabulary import Outcome
from tests.fakes import ALL, BIG, CHEAP, EASY, LOCAL, names

CFG = RetryConfig()


def decision(*ranked: Candidate, reserve: int = 0) -> Decision:
    alts = tuple(Alternative(c.name, c.tier, (), reserve_nanousd=reserve) for c in ALL)
    return Decision(ranked, alts, None, reserve, EASY, "h", "1")


def play(plan, *results: AttemptResult) -> list[Attempt]:
    """The attempts asked for when these results are told, in order."""
    asked = [next(plan)]
    for result in results:
        try:
            asked.append(plan.send(result))
        except StopIteration:
            return asked
    return asked


def ended(outcome: Outcome, at_s: float = 1.0, **more: object) -> AttemptResult:
    return AttemptResult(outcome, at_s, **more)  # type: ignore[arg-type]


def plan(*ranked: Candidate, **more: object):
    given_ = {"now_s": 0.0, "deadline_at_s": 120.0, **more}
    return attempts(decision(*ranked), **given_)  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.REFUSED, Outcome.CLIENT_GONE, Outcome.INTERNAL])
def test_these_endings_are_final(outcome: Outcome):
    assert len(play(plan(CHEAP, BIG), ended(outcome), ended(Outcome.OK))) == 1


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.BROKEN, Outcome.CREDENTIALS, Outcome.CONTEXT_TOO_LONG])
def test_these_move_on_to_the_next_candidate_at_once(outcome: Outcome):
    asked = play(plan(CHEAP, BIG), ended(outcome))
    assert [a.candidate.name for a in asked] == names((CHEAP, BIG))
    assert asked[1].wait_s == 0.0


def test_a_server_error_is_tried_once_more_before_moving_on():
    asked = play(plan(CHEAP, BIG), ended(Outcome.UNAVAILABLE), ended(Outcome.UNAVAILABLE))
    assert [a.candidate.name for a in asked] == names((CHEAP, CHEAP, BIG))
    assert asked[1].wait_s == CFG.backoff_s


def test_a_dead_local_engine_is_not_asked_twice_while_there_is_another_way():
    assert [a.candidate.name for a in play(plan(LOCAL, CHEAP), ended(Outcome.UNAVAILABLE))] == names((LOCAL, CHEAP))


def test_no_second_try_after_the_first_token():
    assert len(play(plan(CHEAP, BIG), ended(Outcome.BROKEN, first_token_sent=True))) == 1


def test_a_throttled_target_is_left_for_another():
    asked = play(plan(CHEAP, BIG), ended(Outcome.RATE_LIMITED, retry_after_s=1.0))
    assert [(a.candidate.name, a.wait_s) for a in asked] == [(CHEAP.name, 0.0), (BIG.name, 0.0)]


def test_a_short_pause_is_honoured_when_there_is_nowhere_else_to_go():
    asked = play(plan(CHEAP), ended(Outcome.RATE_LIMITED, retry_after_s=1.0))
    assert [a.wait_s for a in asked] == [0.0, 1.0]


def test_an_hour_is_not_waited_for():
    assert len(play(plan(CHEAP), ended(Outcome.RATE_LIMITED, retry_after_s=3600.0))) == 1


def test_nobody_sleeps_past_the_deadline():
    assert len(play(plan(CHEAP, deadline_at_s=2.0), ended(Outcome.RATE_LIMITED, 1.5, retry_after_s=1.0))) == 1


def test_what_is_left_of_the_deadline_is_what_an_attempt_gets():
    asked = play(plan(CHEAP, BIG, deadline_at_s=10.0), ended(Outcome.TIMEOUT, 7.0))
    assert [a.timeout_s for a in asked] == [10.0, 3.0]


def test_the_deadline_ends_the_plan():
    assert len(play(plan(CHEAP, BIG, deadline_at_s=10.0), ended(Outcome.TIMEOUT, 10.0))) == 1


def test_the_cost_cap_covers_all_attempts_together():
    steps = attempts(decision(CHEAP, BIG, reserve=60), now_s=0.0, deadline_at_s=9.0, cap_nanousd=100)
    assert len(play(steps, ended(Outcome.BROKEN, cost_nanousd=50))) == 1
    steps = attempts(decision(CHEAP, BIG, reserve=60), now_s=0.0, deadline_at_s=9.0, cap_nanousd=110)
    assert len(play(steps, ended(Outcome.BROKEN, cost_nanousd=50))) == 2


def test_the_cost_cap_counts_every_attempt_before():
    costly = ended(Outcome.BROKEN, cost_nanousd=30)
    for cap, calls in ((119, 2), (120, 3)):  # two have cost 60, and a third may cost 60
        steps = attempts(decision(*ALL, reserve=60), now_s=0.0, deadline_at_s=9.0, cap_nanousd=cap)
        assert len(play(steps, costly, costly)) == calls


failures = st.sampled_from([o for o in Outcome if o is not Outcome.OK])


@given(
    st.lists(st.sampled_from(ALL), min_size=1, max_size=6, unique=True),
    st.lists(st.tuples(failures, st.floats(0.0, 5.0), st.none() | st.floats(0.0, 100.0)), min_size=30, max_size=30),
)
def test_whatever_happens_the_plan_is_bounded_in_calls_and_in_time(ranked, endings):
    steps = attempts(decision(*ranked), now_s=0.0, deadline_at_s=20.0)
    now_s, calls = 0.0, 1
    attempt = next(steps)
    for outcome, took_s, retry_after_s in endings:
        assert attempt.number == calls <= CFG.max_attempts
        assert now_s + attempt.wait_s + attempt.timeout_s <= 20.0 + CFG.min_useful_s + 1e-9
        now_s = min(20.0, now_s + attempt.wait_s + took_s)
        try:
            attempt = steps.send(AttemptResult(outcome, now_s, retry_after_s=retry_after_s))
        except StopIteration:
            return
        calls += 1
    raise AssertionError("the plan never ended")


def test_attempt_limits_can_be_set():
    asked = play(plan(CHEAP, BIG, cfg=replace(CFG, max_attempts=1)), ended(Outcome.TIMEOUT))
    assert len(asked) == 1
