"""An answer that is whole leaves in one write, its head put together without a second look at every header.

uvicorn writes head and body as they come: two system calls, each of which wakes the caller, and two regular
expressions a header. ASGI asks a server to wait with the head until the first of the body is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent

_FRAMING = frozenset({b"connection", b"transfer-encoding"})


class OneWrite:
    """`send` of one request. What is not as simple (streams, HEAD, closing connections) is left to uvicorn's own."""

    __slots__ = ("_cycle", "_start")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: HTTPResponseStartEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI. The head waits for the first part of the body."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None:
            if message["type"] == "http.response.body" and self._wrote(start, message):
                return
            await self._cycle.send(start)
        await self._cycle.send(message)

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
