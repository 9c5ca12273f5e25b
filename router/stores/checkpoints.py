"""SQLite's write-ahead log is folded into the database beside the commits, not within one of them.

Left to itself SQLite does it in every commit that finds the log long, syncing twice: milliseconds for those who wait.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

from sqlalchemy import Engine


@dataclass(frozen=True, slots=True)
class LogLimits:
    """`events` between two tries to fold the log in; `pages` (of 4 KB) beyond which the writer has to restart it."""

    events: int = 1000
    pages: int = 8192


class Checkpointer:
    """A thread with a connection of its own. `noted` and `overdue` are the writer's."""

    def __init__(self, engine: Engine, limits: LogLimits) -> None:
        self._engine = engine
        self._limits = limits
        self._due = threading.Event()
        self._stopping = False
        self._events = 0
        self._log_pages = 0
        self._thread = threading.Thread(target=self._run, name="ledger-checkpoint", daemon=True)
        self._thread.start()

    def noted(self, events: int) -> None:
        """So many events have been committed."""
        self._events += events
        if self._events >= self._limits.events:
            self._events = 0
            self._due.set()

    def overdue(self) -> bool:
        """Under traffic without a pause the log never comes to its end: has it grown too long? Asked once."""
        if self._log_pages <= self._limits.pages:
            return False
        self._log_pages = 0
        return True

    def stop(self) -> None:
        """End, soon."""
        self._stopping = True
        self._due.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._stopping:
                return
            # What fails here fails the writer too, who tells of it.
            with contextlib.suppress(Exception):
                self._checkpoint()

    def _checkpoint(self) -> None:
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            row = cursor.fetchone()
            self._log_pages = row[1] if row is not None else 0
        finally:
            connection.close()
