"""Progress on a terminal, on stderr; elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Steps = Callable[[str, float | None], None]
"""Told the name of each step as it begins, and the share of all the work that is done (`None`: not known)."""
Counted = Callable[[int, int | None], None]
"""Told how much is done, and of how much (`None`: not known)."""


@contextmanager
def steps() -> Iterator[Steps | None]:
    """A bar with the name of the step; `None` where nobody looks."""
    with _bar() as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("starting", total=None)

        def tell(step: str, done_ratio: float | None) -> None:
            bar.update(task, description=step, total=None if done_ratio is None else 1.0, completed=done_ratio or 0.0)

        yield tell


@contextmanager
def counted(what: str) -> Iterator[Counted | None]:
    """A bar that counts `what`; `None` where nobody looks."""
    with _bar() as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task(what, total=None)

        def tell(done: int, total: int | None) -> None:
            bar.update(task, description=f"{done} {what}", completed=done, total=total)

        yield tell


@contextmanager
def _bar() -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar
