"""The OpenAI-style provider against a real socket: what comes back, and what the upstream sees."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.core.request import TokenUsage
from router.core.vocabulary import Flag
from router.errors import (
    UpstreamBroken,
)
from router.providers.openai_compatible import OpenAICompatibleProvider
from tests import upstream as up
from tests.provider_calls import TIMEOUTS, a_call, read
from tests.upstream import Behaviour, FakeUpstream
from tests.upstream_answers import tool_call

KEY = "sk-upstream"
QUICK = replace(TIMEOUTS, connect_s=0.2, first_byte_s=0.15, idle_s=0.15, total_s=0.6)
TRUE_USAGE = TokenUsage(input_tokens=8, output_tokens=7)
UNTOLD = (Flag.CACHE_UNKNOWN,)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def provider(upstream: FakeUpstream) -> AsyncIterator[OpenAICompatibleProvider]:
    provider = OpenAICompatibleProvider(upstream.base_url, KEY)
    yield provider
    await provider.close()


async def test_a_plain_answer_comes_back_untouched_with_its_usage(upstream: Any, provider: Any) -> None:
    exact = b'{ "choices":[ {"index":0,"message":{"role":"assistant","content":"\\u00fc"},"finish_reason":"stop"}],\n'
    exact += b'"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10} }\n'
    upstream.script(up.answer(exact))
    reply = await provider.complete(a_call())
    assert reply.body == exact
    assert (reply.usage, reply.finish_reason, reply.output_text) == (TokenUsage(9, 1, flags=UNTOLD), "stop", "")


async def test_the_upstream_gets_its_model_our_key_and_no_encoding(upstream: Any, provider: Any) -> None:
    await provider.complete(a_call(model="auto", router={"locality": "any"}, temperature=0.1))
    request = upstream.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.json == {"messages": request.json["messages"], "model": "wire-model", "temperature": 0.1}
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["content-type"] == "application/json"
    assert "cookie" not in request.headers


async def test_cached_and_reasoning_tokens_are_read(upstream: Any, provider: Any) -> None:
    upstream.script(replace(up.ok(tokens=5), cached_tokens=3, reasoning_tokens=2))
    reply = await provider.complete(a_call())
    assert reply.usage == TokenUsage(8, 7, cached_input_tokens=3, reasoning_tokens=2)


async def test_contradictory_usage_is_clamped_and_flagged(upstream: Any, provider: Any) -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}}
    upstream.script(up.with_usage(usage), up.with_usage(usage))
    expected = TokenUsage(8, 5, cached_input_tokens=8, flags=(Flag.USAGE_INCONSISTENT,))
    assert (await provider.complete(a_call())).usage == expected
    assert (await read(provider)).stream.usage == expected


async def test_without_usage_the_text_is_handed_on_for_counting(upstream: Any, provider: Any) -> None:
    upstream.script(up.no_usage(), replace(up.tools(tool_call("look", {"a": 1})), no_usage=True))
    reply = await provider.complete(a_call())
    assert (reply.usage, reply.output_text) == (None, "tok tok tok tok tok")
    assert (await provider.complete(a_call())).output_text == 'look\n{"a": 1}'


async def test_a_stream_relays_its_events_and_keeps_usage_and_done_back(upstream: Any, provider: Any) -> None:
    seen = await read(provider)
    assert seen.error is None
    assert seen.text == "You said: Hello, upstream!"
    assert b"usage" not in seen.raw
    assert b"[DONE]" not in seen.raw
    assert seen.stream.usage == TRUE_USAGE
    assert seen.stream.usage_event["usage"]["total_tokens"] == 15
    assert (seen.stream.output_events, seen.stream.saw_output, seen.stream.finish_reason) == (7, True, "stop")


async def test_a_caller_who_asked_for_usage_sees_it_as_null_on_chunks(upstream: Any, provider: Any) -> None:
    seen = await read(provider, include_usage=True, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in seen.events)


async def test_usage_on_the_last_chunk_is_taken_out_and_kept(upstream: Any, provider: Any) -> None:
    upstream.script(up.usage_on_last_chunk())
    seen = await read(provider)
    assert b"usage" not in seen.raw
    assert seen.events[-1]["choices"][0]["finish_reason"] == "stop"
    assert seen.stream.usage == TokenUsage(8, 5)
    assert seen.stream.usage_event["choices"] == []


async def test_a_stream_without_usage_ends_well_with_none(upstream: Any, provider: Any) -> None:
    upstream.script(up.no_usage())
    seen = await read(provider)
    assert (seen.error, seen.stream.usage, seen.stream.output_events) == (None, None, 5)


async def test_tools_choices_and_torn_characters_are_faithful(upstream: Any, provider: Any) -> None:
    text = "Grüße 🙂 an 東京 und שלום"
    upstream.script(up.split_writes(text), up.tools(tool_call("a", {"x": "ü"}), tool_call("b", {"y": [1, 2]}, 1)))
    assert (await read(provider)).text == text
    seen = await read(provider)
    deltas = [d for e in seen.events for c in e["choices"] for d in c["delta"].get("tool_calls", [])]
    whole = {i: "".join(d["function"]["arguments"] for d in deltas if d["index"] == i) for i in (0, 1)}
    assert {i: json.loads(arguments) for i, arguments in whole.items()} == {0: {"x": "ü"}, 1: {"y": [1, 2]}}
    many = await read(provider, n=3)
    assert many.error is None
    assert {c["index"] for e in many.events for c in e["choices"]} == {0, 1, 2}


@pytest.mark.parametrize("behaviour", [up.crlf("Hi there"), up.keep_alives(3), up.gzipped("Hi there")])
async def test_other_framings_make_no_difference(upstream: Any, provider: Any, behaviour: Behaviour) -> None:
    upstream.script(behaviour)
    seen = await read(provider)
    assert seen.error is None
    assert seen.text == ("tok tok tok tok tok" if behaviour.tokens else "Hi there")
    assert b"keep-alive" not in seen.raw


async def test_a_compressed_plain_answer_is_read(upstream: Any, provider: Any) -> None:
    upstream.script(up.gzipped("Hi"))
    assert json.loads((await provider.complete(a_call())).body)["choices"][0]["message"]["content"] == "Hi"


async def test_an_end_without_done_is_good_once_the_reason_is_known(upstream: Any, provider: Any) -> None:
    upstream.script(replace(up.ok(tokens=3), omit_done=True), up.cut(3, "clean_end"))
    assert (await read(provider)).error is None
    assert isinstance((await read(provider)).error, UpstreamBroken)


async def test_one_connection_serves_call_after_call(upstream: Any, provider: Any) -> None:
    for _ in range(5):
        await provider.complete(a_call())
        assert (await read(provider)).error is None
    assert upstream.connections_made == 1


async def test_a_unix_socket_is_an_address_like_any_other(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    server = await FakeUpstream().start(unix_path=path)
    provider = OpenAICompatibleProvider("http+unix://" + path.replace("/", "%2F") + "/v1", KEY)
    try:
        assert (await provider.complete(a_call())).usage == TRUE_USAGE
        assert (await read(provider)).text == "You said: Hello, upstream!"
    finally:
        await provider.close()
        await server.stop()
