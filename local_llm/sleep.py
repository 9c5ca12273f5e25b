"""Put a vLLM that nobody uses to sleep, and wake it for the first request that misses it. Off unless configured.

A sleeping vLLM has moved its weights to the host's memory and given its KV cache back: the card is free for other work,
and waking takes seconds instead of a start's minutes. Its two endpoints exist only in vLLM's development mode, in which
*anyone who reaches the port may call any function of the engine*, key or no key. So this is for an engine of ours on
loopback, on a machine whose users are all trusted (see `launch`, which refuses anything else).

Asleep is still on: the process lives, holds host memory and, as a rule, its card. The hours go on being paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Protocol

from local_llm.datamodels import EngineReading
from local_llm.inflight import Inflight
from local_llm.probe import ProbeError

_log = logging.getLogger("router.engine")
_SLEEP_TIMEOUT_S = 120.0  # 16 GB over PCIe are a second or two; a busy host takes longer
_WAKE_TIMEOUT_S = 120.0
_WAKE_TRIES = 3
_RETRY_S = 1.0
_FRESH_S = 5.0  # an older reading does not tell that nobody is in there


class Clock(Protocol):
    """The only source of time."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Post(Protocol):
    """POST to `url` without a body; the status. Raises `ProbeError`."""

    async def __call__(self, url: str, *, headers: Mapping[str, str], timeout_s: float) -> int:
        """One call."""
        ...


class Phase(StrEnum):
    """Where the engine is between waking and sleeping."""

    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking up"


class Sleeper:
    """One engine's rest. `look` after each look at the engine, `wake` when it is missed; both on the event loop.

    `on_stuck` is told of an engine that does not wake up. Nothing may be sent to the engine unless `phase` is AWAKE.
    """

    def __init__(
        self,
        *,
        after_idle_s: float,
        root_url: Callable[[], str],
        headers: Mapping[str, str],
        post: Post,
        inflight: Inflight,
        clock: Clock,
        on_stuck: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._after_idle_s = after_idle_s
        self._root_url = root_url
        self._headers = headers
        self._post = post
        self._inflight = inflight
        self._clock = clock
        self._on_stuck = on_stuck
        self._idle_since_s = self._changed_at_s = clock.now_s()
        self._wanted = False
        self._waking: asyncio.Task[None] | None = None
        self.phase = Phase.AWAKE

    @property
    def told(self) -> str:
        """The phase for people."""
        if self.phase is Phase.ASLEEP:
            return f"asleep after {self._after_idle_s:g} s without work; the first request that misses it wakes it"
        return self.phase.value

    async def look(self, *, alive: bool, reading: EngineReading | None) -> None:
        """Take note of the engine as it is now, and put it to sleep when nobody has used it for long enough.

        `alive`: the process runs and is ready; one that was started anew is awake.
        """
        now_s = self._clock.now_s()
        if not alive:
            self._now(Phase.AWAKE)
            return
        told_asleep = reading.asleep if reading is not None and reading.taken_at_s > self._changed_at_s else None
        if self.phase is Phase.ASLEEP and told_asleep is False:
            self._now(Phase.AWAKE)  # somebody else has woken it
        elif self.phase is Phase.AWAKE and told_asleep:
            self._now(Phase.ASLEEP)
        elif self.phase is Phase.AWAKE and self._in_use(reading, now_s):
            self._idle_since_s = now_s
        elif self.phase is Phase.AWAKE and now_s - self._idle_since_s >= self._after_idle_s:
            await self._fall_asleep()

    def wake(self) -> None:
        """A request misses the engine. Returns at once."""
        if self.phase is Phase.ASLEEP:
            self._now(Phase.WAKING)
            self._waking = asyncio.create_task(self._wake_up())
        elif self.phase is Phase.FALLING_ASLEEP:
            self._wanted = True

    async def close(self) -> None:
        """Stop waking."""
        if self._waking is not None:
            self._waking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._waking

    def _in_use(self, reading: EngineReading | None, now_s: float) -> bool:
        if reading is None or now_s - reading.taken_at_s > _FRESH_S:
            return True
        return self._inflight.n > 0 or reading.running_requests != 0 or reading.waiting_requests != 0

    def _now(self, phase: Phase) -> None:
        if phase is not self.phase:
            self.phase = phase
            self._idle_since_s = self._changed_at_s = self._clock.now_s()

    async def _fall_asleep(self) -> None:
        # From here on nothing is sent to it: the phase is set in the same step in which nothing was in flight.
        self._now(Phase.FALLING_ASLEEP)
        problem = await self._ask("/sleep?level=1&mode=wait", _SLEEP_TIMEOUT_S)
        if problem is not None:
            _log.warning("engine_sleep_failed: %s", problem)
            # What it does now nobody knows: the next reading tells, and if it is awake it is left alone for a while.
            self._now(Phase.AWAKE)
            return
        self._now(Phase.ASLEEP)
        if self._wanted:
            self._wanted = False
            self.wake()

    async def _wake_up(self) -> None:
        problem: str | None = None
        for _ in range(_WAKE_TRIES):
            problem = await self._ask("/wake_up", _WAKE_TIMEOUT_S)
            if problem is None:
                self._now(Phase.AWAKE)
                return
            await self._clock.sleep(_RETRY_S)
        _log.warning("engine_wake_failed: %s", problem)
        self._now(Phase.ASLEEP)
        if self._on_stuck is not None:
            await self._on_stuck(f"it does not wake up: {problem}")

    async def _ask(self, path: str, timeout_s: float) -> str | None:
        """What went wrong, or `None`."""
        try:
            status = await self._post(f"{self._root_url()}{path}", headers=self._headers, timeout_s=timeout_s)
        except ProbeError as error:
            return f"{path}: {error}"
        return None if status == 200 else f"{path} answers {status}"
