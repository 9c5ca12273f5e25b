"""SIGKILL at the k-th step that leaves a trace outside the process: SQL, file operations, the ledger's journal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import Engine, event

_FILE_CALLS = frozenset(
    {
        "write",
        "writev",
        "fsync",
        "fdatasync",
        "rename",
        "replace",
        "unlink",
        "remove",
        "rmdir",
        "mkdir",
        "posix_fallocate",
    }
)


def die_at(position: int, *, files: bool = False) -> None:
    """From now on: SIGKILL right before step `position`, counting every SQL statement and commit from 1.

    With `files` every change of a file and every call into the journal is a step too, in any thread.
    """
    lock, seen = threading.Lock(), 0

    def step() -> None:
        nonlocal seen
        with lock:
            seen += 1
            if seen == position:
                os.kill(os.getpid(), signal.SIGKILL)

    _watch_statements(step)
    if files:
        _watch_files(step)


def _watch_statements(step: Callable[[], None]) -> None:
    class Counting(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            step()
            return super().execute(*arguments, **options)

        def executemany(self, *arguments: Any, **options: Any) -> None:
            step()
            super().executemany(*arguments, **options)

    @event.listens_for(Engine, "connect")
    def trace(connection: Any, _record: object) -> None:
        if isinstance(connection, psycopg.Connection):
            connection.cursor_factory = Counting
        else:
            connection.set_trace_callback(lambda _statement: step())

    @event.listens_for(Engine, "commit")
    def commit(connection: Any) -> None:
        if connection.dialect.name == "postgresql":  # SQLite tells of its COMMIT as of a statement
            step()


def _watch_files(step: Callable[[], None]) -> None:
    def look(frame: Any, what: str, argument: Any) -> None:
        if what == "c_call":
            if getattr(argument, "__name__", "") in _FILE_CALLS:
                step()
        elif what == "call" and frame.f_code.co_filename.endswith("stores/journal.py"):
            step()

    threading.setprofile(look)
    sys.setprofile(look)


def lives(run: Callable[[int], None], positions: range) -> int:
    """Fork a child for each position, until one lives to its end; the position it was to die at.

    `run(position)` works in the child, and must not return. Exits with the child's code if it fails otherwise.
    """
    for position in positions:
        child = os.fork()
        if child == 0:
            run(position)
            os._exit(3)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return position
        if code != -signal.SIGKILL:
            sys.exit(code if code > 0 else 1)
    sys.exit(4)
