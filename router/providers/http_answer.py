"""One answer over HTTP: waiting for it, reading it, giving it up; and the deadlines of all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from router.ports import CallTimeouts

OWN_STALL_S = 0.03
_CLOCK_GRAIN_S = 0.001  # uvloop counts whole milliseconds

Phase = Literal["connect", "headers", "body"]


class HttpError(Exception):
    """A request that got no whole answer. The text names a kind of failure, never an address or a header.

    `in_body` tells that the headers had come.
    """

    in_body = False


class ConnectFailed(HttpError):
    """No connection: no such name, refused, a failed TLS handshake, a proxy that will not."""


class Reset(HttpError):
    """The connection ended before the answer did."""


class BadResponse(HttpError):
    """What came is not HTTP/1.1."""


class TimedOut(HttpError):
    """A deadline passed; `phase` tells which: connect, headers, or body."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(phase)
        self.phase = phase


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What is taken of a body that is read whole: of a 200's, and of any other's."""

    body_bytes: int
    error_bytes: int


class Source(Protocol):
    """The connection that an answer comes over, as the answer sees it."""

    def take(self) -> bytes | None:
        """The bytes of the body that wait, or `None`."""
        ...

    def drop_held(self) -> None:
        """Make room; reading goes on if it was held up."""
        ...

    def hold(self, read_bytes: int) -> None:
        """Nobody has asked for these bytes yet; beyond a high water mark reading stops."""
        ...

    def give_up(self, error: Exception | None) -> None:
        """Close at once; the answer ends with `error`, or (`None`) with what has come of it."""
        ...


class Deadlines:
    """Wakes answers that are overdue, with one timer for all of them.

    A timer of uvloop takes 2 us to set and clear, a fifth of a whole request; almost none of ours ever fires. This
    one is set for the earliest deadline and left alone when that answer arrives. When it fires late it is we who
    stood still, and what has come in the meantime is read before anybody is given up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._watched: set[Answer] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = math.inf
        self._stalled = False

    def watch(self, answer: Answer) -> None:
        """Call `answer.overdue` at its `due_at_s`; again for an earlier one."""
        self._watched.add(answer)
        if answer.due_at_s < self._timer_at_s:
            self._arm(answer.due_at_s)

    def forget(self, answer: Answer) -> None:
        """It needs no waking any more."""
        self._watched.discard(answer)

    def stop(self) -> None:
        """Forget all."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_at_s = math.inf

    def _arm(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = self.loop.call_at(at_s, self._look)

    def _look(self) -> None:
        now_s = self.loop.time() + _CLOCK_GRAIN_S
        self._stalled = not self._stalled and now_s - self._timer_at_s > OWN_STALL_S
        if self._stalled:
            self._arm(now_s + _CLOCK_GRAIN_S)
            return
        self._timer = None
        self._timer_at_s = math.inf
        for answer in [answer for answer in self._watched if answer.due_at_s <= now_s]:
            answer.overdue(now_s)
        if self._watched:
            self._arm(min(answer.due_at_s for answer in self._watched))


class Answer:
    """One answer. `status` is 0 until its headers are there.

    `body` and `truncated` are for answers read whole: all of it, or its first bytes where it is longer than allowed.
    A stream is taken by `read`. `heard` tells whether anything came at all.
    """

    status = 0
    body = b""
    truncated = False
    heard = False
    ended = False  # the body came to its good end, though some of it may still wait to be read
    _connection: Source | None = None
    _error: Exception | None = None
    _rest = b""
    _waiter: asyncio.Future[None] | None = None
    _discarded = False
    _size = 0
    _touched_at_s = 0.0
    _header_lines: Sequence[tuple[bytes, bytes]] = ()

    def __init__(
        self, timeouts: CallTimeouts, start_s: float, sizes: SizeLimits, deadlines: Deadlines, *, stream: bool
    ) -> None:
        self.due_at_s = start_s + min(timeouts.first_byte_s, timeouts.total_s)
        self._timeouts = timeouts
        self._start_s = start_s
        self._sizes = sizes
        self._deadlines = deadlines
        self._stream = stream

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name; the first of several counts."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._header_lines[::-1]}

    def header(self, name: bytes) -> str:
        """The value of the header with this lower-case name, or ""."""
        size = len(name)
        for given, value in self._header_lines:
            if len(given) == size and given.lower() == name:
                return value.strip().decode("latin-1")
        return ""

    async def opened(self) -> None:
        """Wait for the whole answer, or for the headers of a stream. Raises HttpError; cancelled, it hangs up."""
        if self._connection is not None:
            self._deadlines.watch(self)
            self._waiter = self._deadlines.loop.create_future()
            try:
                await self._waiter
            except BaseException:
                self.abort()
                raise
            finally:
                self._waiter = None
                self._deadlines.forget(self)
        if self._error is not None:
            raise self._error

    async def read(self) -> bytes:
        """The next bytes of a stream, all that have come; b"" at its good end.

        Raises HttpError for any other end, once what came before it has been read. Cancelled, it hangs up.
        """
        while (data := self._taken()) is None:
            self._waiter = self._deadlines.loop.create_future()
            try:
                await self._waiter
            except BaseException:
                self.abort()
                raise
            finally:
                self._waiter = None
        return data

    def abort(self) -> None:
        """Hang up at once, unless the answer is complete. Idempotent."""
        self.interrupt(Reset("closed by us"))

    def interrupt(self, error: Exception) -> None:
        """Hang up at once; `read` raises `error` from now on. Nothing happens once the answer is complete."""
        connection = self._connection
        if connection is not None:
            connection.give_up(error)

    def finish_aside(self, within_s: float) -> None:
        """The rest of the body is of no interest, but the connection is: let it come, though not for long."""
        if self._connection is None:
            return
        self._discarded = True
        self._connection.drop_held()
        self.due_at_s = self._deadlines.loop.time() + within_s
        self._deadlines.watch(self)

    def overdue(self, now_s: float) -> None:
        """`due_at_s` has passed: give up, unless bytes of the body have put it off."""
        if self._discarded or not self.status:
            self.interrupt(TimedOut("headers"))
            return
        self.due_at_s = self._silent_at_s()
        if self.due_at_s <= now_s:
            self.interrupt(TimedOut("body"))

    def _silent_at_s(self) -> float:
        timeouts = self._timeouts
        return min(self._touched_at_s + timeouts.idle_s, self._start_s + timeouts.total_s)

    def _taken(self) -> bytes | None:
        """What has come, b"" at the end; `None` if there is nothing yet."""
        if self._connection is not None:
            return self._connection.take()
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        if self._error is not None:
            raise self._error
        return b""

    # -- told by the connection

    def attach(self, connection: Source) -> None:
        """The request goes out over `connection`."""
        self._connection = connection

    def begin(self, status: int, header_lines: Sequence[tuple[bytes, bytes]]) -> None:
        """The headers are complete."""
        self.status = status
        self._header_lines = header_lines

    def wake(self) -> None:
        """Something has changed for who waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def leave(self, rest: bytes, error: Exception | None) -> None:
        """The connection is done with this answer; `rest` has not been read yet."""
        self._connection = None
        self._deadlines.forget(self)
        self._error = error
        if isinstance(error, HttpError):
            error.in_body = self.status != 0
        if self._stream and self.status == 200:
            self._rest = rest
        else:
            limit_bytes = self._limit_bytes()
            self.truncated = len(rest) > limit_bytes
            self.body = rest[:limit_bytes] if self.truncated else rest
        self.ended = error is None and not self.truncated
        self.wake()

    def progress(self, connection: Source, new_bytes: int, read_bytes: int) -> None:
        """A read of `read_bytes` has brought `new_bytes` of the body, and not its end."""
        if self._discarded:
            connection.drop_held()
        elif self._stream and self.status == 200:
            if self._waiter is not None:
                self.wake()
            else:
                connection.hold(read_bytes)
        elif self.status:
            self._size += new_bytes
            if self._size > self._limit_bytes():
                connection.give_up(None)
                return
            self._touched_at_s = self._deadlines.loop.time()
            self.due_at_s = self._silent_at_s()
            self._deadlines.watch(self)

    def _limit_bytes(self) -> int:
        return self._sizes.body_bytes if self.status == 200 else self._sizes.error_bytes
