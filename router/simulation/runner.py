"""Plays a trace against a simulated engine with one policy at the door: a discrete-event loop, no clock, no I/O."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from local_llm.simulated_engine import EngineRequest, SimulatedEngine
from router.simulation.policies import Gauges, Policy, Running
from router.simulation.traces import TraceRequest

SCRAPE_INTERVAL_S = 1.0
API_TTFT_MEDIAN_S = 0.45
API_TTFT_SIGMA = 0.35
API_TPOT_S = 0.015
_TELL_TOKENS_EVERY = 8
_PROGRESS_EVERY = 256

Progress = Callable[[int], None]


@dataclass(slots=True)
class Stay:
    """One request from arrival to its last token; `admitted` is false for those the API answered."""

    request: TraceRequest
    admitted: bool
    first_token_at_s: float = math.inf
    ended_at_s: float = math.inf

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_token_at_s - self.request.at_s

    def misses(self, slo: SloTargets) -> bool:
        """A first token that came late, or a stream slower than the promise and its slack."""
        allowed_s = slo.tpot_s * (self.request.output_tokens - 1) + slo.slack_s
        return self.ttft_s > slo.ttft_s or self.ended_at_s - self.first_token_at_s > allowed_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; 0 for an answer of one."""
        after_first = self.request.output_tokens - 1
        return (self.ended_at_s - self.first_token_at_s) / after_first if after_first > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it. `stays` are in order of arrival; `duration_s` is until the last event."""

    stays: Sequence[Stay]
    duration_s: float
    busy_s: float
    preemptions: int


class _Local(EngineRequest):
    """A request in the engine, whose it is, and up to which step its tokens have been told."""

    __slots__ = ("running", "stay", "told_step")

    def __init__(self, stay: Stay, running: Running) -> None:
        super().__init__(stay.request.prompt_tokens, stay.request.output_tokens)
        self.stay = stay
        self.running = running
        self.told_step = 0


class _Streams:
    """The streams being read, and what of them has been told to the policy."""

    def __init__(self, *, watched: bool) -> None:
        self._watched = watched
        self._open: dict[int, _Local] = {}
        self._step = 0

    def step(self, now_s: float) -> None:
        """Every open stream has one more token. One stream tells each at its time, the rest before they are needed."""
        if not (self._watched and self._open):
            return
        self._step += 1
        eldest = next(iter(self._open.values()))
        eldest.running.token(self._step - eldest.told_step, now_s)
        eldest.told_step = self._step
        if self._step % _TELL_TOKENS_EVERY == 0:
            self.tell()

    def tell(self) -> None:
        """Bring the policy's count of tokens up to date."""
        step = self._step
        for request in self._open.values():
            if request.told_step != step:
                request.running.token(step - request.told_step, None)
                request.told_step = step

    def open(self, request: _Local) -> None:
        """Its tokens come from now on."""
        request.told_step = self._step
        self._open[id(request)] = request

    def close(self, request: _Local) -> None:
        """None comes for now, or ever."""
        self._open.pop(id(request), None)


def run(
    trace: Sequence[TraceRequest],
    policy: Policy,
    *,
    coefficients: EngineCoefficients,
    limits: EngineLimits,
    seed: int = 0,
    scrape_interval_s: float = SCRAPE_INTERVAL_S,
    progress: Progress = lambda _: None,
) -> Run:
    """Play `trace` (in order of time). `seed` throws the phase of the scrapes and the API's times to first token."""
    return _Loop(trace, policy, SimulatedEngine(coefficients, limits), seed, scrape_interval_s, progress).run()


class _Loop:
    """Steps of the engine, and what arrives while each of them lasts."""

    def __init__(
        self,
        trace: Sequence[TraceRequest],
        policy: Policy,
        engine: SimulatedEngine[_Local],
        seed: int,
        scrape_interval_s: float,
        progress: Progress,
    ) -> None:
        self._stays = [Stay(request, admitted=False) for request in trace]
        self._policy = policy
        self._engine = engine
        self._dice = random.Random(seed)
        self._scrape_interval_s = scrape_interval_s
        self._scrape_at_s = self._dice.random() * scrape_interval_s
        self._scraped_busy_s = 0.0
        self._progress = progress
        self._next = 0
        # Between the router and the engine's scheduler lies its front end: HTTP, tokenising. The delay is the same for
        # all, so they come out in the order they went in.
        self._entering: deque[tuple[float, _Local]] = deque()
        self._elsewhere: list[tuple[float, int, TraceRequest]] = []
        self._streams = _Streams(watched=policy.watches_tokens)

    def run(self) -> Run:
        engine = self._engine
        now_s = 0.0
        while True:
            if engine.idle:
                idle_until_s = min(self._next_arrival_at_s, self._entering[0][0] if self._entering else math.inf)
                if idle_until_s == math.inf:
                    break
                now_s = max(now_s, idle_until_s)
                self._happen(now_s, step_started_at_s=now_s)
            else:
                started_at_s = now_s
                now_s += engine.start_step()
                for request in engine.paused:
                    self._pause(request)
                self._happen(now_s, step_started_at_s=started_at_s)
                self._end_step(now_s)
        last_s = self._stays[-1].request.at_s if self._stays else 0.0
        self._progress(len(self._stays))
        return Run(self._stays, max(now_s, last_s), engine.busy_s, engine.preemptions)

    @property
    def _next_arrival_at_s(self) -> float:
        return self._stays[self._next].request.at_s if self._next < len(self._stays) else math.inf

    def _happen(self, until_s: float, *, step_started_at_s: float) -> None:
        """Arrivals and scrapes up to `until_s`, in order, then what has passed the front end by then."""
        arrival_at_s = self._next_arrival_at_s
        while min(arrival_at_s, self._scrape_at_s) <= until_s:
            if self._scrape_at_s <= arrival_at_s:
                self._scrape(self._scrape_at_s, step_started_at_s)
            else:
                self._arrive(self._stays[self._next])
                self._next += 1
                arrival_at_s = self._next_arrival_at_s
        entering = self._entering
        while entering and entering[0][0] <= until_s:
            self._engine.submit(entering.popleft()[1])

    def _scrape(self, now_s: float, step_started_at_s: float) -> None:
        engine = self._engine
        running_for_s = 0.0 if engine.idle else max(0.0, now_s - step_started_at_s)
        busy_s = engine.busy_s + running_for_s
        ratio = min(1.0, (busy_s - self._scraped_busy_s) / self._scrape_interval_s)
        self._scraped_busy_s = busy_s
        self._scrape_at_s = now_s + self._scrape_interval_s
        self._policy.scraped(Gauges(engine.running, engine.waiting, engine.kv_usage_ratio, ratio), now_s)

    def _arrive(self, stay: Stay) -> None:
        if self._next % _PROGRESS_EVERY == 0:
            self._progress(self._next)
        request = stay.request
        now_s = request.at_s
        self._streams.tell()
        elsewhere = self._elsewhere
        while elsewhere and elsewhere[0][0] <= now_s:
            self._policy.answered_elsewhere(heapq.heappop(elsewhere)[2])
        # A request longer than the engine's window is never its own, whoever decides.
        fits = self._engine.fits(request.prompt_tokens, request.output_tokens)
        running = self._policy.admit(request, now_s) if fits else None
        if running is not None:
            stay.admitted = True
            self._entering.append((now_s + self._engine.coefficients.api_s, _Local(stay, running)))
            return
        ttft_s = API_TTFT_MEDIAN_S * math.exp(API_TTFT_SIGMA * self._dice.gauss(0.0, 1.0))
        stay.first_token_at_s = now_s + ttft_s
        stay.ended_at_s = stay.first_token_at_s + API_TPOT_S * (request.output_tokens - 1)
        heapq.heappush(elsewhere, (stay.ended_at_s, self._next, request))

    def _pause(self, request: _Local) -> None:
        self._streams.tell()
        self._streams.close(request)

    def _end_step(self, now_s: float) -> None:
        started, done = self._engine.end_step()
        self._streams.step(now_s)
        for request in started:
            if request.stay.first_token_at_s == math.inf:
                request.stay.first_token_at_s = now_s
                request.running.first_token(now_s)
            self._streams.open(request)
        for request in done:
            request.stay.ended_at_s = now_s
            request.running.end(now_s, request.output_tokens)
            self._streams.close(request)
