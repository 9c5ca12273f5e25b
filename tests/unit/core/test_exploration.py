"""Exploration: chance is an input, its probabilities are logged, and it never goes where nobody may go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.decision import Decision, PolicyConfig
from router.core.exploration import ExplorationBudget, draw_tier, extra_nanousd
from router.core.policy import decide
from router.core.replay import restore, world_bytes
from router.core.request import RequestFacts
from router.core.snapshot import BudgetState
from router.core.vocabulary import Locality, Reason, Tier
from tests.fakes import ALL, BIG, CHEAP, EASY, FULL, HARD, LOCAL, MIDDLE, NOON, engine, facts, snapshot

CFG = PolicyConfig(exploration_ratio=0.1)
DRAWS = [i / 1000 for i in range(1000)]


def explored(request: RequestFacts, draw: float, **changes: object) -> Decision:
    """The decision on an easy prompt with this throw of the dice."""
    given_snapshot = changes.pop("snapshot", snapshot())
    cfg = changes.pop("cfg", CFG)
    assert not changes
    return decide(replace(request, exploration_draw=draw), EASY, ALL, given_snapshot, cfg)  # type: ignore[arg-type]


def test_each_tier_is_taken_as_often_as_its_probability_says() -> None:
    decisions = [explored(facts(), draw) for draw in DRAWS]
    taken = Counter(d.ranked[0].tier for d in decisions)
    assert taken == {Tier.LOCAL: 900, Tier.CHEAP: 50, Tier.PREMIUM: 50}
    for decision in decisions:
        assert decision.action_probability == {"local": 0.9, "cheap": 0.05, "premium": 0.05}
        assert decision.exploration_probability == decision.action_probability[decision.ranked[0].tier.value]
        assert (decision.reason is Reason.EXPLORE) == (decision.ranked[0].tier is not Tier.LOCAL)


def test_an_explored_request_falls_back_to_the_usual_choice_and_reserves_for_the_tier_it_takes() -> None:
    decision = explored(facts(), 0.099)
    assert [c.tier for c in decision.ranked[:2]] == [Tier.PREMIUM, Tier.LOCAL]
    assert decision.reserve_nanousd == decision.alternative(BIG.name).reserve_nanousd > 0
    assert decision.alternative(BIG.name).reasons == () and decision.alternative(BIG.name).objective_usd is not None
    assert decision.alternative(LOCAL.name).reasons


def test_without_a_draw_or_a_ratio_every_choice_is_certain() -> None:
    for decision in (
        decide(facts(), EASY, ALL, snapshot(), CFG),
        decide(facts(exploration_draw=0.0), EASY, ALL, snapshot(), PolicyConfig()),
    ):
        assert decision.ranked[0] is LOCAL and decision.exploration_probability == 1.0
        assert decision.action_probability == {} and decision.reason is Reason.LOCAL_IDLE_FREE


@pytest.mark.parametrize(
    "request_facts",
    [
        facts(locality=Locality.LOCAL_ONLY),
        facts(pinned_tier=Tier.LOCAL),
        facts(pinned_model=CHEAP.name),
        facts(quality_floor_ratio=1.0),
    ],
)
def test_locality_pins_and_floors_that_were_asked_for_leave_nothing_to_chance(request_facts: RequestFacts) -> None:
    for draw in (0.0, 0.03, 0.06, 0.099):
        decision = explored(request_facts, draw)
        assert decision.ranked == explored(request_facts, 0.5).ranked
        assert decision.reason is not Reason.EXPLORE and decision.exploration_probability == 1.0


def test_the_target_that_stands_in_for_a_floor_does_not_keep_a_tier_out() -> None:
    decision = decide(facts(exploration_draw=0.099), HARD, ALL, snapshot(), CFG)
    assert decision.reason is Reason.EXPLORE and decision.ranked[0] is LOCAL
    assert decision.action_probability == {"premium": 0.9, "local": 0.05, "cheap": 0.05}


def test_request_caps_and_budgets_keep_a_tier_out_before_the_dice_are_looked_at() -> None:
    capped = explored(facts(max_nanousd=1_000_000), 0.0)
    assert set(capped.action_probability) == {"local", "cheap"}
    spent = BudgetState("day", 1_000_000, 1_000_000, 0, NOON)
    assert explored(facts(), 0.0, snapshot=snapshot(budgets=(spent,))).ranked[0] is LOCAL


def test_a_full_engine_is_not_explored() -> None:
    full = snapshot(engines={LOCAL.name: engine(inflight=FULL)})
    for draw in (0.0, 0.02, 0.05, 0.09):
        assert explored(facts(), draw, snapshot=full).ranked[0] is not LOCAL


def test_exploring_stops_where_its_own_budget_ends_and_going_cheaper_costs_nothing() -> None:
    poor = snapshot(exploration_left_nanousd=100_000)
    decision = explored(facts(), 0.099, snapshot=poor)
    assert set(decision.action_probability) == {"local", "cheap"} and decision.ranked[0] is CHEAP
    assert 0 < extra_nanousd(decision) <= 100_000
    downwards = decide(facts(exploration_draw=0.099), HARD, ALL, snapshot(exploration_left_nanousd=0), CFG)
    assert downwards.ranked[0] is LOCAL and extra_nanousd(downwards) == 0


@given(
    draw=st.floats(0, 1, exclude_max=True),
    ratio=st.floats(0, 1),
    score=st.sampled_from([EASY, MIDDLE, HARD]),
    left=st.none() | st.integers(0, 10**9),
    floor=st.none() | st.floats(0, 1),
    locality=st.sampled_from(list(Locality)),
)
def test_an_explored_choice_replays_to_the_same_bytes_and_is_never_against_a_reason(
    draw: float, ratio: float, score: object, left: int | None, floor: float | None, locality: Locality
) -> None:
    seen = facts(exploration_draw=draw, quality_floor_ratio=floor, locality=locality)
    look = snapshot(exploration_left_nanousd=left)
    decision = decide(seen, score, ALL, look, PolicyConfig(exploration_ratio=ratio))  # type: ignore[arg-type]
    assert decide(*_arguments(decision, look)) == decision
    assert decision.alternative(decision.ranked[0].name).reasons == ()
    if decision.action_probability:
        assert sum(decision.action_probability.values()) == pytest.approx(1.0)
    if locality is Locality.LOCAL_ONLY:
        assert decision.ranked == (LOCAL,)


def _arguments(decision: Decision, look: object) -> tuple[object, ...]:
    request, score, candidates, seen, cfg = restore(world_bytes(ALL, look), decision.moment)  # type: ignore[arg-type]
    return request, score, candidates, seen, cfg


@given(st.floats(0, 1, exclude_max=True), st.floats(0.001, 1), st.integers(0, 4))
def test_a_throw_always_names_a_tier_that_has_a_probability(draw: float, ratio: float, others: int) -> None:
    names = [f"tier{i}" for i in range(others)]
    drawn = draw_tier(draw, ratio, "usual", names)
    assert drawn.taken in drawn.probability and sum(drawn.probability.values()) == pytest.approx(1.0)


def test_the_budget_of_exploring_is_new_at_midnight_and_stays_in_the_day_a_jumping_clock_has_left() -> None:
    budget = ExplorationBudget(100)
    budget.note(70, NOON)
    assert budget.left_nanousd(NOON) == 30
    budget.note(70, NOON)
    assert budget.left_nanousd(NOON) == 0
    tomorrow = NOON + timedelta(hours=12)
    assert budget.left_nanousd(tomorrow) == 100
    budget.note(40, tomorrow)
    assert budget.left_nanousd(NOON) == 60
