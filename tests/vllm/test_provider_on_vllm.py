"""The OpenAI-compatible provider against a real vLLM: what the engine really sends, in health and in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from router.core.decision import Candidate
from router.core.vocabulary import Tier
from router.errors import (
    UpstreamBroken,
    UpstreamContextTooLong,
    UpstreamCredentials,
    UpstreamError,
    UpstreamNotServed,
    UpstreamRefused,
    UpstreamUnavailable,
)
from router.ports import CallTimeouts, ProviderCall
from router.providers.http_stream import HttpStream
from router.providers.openai_compatible import OpenAICompatibleProvider
from tests.vllm.vllm_servers import MAX_NUM_SEQS, MAX_QUEUED, MODEL, WINDOW_TOKENS, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
LOCAL = Candidate("local", Tier.LOCAL, "local", MODEL, context_window_tokens=WINDOW_TOKENS)
TIMEOUTS = CallTimeouts(connect_s=60.0, first_byte_s=90.0, idle_s=90.0, total_s=180.0)


def make_call(*, stream: bool = False, include_usage: bool = False, model: str = MODEL, **members: Any) -> ProviderCall:
    """A call as the flow makes it: the client's members are raw JSON."""
    given: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24, "ignore_eos": True} | members
    return ProviderCall(
        request_id="req-vllm",
        candidate=LOCAL if model == MODEL else Candidate("other", Tier.LOCAL, "local", model, WINDOW_TOKENS),
        fields={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in given.items()},
        stream=stream,
        include_usage=include_usage,
        timeouts=TIMEOUTS,
    )


def endless(**members: Any) -> ProviderCall:
    """A stream of some seconds."""
    return make_call(stream=True, max_tokens=WINDOW_TOKENS - 200, **members)


async def events_of(stream: HttpStream) -> list[dict[str, Any]]:
    """Every relayed event, decoded."""
    blocks = b""
    while (block := await stream.next_block()) is not None:
        blocks += block
    return [json.loads(event.removeprefix(b"data: ")) for event in blocks.split(b"\n\n") if event]


def text_of(events: list[dict[str, Any]]) -> str:
    """The answer that a reader of the stream has seen."""
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def until_output(stream: HttpStream) -> None:
    """Read up to the first token."""
    while not stream.saw_output:
        assert await stream.next_block() is not None


@pytest.fixture
async def provider(engine: VllmServer) -> AsyncIterator[OpenAICompatibleProvider]:
    """A provider with the right key; the engine is idle before and after."""
    opened = OpenAICompatibleProvider(engine.api_base, engine.api_key)
    await engine.wait_reading(lambda r: r.running_requests == 0 and r.waiting_requests == 0)
    yield opened
    await opened.close()


async def test_a_plain_answer_reports_the_engines_own_count_of_the_prompt(
    engine: VllmServer, provider: OpenAICompatibleProvider
) -> None:
    reply = await provider.complete(make_call())
    assert reply.usage is not None
    assert reply.usage.input_tokens == engine.count_tokens(MESSAGES)
    assert reply.usage.output_tokens == 24
    assert reply.finish_reason == "length"
    assert json.loads(reply.body)["choices"][0]["message"]["content"]


async def test_a_stream_brings_the_same_text_as_a_plain_answer(provider: OpenAICompatibleProvider) -> None:
    plain = await provider.complete(make_call())
    stream = await provider.open_stream(make_call(stream=True))
    events = await events_of(stream)
    assert text_of(events) == json.loads(plain.body)["choices"][0]["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == "length"


async def test_usage_is_known_but_not_shown_to_a_client_who_did_not_ask(provider: OpenAICompatibleProvider) -> None:
    stream = await provider.open_stream(make_call(stream=True))
    events = await events_of(stream)
    assert all(event["choices"] and event.get("usage") is None for event in events)
    assert stream.usage is not None
    assert stream.usage.output_tokens == 24
    assert not stream.usage.estimated


async def test_usage_that_was_asked_for_comes_as_its_own_event(provider: OpenAICompatibleProvider) -> None:
    stream = await provider.open_stream(make_call(stream=True, include_usage=True))
    events = await events_of(stream)
    assert all(event["choices"] for event in events)  # the usage event is the caller's to send
    assert stream.usage_event is not None
    assert stream.usage_event["choices"] == []
    assert stream.usage_event["usage"]["completion_tokens"] == 24


async def test_a_stream_closed_by_its_reader_stops_the_engine(
    engine: VllmServer, provider: OpenAICompatibleProvider
) -> None:
    stream = await provider.open_stream(endless())
    await until_output(stream)
    assert (await engine.wait_reading(lambda r: r.running_requests == 1)).problem is None
    await stream.close()
    await engine.wait_reading(lambda r: r.running_requests == 0)


async def test_a_wrong_key_is_a_matter_of_credentials(engine: VllmServer) -> None:
    stranger = OpenAICompatibleProvider(engine.api_base, "sk-not-the-key")
    try:
        with pytest.raises(UpstreamCredentials) as caught:
            await stranger.complete(make_call())
        with pytest.raises(UpstreamCredentials):
            await stranger.open_stream(make_call(stream=True))
    finally:
        await stranger.close()
    assert "sk-not-the-key" not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_past_the_window_is_too_long_for_this_model(
    provider: OpenAICompatibleProvider, stream: bool
) -> None:
    call = make_call(stream=stream, messages=[{"role": "user", "content": "zq " * 3000}])
    with pytest.raises(UpstreamContextTooLong):
        await (provider.open_stream(call) if stream else provider.complete(call))


async def test_more_output_than_the_window_holds_is_the_callers_error(provider: OpenAICompatibleProvider) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        await provider.complete(make_call(max_tokens=5000))
    assert caught.value.status == 400
    assert caught.value.param == "max_tokens"


async def test_a_model_that_is_not_served_is_refused(provider: OpenAICompatibleProvider) -> None:
    with pytest.raises(UpstreamNotServed, match="does not serve the configured model"):
        await provider.complete(make_call(model="no-such-model"))


async def test_a_full_engine_turns_calls_away_as_unavailable_and_takes_them_again_later(
    engine: VllmServer, provider: OpenAICompatibleProvider
) -> None:
    async with contextlib.AsyncExitStack() as open_streams:

        async def hold_a_place() -> None:
            stream = await provider.open_stream(endless())
            open_streams.push_async_callback(stream.close)
            await until_output(stream)

        # All at once: one after the other, the first could end before the last has begun.
        await asyncio.gather(*(hold_a_place() for _ in range(MAX_NUM_SEQS)))
        waiting = [asyncio.create_task(provider.complete(make_call())) for _ in range(MAX_QUEUED)]
        full = await engine.wait_reading(lambda r: r.waiting_requests == MAX_QUEUED)
        assert full.running_requests == MAX_NUM_SEQS
        with pytest.raises(UpstreamUnavailable):
            await provider.complete(make_call())
        with pytest.raises(UpstreamUnavailable):
            await provider.open_stream(make_call(stream=True))
    served = await asyncio.gather(*waiting)
    assert all(reply.finish_reason == "length" for reply in served)
    assert (await provider.complete(make_call())).usage is not None


async def test_a_worker_killed_in_mid_stream_is_a_failure_though_done_follows(dying_engine: VllmServer) -> None:
    """The engine sends an error event and then a normal `[DONE]`: who waits for `[DONE]` alone calls it a success."""
    provider = OpenAICompatibleProvider(dying_engine.api_base, dying_engine.api_key)
    try:
        stream = await provider.open_stream(endless())
        await until_output(stream)
        dying_engine.kill_worker()
        with pytest.raises(UpstreamBroken):
            while await stream.next_block() is not None:
                pass
        assert stream.output_events > 0
        with pytest.raises(UpstreamError):  # and an engine without a worker answers nobody
            await provider.complete(make_call())
    finally:
        await provider.close()
