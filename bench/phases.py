"""What is measured: the phases of one round, and one window of load on one contestant."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import procfs
from bench.contestants import API_KEY, Contestant
from bench.tools import Tools, Upstream, run_load
from bench.wire import OPENAI

TEXT = (
    "explain why the quick index beats a full scan when only few rows match and compare it with a hash join "
    "then write a function that sorts these invoices by due date and returns the total per customer because our "
    "report must show each region month and product with its margin before the review on thursday"
)


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of load. Times of the upstream in microseconds; `seconds` is the window at full length."""

    name: str
    connections: int
    prompt_bytes: int = 2000
    seconds: float = 0.6
    requests: int = 0  # instead of `seconds`
    delay_us: int = 0
    gap_us: int = 0
    chunks: int = 0  # over 0: a stream of so many deltas


PHASES = (
    Phase("one_in_flight", 1, seconds=0.8),
    Phase("sixteen_in_flight", 16, seconds=0.8),
    Phase("sixteen_in_flight_32k", 16, prompt_bytes=32_000),
    Phase("slow_upstream", 64, seconds=1.0, delay_us=50_000),
    Phase("stream_one", 1, requests=25, gap_us=5_000, chunks=5),
    Phase("stream_paced", 16, requests=16, gap_us=5_000, chunks=100),
    Phase("stream_unpaced", 16, chunks=200),
)


def make_body(work_dir: Path, prompt_bytes: int, *, stream: bool, model: str = OPENAI.model) -> Path:
    """A request file with a user prompt of `prompt_bytes`; its serial number makes every request's prompt its own."""
    kind = "stream" if stream else "plain"
    path = work_dir / f"body-{prompt_bytes}-{kind}-{model.replace('/', '-')}.json"
    if not path.exists():
        rng = random.Random(prompt_bytes)
        words = TEXT.split()
        text = "serial:0000000000"
        while len(text) < prompt_bytes:
            text += " " + rng.choice(words)
        body: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant of a trading company."},
                {"role": "user", "content": text[:prompt_bytes]},
            ],
            "temperature": 0.7,
            "max_tokens": 256,
        }
        if stream:
            body["stream"] = True
        path.write_text(json.dumps(body))
    return path


def load_arguments(phase: Phase, length_ratio: float) -> list[str]:
    """Flags of the load generator."""
    flags = ["-n", str(phase.requests)] if phase.requests else ["-d", f"{phase.seconds * length_ratio:.2f}"]
    return [*flags, "-s"] if phase.chunks else flags


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run; `None` means anywhere (a single core)."""

    load: int | None
    gateway: int | None


def measure(
    contestant: Contestant,
    phase: Phase,
    *,
    tools: Tools,
    cores: Cores,
    work_dir: Path,
    length_ratio: float,
) -> dict[str, Any]:
    """One window; the upstream has been set. CPU is that of the contestant's whole process tree."""
    body = make_body(work_dir, phase.prompt_bytes, stream=phase.chunks > 0, model=contestant.wire.model)
    before_s = procfs.cpu_s(contestant.pid) if contestant.pid is not None else 0.0
    core_before_s = procfs.core_busy_s(cores.gateway) if cores.gateway is not None else 0.0
    began_s = time.monotonic()
    report = run_load(
        tools,
        cores.load,
        port=contestant.port,
        body=body,
        key=API_KEY,
        connections=phase.connections,
        arguments=load_arguments(phase, length_ratio),
        wire=contestant.wire,
    )
    wall_s = time.monotonic() - began_s
    used_s = procfs.cpu_s(contestant.pid) - before_s if contestant.pid is not None else 0.0
    core_s = procfs.core_busy_s(cores.gateway) - core_before_s if cores.gateway is not None else used_s
    if contestant.pid is None:
        core_s = used_s  # the direct call leaves that core free: whoever takes it then disturbs nobody
    report["cpu_us_per_request"] = used_s * 1e6 / max(1, report["done"])
    report["foreign_ratio"] = max(0.0, (core_s - used_s) / wall_s)
    if phase.chunks:
        report["cpu_us_per_chunk"] = report["cpu_us_per_request"] / phase.chunks
    return report


def warm_up(
    contestant: Contestant, *, tools: Tools, cores: Cores, upstream: Upstream, work_dir: Path, streams: bool
) -> None:
    """A few hundred requests of each kind, so that no import and no first connection is in the figures."""
    upstream.behave(chunks=5)
    for stream in (False, True) if streams else (False,):
        run_load(
            tools,
            cores.load,
            port=contestant.port,
            body=make_body(work_dir, 2000, stream=stream, model=contestant.wire.model),
            key=API_KEY,
            connections=16,
            arguments=["-n", "400", *(["-s"] if stream else [])],
            wire=contestant.wire,
        )
