"""The flow over fakes: money is reserved before a call and settled exactly once after it, whichever way it ends.

No event loop runs here: the coroutine of a request is stepped by hand, so that it can be cancelled at each single point
at which it waits for anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from classifier.datamodels import RequestFeatures, Score
from classifier.heuristic import HeuristicScorer
from local_llm.datamodels import ProcessState
from router.api.schemas import decode_chat
from router.core.limits import Allowance
from router.core.vocabulary import CircuitState, Flag, Outcome, Tier
from router.errors import (
    NoRoute,
    OverBudget,
    Unavailable,
    UpstreamBroken,
)
from router.flow import PlainAnswer, StreamAnswer, describe, handle_chat
from router.providers.scripted import Say, Step
from tests.fakes import BIG, CHEAP, EASY, HARD, LOCAL, BrokenScorer, FixedScorer
from tests.flow_world import DOWN, KEY, LONG, LONG_ANSWER, RATE, REFUSED, SLOW, World, drive, fails

# --- the order of steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_money_is_reserved_then_the_call_is_made_then_it_is_settled(stream: bool) -> None:
    world = World({Tier.PREMIUM: [Say("Red.")]})
    answer = world.ask(stream=stream)
    assert world.journal == ["reserve", "call premium", "settle"]
    assert world.books.holds[0].reserve_nanousd >= world.record.cost_nanousd > 0
    assert answer.meta.request_id == world.record.request_id
    world.check()


@pytest.mark.parametrize("stream", [False, True])
def test_each_further_attempt_is_journalled_before_it_is_made(stream: bool) -> None:
    world = World({Tier.PREMIUM: fails(DOWN, SLOW), Tier.CHEAP: [Say("Red.")]})
    answer = world.ask(stream=stream)
    assert world.journal == ["reserve", "call premium", "open 2", "call premium", "open 3", "call cheap", "settle"]
    assert answer.meta.attempts == 3
    assert [a.outcome for a in world.record.attempts] == [Outcome.UNAVAILABLE, Outcome.TIMEOUT, Outcome.OK]
    world.check()


def test_an_easy_request_costs_no_cash_and_is_booked_at_its_standard_cost() -> None:
    world = World({Tier.LOCAL: [Say("Red.")]}, score=EASY)
    world.ask()
    assert world.books.holds[0].reserve_nanousd == 0
    assert world.record.attempts[0].tier is Tier.LOCAL
    assert world.record.cost_nanousd > 0
    world.check()


# --- every way out -------------------------------------------------------------------------------------------------

EXITS: dict[str, tuple[Mapping[Tier, Sequence[Step]], Outcome]] = {
    "success": ({Tier.PREMIUM: [Say("Red.")]}, Outcome.OK),
    "caller's own error": ({Tier.PREMIUM: fails(REFUSED)}, Outcome.REFUSED),
    "everybody down": ({}, Outcome.UNAVAILABLE),
    "refused key, then success": ({Tier.PREMIUM: fails(KEY), Tier.CHEAP: [Say("Red.")]}, Outcome.OK),
    "busy, then success": ({Tier.PREMIUM: fails(RATE), Tier.CHEAP: [Say("Red.")]}, Outcome.OK),
    "too long for all": ({tier: fails(LONG) for tier in Tier}, Outcome.CONTEXT_TOO_LONG),
    "no usage told": ({Tier.PREMIUM: [Say("Red.", input_tokens=None)]}, Outcome.OK),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("steps", "outcome"), EXITS.values(), ids=EXITS.keys())
def test_every_exit_settles_once(steps: Mapping[Tier, Sequence[Step]], outcome: Outcome, stream: bool) -> None:
    world = World(steps)
    world.ask(stream=stream)
    assert world.record.outcome is outcome
    world.check()


def test_a_stream_that_breaks_after_its_first_token_is_settled_once_for_what_came() -> None:
    world = World({Tier.PREMIUM: [Say(LONG_ANSWER, fails_after=3)], Tier.CHEAP: [Say("never asked")]})
    error = world.ask(stream=True)
    assert isinstance(error, UpstreamBroken)
    (attempt,) = world.record.attempts
    assert (attempt.outcome, attempt.usage and attempt.usage.output_tokens) == (Outcome.BROKEN, 3)
    assert Flag.USAGE_ESTIMATED in attempt.charge.flags
    world.check()


def test_a_stream_that_breaks_before_its_first_token_falls_back_unseen() -> None:
    world = World({Tier.PREMIUM: [Say(LONG_ANSWER, fails_after=0)], Tier.CHEAP: [Say("Red.")]})
    answer = world.ask(stream=True)
    assert answer.meta.tier == "cheap"
    assert world.hosts[BIG.name].script.closed_streams == 1
    world.check()


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_in_a_provider_is_settled_too(stream: bool) -> None:
    world = World({})
    world.hosts[BIG.name].bug = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        world.ask(stream=stream)
    assert world.record.outcome is Outcome.INTERNAL
    assert world.record.cost_nanousd > 0  # the host may have worked for us
    world.check()


def test_a_stream_that_nobody_reads_is_settled_when_it_is_closed_and_stops_the_host() -> None:
    world = World({Tier.PREMIUM: [Say(LONG_ANSWER)]})

    async def never_read() -> None:
        body = b'{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
        with Allowance(world.limiter) as allowance:
            answer = await handle_chat(decode_chat(body, {}), "acme", world.deps, allowance)
            assert isinstance(answer, StreamAnswer)
            await answer.close()
            await answer.close()

    drive(never_read())
    assert world.record.outcome is Outcome.CLIENT_GONE
    assert world.record.cost_nanousd > 0
    assert world.hosts[BIG.name].script.closed_streams == 1
    world.check()


def test_closing_a_stream_that_has_ended_changes_nothing() -> None:
    world = World({Tier.PREMIUM: [Say(LONG_ANSWER)]})
    answer = world.ask(stream=True)
    before = list(world.books.settled)
    drive(answer.close())
    assert world.books.settled == before
    assert world.record.outcome is Outcome.OK
    world.check()


def test_what_nobody_may_answer_is_recorded_and_costs_nothing() -> None:
    world = World({Tier.PREMIUM: [Say("never asked")]}, candidates=(LOCAL,))
    world.room.process = lambda: (ProcessState.DOWN, "it is down")
    error = world.ask(model="auto:local")
    assert isinstance(error, NoRoute)
    assert error.request_id == world.record.request_id
    assert (world.record.outcome, world.record.attempts) == (Outcome.NO_ROUTE, ())
    assert world.journal == ["settle"]
    world.check()


# --- when money or the scorer is not there --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("score", [EASY, HARD])
def test_where_the_ledger_refuses_no_call_is_made_and_everything_is_given_back(score: Score, stream: bool) -> None:
    world = World({tier: [Say("never asked")] for tier in Tier}, score=score)
    world.books.broken = True
    error = world.ask(stream=stream)
    assert isinstance(error, Unavailable)
    assert error.code == "ledger_unavailable"
    assert not any(entry.startswith("call") for entry in world.journal)
    assert all(host.script.calls == [] for host in world.hosts.values())
    world.check()


def test_where_the_ledger_refuses_a_further_attempt_the_first_is_booked_and_no_second_is_made() -> None:
    world = World({Tier.LOCAL: fails(DOWN), Tier.CHEAP: [Say("never asked")]}, score=EASY)
    world.books.refuses_further = True
    error = world.ask()
    assert isinstance(error, Unavailable)
    assert world.journal == ["reserve", "call local", "settle"]
    assert [a.outcome for a in world.record.attempts] == [Outcome.UNAVAILABLE]
    world.check()


def test_a_budget_that_others_have_taken_meanwhile_stops_the_request_before_it_is_journalled() -> None:
    world = World({Tier.PREMIUM: [Say("never asked")]})
    world.budgets.try_reserve = lambda nanousd: nanousd == 0  # type: ignore[method-assign]
    error = world.ask()
    assert isinstance(error, OverBudget)
    assert world.books.holds == []
    assert not any(entry.startswith("call") for entry in world.journal)
    world.check()


def test_a_fallback_that_the_budget_cannot_pay_is_not_made() -> None:
    # Enough to ask the cheap host after home has failed, not enough for the premium one.
    world = World({Tier.LOCAL: fails(SLOW), Tier.CHEAP: fails(SLOW), Tier.PREMIUM: [Say("dear")]}, score=EASY)
    probe = World({Tier.LOCAL: [Say("Red.")]}, score=EASY)
    probe.ask()
    reserve = {a.name: a.reserve_nanousd for a in probe.record.decision.alternatives}  # type: ignore[union-attr]
    assert 0 < reserve[CHEAP.name] < reserve[BIG.name]
    world.budgets.try_reserve(10**12 - reserve[CHEAP.name])
    world.ask()
    assert "call premium" not in world.journal
    assert world.journal[-1] == "settle"
    world.budgets.settle(reserved_nanousd=10**12 - reserve[CHEAP.name], spent_nanousd=0)
    world.check()


@pytest.mark.parametrize("stream", [False, True])
def test_while_a_further_call_is_made_what_was_spent_is_held_besides_what_it_may_cost(stream: bool) -> None:
    world = World({Tier.LOCAL: fails(DOWN), Tier.CHEAP: fails(SLOW), Tier.PREMIUM: [Say("Red.")]}, score=EASY)
    held: list[int] = []
    world.hosts[BIG.name].on_call = lambda: held.append(world.budgets.reserved_nanousd)
    world.ask(stream=stream)
    spent = world.record.attempts[1].charge.amount_nanousd
    assert (world.record.attempts[1].tier, spent > 0) == (Tier.CHEAP, True)
    assert world.record.decision is not None
    assert held == [spent + world.record.decision.alternative(BIG.name).reserve_nanousd]
    world.check()


def test_a_stream_that_ends_in_the_queue_of_our_engine_has_used_nothing_and_a_plain_call_may_have() -> None:
    used = {}
    for stream in (False, True):
        world = World({Tier.LOCAL: fails(SLOW), Tier.CHEAP: [Say("Red.")]}, score=EASY)
        world.ask(stream=stream)
        first = world.record.attempts[0]
        used[stream] = (first.tier, first.usage is None, first.charge.amount_nanousd > 0)
        world.check()
    assert used == {True: (Tier.LOCAL, True, False), False: (Tier.LOCAL, False, True)}


def test_a_scorer_that_fails_is_replaced_by_the_heuristic_and_the_record_says_so() -> None:
    world = World({tier: [Say("Red.")] for tier in Tier})
    world.state.judged.swap(replace(world.state.judged.current, scorer=BrokenScorer()))
    answer = world.ask()
    assert isinstance(answer, PlainAnswer)
    decision = world.record.decision
    assert decision is not None
    assert Flag.CLASSIFIER_UNAVAILABLE in decision.flags
    assert world.record.score is not None
    assert world.record.score.model_version == HeuristicScorer().version
    assert world.telemetry.warnings == ["classifier_unavailable"]
    world.check()


def test_a_scorer_that_is_slow_again_and_again_is_left_out_and_every_record_says_so() -> None:
    world = World({tier: [Say("Red.")] * 6 for tier in Tier})

    class Slow(FixedScorer):
        def score(self, features: RequestFeatures) -> Score:
            world.clock.tick(0.2)
            return super().score(features)

    world.state.judged.swap(replace(world.state.judged.current, scorer=Slow(HARD)))
    for _ in range(5):
        world.ask()
    versions = [record.score.model_version for record in world.books.settled if record.score is not None]
    assert versions == [*[HARD.model_version] * 3, *[HeuristicScorer.version] * 2]
    flagged = [Flag.CLASSIFIER_UNAVAILABLE in r.decision.flags for r in world.books.settled if r.decision is not None]
    assert flagged == [False] * 3 + [True] * 2
    world.clock.tick(20)
    world.ask()
    assert world.books.settled[-1].score == HARD, "it is tried again"


def test_a_target_on_probation_is_free_for_the_next_probe_when_the_caller_leaves() -> None:
    world = World({Tier.PREMIUM: [*fails(*[DOWN] * 4), Say("slow", delay_s=1), Say("Red.")]}, candidates=(BIG,))
    for _ in range(2):  # each tries twice
        world.ask(model=BIG.name)
    assert world.state.health[BIG.name].state is CircuitState.OPEN
    world.clock.tick(11)
    waits = waits_of(lambda: World({Tier.PREMIUM: [Say("slow", delay_s=1)]}, candidates=(BIG,)), stream=False)
    with pytest.raises(asyncio.CancelledError):
        world.ask(model=BIG.name, cancel_at=waits)
    world.clock.tick(0.1)
    assert isinstance(world.ask(model=BIG.name), PlainAnswer)
    assert world.state.health[BIG.name].state is CircuitState.CLOSED


# --- the caller leaves ---------------------------------------------------------------------------------------------

SCRIPTS: dict[str, Callable[[], World]] = {
    "at home": lambda: World({Tier.LOCAL: [Say(LONG_ANSWER, delay_s=1, gap_s=0.1)]}, score=EASY),
    "premium": lambda: World({Tier.PREMIUM: [Say(LONG_ANSWER, delay_s=1, gap_s=0.1)]}),
    "home down, then cheap": lambda: World(
        {Tier.LOCAL: fails(DOWN), Tier.CHEAP: [Say(LONG_ANSWER, delay_s=1, gap_s=0.1)]}, score=EASY
    ),
    "tried again and then elsewhere": lambda: World(
        {Tier.PREMIUM: fails(DOWN, DOWN), Tier.CHEAP: [Say(LONG_ANSWER, delay_s=1, gap_s=0.1)]}
    ),
    "broken in mid-stream": lambda: World({Tier.PREMIUM: [Say(LONG_ANSWER, fails_after=3, gap_s=0.1)]}),
    "broken before the first token": lambda: World(
        {Tier.PREMIUM: [Say(LONG_ANSWER, fails_after=0)], Tier.CHEAP: [Say("Red.", gap_s=0.1)]}
    ),
    "all down": lambda: World({tier: fails(DOWN, DOWN, DOWN, DOWN) for tier in Tier}),
}


def waits_of(make: Callable[[], World], *, stream: bool) -> int:
    """How often an undisturbed request waits for something."""
    world = make()
    for waits in range(10_000):
        try:
            world = make()
            world.ask(stream=stream, cancel_at=waits)
        except asyncio.CancelledError:
            continue
        return waits - 1
    raise AssertionError("it never ends")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("make", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_caller_who_leaves_at_any_moment_is_settled_once(make: Callable[[], World], stream: bool) -> None:
    last = waits_of(make, stream=stream)
    assert last >= 3
    for moment in range(1, last + 1):
        world = make()
        with pytest.raises(asyncio.CancelledError):
            world.ask(stream=stream, cancel_at=moment)
        world.check()
        for host in world.hosts.values():
            for call in host.script.calls:
                assert call.request_id == "req_0"
        assert len(world.telemetry.done) == 1
        if world.books.holds:
            assert world.record.outcome in {Outcome.CLIENT_GONE, Outcome.OK, Outcome.BROKEN}


def test_a_caller_who_leaves_while_the_host_works_pays_for_the_prompt() -> None:
    world = SCRIPTS["premium"]()
    with pytest.raises(asyncio.CancelledError):
        world.ask(cancel_at=4)
    (attempt,) = world.record.attempts
    assert attempt.outcome is Outcome.CLIENT_GONE
    assert attempt.usage is not None
    assert (attempt.usage.estimated, attempt.usage.output_tokens) == (True, 0)
    assert attempt.charge.amount_nanousd > 0


@pytest.mark.parametrize(
    ("model", "headers", "free"),
    [
        ("auto", {}, True),
        ("auto", {"x-router-quality": "0.9"}, False),
        ("auto:quality", {}, False),
        ("auto:cheap", {}, False),
        ("premium", {}, False),
        (BIG.name, {}, False),
    ],
)
def test_only_a_choice_that_is_all_ours_counts_as_free(model: str, headers: dict[str, str], free: bool) -> None:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hi"}}]}}'
    assert describe(decode_chat(body.encode(), headers), "acme", World({}).deps).free is free
