"""Watch one engine: /metrics, /health and the GPUs, at a steady pace, into readings with their age.

What is wanted from the looks: the readings some engines must give, load by others, and whether the engine makes
progress. An engine can be hung while its /health says 200; then requests are in flight and nothing comes out of it.
Numbers decide nothing here and are never invented: a look that failed leaves the last reading to grow old.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from local_llm.datamodels import EngineCounters, EngineReading, GpuReading, ProcessState, SloTargets
from local_llm.derating import slowdown_ratio
from local_llm.histograms import between
from local_llm.inflight import Inflight
from local_llm.metrics_text import MAX_TEXT_CHARS, parse_counters
from local_llm.nvml import NO_DRIVER
from local_llm.probe import Get, ProbeError
from local_llm.steptime import step_s, ttft_s
from local_llm.unseen import UnseenLoad

_log = logging.getLogger("router.engine")

INTERVAL_S = 1.0
_PAGE_TIMEOUT_S = 2.0
_HEALTH_BYTES = 65_536
_NO_SUCH_PAGE = frozenset({404, 405, 410, 501})
_HEALTH_FAILURES = 3
_MIN_HANG_S = 2.0
_PROBE_EVERY_S = 5.0
_HUNG_PROBES = 3  # failed probes in a row after which a hung engine of ours is started anew

Health = Callable[[], tuple[ProcessState, str | None]]
Generate = Callable[[], Awaitable[bool]]


class Clock(Protocol):
    """The only source of time."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class EnginePoller:
    """One engine's watcher. `reading`, `gpus()` and `state()` are what is known now; `run` keeps them so.

    `process` tells the state of an engine we supervise; without it /health is asked here. `generate` makes the engine
    produce one token and tells whether it did: asked only of one that looks hung, as the way back.
    `on_hung` is told of an engine that stays hung. Trouble of `gpus_used`, or of any card if `None`, is the engine's.
    """

    def __init__(
        self,
        *,
        root_url: Callable[[], str],
        headers: Mapping[str, str],
        inflight: Inflight,
        slo: SloTargets,
        clock: Clock,
        get: Get,
        process: Health | None = None,
        generate: Generate | None = None,
        on_hung: Callable[[str], Awaitable[None]] | None = None,
        gpus: Callable[[], tuple[float, tuple[GpuReading, ...]] | None] = lambda: None,
        gpus_used: frozenset[int] | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._root_url = root_url
        self._headers = headers
        self._inflight = inflight
        self._slo = slo
        self._clock = clock
        self._get = get
        self._process = process
        self._generate = generate
        self._on_hung = on_hung
        self._gpus = gpus
        self._gpus_used = gpus_used
        self._interval_s = interval_s
        self._unseen = UnseenLoad()
        self._lessons = inflight.lessons
        self._counters: EngineCounters | None = None
        self._external: tuple[ProcessState, str | None] = (ProcessState.STARTING, "not reached yet")
        self._health_failures = 0
        self._progress: tuple[int, int | None, int | None] = (-1, None, None)
        self._progress_at_s = clock.now_s()
        self._patience_s = _MIN_HANG_S
        self._hung: str | None = None
        self._probed_at_s = 0.0
        self._failed_probes = 0
        self.reading: EngineReading | None = None
        self.metrics_absent = False
        """The engine has said that it has no /metrics, or none of an engine that is known, and never told anything."""
        self.scrapes = 0
        self.scrape_errors = 0
        self.last_error: str | None = None

    def gpus(self) -> tuple[float, tuple[GpuReading, ...]] | None:
        """When the cards were last read, and what they told; `None` before the first time."""
        return self._gpus()

    def state(self) -> tuple[ProcessState, str | None]:
        """The engine's state and, in words, what keeps it from being READY."""
        state, problem = self._process() if self._process is not None else self._external
        if state is not ProcessState.READY:
            return state, problem
        if (broken := self._broken_gpu()) is not None:
            return ProcessState.DOWN, broken
        if self.reading is not None and self.reading.asleep:
            return ProcessState.ASLEEP, "the engine is asleep"
        if self._hung is not None:
            return ProcessState.DEGRADED, self._hung
        return state, problem

    async def run(self) -> None:
        """Look for ever; cancel to end."""
        while True:
            await self.poll()
            await self._clock.sleep(self._interval_s)

    async def poll(self) -> None:
        """One look at everything."""
        if self._process is None:
            await self._ask_health()
        if self._process is not None and self._process()[0] is not ProcessState.READY:
            self._note_progress(self._clock.now_s())  # what hung is gone
            return
        self._inflight.slowdown = slowdown_ratio(self._used_gpus())
        await self._scrape()
        await self._check_progress()

    async def _ask_health(self) -> None:
        """An external server's health. Any answer below 500 is life: not every server has the page."""
        try:
            page = await self._get(
                f"{self._root_url()}/health",
                headers=self._headers,
                timeout_s=_PAGE_TIMEOUT_S,
                max_bytes=_HEALTH_BYTES,
            )
            problem = f"/health answers {page.status}" if page.status >= 500 else None
        except ProbeError as error:
            problem = f"/health: {error}"
        if problem is None:
            self._health_failures = 0
            self._external = (ProcessState.READY, None)
            return
        self._health_failures += 1
        never = self._external[0] is ProcessState.STARTING
        if never or self._health_failures >= _HEALTH_FAILURES:
            self._external = (ProcessState.STARTING if never else ProcessState.DOWN, problem)

    async def _scrape(self) -> None:
        own_before = self._inflight.n
        self.scrapes += 1
        try:
            page = await self._get(
                f"{self._root_url()}/metrics",
                headers=self._headers,
                timeout_s=_PAGE_TIMEOUT_S,
                max_bytes=MAX_TEXT_CHARS,
            )
        except ProbeError as error:
            self._scrape_failed(f"/metrics: {error}")
            return
        if page.status != 200:
            self.metrics_absent = page.status in _NO_SUCH_PAGE and self.reading is None
            self._scrape_failed(f"/metrics answers {page.status}")
            return
        self.metrics_absent = False
        if not page.complete:
            self._scrape_failed("/metrics is too long")
            return
        now_s = self._clock.now_s()
        counters = parse_counters(page.body.decode("utf-8", "replace"), taken_at_s=now_s)
        reading = counters.reading
        if reading.problem is not None:
            self._scrape_failed(reading.problem)
        else:
            self.last_error = None
        if counters.foreign and self.reading is None:
            self.metrics_absent = True
            return
        self._learn_speed(counters)
        self.reading = reading
        self._learn_others(reading, max(own_before, self._inflight.n), now_s)

    def _scrape_failed(self, problem: str) -> None:
        self.scrape_errors += 1
        self.last_error = problem

    def _learn_speed(self, counters: EngineCounters) -> None:
        """From the engine's own histograms, where no stream of ours has told of it since the last look."""
        before, self._counters = self._counters, counters
        heard, self._lessons = self._inflight.lessons > self._lessons, self._inflight.lessons
        seen = between(before, counters) if before is not None and not heard else None
        if seen is not None:
            self._inflight.learn_from_engine(seen)
            self._lessons = self._inflight.lessons

    def _learn_others(self, reading: EngineReading, own_n: int, now_s: float) -> None:
        own = self._inflight.state(now_s)
        usage, room = reading.kv_cache_usage_ratio, reading.kv_tokens
        self._unseen.observe(
            now_s,
            running=reading.running_requests,
            waiting=reading.waiting_requests,
            own_n=own_n,
            own_context_tokens=own.context_tokens + own.waiting_prompt_tokens,
            kv_tokens_used=usage * room if usage is not None and room is not None else None,
        )
        self._inflight.unseen_factor = self._unseen.factor
        self._inflight.others = self._unseen.others

    def _broken_gpu(self) -> str | None:
        for gpu in self._used_gpus():
            if gpu.problem is not None:
                return f"GPU {gpu.index}: {gpu.problem}"
        return None

    def _used_gpus(self) -> tuple[GpuReading, ...]:
        looked = self._gpus()
        gpus = looked[1] if looked is not None else ()
        return tuple(gpu for gpu in gpus if self._gpus_used is None or gpu.index in self._gpus_used)

    async def _check_progress(self) -> None:
        """Nothing came out for longer than anything should take, though something is in there: the engine is hung."""
        now_s = self._clock.now_s()
        reading = self.reading
        seen = (
            self._inflight.progress,
            reading.prompt_tokens if reading is not None else None,
            reading.output_tokens if reading is not None else None,
        )
        if seen != self._progress or (self._hung is None and self._is_empty(now_s)):
            self._progress = seen
            self._note_progress(now_s)
            return
        # The patience is that of the worst moment since the last sign of life: a long prompt may take long.
        self._patience_s = max(self._patience_s, self._reasonable_wait_s(now_s))
        silent_s = now_s - self._progress_at_s
        if self._hung is None and silent_s > self._patience_s:
            self._hung = f"no token for {silent_s:.1f} s with {self._inflight.n} requests in flight"
            self._probed_at_s = now_s
        elif self._hung is not None and now_s - self._probed_at_s >= _PROBE_EVERY_S:
            await self._probe_hung()

    def _note_progress(self, now_s: float) -> None:
        self._progress_at_s = now_s
        self._patience_s = _MIN_HANG_S
        self._hung = None
        self._failed_probes = 0

    def _is_empty(self, now_s: float) -> bool:
        """Nothing of ours in there that would show a token."""
        state = self._inflight.state(now_s)
        if state.n == 0:
            return True
        # plain calls show nothing until they end; only the engine's own counters can then tell
        counted = self.reading is not None and self.reading.output_tokens is not None
        return not counted and self._inflight.streamed_n == 0

    def _reasonable_wait_s(self, now_s: float) -> float:
        state, coefficients = self._inflight.state(now_s), self._inflight.coefficients
        step = step_s(coefficients, streaming=state.streaming, context_tokens=state.context_tokens)
        ttft = ttft_s(
            coefficients,
            decode_step_s=step,
            streaming=state.streaming,
            waiting_prompt_tokens=state.waiting_prompt_tokens,
            prompt_tokens=0,
            max_batched_tokens=self._inflight.max_batched_tokens,
        )
        return max(_MIN_HANG_S, 2.0 * self._slo.ttft_s, 4.0 * ttft)

    async def _probe_hung(self) -> None:
        """Half open: one token asked of a hung engine decides whether it may come back."""
        well = False
        if self._generate is not None:
            with contextlib.suppress(ProbeError):
                well = await self._generate()
        elif self._inflight.n == 0:
            well = True  # nobody can ask: the next request is the probe
        self._probed_at_s = self._clock.now_s()
        if well:
            self._note_progress(self._probed_at_s)
            return
        self._failed_probes += 1
        if self._failed_probes >= _HUNG_PROBES and self._on_hung is not None:
            problem, self._failed_probes = self._hung or "hung", 0
            self._note_progress(self._probed_at_s)
            await self._on_hung(problem)


class GpuWatcher:
    """Reads the GPUs in a thread of its own: a driver in trouble may answer late or never, and the loop must not wait.

    A read that hangs leaves the last one to grow old. Why `read` gives nothing (`problem`) is logged when it changes,
    unless the machine has never had a driver.
    """

    def __init__(
        self,
        read: Callable[[], tuple[GpuReading, ...]],
        *,
        now_s: Callable[[], float],
        problem: Callable[[], str | None] = lambda: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._read = read
        self._problem = problem
        self._now_s = now_s
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._latest: tuple[float, tuple[GpuReading, ...]] | None = None

    def latest(self) -> tuple[float, tuple[GpuReading, ...]] | None:
        """(when, what) of the last read that came back; `None` before the first."""
        return self._latest

    def start(self) -> None:
        """Begin to read; a second call does nothing."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="gpu-watcher", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End after the read under way; does not wait longer than `timeout_s` for it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def _run(self) -> None:
        ended, told = self._ended, None
        while not ended.is_set():
            gpus, problem = self._read(), self._problem()
            self._latest = (self._now_s(), gpus)
            if problem != told and problem != NO_DRIVER:
                _log.warning("gpu_driver: %s", problem or "it answers again")
            told = problem
            ended.wait(self._interval_s)
