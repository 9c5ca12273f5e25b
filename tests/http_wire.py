"""One HTTP connection fed by hand: its wire, its clock, and answers cut into reads at will."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st

from router.ports import CallTimeouts
from router.providers.http_answer import Answer, Deadlines, HttpError, SizeLimits
from router.providers.http_connection import Connection

TIMEOUTS = CallTimeouts(connect_s=1.0, first_byte_s=10.0, idle_s=4.0, total_s=30.0)


OK = b"HTTP/1.1 200 OK\r\n"


class Wire(asyncio.Transport):
    """The other side of a connection: what is written to it, and how it is treated."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent_bytes = 0
        self.aborted = False
        self.paused = False

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


@dataclass
class Clock:
    """An event loop as far as deadlines need one."""

    now_s: float = 100.0
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    timers_set: int = 0

    def time(self) -> float:
        return self.now_s

    def create_future(self) -> Any:
        return Slot()

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        timer = (when, callback)
        self.timers.append(timer)
        self.timers_set += 1
        clock = self

        class Handle:
            def cancel(self) -> None:
                if timer in clock.timers:
                    clock.timers.remove(timer)

        return Handle()

    def to(self, now_s: float, *, late_s: float = 0.0) -> None:
        """Let time pass; timers fire when they are due, or `late_s` after."""
        while due := [timer for timer in self.timers if timer[0] <= now_s]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now_s = max(self.now_s, first[0] + late_s)
            first[1]()
        self.now_s = max(self.now_s, now_s)


class Slot:
    """A future that is only ever set."""

    def __init__(self) -> None:
        self.woken = False

    def done(self) -> bool:
        return self.woken

    def set_result(self, _result: None) -> None:
        self.woken = True

    def __await__(self) -> Iterator[Any]:
        yield self


class House:
    """The pool of one connection, and the answer under way on it."""

    def __init__(self, *, stream: bool = False, body_bytes: int = 10**9, error_bytes: int = 10**9) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)  # type: ignore[arg-type]
        self.sizes = SizeLimits(body_bytes, error_bytes)
        self.free: list[Connection] = []
        self.gone: list[Connection] = []
        self.wire = Wire()
        self.connection = Connection(self)
        self.connection.connection_made(self.wire)
        self.ask(stream=stream)

    def ask(self, *, stream: bool = False) -> None:
        self.answer = Answer(TIMEOUTS, self.clock.now_s, self.sizes, self.deadlines, stream=stream)
        self.connection.send(self.answer, b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n", b"{}")
        self.waiting = self.answer.opened()
        self.step()

    def step(self) -> bool:
        """Run who waits for the answer; true when the wait is over."""
        try:
            self.waiting.send(None)
        except StopIteration:
            return True
        return False

    def feed(self, *reads: bytes) -> None:
        for data in reads:
            self.connection.data_received(data)

    def release(self, connection: Connection) -> None:
        self.free.append(connection)

    def lost(self, connection: Connection) -> None:
        self.gone.append(connection)

    def error(self) -> HttpError:
        with pytest.raises(HttpError) as caught:
            while not self.step():
                pass
        return caught.value


@dataclass(frozen=True)
class Message:
    raw: bytes
    head_size: int
    body: bytes
    framing: str


def chunked(parts: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part)
    return chunks + b"0\r\n" + trailer + b"\r\n"


@st.composite
def messages(draw: st.DrawFn) -> Message:
    parts = draw(st.lists(st.binary(max_size=60), max_size=6))
    body = b"".join(parts)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    head = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2)) + OK + b"X-Request-Id: r1\r\n"
    if framing == "length":
        head, wire = head + b"Content-Length: %d\r\n\r\n" % len(body), body
    elif framing == "chunked":
        extension = draw(st.sampled_from([b"", b";a=b", b" "]))
        trailer = draw(st.sampled_from([b"", b"x-sum: 1\r\n"]))
        head, wire = head + b"Transfer-Encoding: chunked\r\n\r\n", chunked(parts, extension, trailer)
    else:
        head, wire = head + b"\r\n", body
    return Message(head + wire, len(head), body, framing)


def cut(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    at = sorted(draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=12)))
    return [raw[start:end] for start, end in itertools.pairwise([0, *at, len(raw)]) if start < end]
