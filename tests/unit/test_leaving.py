"""Who leaves before there is an answer: by themselves or because we end, out of the queue or out of a call."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.api.schemas import decode_chat
from router.core.budgets import Period
from router.core.vocabulary import Outcome, Tier
from router.errors import OverBudget
from router.flow import handle_chat
from router.providers.scripted import Say
from tests.fakes import LOCAL
from tests.flow_world import StrictBudgets, World

BODY = b'{"model": "auto:local", "messages": [{"role": "user", "content": "Hi"}]}'
OURSELVES = pytest.mark.parametrize(
    ("cutting_off", "outcome"), [(False, Outcome.CLIENT_GONE), (True, Outcome.SHUTDOWN)], ids=["caller", "shutdown"]
)


@OURSELVES
async def test_who_leaves_the_queue_of_a_full_engine_is_remembered_and_owes_nothing(
    cutting_off: bool, outcome: Outcome
) -> None:
    world = World({})
    deps = replace(world.deps, cutting_off=lambda: cutting_off)
    crowd = [world.room.inflight.enter(0.0, 10, 10) for _ in range(256)]
    waiting = asyncio.create_task(handle_chat(decode_chat(BODY, {}), "acme", deps))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for ticket in crowd:
        ticket.end(0.0)
    assert (world.record.outcome, world.record.attempts, world.record.cost_nanousd) == (outcome, (), 0)
    assert world.record.decision is not None
    assert LOCAL.name in {alternative.name for alternative in world.record.decision.alternatives}
    assert len(world.telemetry.done) == 1
    world.check()


@OURSELVES
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_request_is_labelled_by_who_ended_it(moment: int, stream: bool, cutting_off: bool, outcome: Outcome) -> None:
    world = World({Tier.PREMIUM: [Say("one two three four five six")]})
    world.deps = replace(world.deps, cutting_off=lambda: cutting_off)
    with pytest.raises(asyncio.CancelledError):
        world.ask(stream=stream, cancel_at=moment)
    assert world.record.outcome is outcome
    assert {attempt.outcome for attempt in world.record.attempts} <= {outcome}
    world.check()


class TakenMeanwhile(StrictBudgets):
    """Other requests take the room between the decision and the claim."""

    def try_reserve(self, nanousd: int) -> bool:
        return False


def test_a_request_whose_budget_others_took_meanwhile_is_remembered() -> None:
    world = World({Tier.PREMIUM: [Say("one")]})
    world.deps = replace(world.deps, budgets=TakenMeanwhile({Period.DAY: 10**12}, now_utc=world.clock.now_utc))
    assert isinstance(world.ask(), OverBudget)
    assert (world.record.attempts, world.record.cost_nanousd) == ((), 0)
    world.check()
