"""An answer that is whole leaves in one write, its head put together without a second look at every header.

uvicorn writes head and body as they come: two system calls, each of which wakes the caller, and two regular
expressions a header. ASGI asks a server to wait with the head until the first of the body is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent

_FRAMING = frozenset({b"connection", b"transfer-encoding"})


class _Done:
    """What is awaited after a write that has happened: nothing, and no coroutine is made to tell so."""

    def __await__(self) -> Iterator[None]:
        return iter(())


_DONE = cast("Awaitable[None]", _Done())


class OneWrite:
    """`send` of one request. What is less simple (heads of streams, HEAD, closing connections) is left to uvicorn's."""

    __slots__ = ("_cycle", "_relays", "_start")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: HTTPResponseStartEvent | None = None
        self._relays = False  # in the middle of a stream in chunks

    def send(self, message: ASGISendEvent) -> Awaitable[None]:
        """ASGI. The head waits for the first part of the body."""
        cycle = self._cycle
        if message["type"] == "http.response.body":
            if self._relays:
                if message.get("more_body", False) and not (cycle.disconnected or cycle.flow.write_paused):
                    body = message["body"]
                    if body:
                        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
                    return _DONE
                return cycle.send(message)
            start, self._start = self._start, None
            if start is not None:
                return _DONE if self._wrote(start, message) else self._begin(start, message)
        elif message["type"] == "http.response.start" and not cycle.response_started:
            self._start = message
            return _DONE
        return cycle.send(message)

    async def _begin(self, start: HTTPResponseStartEvent, message: HTTPResponseBodyEvent) -> None:
        cycle = self._cycle
        await cycle.send(start)
        await cycle.send(message)
        self._relays = cycle.chunked_encoding is True and cycle.scope["method"] != "HEAD"

    def _wrote(self, start: HTTPResponseStartEvent, message: HTTPResponseBodyEvent) -> bool:
        """Answer at once; False, and nothing has happened, where that takes more care."""
        if message.get("more_body", False):
            return False
        cycle, headers, body = self._cycle, start["headers"], message.get("body", b"")
        given = dict(headers)
        if given.get(b"content-length") != b"%d" % len(body) or not _FRAMING.isdisjoint(given):
            return False
        if not cycle.keep_alive or cycle.disconnected or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
            return False
        lines = (*cycle.default_headers, *headers)
        head = b"\r\n".join(map(b": ".join, lines))
        if not head.count(b"\r") == head.count(b"\n") == len(lines) - 1:  # one header would be two
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.writelines((STATUS_LINE[start["status"]], head, b"\r\n\r\n", body))
        cycle.message_event.set()
        cycle.on_response()
        return True
