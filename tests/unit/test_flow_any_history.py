"""The flow under any history of answers, failures, budgets and callers who leave: the books balance."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from classifier.datamodels import Score
from router.core.vocabulary import Outcome, Tier
from router.flow import PlainAnswer, StreamAnswer
from router.providers.scripted import Say, Step
from tests.fakes import BIG, EASY, HARD
from tests.flow_world import CUT, DOWN, KEY, LONG, LONG_ANSWER, RATE, REFUSED, SLOW, World, fails

steps_strategy = st.lists(
    st.one_of(
        st.sampled_from(fails(DOWN, SLOW, CUT, RATE, KEY, LONG, REFUSED)),
        st.builds(
            Say,
            text=st.sampled_from(["Red.", LONG_ANSWER, ""]),
            delay_s=st.sampled_from([0.0, 0.5]),
            gap_s=st.sampled_from([0.0, 0.1]),
            input_tokens=st.sampled_from([None, 0, 7, 5000]),
            cached_input_tokens=st.sampled_from([0, 5]),
            finish_reason=st.sampled_from(["stop", "length", "abort"]),
            fails_after=st.sampled_from([None, None, None, 0, 1, 4]),
        ),
    ),
    max_size=4,
)


requests_strategy = st.lists(
    st.tuples(
        st.booleans(), st.sampled_from(["auto", "auto:local", "cheap", BIG.name]), st.none() | st.integers(1, 25)
    ),
    min_size=1,
    max_size=6,
)


@given(
    steps=st.dictionaries(st.sampled_from(list(Tier)), steps_strategy),
    score=st.sampled_from([EASY, HARD]),
    day_budget_nanousd=st.sampled_from([0, 400_000, 3_000_000, 10**12]),
    requests=requests_strategy,
    ledger_breaks_at=st.none() | st.integers(0, 5),
)
def test_whatever_happens_the_books_balance(
    steps: dict[Tier, list[Step]],
    score: Score,
    day_budget_nanousd: int,
    requests: list[tuple[bool, str, int | None]],
    ledger_breaks_at: int | None,
) -> None:
    world = World(steps, score=score, day_budget_nanousd=day_budget_nanousd)
    for number, (stream, model, cancel_at) in enumerate(requests):
        world.books.broken = number == ledger_breaks_at
        world.journal.clear()
        booked = len(world.books.settled)
        try:
            answer = world.ask(stream=stream, model=model, cancel_at=cancel_at)
        except asyncio.CancelledError:
            answer = None
        world.check(since=booked)
        if isinstance(answer, PlainAnswer):
            assert answer.meta.cost_nanousd == world.books.settled[-1].cost_nanousd
        elif isinstance(answer, StreamAnswer):
            assert answer.cost_nanousd == world.books.settled[-1].cost_nanousd
        world.clock.tick(1.0)


@given(
    words=st.integers(1, 40),
    input_tokens=st.integers(1, 100_000),
    cached=st.integers(0, 100_000),
    score=st.sampled_from([EASY, HARD]),
    usage_told=st.booleans(),
)
def test_a_stream_costs_what_a_plain_answer_costs(
    words: int, input_tokens: int, cached: int, score: Score, usage_told: bool
) -> None:
    say = Say("word " * words, input_tokens=input_tokens if usage_told else None, cached_input_tokens=cached)
    costs = []
    for stream in (False, True):
        world = World({tier: [say] for tier in Tier}, score=score)
        world.ask(stream=stream)
        world.check()
        costs.append((world.record.outcome, world.record.usage, world.record.cost_nanousd))
    if usage_told:
        assert costs[0] == costs[1]
    else:  # the words are counted by the same counter, as pieces of a stream or as one text
        assert [cost[0] for cost in costs] == [Outcome.OK, Outcome.OK]
        assert all(usage is not None and usage.estimated for _, usage, _ in costs)
