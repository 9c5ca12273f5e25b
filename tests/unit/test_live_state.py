"""What the live state learns and how circuits are probed, over the fakes of the flow."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from router.api.schemas import decode_chat
from router.core.decision import Candidate
from router.core.health import FAILURES_TO_OPEN
from router.core.snapshot import PriceRow
from router.core.vocabulary import CircuitState, Flag, Outcome, Tier
from router.errors import NoRoute, UpstreamUnavailable
from router.flow import describe, handle_chat
from router.providers.scripted import Fail, Say, Step
from tests.fakes import BIG, CHEAP, LOCAL, NOON, PRICES, facts
from tests.flow_world import World, drive


def ratio(world: World, name: str) -> float:
    return world.state.snapshot().input_token_ratio.get(name, 1.0)


def test_greetings_say_nothing_about_how_long_prompts_are_counted() -> None:
    world = World({})
    for _ in range(100):
        world.state.note_input_tokens(LOCAL, counted=7, reported=31)
    assert ratio(world, LOCAL.name) == 1.0
    world.state.note_input_tokens(LOCAL, counted=1000, reported=1200)
    assert ratio(world, LOCAL.name) == 1.2


@pytest.mark.parametrize(("reported", "worst"), [(10**15, 4.0), (0, 0.25)])
def test_one_absurd_count_is_forgotten_within_some_hundred_requests(reported: int, worst: float) -> None:
    world = World({})
    world.state.note_input_tokens(BIG, counted=1000, reported=reported)
    assert ratio(world, BIG.name) == worst
    for _ in range(200):
        world.state.note_input_tokens(BIG, counted=1000, reported=1000)
    assert ratio(world, BIG.name) == pytest.approx(1.0, abs=0.05)


DOWN = Fail(UpstreamUnavailable("down"))


def on_probation(*then: Step) -> World:
    """A world whose premium circuit has opened and whose cool-down has passed; `then` is what the host does next."""
    world = World({Tier.PREMIUM: [DOWN] * 2 * (FAILURES_TO_OPEN - 1) + list(then)})
    for _ in range(FAILURES_TO_OPEN - 1):  # each asks twice
        world.ask(model="premium")
    assert world.state.health[BIG.name].state is CircuitState.OPEN
    world.clock.tick(60.0)
    return world


def test_of_many_requests_decided_at_once_one_probes_a_target_on_probation() -> None:
    world = on_probation(*[Say("Red.")] * 5)
    calls_before = world.journal.count("call premium")
    waiting = [world.serve(stream=False, model="premium") for _ in range(5)]
    answers = []
    for request in waiting:  # each goes as far as its first wait before the next is decided
        try:
            request.send(None)
            answers.append(request)
        except NoRoute:
            pass
    for request in answers:
        drive(request)
    assert len(answers) == 1
    assert world.journal.count("call premium") == calls_before + 1


def test_a_probe_that_was_cancelled_before_its_call_leaves_the_circuit_to_the_next() -> None:
    world = on_probation(Say("Red."))
    request = world.serve(stream=False, model="premium")
    request.send(None)
    request.close()
    assert world.ask(model="premium").meta.tier == "premium"


def test_usage_that_no_model_of_that_size_can_have_is_estimated_and_flagged() -> None:
    world = World({Tier.CHEAP: [Say("Red.", input_tokens=10**15)], Tier.PREMIUM: [Say("Red.")]})
    world.ask(model="cheap")
    (attempt,) = world.record.attempts
    assert attempt.outcome is Outcome.OK
    assert attempt.usage is not None
    assert attempt.usage.input_tokens < 100
    assert {Flag.USAGE_ESTIMATED, Flag.USAGE_INCONSISTENT} <= set(attempt.charge.flags)
    assert ratio(world, CHEAP.name) == 1.0
    assert world.record.cost_nanousd < 10**6
    world.check()


def test_what_images_count_is_not_taken_for_how_text_is_counted() -> None:
    world = World({Tier.PREMIUM: [Say("Red.", input_tokens=3000)]})
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"model": "premium", "messages": [{"role": "user", "content": [image]}]}
    answer = drive(handle_chat(decode_chat(json.dumps(body).encode(), {}), "acme", world.deps))
    assert answer.meta.tier == "premium"
    assert ratio(world, BIG.name) == 1.0


def test_a_host_that_does_not_tell_cached_tokens_is_billed_for_the_whole_prompt_and_flagged_until_it_tells() -> None:
    world = World(
        {Tier.LOCAL: [Say("Red.", input_tokens=500, cached_input_tokens=None), Say("Red.", input_tokens=500)]}
    )
    world.ask(model="local")
    assert world.state.snapshot().cache_unknown == {LOCAL.name}
    world.ask(model="local")
    assert world.state.snapshot().cache_unknown == frozenset()
    first, second = world.books.settled
    assert first.decision is not None and second.decision is not None
    assert Flag.CACHE_UNKNOWN not in first.decision.flags  # nobody had asked it yet
    assert Flag.CACHE_UNKNOWN in second.decision.flags
    untold, told = first.attempts[0].charge, second.attempts[0].charge
    assert (Flag.CACHE_UNKNOWN in untold.flags, Flag.CACHE_UNKNOWN in told.flags) == (True, False)
    assert (told.amount_nanousd, told.work_gpu_ns) == (untold.amount_nanousd, untold.work_gpu_ns)


CHANGE = NOON + timedelta(hours=1)


def until_the_change(candidate: Candidate, at_utc: datetime) -> PriceRow:
    """The usual prices, and ten times those from `CHANGE` on."""
    row = PRICES[candidate.name]
    if at_utc < CHANGE:
        return replace(row, valid_until_utc=CHANGE)
    (tier,) = row.tiers
    dear = replace(
        tier, input_usd_per_mtok=tier.input_usd_per_mtok * 10, output_usd_per_mtok=tier.output_usd_per_mtok * 10
    )
    return replace(row, tiers=(dear,), version=f"{row.version}/dear", effective_from_utc=CHANGE)


def test_a_price_that_changes_while_the_gateway_runs_holds_from_its_moment_on() -> None:
    world = World({Tier.PREMIUM: [Say("Red.")] * 3}, price_row=until_the_change)
    world.ask(model="premium")
    world.clock.tick(3599.0)
    world.ask(model="premium")
    world.clock.tick(1.0)
    world.ask(model="premium")
    booked = [(r.attempts[0].charge.price_version, r.cost_nanousd) for r in world.books.settled]
    usual = booked[0][1]
    assert booked == [("test/big", usual), ("test/big", usual), ("test/big/dear", 10 * usual)]
    hashes = [r.decision.inputs_hash for r in world.books.settled if r.decision is not None]
    assert len(set(hashes)) == 3
    assert world.state.prices_now()[BIG.name].version == "test/big/dear"


def test_a_call_under_way_is_booked_at_the_price_it_was_decided_on() -> None:
    world = World({Tier.PREMIUM: [Say("Red.", delay_s=20.0)]}, price_row=until_the_change)
    world.clock.tick(3590.0)
    world.ask(model="premium")
    assert world.clock.now_utc() > CHANGE
    assert world.record.attempts[0].charge.price_version == "test/big"


def test_every_answer_of_a_request_takes_its_room_in_the_engine() -> None:
    for n in (1, 4):
        world = World({})
        asked = facts(n=n)
        world.state.enter_engine(LOCAL, asked)
        held = world.room.inflight.state(world.clock.now_s())
        assert held.reserved_tokens == asked.estimate.input_tokens + n * asked.estimate.output_mean_tokens


def test_every_image_counts_as_tokens_of_the_prompt() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    counted = []
    for images in (0, 1, 3):
        content = [{"type": "text", "text": "What is this?"}, *[image] * images]
        body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
        seen = describe(decode_chat(json.dumps(body).encode(), {}), "acme", World({}).deps)
        counted.append(seen.facts.estimate.input_tokens)
    plain, one, three = counted
    assert three - plain == 3 * (one - plain) > 0
