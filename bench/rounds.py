"""How everything is measured: all contestants up at once, short windows that rotate over them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import procfs
from bench.contestants import Contestant, direct
from bench.phases import Cores, Phase, make_body, measure, warm_up
from bench.tools import BenchError, Tools, Upstream

Launch = Callable[[int, int | None, Path], Contestant]  # port of the model API, core, folder for files


class Progress:
    """One line on a terminal that keeps saying how far we are; nothing where nobody watches."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.began_s = time.monotonic()
        self.shown = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """One more step begins."""
        self.done += 1
        if self.shown:
            took_s = time.monotonic() - self.began_s
            sys.stderr.write(f"\r\033[K{self.done}/{self.steps}  {took_s:3.0f} s  {what}")
            sys.stderr.flush()

    def end(self) -> None:
        """Wipe the line."""
        if self.shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part. One that is `optional` may fail: it is then named with the reason, and the rest goes on."""

    name: str
    launch: Launch
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often."""

    phases: Sequence[Phase]
    rounds: int
    cold_starts: int
    length_ratio: float

    @property
    def streams(self) -> bool:
        """Whether any phase asks for streams."""
        return any(phase.chunks for phase in self.phases)


@dataclass(slots=True)
class Measured:
    """What came of it. `not_measured` has the reason by name."""

    windows: list[dict[str, Any]] = field(default_factory=list)
    cold_start_s: dict[str, list[float]] = field(default_factory=dict)
    pss_mb: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Contestants with windows, in the order of the first."""
        return list(dict.fromkeys(window["contestant"] for window in self.windows))


class Rounds:
    """One run over `entries` and the model API called directly."""

    def __init__(self, tools: Tools, cores: Cores, work_dir: Path, plan: Plan, entries: Sequence[Entry]) -> None:
        self.tools = tools
        self.cores = cores
        self.work_dir = work_dir
        self.plan = plan
        self.entries = entries
        self.optional = {entry.name for entry in entries if entry.optional}
        self.out = Measured()
        self.running: list[Contestant] = []
        steps = len(entries) * plan.cold_starts + 1 + plan.rounds * len(plan.phases) * (len(entries) + 1)
        self.progress = Progress(steps)

    def run(self) -> Measured:
        """Everything. Raises BenchError where a contestant that is not optional fails."""
        upstream = Upstream(self.tools, self.cores.load)
        self.running.append(direct(upstream.port))
        try:
            for entry in self.entries:
                self._guarded(entry.name, partial(self._start, entry, upstream))
            self.progress.step("warm-up")
            for contestant in list(self.running):
                self._guarded(contestant.name, partial(self._warm_up, contestant, upstream))
            for number in range(self.plan.rounds):
                for phase in self.plan.phases:
                    self._windows(number, phase, upstream)
            self.out.pss_mb = {c.name: procfs.pss_mb(c.pid) for c in self.running if c.pid is not None}
        finally:
            self.progress.end()
            for contestant in self.running:
                contestant.stop()
            upstream.stop()
        return self.out

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """`action`; an optional contestant that fails in it leaves with all of its windows."""
        try:
            action()
        except BenchError as error:
            if name not in self.optional:
                raise
            self.out.not_measured[name] = str(error)
            self.out.windows = [window for window in self.out.windows if window["contestant"] != name]
            self.out.cold_start_s.pop(name, None)
            for contestant in [c for c in self.running if c.name == name]:
                contestant.stop()
                self.running.remove(contestant)

    def _start(self, entry: Entry, upstream: Upstream) -> None:
        """Start it as often as planned; the last one stays up. Seconds from exec to the first answered completion."""
        took_s: list[float] = []
        for left in reversed(range(self.plan.cold_starts)):
            self.progress.step(f"cold start, {entry.name}")
            began_s = time.monotonic()
            contestant = entry.launch(upstream.port, self.cores.gateway, self.work_dir)
            body = make_body(self.work_dir, 2000, stream=False, model=contestant.wire.model).read_bytes()
            contestant.wait_ready(body)
            took_s.append(time.monotonic() - began_s)
            if left:
                contestant.stop()
        self.running.append(contestant)
        self.out.cold_start_s[entry.name] = took_s

    def _warm_up(self, contestant: Contestant, upstream: Upstream) -> None:
        warm_up(
            contestant,
            tools=self.tools,
            cores=self.cores,
            upstream=upstream,
            work_dir=self.work_dir,
            streams=self.plan.streams,
        )

    def _windows(self, number: int, phase: Phase, upstream: Upstream) -> None:
        """One window of `phase` on each contestant; every round begins with another."""
        upstream.behave(delay_us=phase.delay_us, gap_us=phase.gap_us, chunks=phase.chunks)
        first = number % len(self.running)
        for contestant in self.running[first:] + self.running[:first]:
            self.progress.step(f"round {number + 1} of {self.plan.rounds}: {phase.name}, {contestant.name}")
            self._guarded(contestant.name, partial(self._window, number, phase, contestant, upstream))

    def _window(self, number: int, phase: Phase, contestant: Contestant, upstream: Upstream) -> None:
        seen = upstream.requests_seen()
        window = measure(
            contestant,
            phase,
            tools=self.tools,
            cores=self.cores,
            work_dir=self.work_dir,
            length_ratio=self.plan.length_ratio,
        )
        if upstream.requests_seen() - seen < window["done"]:
            raise BenchError(f"{contestant.name} answered without asking the model: nothing was measured")
        self.out.windows.append({"round": number, "phase": phase.name, "contestant": contestant.name, **window})
