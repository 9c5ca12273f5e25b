"""A gateway's books of hours, killed at every statement it sends: `python hours_child.py FOLDER`.

Run number k works in FOLDER/k and is killed by SIGKILL right before its k-th SQL statement. The first run that comes
to its end is the last one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import Engine, event

from router.core.datamodels import Outcome
from router.core.periods import GRACE_US, HOUR_US
from tests.hours import H0, MINUTE_US, Books, local, note

AMOUNTS = {"a": 1_000, "b": 2_000, "c": 3_000}


def work(books: Books) -> None:
    """Three requests over three hours: one crosses a boundary, one fails, one is told late."""
    books.begin("a")
    books.begin("b")
    books.now_us = H0 + HOUR_US + 1
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.settle("a", local(AMOUNTS["a"], H0 + HOUR_US + MINUTE_US, ran_us=HOUR_US))
    books.begin("c")
    books.advance(H0 + HOUR_US + GRACE_US)
    books.settle("b", local(AMOUNTS["b"], H0 + 5 * MINUTE_US, outcome=Outcome.BROKEN))
    books.advance(H0 + 2 * HOUR_US + GRACE_US)
    books.settle("c", local(AMOUNTS["c"], H0 + 2 * HOUR_US + 3 * MINUTE_US))
    books.advance(H0 + 3 * HOUR_US + GRACE_US)


def run(folder: Path, kill_at: int) -> None:
    position = 0

    def step(_statement: str) -> None:
        nonlocal position
        position += 1
        if position == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    @event.listens_for(Engine, "connect")
    def trace(connection: Any, _record: object) -> None:
        connection.set_trace_callback(step)

    folder.mkdir()
    work(Books(f"sqlite:///{folder}/ledger.db"))
    os._exit(0)


def main(folder: Path) -> None:
    for kill_at in range(1, 1_000):
        child = os.fork()
        if child == 0:
            run(folder / str(kill_at), kill_at)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
