"""The loopback upstream tells the truth, and misbehaves exactly as scripted."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from tests import upstream as up
from tests.upstream import FakeUpstream
from tests.upstream_answers import tool_call

KEY = {"authorization": "Bearer sk-upstream"}
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello, upstream!"}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def post(client: aiohttp.ClientSession, upstream: FakeUpstream, **extra: Any) -> tuple[int, bytes]:
    async with client.post(f"{upstream.base_url}/chat/completions", json={**HELLO, **extra}, headers=KEY) as reply:
        return reply.status, await reply.read()


async def events(client: aiohttp.ClientSession, upstream: FakeUpstream, **extra: Any) -> list[Any]:
    _, raw = await post(client, upstream, stream=True, **extra)
    datas = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [c for chunk in chunks if chunk != "[DONE]" for c in chunk.get("choices", []) if c["index"] == index]
    return "".join(c["delta"].get("content") or "" for c in choices)


async def test_plain_answer_echoes_model_and_counts_the_tokens_of_the_request(upstream: Any, client: Any) -> None:
    status, raw = await post(client, upstream)
    body = json.loads(raw)
    assert (status, body["model"]) == (200, "m")
    assert body["choices"][0]["message"]["content"] == "You said: Hello, upstream!"
    assert body["usage"]["prompt_tokens"] == 4 + 4  # Hello | , | upstream | ! and four for the message
    assert body["usage"]["completion_tokens"] == 7
    _, longer = await post(client, upstream, messages=[*HELLO["messages"], {"role": "user", "content": "More words"}])
    assert json.loads(longer)["usage"]["prompt_tokens"] == 8 + 4 + 2


async def test_max_tokens_cuts_the_answer(upstream: Any, client: Any) -> None:
    body = json.loads((await post(client, upstream, max_tokens=2))[1])
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


async def test_n_choices_and_logprobs(upstream: Any, client: Any) -> None:
    body = json.loads((await post(client, upstream, n=3, logprobs=True))[1])
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert len(body["choices"][2]["logprobs"]["content"]) == 7
    assert body["usage"]["completion_tokens"] == 21


async def test_stream_carries_null_usage_and_then_a_usage_only_chunk_when_asked(upstream: Any, client: Any) -> None:
    chunks = await events(client, upstream, stream_options={"include_usage": True})
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"] == []
    plain = json.loads((await post(client, upstream))[1])
    assert chunks[-2]["usage"] == plain["usage"]
    assert all(c["usage"] is None for c in chunks[:-2])
    assert text_of(chunks) == "You said: Hello, upstream!"


async def test_stream_without_include_usage_has_no_usage_anywhere(upstream: Any, client: Any) -> None:
    chunks = await events(client, upstream, n=2)
    assert not any("usage" in c for c in chunks[:-1])
    assert text_of(chunks, 1) == "You said: Hello, upstream!"


async def test_forced_tool_is_called_and_its_arguments_come_in_pieces(upstream: Any, client: Any) -> None:
    body = json.loads((await post(client, upstream, tools=[TOOL], tool_choice="required"))[1])
    call = body["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"text": "Hello, upstream!"}
    upstream.script(up.tools(tool_call("look", {"a": 1}), tool_call("look", {"b": "ü"}, 1)))
    chunks = await events(client, upstream, tools=[TOOL])
    deltas = [d for c in chunks[:-1] for ch in c["choices"] for d in ch["delta"].get("tool_calls", [])]
    pieces = {i: "".join(d["function"]["arguments"] for d in deltas if d["index"] == i) for i in (0, 1)}
    assert pieces == {0: '{"a": 1}', 1: '{"b": "ü"}'}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
async def test_a_wrong_key_is_401(upstream: Any, client: Any, headers: dict[str, str]) -> None:
    async with client.post(f"{upstream.base_url}/chat/completions", json=HELLO, headers=headers) as reply:
        assert reply.status == 401
        assert (await reply.json())["error"]["code"] == "invalid_api_key"


async def test_unknown_model_missing_messages_and_a_long_prompt_are_refused(client: Any) -> None:
    async with FakeUpstream(models=["m"], context_tokens=5) as upstream:
        assert (await post(client, upstream, model="other"))[0] == 404
        assert (await post(client, upstream, messages=[]))[0] == 400
        status, raw = await post(client, upstream)
        assert (status, json.loads(raw)["error"]["code"]) == (400, "context_length_exceeded")


async def test_scripted_status_carries_its_headers_and_the_next_request_is_well(upstream: Any, client: Any) -> None:
    upstream.script(up.status(429, headers=[("retry-after", "7")]))
    async with client.post(f"{upstream.base_url}/chat/completions", json=HELLO, headers=KEY) as reply:
        assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert (await post(client, upstream))[0] == 200


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_a_cut_stream_breaks_after_the_events_before_it(upstream: Any, client: Any, how: Any) -> None:
    upstream.script(up.cut(3, how))
    with pytest.raises(aiohttp.ClientError):
        await events(client, upstream)
    assert upstream.requests[0].chunks_sent == 3


async def test_an_orderly_end_without_done(upstream: Any, client: Any) -> None:
    upstream.script(up.cut(3, "clean_end"))
    assert text_of(await events(client, upstream)) == "tok tok"


async def test_error_frame_is_followed_by_done(upstream: Any, client: Any) -> None:
    upstream.script(up.error_frame(2))
    chunks = await events(client, upstream)
    assert chunks[2]["error"]["code"] == 500
    assert chunks[3] == "[DONE]"


async def test_malformed_event_is_not_json_and_the_rest_goes_on(upstream: Any, client: Any) -> None:
    upstream.script(up.malformed(1, tokens=2))
    _, raw = await post(client, upstream, stream=True)
    lines = [line for line in raw.decode().splitlines() if line.startswith("data: ")]
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[1][6:])
    assert json.loads(lines[2][6:])["choices"]
    assert lines[-1] == "data: [DONE]"


async def test_scripted_usage_finish_reason_and_no_usage(upstream: Any, client: Any) -> None:
    upstream.script(up.with_usage({"prompt_tokens": 1}), up.aborted(), up.no_usage(), up.usage_on_last_chunk())
    assert json.loads((await post(client, upstream))[1])["usage"] == {"prompt_tokens": 1}
    assert json.loads((await post(client, upstream))[1])["choices"][0]["finish_reason"] == "abort"
    assert "usage" not in json.loads((await post(client, upstream))[1])
    chunks = await events(client, upstream, stream_options={"include_usage": True})
    assert chunks[-2]["usage"]["completion_tokens"] == 5
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


async def test_stream_survives_any_tearing_apart_of_its_bytes(upstream: Any, client: Any) -> None:
    upstream.script(up.split_writes("Grüße 🙂 東京"))
    assert text_of(await events(client, upstream)) == "Grüße 🙂 東京"


async def test_crlf_comments_compression_redirection_and_padding(upstream: Any, client: Any) -> None:
    upstream.script(
        up.crlf("Hi"), up.keep_alives(2), up.gzipped("Hi"), up.redirect("http://127.0.0.1:9/"), up.huge(9000)
    )
    assert b'"content":"Hi"' in (raw := (await post(client, upstream, stream=True))[1])
    assert raw.count(b"\r\n\r\n") == 4
    assert (await post(client, upstream, stream=True))[1].startswith(b": keep-alive\n\n: keep-alive\n\ndata: ")
    assert json.loads(gzip.decompress((await post(client, upstream))[1]))["model"] == "m"
    url = f"{upstream.base_url}/chat/completions"
    async with client.post(url, json=HELLO, headers=KEY, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["location"]) == (307, "http://127.0.0.1:9/")
    assert len((await post(client, upstream))[1]) > 9000


@pytest.mark.parametrize(
    "behaviour", [up.stall(), up.stall_after_headers(), up.silence(2), replace(up.silence(0), text="x")]
)
async def test_a_stalled_request_notices_that_the_client_left(upstream: Any, client: Any, behaviour: Any) -> None:
    upstream.script(behaviour)
    before_s = time.monotonic()
    with pytest.raises(TimeoutError):
        url = f"{upstream.base_url}/chat/completions"
        quick = aiohttp.ClientTimeout(total=0.05)
        async with client.post(url, json={**HELLO, "stream": True}, headers=KEY, timeout=quick) as reply:
            await reply.read()
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)
    left_at_s = upstream.requests[0].disconnected_at_s
    assert left_at_s is not None
    assert before_s < left_at_s <= time.monotonic()
    assert not upstream.requests[0].answered


async def test_delay_and_gap_are_kept(upstream: Any, client: Any) -> None:
    upstream.script(up.ok(tokens=2, delay_s=0.05, gap_s=0.02))
    before_s = time.monotonic()
    await events(client, upstream)
    assert time.monotonic() - before_s >= 0.05 + 3 * 0.02


async def test_health_models_and_pages(upstream: Any, client: Any) -> None:
    upstream.pages["/metrics"] = (200, b"vllm:num_requests_running 0\n", "text/plain")
    async with client.get(f"{upstream.origin}/health") as reply:
        assert reply.status == 200
    async with client.get(f"{upstream.base_url}/models", headers=KEY) as reply:
        assert (await reply.json())["data"][0]["id"] == "loopback-model"
    async with client.get(f"{upstream.origin}/metrics") as reply:
        assert (await reply.read()).startswith(b"vllm:")
    async with client.get(f"{upstream.base_url}/nothing", headers=KEY) as reply:
        assert reply.status == 404
