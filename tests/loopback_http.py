"""A small HTTP/1.1 server on a loopback port, for tests that must decide every byte and every pause of an answer.

It knows nothing of any API. `tests/upstream.py` plays an OpenAI-style upstream on it. Handlers get an `Exchange`: the
recorded request and the means to answer, cut or stall.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self, cast

from tests.patience import until


class Gone(Exception):
    """The client has closed the connection; nothing more can be written to it."""


@dataclass(slots=True)
class RecordedRequest:
    """One request as it arrived, and what became of it. Times are monotonic seconds."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    received_at_s: float
    disconnected_at_s: float | None = None
    answered: bool = False
    chunks_sent: int = 0

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(slots=True)
class _Parser:
    buffer: bytearray = field(default_factory=bytearray)

    def next_request(self, connection: int) -> RecordedRequest | None:
        """A complete request, or `None` while bytes are missing. Bodies by Content-Length or chunked."""
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        first, *lines = self.buffer[:head_end].decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        taken = self._body(head_end + 4, headers)
        if taken is None:
            return None
        body, end = taken
        del self.buffer[:end]
        method, path, _ = first.split(" ", 2)
        return RecordedRequest(method, path, headers, body, connection, time.monotonic())

    def _body(self, start: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
        if headers.get("transfer-encoding") != "chunked":
            end = start + int(headers.get("content-length", "0"))
            return (bytes(self.buffer[start:end]), end) if len(self.buffer) >= end else None
        parts = []
        while True:
            line_end = self.buffer.find(b"\r\n", start)
            if line_end < 0:
                return None
            size = int(self.buffer[start:line_end].split(b";")[0], 16)
            start = line_end + 2
            if len(self.buffer) < start + size + 2:
                return None
            parts.append(bytes(self.buffer[start : start + size]))
            start += size + 2
            if size == 0:
                return b"".join(parts), start


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, request: RecordedRequest, connection: _Connection) -> None:
        self.request = request
        self._connection = connection
        self._chunked = False

    @property
    def gone(self) -> bool:
        """The client has closed the connection."""
        return self._connection.gone.is_set()

    async def raw(self, data: bytes) -> None:
        """Write bytes as they are; waits while the client reads too slowly. Raises `Gone`."""
        await self._connection.write(data)

    async def head(self, status: int, headers: Iterable[tuple[str, str]], *, content_length: int | None) -> None:
        """Status line and headers; a chunked body follows where `content_length` is `None`."""
        self._chunked = content_length is None
        framing = ("transfer-encoding", "chunked") if self._chunked else ("content-length", str(content_length))
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in (*headers, framing))]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        """One piece of a chunked body, in one write."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))
        self.request.chunks_sent += 1

    async def end(self) -> None:
        """The end of a chunked body."""
        if self._chunked:
            await self.raw(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """A whole answer in one write."""
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)

    async def pause(self, seconds: float) -> None:
        """Wait; raises `Gone` as soon as the client goes. `inf` waits for that alone."""
        if seconds > 0:
            await self._connection.pause(seconds)

    def close(self) -> None:
        """Close after what has been written (FIN)."""
        self._connection.close()

    def reset(self) -> None:
        """Drop the connection with a RST."""
        self._connection.reset()


Handler = Callable[[Exchange], Awaitable[None]]


class _Connection(asyncio.Protocol):
    def __init__(self, server: LoopbackServer, number: int) -> None:
        self.server = server
        self.number = number
        self.gone = asyncio.Event()
        self.parser = _Parser()
        self.transport: asyncio.Transport | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None
        self.arrived = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self.server.connections.add(self)
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self.parser.buffer += data
        self.arrived.set()

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self.server.connections.discard(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _leave(self) -> None:
        self.gone.set()
        self.arrived.set()
        self.writable.set()

    async def write(self, data: bytes) -> None:
        if self.gone.is_set() or self.transport is None:
            raise Gone
        self.transport.write(data)
        if not self.writable.is_set():
            await self.writable.wait()
            if self.gone.is_set():
                raise Gone

    async def pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(None if seconds == float("inf") else seconds):
                await self.gone.wait()
        except TimeoutError:
            return
        raise Gone

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        assert self.transport is not None
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def _serve(self) -> None:
        while not self.gone.is_set():
            request = self.parser.next_request(self.number)
            if request is None:
                self.arrived.clear()
                await self.arrived.wait()
                continue
            self.server.requests.append(request)
            try:
                await self.server.handle(Exchange(request, self))
                request.answered = True
            except Gone:
                pass
            except Exception as error:  # noqa: BLE001 - a server's own mistake must fail the test, not look like a cut
                self.server.failures.append(error)
                self.reset()
            if self.gone.is_set():
                request.disconnected_at_s = time.monotonic()


class LoopbackServer:
    """Serves `handle` on 127.0.0.1, port chosen by the system; an async context manager."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self.connections: set[_Connection] = set()
        self.connections_made = 0
        self.failures: list[Exception] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request; may raise `Gone`."""
        raise NotImplementedError

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def _connection(self) -> _Connection:
        self.connections_made += 1
        return _Connection(self, self.connections_made)

    async def start(self, *, unix_path: str | None = None) -> Self:
        """Listen; on a unix socket if a path is given."""
        loop = asyncio.get_running_loop()
        if unix_path is not None:
            self._server = await loop.create_unix_server(self._connection, unix_path)
        else:
            self._server = await loop.create_server(self._connection, "127.0.0.1", self.port, backlog=4096)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening, drop every connection, wait for their handlers."""
        if self._server is not None:
            self._server.close()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in tuple(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        if self.failures:
            raise self.failures[0]

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` holds."""
        await until(condition)
