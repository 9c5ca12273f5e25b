"""Heads of requests that never end, callers who do not read, and bytes that are no HTTP at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from router.api.bounded_http import bounded_http
from tests.protocol_server import serving_by


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says yes to whatever is asked, once its body is there."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(asgi: Any = app, http: Any = None, **bounds: Any) -> AsyncIterator[int]:
    """A server with the protocol under test, or one made of it; its port."""
    async with serving_by(http or bounded_http(lambda: "req_7", **bounds), asgi) as port:
        yield port


async def answers(port: int, *sent: bytes) -> list[bytes]:
    """What comes back until the server closes, for bytes sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(60):
            raw = await reader.read()
    finally:
        writer.close()
    return [b"HTTP/1.1 " + part for part in raw.split(b"HTTP/1.1 ")[1:]]


def envelope(answer: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and error of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), json.loads(body)["error"]


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        [GET, *[b"x-a: " + b"a" * 5_000 + b"\r\n"] * 3],
        [GET + b"x-a: ", *[b"a" * 5_000] * 3],
        [b"GET /", *[b"a" * 5_000] * 3],
        [b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}", GET + b"x-a: ", *[b"a" * 5_000] * 3],
    ],
)
async def test_a_head_that_grows_and_grows_is_refused_by_its_size(sent: list[bytes]) -> None:
    async with serving(max_head_bytes=10_000) as port:
        *before, last = await answers(port, *sent)
        status, headers, error = envelope(last)
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in before)
    assert (status, headers["connection"], headers["x-request-id"]) == (431, "close", "req_7")
    assert (error["code"], error["type"]) == ("headers_too_large", "invalid_request_error")
    assert "10000 bytes" in error["message"]


async def test_bodies_and_many_requests_on_one_connection_are_not_heads() -> None:
    post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n" + b"b" * 900_000
    async with serving(max_head_bytes=600_000) as port:
        end = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        told = await answers(port, *[post, GET + b"\r\n"] * 5, end)
    assert [answer.partition(b"\r\n")[0] for answer in told] == [b"HTTP/1.1 200 OK"] * 11


@pytest.mark.parametrize("sent", [[GET], [b"GET / HT"], [GET + b"\r\n", GET]])
async def test_a_head_that_never_ends_is_given_up(sent: list[bytes]) -> None:
    async with serving(head_timeout_s=0.2) as port:
        *before, last = await answers(port, *sent)
    assert len(before) == (len(sent) > 1)
    status, _, error = envelope(last)
    assert (status, error["code"]) == (408, "request_timeout")


async def test_a_connection_on_which_nothing_is_ever_asked_is_closed_without_a_word() -> None:
    async with serving(head_timeout_s=0.2) as port:
        assert await answers(port) == []


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n"]
)
async def test_what_is_no_http_is_told_so_in_the_usual_envelope(sent: bytes) -> None:
    async with serving() as port:
        (told,) = await answers(port, sent)
    status, headers, error = envelope(told)
    assert (status, headers["x-request-id"], headers["connection"]) == (400, "req_7", "close")
    assert error["type"] == "invalid_request_error"


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("behind", "refused_with"), [(b"}{\r\n\r\n", 400), (CHUNKED + b"zz\r\n", 400), (GET + b"x-a: ", 408)]
)
async def test_what_is_no_request_is_refused_behind_the_answer_to_the_request_before_it(
    behind: bytes, refused_with: int
) -> None:
    asked: list[str] = []
    refused = asyncio.Event()

    class Watched(bounded_http(lambda: "req_7", head_timeout_s=0.1)):  # type: ignore[misc]
        def _refuse(self, error: Any) -> None:
            super()._refuse(error)
            refused.set()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["method"])
        await refused.wait()
        await app(scope, receive, send)

    async with serving(slow, http=Watched) as port:
        first, last = await answers(port, GET + b"\r\n" + behind)
    assert first.startswith(b"HTTP/1.1 200") and first.endswith(b"ok")
    assert envelope(last)[0] == refused_with
    assert asked == ["GET"]


async def test_who_answers_before_the_body_is_not_hurt_by_one_that_is_broken() -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})
        ended.set_result((await receive())["type"])

    async with serving(hasty) as port:
        (told,) = await answers(port, CHUNKED + b"zz\r\n")
        async with asyncio.timeout(60):
            assert await ended == "http.disconnect"
    assert envelope(told)[0] == 400


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what was asked: the body, and the headers that speak of the connection."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    spoken = [value for name, value in scope["headers"] if name in (b"connection", b"upgrade")]
    body = b" ".join([body, *spoken])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


OFFER = b"host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"


@pytest.mark.parametrize(
    "body",
    [b"content-length: 7\r\n\r\n{1: 23}", b"transfer-encoding: chunked\r\n\r\n3\r\n{1:\r\n4\r\n 23}\r\n0\r\n\r\n"],
)
async def test_who_offers_another_protocol_is_answered_in_this_one_by_the_body_that_came(body: bytes) -> None:
    last = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\nz"
    asked = b"POST /?a HTTP/1.1\r\n" + OFFER + body
    async with serving(echo) as port:
        told = await answers(port, asked, asked + asked[:-4], asked[-4:] + last)
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in told]
    assert bodies == [b"{1: 23} HTTP2-Settings"] * 3 + [b"z close"]


class Flood:
    """An application that answers with more than all buffers hold, and hears whether its caller has gone."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        watch = asyncio.create_task(self._watch(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.done.set()
        watch.cancel()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


async def test_a_caller_who_stops_reading_is_cut_off_and_counts_as_gone() -> None:
    flood = Flood()
    async with serving(flood, stalled_reader_s=0.3) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(GET + b"\r\n")
        async with asyncio.timeout(60):
            await flood.gone.wait()
        writer.close()


class Buffer:
    """A transport whose buffer a caller drains as a test says, and the timer of its protocol."""

    def __init__(self, held_bytes: int) -> None:
        self.held_bytes = held_bytes
        self.aborted = False
        self.due: list[Any] = []
        self.socket, self.caller = socket.socketpair()

    def get_write_buffer_size(self) -> int:
        return self.held_bytes

    def get_extra_info(self, name: str) -> Any:
        return self.socket if name == "socket" else None

    def abort(self) -> None:
        self.aborted = True

    def call_later(self, _: float, function: Any) -> asyncio.TimerHandle:
        self.due = [function]
        return asyncio.get_running_loop().call_later(3_600, function)

    def time(self) -> float:
        return 0.0


@pytest.fixture
def buffer() -> Iterator[Buffer]:
    """A large answer of which the kernel has taken a part."""
    made = Buffer(10_000_000)
    for _ in range(10):
        made.socket.send(bytes(8_000))
    with made.socket, made.caller:
        yield made


async def test_a_large_answer_is_not_cut_off_while_its_caller_reads_on(buffer: Buffer) -> None:
    config = uvicorn.Config(app, log_config=None, ws="none", http=bounded_http(lambda: "req_7"))
    config.load()
    protocol = config.http_protocol_class(config, uvicorn.server.ServerState(), {}, _loop=buffer)  # type: ignore[call-arg]
    protocol.connection_made(buffer)  # type: ignore[arg-type]
    protocol.pause_writing()  # type: ignore[attr-defined]
    for read_bytes, of_the_kernels, cut_off in [
        (50_000, 0, 0),
        (4_000_000, 0, 0),
        (0, 9, 0),
        (40_000, 0, 0),
        (99, 0, 1),
    ]:
        buffer.held_bytes -= read_bytes
        for _ in range(of_the_kernels):
            buffer.caller.recv(8_000)
        buffer.due.pop()()
        assert buffer.aborted is bool(cut_off)
    protocol.connection_lost(OSError())


async def test_a_caller_who_reads_slowly_gets_it_all() -> None:
    flood = Flood()
    async with serving(flood, stalled_reader_s=30) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(GET + b"\r\n")
        read = 0
        async with asyncio.timeout(60):
            while chunk := await reader.read(1_000_000):
                read += len(chunk)
                await asyncio.sleep(0)
                if flood.done.is_set() and read >= 40_000_000:
                    break
        writer.close()
    assert read >= 40_000_000
    assert not flood.gone.is_set()
