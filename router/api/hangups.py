"""Callers who hang up: the work being done for them is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

WATCH_AFTER_S = 0.1


class Hangups:
    """Begins to watch requests once they are `after_s` old, with one timer for all of them.

    An answer that is there by then needs no watcher, which would cost more than all else that is done for its HTTP.
    """

    def __init__(self, after_s: float = WATCH_AFTER_S) -> None:
        self._after_s = after_s
        self._young: dict[Hangup, float] = {}  # since when, the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, hangup: Hangup, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with `hangup` when it is old enough."""
        self._young[hangup] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._after_s, self._look, loop)

    def forget(self, hangup: Hangup) -> None:
        """It is over."""
        self._young.pop(hangup, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        old_since_s = loop.time() - self._after_s + 0.001  # uvloop counts whole milliseconds
        for hangup, since_s in tuple(self._young.items()):
            if since_s > old_since_s:
                self._timer = loop.call_later(since_s - old_since_s, self._look, loop)
                return
            del self._young[hangup]
            hangup.begin(loop)


class Hangup:
    """One request: cancels `watch`'s task when its caller hangs up.

    The server's `receive` is run by hand, since a task of its own costs 20 us and leaves a cycle of garbage.
    """

    __slots__ = ("_hangups", "_loop", "_receive", "_waiting", "_worker", "hung_up", "response_started")

    def __init__(self, receive: Receive, hangups: Hangups) -> None:
        self._receive = receive
        self._hangups = hangups
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: Coroutine[Any, Any, Any] | None = None
        self._worker: asyncio.Task[Any] | None = None
        self.hung_up = False
        self.response_started = False

    def watch(self) -> None:
        """Start, once the body has been read."""
        self._worker = asyncio.current_task()
        self._hangups.watch(self, asyncio.get_running_loop())

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen to the caller from now on."""
        self._loop = loop
        self._waiting = self._received()
        self._go_on()

    async def _received(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _go_on(self, _: object = None) -> None:
        waiting, loop = self._waiting, self._loop
        if waiting is None or loop is None:  # stopped
            return
        try:
            waits_for = waiting.send(None)
        except StopIteration:
            self._waiting = None
            self.hung_up = True
            if self._worker is not None:
                self._worker.cancel()
            return
        if waits_for is None:
            loop.call_soon(self._go_on)
            return
        waits_for._asyncio_future_blocking = False  # what a task does with a future that it is given
        waits_for.add_done_callback(self._go_on)

    def stop(self) -> None:
        """The work is done: a disconnect means nothing now."""
        self._hangups.forget(self)
        self._worker = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.close()
