"""How long work tells where it is: the step it is at, and how much of the whole is behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

Progress = Callable[[str, float | None], None]
"""Told the name of each step as it begins and the share of all the work that is done, 0..1 (`None`: not known)."""


def unheard(step: str, done_ratio: float | None) -> None:
    """A `Progress` for where nobody looks."""


@contextmanager
def few_threads(threads: int = 1) -> Iterator[None]:
    """Linear algebra on one thread and boosting on `threads`, whatever the machine has: others work on it too.

    On rows as short as ours more threads of linear algebra only wait for each other, and sums would depend on their
    number; boosting adds up the same way on any. Holds for libraries that are loaded by now.
    """
    with threadpool_limits({"blas": 1, "openmp": threads}):
        yield
