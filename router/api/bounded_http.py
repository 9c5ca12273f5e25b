"""uvicorn's HTTP/1.1, with bounds that it lacks on heads and on callers who do not read; its refusals in our envelope.

A body is bounded where it is read (`body.py`). Line and headers are read before any of our code runs, so they are
bounded here: in size, since uvicorn keeps as much as comes, and in time, since it waits for ever. So it does for a
caller who stops reading in the middle of an answer, which would keep an engine's seat and an open reservation.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.api.error_responses import error_response
from router.api.one_write import OneWrite
from router.errors import BadRequest, HeadTooLarge, HeadTooSlow, RouterError

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_HEAD_BYTES = 2 * 1024 * 1024
HEAD_TIMEOUT_S = 30.0
STALLED_READER_S = 60.0
"""How long a caller may leave full buffers unread; who reads on in that time is slow, not stalled."""
_LEAST_READ_BYTES = 32 * 1024
"""What reading on is: about what drains a buffer that has just become full. A byte now and then would keep a seat."""
_LINGER_S = 1.0
"""How long bytes of a refused request are still taken: closing on unread ones would destroy the refusal on its way."""


class BoundedHttp(HttpToolsProtocol):
    """One connection. `new_id` names refusals that happen before a request is one.

    Counted are whole reads, which may hold the beginning of a body too: the bound must be far above a read's size.
    """

    new_id: Callable[[], str]
    max_head_bytes = MAX_HEAD_BYTES
    head_timeout_s = HEAD_TIMEOUT_S
    stalled_reader_s = STALLED_READER_S

    _asked = False
    _in_head = True
    _head_bytes = 0
    _head_since_s: float | None = None
    _idle_since_s: float | None = None
    _offered_upgrade = False
    _refused = False
    _refusal: RouterError | None = None
    _timer: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has come."""
        super().connection_made(transport)
        self._head_since_s = self.loop.time()
        self._timer = self.loop.call_later(self.head_timeout_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """And gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller reads more slowly than we write, or not at all."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The caller reads on."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def _wait_for_reader(self) -> None:
        self._unread_bytes = self._unread()
        self._unread_timer = self.loop.call_later(self.stalled_reader_s, self._look_at_reader)

    def _look_at_reader(self) -> None:
        """A large answer lies in the buffer as a whole: who reads on in it is not cut off before its end."""
        if self._unread_bytes - self._unread() >= _LEAST_READ_BYTES:
            self._wait_for_reader()
        else:  # what is cut off here looks like a caller who has left, and is settled as one
            self.transport.abort()

    def _unread(self) -> int:
        """Bytes on their way: in our buffer, and in the kernel's, which takes more of ours a megabyte at a time."""
        unread = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, AttributeError):  # not every system tells, and it may be closed
            descriptor = self.transport.get_extra_info("socket").fileno()
            unread += int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return unread

    def _stop_waiting_for_reader(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, a body or both."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._refused:
                return
            if self._head_bytes > self.max_head_bytes:
                self._refuse(HeadTooLarge(f"the request's headers exceed {self.max_head_bytes} bytes; send less"))
                return
        rest: bytes | memoryview = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    rest = memoryview(rest)[upgrade.args[0] :]
                    self._pass_over_upgrade()
        except httptools.HttpParserError:
            self._refuse(BadRequest("the request is not valid HTTP/1.1"))

    def _pass_over_upgrade(self) -> None:
        """Begin again without the offer of another protocol (as Java makes it): uvicorn would lose the body."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
                value = b",".join(tokens)
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._asked = True
        self._head_since_s = self.loop.time()
        self._idle_since_s = None
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head has come to its end."""
        self._in_head = False
        self._head_bytes = 0
        self._idle_since_s = None
        self._offered_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offered_upgrade:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """And its body too."""
        if self._offered_upgrade:  # the parser takes the body for something else
            return
        self._in_head = True
        self._head_since_s = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """All has been written. As uvicorn has it, but that connections in no use wait for a timer that is there."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._write_refusal(self._refusal)
        else:
            self._idle_since_s = self.loop.time()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        send = OneWrite(cycle).send
        super()._start_asgi_task(cycle, lambda scope, receive, _: app(scope, receive, send))

    def _look(self) -> None:
        """Now and then: is a head overdue, or has nothing been asked for long?"""
        now_s, since_s, idle_since_s = self.loop.time(), self._head_since_s, self._idle_since_s
        if idle_since_s is not None and now_s - idle_since_s >= self.timeout_keep_alive:
            self.transport.close()
            return
        overdue = self._in_head and since_s is not None and now_s - since_s >= self.head_timeout_s
        if overdue and not self._asked:  # nobody has asked anything, so there is nothing to answer
            self.transport.close()
        elif overdue:
            self._refuse(HeadTooSlow(f"the request's headers did not arrive within {self.head_timeout_s:g} s"))
        else:
            self._timer = self.loop.call_later(self.head_timeout_s, self._look)

    def _refuse(self, error: RouterError) -> None:
        """The end of this connection: nothing more is read of it, and what was asked before is answered before."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = self._in_head = True
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                self._refusal = error
                return
            if self.pipeline:  # its body is broken, and it waits for its turn behind others
                self.pipeline.popleft()
                self._refusal = error
                return
            cycle.disconnected = True  # its body will never be whole, and this is its answer
            cycle.message_event.set()
        self._write_refusal(error)

    def _write_refusal(self, error: RouterError) -> None:
        transport = self.transport
        out = error_response(error)
        headers = {
            **dict(out.headers),
            b"x-request-id": self.new_id().encode(),
            b"content-length": b"%d" % len(out.body),
            b"connection": b"close",
        }
        lines = b"".join(b"%b: %b\r\n" % header for header in headers.items())
        transport.write(STATUS_LINE[out.status] + lines + b"\r\n" + out.body)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(_LINGER_S, transport.close)
        if transport.can_write_eof():
            transport.write_eof()


def bounded_http(
    new_id: Callable[[], str],
    *,
    max_head_bytes: int = MAX_HEAD_BYTES,
    head_timeout_s: float = HEAD_TIMEOUT_S,
    stalled_reader_s: float = STALLED_READER_S,
) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http` option."""
    bounds = {
        "new_id": staticmethod(new_id),
        "max_head_bytes": max_head_bytes,
        "head_timeout_s": head_timeout_s,
        "stalled_reader_s": stalled_reader_s,
    }
    return type("BoundedHttp", (BoundedHttp,), bounds)
