"""A gateway's books of hours, killed at its statements: `python hours_child.py STEP URL...`.

Life number n works with the n-th URL and is killed by SIGKILL right before its (1 + n * STEP)-th SQL statement. The
first one that comes to its end is the last; on stdout stands how many there were.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from router.core.energy import Basis, Stretch
from router.core.periods import GRACE_US, HOUR_US
from router.core.vocabulary import Outcome
from tests.hours import GPU, H0, MINUTE_US, OWNED, Books, local, note
from tests.kill_points import die_at, lives

AMOUNTS = {"a": 1_000, "b": 2_000, "c": 3_000}


def work(books: Books) -> None:
    """Three requests over three hours of a metered card: one crosses a boundary, one fails, one is told late."""
    books.begin("a")
    books.begin("b")
    books.store.note_energy(GPU, [Stretch("A", H0, H0 + HOUR_US, 10**9, Basis.COUNTER, 10**9, 1)], "boot")
    books.now_us = H0 + HOUR_US + 1
    books.store.note_progress([note("a", 400)], H0 + HOUR_US - 1)
    books.settle("a", local(AMOUNTS["a"], H0 + HOUR_US + MINUTE_US, ran_us=HOUR_US))
    books.begin("c")
    books.advance(H0 + HOUR_US + GRACE_US)
    books.settle("b", local(AMOUNTS["b"], H0 + 5 * MINUTE_US, outcome=Outcome.BROKEN))
    books.store.note_energy(GPU, [Stretch("A", H0, H0 + 2 * HOUR_US, 3 * 10**9, Basis.COUNTER, 3 * 10**9, 1)], "boot")
    books.advance(H0 + 2 * HOUR_US + GRACE_US)
    books.settle("c", local(AMOUNTS["c"], H0 + 2 * HOUR_US + 3 * MINUTE_US))
    books.advance(H0 + 3 * HOUR_US + GRACE_US)


def main(step: int, urls: list[str]) -> None:
    def run(position: int) -> None:
        die_at(position)
        work(Books(urls[position // step], terms=OWNED))
        os._exit(0)

    last = lives(run, range(1, 1 + step * len(urls), step))
    sys.stdout.write(str(last // step + 1))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
