"""Whole answers leave in one write, parts of a stream at once; what is not that simple is as uvicorn has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.api.bounded_http import bounded_http
from tests.protocol_server import serving_by

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
Header = tuple[bytes, bytes]


def app_saying(body: bytes, *headers: Header, parts: int = 1) -> Any:
    """Answers `body` with `headers`, in one message or several."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        step = len(body) // parts
        for at in range(0, len(body), step):
            more = at + step < len(body)
            await send({"type": "http.response.body", "body": body[at : at + step], "more_body": more})

    return app


@asynccontextmanager
async def serving(asgi: Any, writes: list[int], look_every_s: float = 30.0, **options: Any) -> AsyncIterator[int]:
    """A server whose transports note in `writes` how many writes each request took; its port."""

    class Counted(bounded_http(lambda: "req_7", head_timeout_s=look_every_s)):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            class Noting:
                def __getattr__(self, name: str) -> Any:
                    if name in ("write", "writelines"):
                        writes.append(1)
                    return getattr(transport, name)

            super().connection_made(Noting())

    async with serving_by(Counted, asgi, **options) as port:
        yield port


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body) of an answer that tells its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return head, await reader.readexactly(length)


async def test_head_and_body_of_a_whole_answer_are_one_write_and_the_connection_serves_on() -> None:
    writes: list[int] = []
    app = app_saying(b"hello", (b"x-a", b"1"), (b"content-length", b"5"))
    async with serving(app, writes) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(GET)
            head, body = await read_answer(reader)
            assert (head.splitlines()[0], body) == (b"HTTP/1.1 200 OK", b"hello")
            assert b"\r\nx-a: 1\r\n" in head and b"\r\ndate: " in head
        writer.write(GET + GET)  # and two at once, answered in turn
        assert [(await read_answer(reader))[1] for _ in range(2)] == [b"hello", b"hello"]
        writer.close()
    assert len(writes) == 5


async def everything(port: int, request: bytes) -> bytes:
    """What comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


LAST = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("app", "request_bytes", "end"),
    [
        (app_saying(b"hello", (b"content-length", b"5")), LAST, b"hello"),
        (app_saying(b"hello", (b"content-length", b"5")), LAST.replace(b"GET", b"HEAD"), b"\r\n\r\n"),
        (app_saying(b"hello", (b"content-length", b"5"), (b"connection", b"close")), GET, b"hello"),
        (app_saying(b"hello!", (b"content-length", b"6"), parts=2), LAST, b"hello!"),
        (app_saying(b"hello"), LAST, b"5\r\nhello\r\n0\r\n\r\n"),
        (app_saying(b"hello!", parts=3), LAST, b"\r\n\r\n2\r\nhe\r\n2\r\nll\r\n2\r\no!\r\n0\r\n\r\n"),
        (app_saying(b"hello!", parts=3), LAST.replace(b"GET", b"HEAD"), b"\r\n\r\n"),
    ],
)
async def test_what_is_not_simple_is_answered_as_before(app: Any, request_bytes: bytes, end: bytes) -> None:
    async with serving(app, []) as port, asyncio.timeout(60):
        answer = await everything(port, request_bytes)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(end)
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("header", [(b"x-a", b"1\r\nx-b: 2"), (b"x-a: 1\r\nx-b", b"2"), (b"x-a", b"1\nx-b: 2")])
async def test_one_header_can_not_be_made_two(header: Header) -> None:
    app = app_saying(b"hello", header, (b"content-length", b"5"))
    async with serving(app, []) as port, asyncio.timeout(60):
        answer = await everything(port, LAST.replace(b"connection: close\r\n", b""))
    assert b"x-b" not in answer and b"hello" not in answer


async def test_a_connection_nobody_asks_on_is_closed_after_a_while() -> None:
    app = app_saying(b"hello", (b"content-length", b"5"))
    async with serving(app, [], look_every_s=1.0, timeout_keep_alive=0) as port, asyncio.timeout(60):
        assert (await everything(port, GET)).endswith(b"hello")  # closed though nobody asked for it


async def test_an_empty_part_of_a_stream_does_not_end_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"", b"b", b"", b"c"):
            await send({"type": "http.response.body", "body": part, "more_body": part != b"c"})

    async with serving(app, []) as port, asyncio.timeout(60):
        answer = await everything(port, LAST)
    assert answer.endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")
