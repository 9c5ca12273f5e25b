"""The litellm provider against a loopback host that speaks Anthropic's API, through the real litellm."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from router.core.request import TokenUsage
from router.errors import (
    UpstreamBroken,
    UpstreamContextTooLong,
    UpstreamCredentials,
    UpstreamError,
    UpstreamNotServed,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from router.providers.litellm_provider import LiteLLMProvider
from tests.loopback_http import LoopbackServer
from tests.provider_calls import TIMEOUTS, a_call, read
from tests.upstream import FakeUpstream, redirect
from tests.upstream_anthropic import FakeAnthropic, Turn

KEY = "sk-ant-loopback"
QUICK = replace(TIMEOUTS, first_byte_s=0.3, idle_s=0.3)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeAnthropic]:
    async with FakeAnthropic(KEY) as server:
        yield server


@pytest.fixture
async def provider(upstream: FakeAnthropic) -> AsyncIterator[LiteLLMProvider]:
    provider = LiteLLMProvider("anthropic/claude-loopback", api_key=KEY, api_base=upstream.origin)
    await provider.load()
    yield provider
    await provider.close()


async def test_a_plain_answer_comes_in_openais_shape(upstream: Any, provider: Any) -> None:
    reply = await provider.complete(a_call(temperature=0.5, max_tokens=50))
    body = json.loads(reply.body)
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "You said: Hello, upstream!"
    assert (reply.finish_reason, reply.usage) == ("stop", TokenUsage(8, 7))
    sent = upstream.requests[0]
    assert (sent.json["model"], sent.json["temperature"], sent.json["max_tokens"]) == ("claude-loopback", 0.5, 50)
    assert sent.headers["x-api-key"] == KEY


async def test_cached_tokens_are_part_of_the_input_here_though_not_there(upstream: Any, provider: Any) -> None:
    turn = Turn(cache_read_tokens=100, cache_write_tokens=30)
    upstream.script(turn, turn)
    expected = TokenUsage(138, 7, cached_input_tokens=100, cache_write_tokens=30)
    assert (await provider.complete(a_call())).usage == expected
    assert (await read(provider)).stream.usage == expected


async def test_a_stream_comes_as_openais_events(upstream: Any, provider: Any) -> None:
    seen = await read(provider)
    assert seen.error is None
    assert seen.text == "You said: Hello, upstream!"
    assert {event["object"] for event in seen.events} == {"chat.completion.chunk"}
    assert seen.events[-1]["choices"][0]["finish_reason"] == "stop"
    assert b"usage" not in seen.raw
    assert b"[DONE]" not in seen.raw
    assert (seen.stream.usage, seen.stream.output_events) == (TokenUsage(8, 7), 7)
    assert seen.stream.usage_event["choices"] == []
    assert seen.stream.usage_event["usage"]["total_tokens"] == 15


async def test_tools_go_there_and_calls_come_back(upstream: Any, provider: Any) -> None:
    turn = Turn(text="Let me look.", tool=("look", {"city": "東京"}))
    upstream.script(turn, turn)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    message = json.loads((await provider.complete(a_call(tools=[tool]))).body)["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "東京"}
    assert upstream.requests[0].json["tools"][0]["name"] == "look"
    seen = await read(provider, tools=[tool])
    deltas = [d for e in seen.events for c in e["choices"] for d in c["delta"].get("tool_calls", [])]
    assert json.loads("".join(d["function"]["arguments"] for d in deltas)) == {"city": "東京"}
    assert seen.stream.finish_reason == "tool_calls"


BAD: list[tuple[Turn, type[UpstreamError]]] = [
    (Turn(status=401, error_type="authentication_error"), UpstreamCredentials),
    (Turn(status=403, error_type="permission_error"), UpstreamCredentials),
    (Turn(status=404, error_type="not_found_error"), UpstreamNotServed),
    (Turn(status=400, error_type="invalid_request_error"), UpstreamRefused),
    (Turn(status=400, error_message="prompt is too long: 210000 tokens > 200000 maximum"), UpstreamContextTooLong),
    (Turn(status=429, error_type="rate_limit_error", headers=(("retry-after", "7"),)), UpstreamRateLimited),
    (Turn(status=500, error_type="api_error"), UpstreamUnavailable),
    (Turn(status=503, error_type="api_error"), UpstreamUnavailable),
    (Turn(status=529, error_type="overloaded_error"), UpstreamUnavailable),
]


@pytest.mark.parametrize(("turn", "kind"), BAD)
async def test_every_bad_answer_is_one_of_our_errors_and_tried_once(
    upstream: Any, provider: Any, turn: Turn, kind: type[UpstreamError]
) -> None:
    upstream.script(turn, turn)
    with pytest.raises(UpstreamError) as caught:
        await provider.complete(a_call())
    assert type(caught.value) is kind
    assert type(caught.value.__cause__).__module__ == "litellm.exceptions"
    assert not any(part in str(caught.value) for part in (KEY, "127.0.0.1", "Hello, upstream"))
    assert type((await read(provider)).error) is kind
    assert len(upstream.requests) == 2


async def test_a_rate_limit_says_how_long_to_wait(upstream: Any, provider: Any) -> None:
    upstream.script(Turn(status=429, error_type="rate_limit_error", headers=(("retry-after", "7"),)))
    with pytest.raises(UpstreamRateLimited) as caught:
        await provider.complete(a_call())
    assert caught.value.retry_after_s == 7.0


async def test_a_refusal_is_passed_on_in_the_upstreams_own_words(upstream: Any, provider: Any) -> None:
    upstream.script(
        Turn(status=400, error_type="invalid_request_error", error_message=f"top_k: must be small, not {KEY}")
    )
    with pytest.raises(UpstreamRefused) as caught:
        await provider.complete(a_call())
    error = json.loads(caught.value.body)["error"]
    assert (caught.value.status, error["type"]) == (400, "invalid_request_error")
    assert error["message"] == "top_k: must be small, not [redacted]"


async def test_a_redirection_is_never_followed_with_our_key(upstream: Any, provider: Any) -> None:
    async with FakeAnthropic(KEY) as elsewhere:
        upstream.script(Turn(status=307, headers=(("location", f"{elsewhere.origin}/v1/messages"),)))
        with pytest.raises(UpstreamBroken, match="redirection"):
            await provider.complete(a_call())
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "turn", [Turn(error_at=2), Turn(cut_at=2), Turn(cut_at=2, cut_how="clean_end")], ids=["error", "eof", "clean end"]
)
async def test_a_stream_that_breaks_off_never_ends_well(upstream: Any, provider: Any, turn: Turn) -> None:
    upstream.script(turn)
    seen = await read(provider)
    assert isinstance(seen.error, UpstreamBroken)
    assert seen.text == "You said"
    assert all(event["choices"][0]["finish_reason"] is None for event in seen.events)


@pytest.mark.parametrize("turn", [Turn(delay_s=900), Turn(silent_at=0), Turn(silent_at=3)])
async def test_silence_is_given_up_in_time_and_the_upstream_is_told(upstream: Any, provider: Any, turn: Turn) -> None:
    upstream.script(turn)
    seen = await read(provider, timeouts=QUICK)
    assert isinstance(seen.error, UpstreamTimeout)
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)


async def test_a_silent_plain_call_is_given_up(upstream: Any, provider: Any) -> None:
    upstream.script(Turn(delay_s=900))
    with pytest.raises(UpstreamTimeout):
        await provider.complete(a_call(timeouts=QUICK))
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)


async def test_closing_a_stream_stops_the_upstream(upstream: Any, provider: Any) -> None:
    upstream.script(Turn(text="tok " * 500, gap_s=0.01))
    stream = await provider.open_stream(a_call(stream=True))
    assert await stream.next_block()
    await stream.close()
    await stream.close()
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)


async def test_nobody_there_is_unavailable() -> None:
    gone = await FakeAnthropic(KEY).start()
    await gone.stop()
    provider = LiteLLMProvider("anthropic/claude-loopback", api_key=KEY, api_base=gone.origin)
    with pytest.raises(UpstreamUnavailable) as caught:
        await provider.complete(a_call())
    assert "127.0.0.1" not in str(caught.value)
    await provider.close()


@pytest.mark.parametrize(
    "member",
    ["api_base", "base_url", "api_key", "mock_response", "fallbacks", "extra_headers", "custom_llm_provider", "client"],
)
async def test_no_client_reaches_litellms_own_arguments(upstream: Any, provider: Any, member: str) -> None:
    async with LoopbackServer() as elsewhere:
        with pytest.raises(UpstreamRefused, match=member) as caught:
            members: dict[str, Any] = {member: elsewhere.origin}
            await provider.complete(a_call(**members))
        assert json.loads(caught.value.body)["error"]["code"] == "unknown_parameter"
        assert elsewhere.requests == upstream.requests == []


async def test_an_image_address_is_refused_since_the_library_would_fetch_it(upstream: Any, provider: Any) -> None:
    async with LoopbackServer() as elsewhere:
        part = {"type": "image_url", "image_url": {"url": f"{elsewhere.origin}/secret.png"}}
        with pytest.raises(UpstreamRefused, match="inline"):
            await provider.complete(a_call(messages=[{"role": "user", "content": [part]}]))
        assert elsewhere.requests == []
    pixel = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    part = {"type": "image_url", "image_url": {"url": pixel}}
    await provider.complete(a_call(messages=[{"role": "user", "content": [part]}]))
    assert upstream.requests[0].json["messages"][0]["content"][0]["type"] == "image"


async def test_a_provider_behind_an_sdk_works_too_and_follows_no_redirection() -> None:
    async with FakeUpstream(api_key=KEY) as upstream, FakeUpstream(api_key=KEY) as elsewhere:
        provider = LiteLLMProvider("perplexity/sonar", api_key=KEY, api_base=upstream.base_url)
        assert (await provider.complete(a_call())).usage == TokenUsage(8, 7)
        seen = await read(provider)
        assert (seen.text, seen.error) == ("You said: Hello, upstream!", None)
        upstream.script(redirect(f"{elsewhere.base_url}/chat/completions"))
        with pytest.raises(UpstreamError):
            await provider.complete(a_call())
        assert elsewhere.requests == []
        await provider.close()


async def test_nothing_is_logged_about_a_call(upstream: Any, provider: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    upstream.script(Turn(status=500, error_type="api_error"))
    with pytest.raises(UpstreamUnavailable):
        await provider.complete(a_call())
    await read(provider)
    assert KEY not in caplog.text
    assert "Hello, upstream" not in caplog.text


def test_the_provider_is_built_without_importing_the_library() -> None:
    code = (
        "import sys; from router.providers.litellm_provider import LiteLLMProvider; "
        "p = LiteLLMProvider('anthropic/x', api_key='sk-1'); assert 'sk-1' not in repr(p); "
        "sys.exit('litellm' in sys.modules or 'httpx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_library_the_model_is_unavailable() -> None:
    code = (
        "import asyncio, sys; sys.modules['litellm'] = None\n"
        "from router.errors import UpstreamUnavailable\n"
        "from router.providers.litellm_provider import LiteLLMProvider\n"
        "try: asyncio.run(LiteLLMProvider('anthropic/x', api_key='k').load())\n"
        "except UpstreamUnavailable: sys.exit(0)\n"
        "sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
