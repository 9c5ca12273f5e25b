"""What a host has told of its work counts, also where the answer came to no good end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from router.api.schemas import decode_chat
from router.core.request import TokenUsage
from router.core.vocabulary import Outcome, Tier
from router.errors import UpstreamBroken
from router.flow import StreamAnswer, handle_chat
from router.ports import BrokenReply, PlainReply, ProviderCall, StreamReply
from tests.fakes import BIG
from tests.flow_world import World, drive


class TellingHost:
    """A host whose stream tells `usage` while it goes on, and fails after `events` events unless it is left there."""

    def __init__(self, usage: TokenUsage | None, events: int) -> None:
        self.usage, self.events = usage, events
        self.usage_event: Mapping[str, Any] | None = None
        self.output_events = 0
        self.saw_output = False

    async def complete(self, call: ProviderCall) -> PlainReply:
        raise BrokenReply("it gave up", usage=self.usage)

    async def open_stream(self, call: ProviderCall) -> StreamReply:
        return self

    async def next_block(self) -> bytes | None:
        if self.output_events == self.events:
            raise UpstreamBroken("it was cut")
        self.output_events += 1
        self.saw_output = True
        return b"data: {}\n\n"

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(("told", "booked"), [(300, 300), (40, 40), (1, 40), (None, 40)])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_stream_that_ends_early_is_booked_by_what_was_told_and_never_below_what_came(
    told: int | None, booked: int, leaves: bool
) -> None:
    usage = None if told is None else TokenUsage(input_tokens=1000, output_tokens=told)
    world = World({Tier.PREMIUM: []}, candidates=(BIG,))
    world.deps = replace(world.deps, providers={BIG.name: TellingHost(usage, 40)})

    async def ask() -> None:
        body = b'{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
        answer = await handle_chat(decode_chat(body, {}), "acme", world.deps)
        assert isinstance(answer, StreamAnswer)
        with contextlib.suppress(UpstreamBroken):
            async with aclosing(answer.blocks()) as blocks:
                read = 0
                async for _ in blocks:
                    read += 1
                    if leaves and read == 40:
                        break
        await answer.close()

    drive(ask())
    (attempt,) = world.record.attempts
    assert attempt.outcome is (Outcome.CLIENT_GONE if leaves else Outcome.BROKEN)
    assert attempt.usage is not None
    assert attempt.usage.output_tokens == booked
    assert attempt.usage.estimated is (told != booked)
    assert attempt.usage.input_tokens == (attempt.usage.input_tokens if told is None else 1000)


def test_a_plain_answer_that_is_none_is_booked_by_the_usage_it_tells() -> None:
    world = World({Tier.PREMIUM: []}, candidates=(BIG,))
    world.deps = replace(world.deps, providers={BIG.name: TellingHost(TokenUsage(1000, 300), 0)})
    assert isinstance(world.ask(), BrokenReply)
    (attempt,) = world.record.attempts
    assert attempt.usage == TokenUsage(1000, 300)
    assert attempt.charge.amount_nanousd == 5_000_000
