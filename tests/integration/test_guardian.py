"""The guardian: nothing of an engine outlives the one who started it, and its end is told soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_llm.guardian import LEFTOVER_GRACE_S
from local_llm.process import GUARDIAN_SCRIPT
from tests.patience import PATIENCE_S, wait_until

# An engine of two processes, the second of which does not care for SIGTERM and holds "the GPU's memory".
TWO_PROCESSES = r"""
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, b"worker %d\n" % os.getpid())
    time.sleep(600)
os.write(1, b"engine %d\n" % os.getpid())
time.sleep(600)
"""


@pytest.fixture
def guard() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands under a guardian, as the gateway does."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-I", GUARDIAN_SCRIPT, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def two_processes(process: subprocess.Popen[str]) -> dict[str, int]:
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    return {name: int(pid) for name, pid in lines}


def lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> None:
    wait_until(lambda: not lives(pid))


@pytest.mark.parametrize("code", [0, 3, 78])
def test_the_exit_code_of_the_engine_is_passed_on(guard: Callable[..., subprocess.Popen[str]], code: int) -> None:
    assert guard(sys.executable, "-c", f"raise SystemExit({code})").wait(PATIENCE_S) == code


def test_a_command_that_does_not_exist_is_named(guard: Callable[..., subprocess.Popen[str]]) -> None:
    process = guard("no-such-engine")
    assert process.wait(PATIENCE_S) == 127
    assert process.stdout is not None
    assert "cannot start no-such-engine" in process.stdout.read()


def test_when_the_engine_dies_its_stubborn_worker_goes_too(
    guard: Callable[..., subprocess.Popen[str]],
) -> None:
    process = guard(sys.executable, "-c", TWO_PROCESSES)
    pids = two_processes(process)
    os.kill(pids["engine"], signal.SIGKILL)
    process.wait(PATIENCE_S)
    gone(pids["worker"])
    assert LEFTOVER_GRACE_S <= 1.0  # its owner waits to hear of it


def test_when_the_owner_closes_the_pipe_the_whole_group_goes(guard: Callable[..., subprocess.Popen[str]]) -> None:
    process = guard(sys.executable, "-c", TWO_PROCESSES)
    pids = two_processes(process)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(PATIENCE_S)
    gone(pids["engine"])
    gone(pids["worker"])


def test_when_the_guardian_is_killed_the_engine_is_told_to_end(guard: Callable[..., subprocess.Popen[str]]) -> None:
    process = guard(sys.executable, "-c", TWO_PROCESSES)
    pids = two_processes(process)
    process.kill()
    gone(pids["engine"])
