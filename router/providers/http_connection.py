"""One HTTP/1.1 connection, over which one answer comes at a time.

The parser is llhttp, through httptools; what is here is when an answer is whole and when it is cut. A connection is
used again only after an answer that came whole and left nothing behind. Whatever ends otherwise (an error, a cancelled
reader, a deadline, too many bytes) closes it at once, so that the upstream stops working.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import httptools

from router.providers.http_answer import Answer, BadResponse, Reset

MAX_BODYLESS_BYTES = 64 * 1024  # of headers, trailers or chunk extensions in a row
HIGH_WATER_BYTES = 256 * 1024


class Pool(Protocol):
    """Who lends connections out."""

    def release(self, connection: Connection) -> None:
        """Free for the next request."""
        ...

    def lost(self, connection: Connection) -> None:
        """Gone, by whoever's will."""
        ...


class Connection(asyncio.Protocol):
    """One connection. Its owner lends it to one request at a time, by `send`."""

    on_body: Callable[[bytes], None]

    def __init__(self, pool: Pool) -> None:
        self.idle_since_s = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._parts: list[bytes] = []  # of the body, not yet taken
        self.on_body = self._parts.append  # called by the parser without a detour
        self._header_lines: list[tuple[bytes, bytes]] = []
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # What lenient hosts send and every browser takes.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._new_message()

    def _new_message(self) -> None:
        self._complete = False
        self._reusable = False
        self._interim = False
        self._paused = False
        self._seen = 0  # parts looked at
        self._body_parts = 0  # parts when the message was complete
        self._bodyless_bytes = 0
        self._held_bytes = 0

    @property
    def usable(self) -> bool:
        """Open, as far as we have heard."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, answer: Answer, head: bytes, body: bytes) -> None:
        """One request, in one write."""
        transport = self._transport
        self._answer = answer
        answer.attach(self)
        if transport is None:
            self.give_up(Reset("closed"))
            return
        self._new_message()
        transport.writelines((head, body))

    def close(self) -> None:
        """Close at once, whatever is under way."""
        if self._answer is not None:
            self.give_up(Reset("closed by us"))
        elif self._transport is not None:
            self._transport.abort()

    def give_up(self, error: Exception | None) -> None:
        """Close at once; the answer ends with `error`, or (`None`) with what has come of it."""
        self._part_with_answer(error)
        if self._transport is not None:
            self._transport.abort()

    def take(self) -> bytes | None:
        """The bytes of the body that wait, or `None`."""
        parts = self._parts
        if not parts:
            return None
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.drop_held()
        return data

    def drop_held(self) -> None:
        """Make room; reading goes on if it was held up."""
        self._parts.clear()
        self._seen = self._held_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def hold(self, read_bytes: int) -> None:
        """Nobody has asked for these bytes yet; beyond the high water mark we stop reading."""
        self._held_bytes += read_bytes
        if self._held_bytes > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _part_with_answer(self, error: Exception | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        parts = self._parts
        rest = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        answer.leave(rest, error)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = transport  # type: ignore[assignment]  # a stream's, by how it was made

    def data_received(self, data: bytes) -> None:
        """One read."""
        answer = self._answer
        if answer is None or self._parser is None:  # unasked for: an error page before closing, as a rule
            self.close()
            return
        answer.heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._reusable = False
            if not self._complete:
                self.give_up(BadResponse("malformed"))
                return
        if self._complete:
            self._finish()
            return
        parts = self._parts
        new_parts = len(parts) - self._seen
        new_bytes = 0
        if new_parts == 1:
            self._bodyless_bytes = 0
            new_bytes = len(parts[-1])
        elif new_parts:
            self._bodyless_bytes = 0
            new_bytes = sum(map(len, parts[-new_parts:]))
        else:
            self._bodyless_bytes += len(data)
            if self._bodyless_bytes > MAX_BODYLESS_BYTES:
                self.give_up(BadResponse("headers too large"))
                return
        self._seen = len(parts)
        answer.progress(self, new_bytes, len(data))

    def eof_received(self) -> None:
        """The upstream is done sending: the good end of a body that says neither its length nor its chunks."""
        answer = self._answer
        if answer is None:
            return
        framed = answer.header(b"content-length") or answer.header(b"transfer-encoding")
        good = answer.status and not framed
        self.give_up(None if good else Reset("closed"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whomever."""
        self._part_with_answer(Reset("reset" if exc is not None else "closed"))
        self._transport = None
        self._parser = None  # it holds on to us
        self._pool.lost(self)

    def _finish(self) -> None:
        """The answer is whole."""
        transport = self._transport
        del self._parts[self._body_parts :]  # of a message that nobody asked for
        reusable = self._reusable and transport is not None and transport.get_write_buffer_size() == 0
        if self._paused:
            self._paused = False
            if transport is not None:
                transport.resume_reading()
        self._part_with_answer(None)
        if reusable and self.usable:
            self._pool.release(self)
        elif transport is not None:
            transport.abort()

    # -- httptools

    def on_message_begin(self) -> None:
        """A message begins: the one we wait for, or one too many."""
        if self._complete:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody reads."""
        self._header_lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The status is known; a 1xx announces that the answer is still to come."""
        header_lines, self._header_lines = self._header_lines, []
        if self._complete or self._answer is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
        else:
            self._answer.begin(status, header_lines)

    def on_message_complete(self) -> None:
        """The message is whole."""
        if self._interim:
            self._interim = False
        elif not self._complete and self._parser is not None:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()
            self._body_parts = len(self._parts)
            self._header_lines.clear()
