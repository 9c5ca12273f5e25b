"""The OpenAI-style provider against a real socket: every way in which an upstream can fail."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from router.providers.openai_compatible import OpenAICompatibleProvider
from tests import upstream as up
from tests.provider_calls import TIMEOUTS, a_call, read
from tests.upstream import Behaviour, FakeUpstream

KEY = "sk-upstream"
QUICK = replace(TIMEOUTS, first_byte_s=0.15, idle_s=0.15)
TRUE_USAGE = TokenUsage(input_tokens=8, output_tokens=7)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def provider(upstream: FakeUpstream) -> AsyncIterator[OpenAICompatibleProvider]:
    provider = OpenAICompatibleProvider(upstream.base_url, KEY)
    yield provider
    await provider.close()


# -- the bad answers


def envelope(**members: Any) -> dict[str, Any]:
    return {"error": {"message": "m", "type": "t", "param": None, "code": None, **members}}


BAD: list[tuple[Behaviour, type[UpstreamError]]] = [
    (up.status(401, {"error": "Unauthorized"}), UpstreamCredentials),
    (up.status(403), UpstreamCredentials),
    (up.status(429, headers=[("retry-after", "3")]), UpstreamRateLimited),
    (up.status(429, envelope(code="insufficient_quota")), UpstreamCredentials),
    (up.status(400), UpstreamRefused),
    (up.status(400, envelope(code="context_length_exceeded")), UpstreamContextTooLong),
    (up.status(404, b""), UpstreamNotServed),
    (up.status(500, b"<html>oops</html>"), UpstreamUnavailable),
    (up.status(503), UpstreamUnavailable),
    (up.status(529), UpstreamUnavailable),
    (up.status(408), UpstreamTimeout),
    (up.answer(b"<html>Welcome to the captive portal</html>", "text/html"), UpstreamBroken),
    (up.answer(b'{"error":{"message":"m","code":500}}'), UpstreamBroken),
    (up.answer(b'{"error":"m"}'), UpstreamBroken),
    (up.answer(b""), UpstreamBroken),
    (up.answer(b'{"choices":[]}'), UpstreamBroken),
    (up.answer(b"[]"), UpstreamBroken),
    (up.answer(b'{"choices":[{"message":{"content":"\xff"}}]}'), UpstreamBroken),
    (
        up.answer(b'{"choices":[{"message":{"content":"x"}}],"more":' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
        UpstreamBroken,
    ),
    (up.status(429, headers=[("retry-after", "Sun, 22 Nov 99999999999999999999 12:00:00 GMT")]), UpstreamRateLimited),
    (up.aborted(), UpstreamBroken),
]


@pytest.mark.parametrize(("behaviour", "kind"), BAD)
async def test_every_bad_answer_is_one_of_our_errors(
    upstream: Any, provider: Any, behaviour: Behaviour, kind: type[UpstreamError]
) -> None:
    upstream.script(behaviour, behaviour)
    with pytest.raises(UpstreamError) as caught:
        await provider.complete(a_call())
    assert isinstance(caught.value, kind)
    assert isinstance((await read(provider)).error, kind)
    assert KEY not in str(caught.value)
    assert upstream.origin not in str(caught.value)


async def test_a_rate_limit_says_how_long_to_wait(upstream: Any, provider: Any) -> None:
    upstream.script(up.status(429, headers=[("retry-after", "3600")]))
    with pytest.raises(UpstreamRateLimited) as caught:
        await provider.complete(a_call())
    assert caught.value.retry_after_s == 3600.0


async def test_a_refusal_carries_status_and_body(upstream: Any, provider: Any) -> None:
    upstream.script(up.status(422, envelope(message="bad temperature", param="temperature")))
    with pytest.raises(UpstreamRefused) as caught:
        await provider.complete(a_call())
    assert caught.value.status == 422
    assert json.loads(caught.value.body) == envelope(message="bad temperature", param="temperature")


async def test_a_redirection_is_never_followed_with_our_key(upstream: Any, provider: Any) -> None:
    async with FakeUpstream() as elsewhere:
        upstream.script(up.redirect(f"{elsewhere.base_url}/chat/completions"))
        with pytest.raises(UpstreamBroken, match="redirection"):
            await provider.complete(a_call())
        assert elsewhere.requests == []


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_a_torn_plain_answer_is_broken(upstream: Any, provider: Any, how: Any) -> None:
    upstream.script(up.cut(0, how))
    with pytest.raises(UpstreamBroken, match="cut"):
        await provider.complete(a_call())


@pytest.mark.parametrize("how", ["reset", "eof", "clean_end"])
async def test_a_cut_stream_relays_what_came_and_then_breaks(upstream: Any, provider: Any, how: Any) -> None:
    upstream.script(replace(up.cut(40, how), gap_s=0.0005))
    seen = await read(provider)
    assert isinstance(seen.error, UpstreamBroken)
    assert "cut" in str(seen.error)
    assert 30 <= seen.stream.output_events == len(seen.events) - 1 <= 39
    assert seen.stream.usage is None


@pytest.mark.parametrize(
    "behaviour",
    [up.error_frame(2), up.error_frame(2, done=False), up.error_frame(2, "boom"), up.malformed(2), up.aborted()],
)
async def test_an_error_within_a_stream_breaks_it_even_before_done(
    upstream: Any, provider: Any, behaviour: Behaviour
) -> None:
    upstream.script(behaviour)
    seen = await read(provider)
    assert isinstance(seen.error, UpstreamBroken)
    assert b"error" not in seen.raw
    assert seen.text.startswith("tok")


async def test_answers_beyond_the_limit_are_given_up(upstream: Any) -> None:
    provider = OpenAICompatibleProvider(upstream.base_url, KEY, max_answer_bytes=100_000)
    upstream.script(up.huge(2_000_000), replace(up.gzipped(), pad_bytes=2_000_000), up.huge(9_000_000))
    for _ in range(2):
        with pytest.raises(UpstreamBroken, match="larger"):
            await provider.complete(a_call())
    assert "larger" in str((await read(provider)).error)
    await provider.close()


async def test_an_unknown_content_encoding_is_broken(upstream: Any, provider: Any) -> None:
    upstream.script(replace(up.answer(b"\x00"), headers=(("content-encoding", "br"),)))
    with pytest.raises(UpstreamBroken, match="content-encoding"):
        await provider.complete(a_call())


# -- nobody there, nobody answering


@asynccontextmanager
async def saying(data: bytes) -> AsyncIterator[int]:
    """The port of a server that answers whatever it hears with `data` and hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def failure_at(base_url: str, *, stream: bool) -> UpstreamError:
    provider = OpenAICompatibleProvider(base_url, KEY)
    with pytest.raises(UpstreamError) as caught:
        await (provider.open_stream(a_call(stream=True)) if stream else provider.complete(a_call()))
    await provider.close()
    assert "127.0.0.1" not in str(caught.value)
    assert caught.value.__cause__ is None  # the library's own error carries address and key
    assert caught.value.__suppress_context__
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
async def test_hosts_that_refuse_have_no_name_or_no_tls_are_unavailable(stream: bool) -> None:
    closed = await FakeUpstream().start()
    await closed.stop()
    assert type(await failure_at(closed.base_url, stream=stream)) is UpstreamUnavailable
    assert type(await failure_at("http://nowhere.invalid/v1", stream=stream)) is UpstreamUnavailable
    async with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert type(await failure_at(f"https://127.0.0.1:{port}/v1", stream=stream)) is UpstreamUnavailable
    async with saying(b"") as port:
        assert type(await failure_at(f"http://127.0.0.1:{port}/v1", stream=stream)) is UpstreamUnavailable
    async with saying(b"SSH-2.0-OpenSSH_9.2\r\n\r\n") as port:
        assert type(await failure_at(f"http://127.0.0.1:{port}/v1", stream=stream)) is UpstreamBroken


TIMEOUT_CASES: list[tuple[Behaviour, str, float, str]] = [
    # which limit ends it, after how long, and what is said of it; without that limit it would go on and on
    (up.stall(), "first_byte_s", 0.15, "did not"),
    (up.stall_after_headers(), "first_byte_s", 0.15, "did not send a first token"),
    (up.silence(4), "idle_s", 0.15, "went silent"),
    (up.keep_alives(6000, 0.02), "first_byte_s", 0.15, "did not send a first token"),  # comments are no first token
    (up.trickle(0.03, tokens=3000), "total_s", 0.6, "did not end in time"),  # never silent, but never done
]


@pytest.mark.parametrize(("behaviour", "limit", "after_s", "said"), TIMEOUT_CASES)
async def test_a_stream_is_given_up_in_time_and_the_upstream_is_told(
    upstream: Any, provider: Any, behaviour: Behaviour, limit: str, after_s: float, said: str
) -> None:
    upstream.script(behaviour)
    start_s = time.monotonic()
    limits: dict[str, Any] = {limit: after_s}
    seen = await read(provider, timeouts=replace(TIMEOUTS, **limits))
    took_s = time.monotonic() - start_s
    assert isinstance(seen.error, UpstreamTimeout)
    assert said in str(seen.error)
    assert after_s * 0.9 <= took_s
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)


@pytest.mark.parametrize("behaviour", [up.stall(), Behaviour(first_token_delay_s=900), up.silence(0)])
async def test_a_plain_call_is_given_up_in_time_and_the_upstream_is_told(
    upstream: Any, provider: Any, behaviour: Behaviour
) -> None:
    upstream.script(behaviour)
    with pytest.raises(UpstreamTimeout):
        await provider.complete(a_call(timeouts=QUICK))
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)


async def test_connecting_is_timed_by_itself() -> None:
    with socket.socket() as deaf, socket.socket() as first:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)  # nobody accepts, and one connection fills the queue
        first.connect(deaf.getsockname())
        provider = OpenAICompatibleProvider(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", KEY)
        with pytest.raises(UpstreamTimeout, match="connected"):
            await provider.complete(a_call(timeouts=replace(TIMEOUTS, connect_s=0.1)))
        await provider.close()


async def test_a_trickling_stream_is_given_up_by_its_rate(upstream: Any) -> None:
    provider = OpenAICompatibleProvider(upstream.base_url, KEY, trickle_window_s=0.2)
    upstream.script(up.trickle(0.05), up.ok(tokens=20, gap_s=0.01))
    slow = replace(TIMEOUTS, min_tokens_per_s=40.0)
    seen = await read(provider, timeouts=slow)
    assert isinstance(seen.error, UpstreamTimeout)
    assert "tokens a second" in str(seen.error)
    assert (await read(provider, timeouts=replace(slow, min_tokens_per_s=5.0))).error is None
    await provider.close()


async def test_a_slow_reader_is_not_the_upstreams_silence(upstream: Any, provider: Any) -> None:
    upstream.script(up.ok(tokens=5))
    stream = await provider.open_stream(a_call(stream=True, timeouts=replace(TIMEOUTS, idle_s=0.3)))
    blocks = [await stream.next_block()]
    await asyncio.sleep(0.9)  # the reader is busy elsewhere
    while (block := await stream.next_block()) is not None:
        blocks.append(block)
    assert b"".join(blocks).count(b'"tok"') == 1
    await stream.close()


# -- leaving early


@pytest.mark.parametrize("after_blocks", [0, 1, 3])
async def test_closing_a_stream_stops_the_upstream(upstream: Any, provider: Any, after_blocks: int) -> None:
    upstream.script(up.ok(tokens=1000, gap_s=0.005))
    stream = await provider.open_stream(a_call(stream=True))
    for _ in range(after_blocks):
        await stream.next_block()
    await stream.close()
    await stream.close()
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)
    assert upstream.requests[0].chunks_sent < 200
    with pytest.raises(UpstreamBroken):
        await stream.next_block()


@pytest.mark.parametrize("behaviour", [up.stall(), Behaviour(first_token_delay_s=900)])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_call_stops_the_upstream(
    upstream: Any, provider: Any, behaviour: Behaviour, stream: bool
) -> None:
    upstream.script(behaviour)

    async def call() -> None:
        if not stream:
            await provider.complete(a_call())
            return
        reply = await provider.open_stream(a_call(stream=True))
        try:
            await reply.next_block()
        finally:
            await reply.close()

    task = asyncio.create_task(call())
    await upstream.until(lambda: upstream.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await provider.close()
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)


async def test_a_body_that_goes_on_after_done_does_not_keep_the_reader(provider: Any, upstream: Any) -> None:
    upstream.script(replace(up.ok(tokens=3), linger_s=math.inf), replace(up.ok(tokens=3), linger_s=0.05))
    assert (await read(provider)).error is None  # else it would be there for ever
    assert (await read(provider)).error is None
    await upstream.until(lambda: upstream.requests[1].answered)
    await upstream.until(lambda: upstream.requests[0].disconnected_at_s is not None)
    await provider.complete(a_call())
    assert upstream.requests[2].connection == upstream.requests[1].connection  # read to its end, and used again


async def test_two_hundred_calls_at_once(upstream: Any, provider: Any) -> None:
    upstream.default = up.ok(tokens=5, delay_s=0.02)
    calls: list[Callable[[], Any]] = [lambda: provider.complete(a_call()), lambda: read(provider)]
    replies = await asyncio.gather(*(calls[i % 2]() for i in range(200)))
    assert all(getattr(reply, "error", None) is None for reply in replies)
    assert len(upstream.chats) == 200
