"""The model API and the load generator that everything is measured with.

Two small C programs where there is a C compiler: their own share of every figure is then a few microseconds. Without
one the same is done in Python (`bench.python_tools`), which is honest for rates and latencies but too slow to keep a
gateway busy with unpaced streams; the report says which was used.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.wire import OPENAI, Wire

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOAD_TIMEOUT_S = 60.0


class BenchError(Exception):
    """A measurement that could not be made; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Tools:
    """How to start the two, and in which language they are."""

    upstream: tuple[str, ...]
    load: tuple[str, ...]
    language: str  # C | Python


def build_tools(work_dir: Path) -> Tools:
    """Compile into `work_dir`, or fall back to Python."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is not None:
        programs = []
        for name in ("upstream", "load"):
            program = work_dir / name
            made = subprocess.run(
                [compiler, "-O2", "-o", str(program), str(HERE / "c" / f"{name}.c")],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                break
            programs.append(str(program))
        else:
            return Tools((programs[0],), (programs[1],), "C")
    script = str(HERE / "python_tools.py")
    return Tools((sys.executable, script, "upstream"), (sys.executable, script, "load"), "Python")


def pinned(core: int | None, argv: Sequence[str]) -> list[str]:
    """`argv` on one core, where cores are to be kept apart."""
    return list(argv) if core is None else ["taskset", "-c", str(core), *argv]


class Upstream:
    """The model API, running."""

    def __init__(self, tools: Tools, core: int | None) -> None:
        self.process = subprocess.Popen(pinned(core, [*tools.upstream, "0"]), stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        if not line.strip().isdigit():
            raise BenchError("the model API of the benchmark did not start")
        self.port = int(line)

    def behave(self, *, delay_us: int = 0, gap_us: int = 0, chunks: int = 200) -> None:
        """Change how it answers from now on."""
        url = f"http://127.0.0.1:{self.port}/set?delay_us={delay_us}&gap_us={gap_us}&chunks={chunks}"
        with urllib.request.urlopen(url, timeout=5) as reply:
            reply.read()

    def requests_seen(self) -> int:
        """Chat completions asked for so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=5) as reply:
            return int(json.loads(reply.read())["requests"])

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def run_load(
    tools: Tools,
    core: int | None,
    *,
    port: int,
    body: Path,
    key: str,
    connections: int,
    arguments: Sequence[str],
    wire: Wire = OPENAI,
) -> dict[str, Any]:
    """One window of load; raises BenchError when a request failed or was refused."""
    argv = [*tools.load, "-c", str(connections), "-k", key, *wire.load_flags(), *arguments, str(port), str(body)]
    try:
        done = subprocess.run(pinned(core, argv), capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"the load on port {port} did not end in {LOAD_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise BenchError(f"the load generator failed: {done.stderr.strip()[:300]}")
    report: dict[str, Any] = json.loads(done.stdout)
    if report["failed"] or report["refused"]:
        raise BenchError(
            f"{report['failed']} requests failed and {report['refused']} were refused: {report['first_refusal']}"
        )
    return report
