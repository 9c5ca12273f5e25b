"""The scripted provider plays its script, and a provider's part."""

from __future__ import annotations

import json

import pytest

from router.core.request import TokenUsage
from router.errors import UpstreamBroken, UpstreamUnavailable
from router.ports import Provider
from router.providers.scripted import Fail, Say, ScriptedProvider
from tests.provider_calls import a_call, read


async def test_steps_are_played_in_turn_and_again() -> None:
    provider = ScriptedProvider([Fail(UpstreamUnavailable("down")), Say("Hello there")])
    for _ in range(2):
        with pytest.raises(UpstreamUnavailable, match="down"):
            await provider.complete(a_call())
        reply = await provider.complete(a_call())
        assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hello there"
        assert (reply.usage, reply.finish_reason) == (TokenUsage(10, 2), "stop")
    assert len(provider.calls) == 4


async def test_a_script_that_does_not_repeat_ends() -> None:
    provider = ScriptedProvider([Say()], repeat=False)
    await provider.complete(a_call())
    with pytest.raises(UpstreamUnavailable, match="ended"):
        await provider.complete(a_call())


async def test_a_stream_carries_the_text_and_then_usage() -> None:
    provider: Provider = ScriptedProvider([Say("one two three", cached_input_tokens=4)])
    seen = await read(provider)
    assert (seen.text, seen.error) == ("one two three", None)
    assert (seen.stream.output_events, seen.stream.usage) == (3, TokenUsage(10, 3, cached_input_tokens=4))
    assert seen.stream.usage_event["choices"] == []


async def test_no_usage_is_told_if_the_script_says_so() -> None:
    provider = ScriptedProvider([Say("one two", input_tokens=None)])
    reply = await provider.complete(a_call())
    assert (reply.usage, reply.output_text) == (None, "one two")
    assert (await read(provider)).stream.usage is None


async def test_a_stream_breaks_where_the_script_says() -> None:
    provider = ScriptedProvider([Say("one two three four", fails_after=2)])
    seen = await read(provider)
    assert isinstance(seen.error, UpstreamBroken)
    assert seen.text == "one two"
    assert provider.closed_streams == 1


async def test_pauses_are_those_of_the_script() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    provider = ScriptedProvider([Say("one two", delay_s=5.0, gap_s=0.5)], sleep=sleep)
    await read(provider)
    assert slept == [5.0] + [0.5] * 6  # role, two words, finish, usage, [DONE]


async def test_a_closed_stream_is_over() -> None:
    provider = ScriptedProvider([Say("one two")])
    stream = await provider.open_stream(a_call(stream=True))
    await stream.close()
    await stream.close()
    with pytest.raises(UpstreamBroken):
        await stream.next_block()
    await provider.close()
    assert (provider.closed_streams, provider.closed) == (1, True)
