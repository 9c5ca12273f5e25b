"""Keeps the hours of the local tier's hardware while the gateway runs, beside the traffic and never in its way.

    every second     is the engine on? has an hour ended? then note what running requests have done in it
    every 2 seconds  post what has ended, close the hours whose grace is over (at the start: all that went by)

Nothing here is seen by the decision: what an idle hour costs must not make the next request look dear.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from router.core.datamodels import WorkDone
from router.core.periods import HOUR_US, AssetTerms, OnMode, hour_of
from router.ports import Clock, InProgress

TICK_S = 1.0
_ADVANCE_EVERY_US = 2_000_000
_SAY_ON_EVERY_US = 30_000_000
_BREATH_S = 0.01  # between two transactions, in which reservations get theirs
_HOME_FILE = "installation-id"


class PeriodBooks(Protocol):
    """Where the hours are kept; see `stores.periods.PeriodStore`. Every method may block and may fail."""

    def register(self, terms: Sequence[AssetTerms], home: str, now_us: int) -> None:
        """Begin a life with these assets."""
        ...

    def assets_of(self, home: str) -> list[str]:
        """Every asset that `home` answers for, or did."""
        ...

    def note_on(self, name: str, from_us: int, to_us: int) -> None:
        """The asset was on."""
        ...

    def note_progress(self, notes: Sequence[WorkDone], done_us: int) -> None:
        """Book what running attempts have done."""
        ...

    def advance(self, name: str, now_us: int) -> bool:
        """Post and close what is due; True if there is more."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


@dataclass(slots=True)
class KeptAsset:
    """Hardware whose hours are kept, and whether its engine takes it up now.

    `on_us` are intervals in which it was on and that are not all told yet; the last one may still grow.
    """

    terms: AssetTerms
    is_on: Callable[[], bool]
    on_us: list[tuple[int, int]] = field(default_factory=list)
    was_on: bool = False
    said_us: int = 0

    def look(self, now_us: int) -> None:
        """Note whether it is on now; what is always on needs no noting."""
        if self.terms.on is OnMode.ALWAYS:
            return
        is_on, was_on = self.is_on(), self.was_on
        if was_on:
            self.on_us[-1] = (self.on_us[-1][0], max(now_us, self.on_us[-1][1]))
        elif is_on:
            self.on_us.append((now_us, now_us))
        if is_on is not was_on:
            self.said_us = 0
        self.was_on = is_on


class PeriodKeeper:
    """One task for all `assets`. `ready` says whether the database may be used now; else notes wait in memory.

    `ticker` waits for so many seconds; `on_warning(event, **labels)` is told once when the books fall behind.
    """

    def __init__(
        self,
        store: PeriodBooks,
        *,
        assets: Sequence[KeptAsset],
        in_progress: Collection[InProgress],
        data_dir: Path,
        clock: Clock,
        ready: Callable[[], bool],
        on_warning: Callable[..., None],
        ticker: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._kept = tuple(assets)
        self._in_progress = in_progress
        self._data_dir = data_dir
        self._clock = clock
        self._ready = ready
        self._warn = on_warning
        self._ticker = ticker or clock.sleep
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._behind = False
        self._born_us = 0
        self._assets: list[str] | None = None  # not registered yet
        self._hour_us = 0
        self._notes: list[tuple[list[WorkDone], int]] = []
        self._advanced_us = 0

    def start(self) -> None:
        """Begin; an asset that is always on is on from now."""
        self._born_us = self._now_us()
        self._hour_us = hour_of(self._born_us)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End after one last turn; what cannot be booked now is booked by the next start."""
        if self._task is None:
            return
        async with self._turn:
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._advanced_us = 0
        for kept in self._kept:
            kept.said_us = 0
        await self.turn()
        self._store.close()

    async def _run(self) -> None:
        while True:
            await self.turn()
            to_the_hour_s = (HOUR_US - self._now_us() % HOUR_US) / 1e6
            await self._ticker(min(TICK_S, to_the_hour_s))

    def _now_us(self) -> int:
        return round(self._clock.now_utc().timestamp() * 1e6)

    async def turn(self) -> None:
        """Look around, and book what there is to book. Never raises."""
        async with self._turn:
            now_us = self._now_us()
            for kept in self._kept:
                kept.look(now_us)
            self._sweep(now_us)
            if not self._ready():
                return
            try:
                await self._book(now_us)
            except Exception as error:  # noqa: BLE001 - whatever the database says, requests are served and we try again
                if not self._behind:
                    self._behind = True
                    self._warn("hours_behind", cause=type(error).__name__)
            else:
                self._behind = False

    def _sweep(self, now_us: int) -> None:
        """Once an hour: what was begun before it ended and still runs has done a part of its work in it."""
        if hour_of(now_us) <= self._hour_us:
            return
        self._hour_us = hour_of(now_us)
        found = [note for work in tuple(self._in_progress) if (note := work.work_done()) is not None]
        notes = [note for note in found if note.started_at_utc.timestamp() * 1e6 < self._hour_us]
        if notes:
            self._notes.append((notes, self._hour_us - 1))

    async def _book(self, now_us: int) -> None:
        if self._assets is None:
            self._assets = await asyncio.to_thread(self._begin, [kept.terms for kept in self._kept])
        for kept in self._kept:
            await self._book_on_times(kept, now_us)
        while self._notes:
            notes, done_us = self._notes[0]
            await asyncio.to_thread(self._store.note_progress, notes, done_us)
            del self._notes[0]
        if now_us - self._advanced_us >= _ADVANCE_EVERY_US or now_us < self._advanced_us:
            for name in self._assets:
                while await asyncio.to_thread(self._store.advance, name, now_us):
                    await self._clock.sleep(_BREATH_S)
            self._advanced_us = now_us

    def _begin(self, terms: Sequence[AssetTerms]) -> list[str]:
        home = installation_id(self._data_dir)
        self._store.register(terms, home, self._born_us)
        return self._store.assets_of(home)

    async def _book_on_times(self, kept: KeptAsset, now_us: int) -> None:
        """Told when it changes, and now and then while it is on: after a crash the last word counts."""
        if now_us - kept.said_us < _SAY_ON_EVERY_US:
            return
        for from_us, to_us in tuple(kept.on_us):
            await asyncio.to_thread(self._store.note_on, kept.terms.asset, from_us, to_us)
        del kept.on_us[: None if not kept.was_on else -1]
        kept.said_us = now_us


def installation_id(data_dir: Path) -> str:
    """What names this installation over its restarts: kept in `data_dir`, made at the first start."""
    path = data_dir / _HOME_FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    data_dir.mkdir(parents=True, exist_ok=True)
    made = token_hex(8)
    path.write_text(made + "\n", encoding="ascii")
    return made
