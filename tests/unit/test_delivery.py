"""What bounds a call."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from router.core.attempts import Attempt, Hold
from router.core.decision import PolicyConfig
from router.core.vocabulary import Tier
from router.delivery import _limits
from router.errors import UpstreamError
from router.providers.scripted import Say
from tests.fakes import BIG, CHEAP, EASY, LOCAL
from tests.flow_world import DOWN, SLOW, World, drive, fails

DEPS = World({Tier.LOCAL: []}).deps


@pytest.mark.parametrize(
    ("candidate", "stream", "first_byte_s"),
    [(LOCAL, False, 120), (LOCAL, True, 20), (CHEAP, False, 20), (CHEAP, True, 20)],
)
def test_a_plain_answer_of_an_engine_we_watch_may_take_until_the_deadline(candidate, stream, first_byte_s):
    deps = replace(DEPS, supervised=frozenset({LOCAL.name}))
    assert _limits(Attempt(candidate, 1, 120.0), deps, stream=stream).first_byte_s == first_byte_s


def test_without_our_watch_its_headers_are_due_in_time():
    assert _limits(Attempt(LOCAL, 1, 120.0), DEPS, stream=False).first_byte_s == 20


@pytest.mark.parametrize("left_s", [119.0, 10.0, 0.5])
def test_nothing_outlives_the_requests_deadline(left_s: float):
    limits = _limits(Attempt(CHEAP, 2, left_s), DEPS, stream=True)
    assert limits.total_s == left_s
    assert limits.first_byte_s == min(20, left_s)


def test_a_few_milliseconds_do_not_make_new_limits():
    assert _limits(Attempt(CHEAP, 1, 119.99), DEPS, stream=True) is DEPS.timeouts


def test_the_lower_of_two_caps_covers_all_attempts() -> None:
    def called(asked_usd: str, configured_nanousd: int) -> bool:
        world = World(
            {Tier.LOCAL: fails(DOWN), Tier.CHEAP: fails(SLOW), Tier.PREMIUM: [Say("Red.")]},
            score=EASY,
            cfg=PolicyConfig(max_nanousd_per_request=configured_nanousd),
        )
        with suppress(UpstreamError):
            drive(world.serve(stream=False, x_router_max_cost_usd=asked_usd))
        world.check()
        return "call premium" in world.journal

    probe = World({Tier.LOCAL: [Say("Red.")]}, score=EASY)
    probe.ask()
    assert probe.record.decision is not None
    reserve = probe.record.decision.alternative(BIG.name).reserve_nanousd
    just = f"{reserve / 1e9:.9f}"  # enough for premium alone, not for what has gone to the cheap host before
    assert called("1", 10**9)
    assert not called(just, 10**9)
    assert not called("1", reserve)


def test_time_spent_before_the_call_is_taken_off_its_deadline() -> None:
    world = World({Tier.PREMIUM: [Say("Red.")]})
    reserve = world.books.reserve

    async def slow(hold: Hold) -> None:
        world.clock.tick(100.0)
        await reserve(hold)

    world.books.reserve = slow  # type: ignore[method-assign]
    world.ask()
    (call,) = world.hosts[BIG.name].calls
    assert call.timeouts.total_s == pytest.approx(world.deps.timeouts.total_s - 100.0)


def test_a_token_of_a_stream_is_counted_in_its_engine_once() -> None:
    words = 6
    world = World({Tier.LOCAL: [Say("word " * words)]}, score=EASY)
    held: list[float] = []
    world.on_block = lambda: held.append(world.room.inflight.state(world.clock.now_s()).context_tokens)
    world.ask(stream=True)
    assert world.record.decision is not None
    assert held[-1] - held[0] == words - 1
    assert held == sorted(held)
