"""One open event stream over HTTP: reading, its clocks, its end."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.core.request import TokenUsage
from router.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from router.providers.http_answer import OWN_STALL_S, Answer, HttpError
from router.providers.sse_scan import SseScanner

DRAIN_S = 1.0
TRICKLE_WINDOW_S = 20.0


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """When a stream is given up. `*_at_s` are on the event loop's clock."""

    first_token_at_s: float
    idle_s: float
    end_at_s: float
    min_tokens_per_s: float
    window_s: float


class TrickleGuard:
    """Whether output comes too slowly to be alive: fewer than `min_per_s` events a second over `window_s`.

    Starts with the first output, since a long prompt is not a trickle. Times are seconds spent waiting for the
    upstream; looking before `due_s` is not worth while.
    """

    __slots__ = ("_from_events", "_from_s", "_min_per_s", "_window_s", "due_s")

    def __init__(self, min_per_s: float, window_s: float) -> None:
        self._min_per_s = min_per_s
        self._window_s = window_s
        self._from_s, self._from_events = 0.0, 0
        self.due_s = math.inf  # until the first output

    def start(self, waited_s: float, output_events: int) -> None:
        """Open a window."""
        self._from_s, self._from_events = waited_s, output_events
        self.due_s = waited_s + self._window_s

    def too_slow(self, waited_s: float, output_events: int) -> bool:
        """Close the window that is due and open the next; true if it saw too few events."""
        if waited_s < self.due_s:
            return False
        slow = output_events - self._from_events < self._min_per_s * (waited_s - self._from_s)
        self.start(waited_s, output_events)
        return slow


class Inflater:
    """Undoes a compression that nobody asked for. Raises `UpstreamBroken` past `limit_bytes` or for another coding."""

    def __init__(self, encoding: str, limit_bytes: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("gzip", "x-gzip", "deflate", "identity"):
            raise UpstreamBroken("The upstream's answer is in a content-encoding that was not asked for")
        self._limit_bytes = limit_bytes
        self._inflate = None if encoding == "identity" else zlib.decompressobj(wbits=47 if "gzip" in encoding else 15)
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """What `data` adds."""
        if self._inflate is None:
            return data
        try:
            plain = self._inflate.decompress(data, self._limit_bytes - self._size + 1)
        except zlib.error:
            raise UpstreamBroken("The upstream's compressed answer is damaged") from None
        self._size += len(plain)
        if self._size > self._limit_bytes:
            raise UpstreamBroken(f"The upstream's answer is larger than {self._limit_bytes} bytes")
        return plain

    def whole(self, data: bytes) -> bytes:
        """A complete body."""
        plain = self.feed(data)
        if self._inflate is not None and not self._inflate.eof:
            raise UpstreamBroken("The upstream's compressed answer was cut")
        return plain


class HttpStream:
    """`ports.StreamReply` over one HTTP answer.

    One timer per stream, looked at when it fires and never moved per chunk. It counts only time in which we wait for
    the upstream: a client that reads slowly is not the upstream's silence.
    """

    def __init__(
        self,
        answer: Answer,
        scanner: SseScanner,
        limits: StreamLimits,
        *,
        inflater: Inflater | None,
    ) -> None:
        self.output_events = 0
        self.saw_output = False
        self.usage_event: Mapping[str, Any] | None = None
        self.finish_reason: str | None = None
        self._answer = answer
        self._scanner = scanner
        self._limits = limits
        self._guard = TrickleGuard(limits.min_tokens_per_s, limits.window_s)
        self._inflater = inflater
        self._usage: TokenUsage | None = None
        self._reported = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop_time = self._loop.time
        self._waited_s = 0.0
        self._waiting_since_s: float | None = None
        self._late: UpstreamTimeout | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._stalled = False
        self._watch_on(self._loop_time())

    @property
    def usage(self) -> TokenUsage | None:
        """What the upstream has told so far."""
        return self._usage if self._reported else self._scanner.usage

    async def next_block(self) -> bytes | None:
        """The next events, or `None` at the good end."""
        scanner = self._scanner
        while True:
            if scanner.done or scanner.failure is not None or self._late is not None or self._closed:
                self._end()
                return None
            self._waiting_since_s = since_s = self._loop_time()
            try:
                data = await self._answer.read()
            except (HttpError, UpstreamTimeout) as error:
                block = self._interrupted(error)
            else:
                if not data:
                    block = scanner.finish()
                else:
                    block = scanner.feed(data if self._inflater is None else self._inflated(self._inflater, data))
            self._waiting_since_s = None
            self._waited_s = waited_s = self._waited_s + self._loop_time() - since_s
            events = scanner.output_events
            if events and not self.saw_output:
                self.saw_output = True
                self._guard.start(waited_s, events)
            self.output_events = events
            if waited_s >= self._guard.due_s and self._guard.too_slow(waited_s, events) and not scanner.done:
                rate = self._limits.min_tokens_per_s
                self._late = UpstreamTimeout(f"The upstream sends fewer than {rate:g} tokens a second")
            if block is not None:
                return block

    async def close(self) -> None:
        """Stop reading; unless the answer was complete, drop the connection so that the upstream stops."""
        self._leave()

    def _leave(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_watching()
        if self._scanner.done:
            # [DONE] may come before the body's last bytes: they are read aside, for the connection to be used again.
            self._answer.finish_aside(DRAIN_S)
        else:
            self._answer.abort()

    def _end(self) -> None:
        """The good end returns; any other raises. Either way nothing is held any more."""
        self._report()
        error: UpstreamError | None = self._late
        if error is None and self._scanner.failure is not None:
            error = UpstreamBroken(f"The upstream's stream is broken: {self._scanner.failure}")
        if error is None and not self._scanner.done:
            error = UpstreamBroken("The upstream's stream was closed before its end")
        self._leave()
        if error is not None:
            raise error

    def _report(self) -> None:
        scanner = self._scanner
        self.usage_event = scanner.usage_event
        self._usage = scanner.usage_in(self.usage_event)
        self._reported = True
        self.finish_reason = scanner.finish_reason

    def _inflated(self, inflater: Inflater, data: bytes) -> bytes:
        try:
            return inflater.feed(data)
        except UpstreamBroken as error:
            self._scanner.fail(error.message)
            return b""

    def _interrupted(self, error: Exception) -> bytes | None:
        """Reading raised. Where every choice had finished, a torn end of the body is still a good end."""
        if isinstance(error, UpstreamTimeout):
            self._late = error
            return None
        if self._scanner.ended:
            return self._scanner.finish()
        self._scanner.fail(f"it was cut ({type(error).__name__})")
        return None

    def _due_at_s(self, now_s: float) -> float:
        limits = self._limits
        if not (self._scanner.output_events or self._scanner.ended):
            return min(limits.first_token_at_s, limits.end_at_s)
        since_s = now_s if self._waiting_since_s is None else self._waiting_since_s
        return min(since_s + limits.idle_s, limits.end_at_s)

    def _watch(self) -> None:
        now_s = self._loop.time()
        self._stalled = not self._stalled and now_s - self._timer_at_s > OWN_STALL_S
        if self._stalled:  # it is we who stood still: what has come in the meantime is read first
            self._set_timer(now_s + OWN_STALL_S / 10)
            return
        due_at_s = self._due_at_s(now_s)
        if now_s < due_at_s or self._waiting_since_s is None:
            self._watch_on(now_s)
            return
        self._timer = None
        if now_s >= self._limits.end_at_s:
            text = "The upstream's stream did not end in time"
        elif self._scanner.output_events or self._scanner.ended:
            text = "The upstream's stream went silent"
        else:
            text = "The upstream did not send a first token in time"
        self._answer.interrupt(UpstreamTimeout(text))

    def _watch_on(self, now_s: float) -> None:
        """Look again when something may be due: at the latest after `idle_s`, at the earliest after a part of it."""
        idle_s = self._limits.idle_s
        at_s = min(self._due_at_s(now_s), now_s + idle_s)
        self._set_timer(max(at_s, now_s + min(0.05, idle_s / 4)))

    def _set_timer(self, at_s: float) -> None:
        self._timer_at_s = at_s
        self._timer = self._loop.call_at(at_s, self._watch)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
