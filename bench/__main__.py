"""`python -m bench`: the gateway against a direct call and a bare pass-through, in one run.

All contestants are up at once; short windows rotate over them, so that whatever else the machine does hits all alike.
Figures are medians over the rounds. With two cores or more the gateway has one to itself and the model API and the
load generator share another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import procfs
from bench.contestants import Contestant, direct, gateway, passthrough
from bench.phases import PHASES, Cores, make_body, measure, warm_up
from bench.report import (
    FIGURES,
    FOREIGN_LOAD_TO_DISTRUST_RATIO,
    document,
    figures_of,
    foreign_load,
    quiet_windows,
    table,
)
from bench.tools import ROOT, BenchError, Tools, Upstream, build_tools

ROUNDS, QUICK_ROUNDS = 9, 3
COLD_STARTS, QUICK_COLD_STARTS = 5, 2


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


def choose_cores() -> Cores:
    """Two of the cores we may use, or none where there is one or no taskset."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2 or shutil.which("taskset") is None:
        return Cores(None, None)
    return Cores(load=usable[0], gateway=usable[1])


def cold_starts(
    launch: Callable[[], Contestant], body: bytes, count: int, progress: Progress
) -> tuple[Contestant, list[float]]:
    """Start `count` times; the last one stays up. Seconds from exec to the first answered chat completion."""
    took_s = []
    for left in reversed(range(count)):
        progress.step("cold start")
        began_s = time.monotonic()
        contestant = launch()
        contestant.wait_ready(body)
        took_s.append(time.monotonic() - began_s)
        if left:
            contestant.stop()
    return contestant, took_s


def run(
    tools: Tools, work_dir: Path, *, rounds: int, starts: int, length_ratio: float, only: str | None
) -> dict[str, Any]:
    """Everything, as one JSON-able report."""
    cores = choose_cores()
    phases = [phase for phase in PHASES if only is None or phase.name == only]
    progress = Progress(2 * starts + 1 + rounds * len(phases) * 3)
    upstream = Upstream(tools, cores.load)
    running = [direct(upstream.port)]
    windows: list[dict[str, Any]] = []
    cold_s: dict[str, list[float]] = {}
    try:
        body = make_body(work_dir, 2000, stream=False).read_bytes()
        for launch in (passthrough, gateway):
            start = partial(launch, upstream.port, cores.gateway, work_dir)
            contestant, took_s = cold_starts(start, body, starts, progress)
            running.append(contestant)
            cold_s[contestant.name] = took_s
        progress.step("warm-up")
        warm_up(running, tools=tools, cores=cores, upstream=upstream, work_dir=work_dir)
        for number in range(rounds):
            for phase in phases:
                upstream.behave(delay_us=phase.delay_us, gap_us=phase.gap_us, chunks=phase.chunks)
                first = number % len(running)
                for contestant in running[first:] + running[:first]:
                    progress.step(f"round {number + 1} of {rounds}: {phase.name}, {contestant.name}")
                    seen = upstream.requests_seen()
                    window = measure(
                        contestant, phase, tools=tools, cores=cores, work_dir=work_dir, length_ratio=length_ratio
                    )
                    if upstream.requests_seen() - seen < window["done"]:
                        raise BenchError(f"{contestant.name} answered without asking the model: nothing was measured")
                    windows.append({"round": number, "phase": phase.name, "contestant": contestant.name, **window})
        memory_mb = {c.name: procfs.pss_mb(c.pid) for c in running if c.pid is not None}
    finally:
        progress.end()
        for contestant in running:
            contestant.stop()
        upstream.stop()
    counted = quiet_windows(windows)
    figures = {} if only else {c.name: figures_of(c.name, counted) for c in running}
    for name in cold_s:
        figures.setdefault(name, {}).update(cold_start_s=median(cold_s[name]), pss_mb=memory_mb[name])
    return {
        "schema_version": 1,
        "taken_at_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(tools, cores),
        "rounds": rounds,
        "foreign_ratio": foreign_load(counted),
        "figures": figures,
        "budget": {figure.key: figure.budget for figure in FIGURES if figure.budget is not None},
        "windows": windows,
    }


def describe_machine(tools: Tools, cores: Cores) -> dict[str, Any]:
    """What the absolute figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gateway_alone_on_a_core": cores.gateway is not None,
        "python": platform.python_version(),
        "tools": tools.language,
    }


def main() -> int:
    """Exit code 0 when measured, 1 when it could not be, 2 for wrong use; budgets do not change it."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the gateway on this machine.")
    parser.add_argument("--quick", action="store_true", help="about a minute instead of about four")
    parser.add_argument("--rounds", type=int, help=f"rounds to run (default {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--only", choices=[phase.name for phase in PHASES], help="one phase: raw windows, no table")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results", help="folder for the JSON file")
    parser.add_argument("--document", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    if options.document and options.only:
        parser.error("--document needs all phases")
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    try:
        with tempfile.TemporaryDirectory(prefix="router-bench-") as folder:
            tools = build_tools(Path(folder))
            result = run(
                tools,
                Path(folder),
                rounds=rounds,
                starts=QUICK_COLD_STARTS if options.quick else COLD_STARTS,
                length_ratio=0.6 if options.quick else 1.0,
                only=options.only,
            )
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    out.write_text(json.dumps(result, indent=1))
    machine = result["machine"]
    heading = (
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"{result['taken_at_utc'][:10]}, medians of {rounds} rounds:"
    )
    if options.only is None:
        print(heading)
        print(table(result["figures"]))
    if machine["tools"] != "C":
        print("no C compiler: load and model API ran in Python, and the times of deltas include theirs")
    if result["foreign_ratio"] > FOREIGN_LOAD_TO_DISTRUST_RATIO:
        print(f"other processes used {result['foreign_ratio']:.0%} of the gateway's core: do not trust these figures")
    if options.document:
        page = ROOT / "docs" / "performance.md"
        page.write_text(document(page.read_text(), heading, result["figures"]))
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
