"""Stands between the gateway and an engine, so that no engine outlives the gateway. Run by path, standard library only.

    python guardian.py COMMAND [ARGUMENT...]

It leads the engine's process group and watches its own standard input, whose other end the gateway holds: when that
closes (the gateway stopped, or was killed), the whole group is told to end and then killed. An engine such as vLLM is
several processes; killing the one we started would leave the others with the GPU's memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 5.0  # for an engine that is asked to stop
LEFTOVER_GRACE_S = 1.0  # for what remains of one that has died: its owner waits to hear of it
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_EXIT_NOT_STARTED = 127


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_with_guardian() -> None:
    """In the child, before exec: SIGTERM if the guardian itself is killed."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group_when_input_closes(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _signal_group(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    _signal_group(signal.SIGKILL)


def _signal_group(number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(os.getpgrp(), number)


def _clear_group() -> None:
    """End what the command left behind, politely and then not; the last signal ends the guardian too."""
    _signal_group(signal.SIGTERM)
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return  # nobody is left
        if pid == 0:
            time.sleep(0.02)
    _signal_group(signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run `command` to its end and clear its group. Exit code: the command's own, 128 + signal, 127 not started."""
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # never signal a group that is not ours
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the engine become ours, so that we know when all are gone
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to the group: the engine ends, and then so do we
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_guardian)  # noqa: S603, PLW1509
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror or error}", file=sys.stderr, flush=True)  # noqa: T201
        return _EXIT_NOT_STARTED
    threading.Thread(target=_end_group_when_input_closes, args=(child,), daemon=True).start()
    code = child.wait()
    _clear_group()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
