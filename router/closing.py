"""Keeps the hours of the local tier's hardware while the gateway runs, beside the traffic and never in its way.

    every second     is the engine on? what have its cards drawn? has an hour ended? then note what running requests
                     have done in it
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

from router.core.attempts import WorkDone
from router.core.energy import CardLook, Meter, Stretch
from router.core.periods import HOUR_US, AssetTerms, OnMode, hour_of
from router.errors import RouterError
from router.metering import Cards, boot_id, looks_at
from router.on_times import SYNC_US, OnTime, OnTimes
from router.ports import Clock, InProgress

TICK_S = 1.0
_ADVANCE_EVERY_US = 2_000_000
_SAY_ON_EVERY_US = SYNC_US
_SAY_ENERGY_EVERY_US = 30_000_000
_FIRST_LOOK_US = 10_000_000  # so long the hours that went by wait for a look at the cards: it tells what they drew
_BREATH_S = 0.01  # between two transactions, in which reservations get theirs
_HOME_FILE = "installation-id"


class PeriodBooks(Protocol):
    """Where the hours are kept; see `stores.periods.PeriodStore`. Every method may block and may fail."""

    def register(self, terms: Sequence[AssetTerms], home: str, now_us: int) -> None:
        """Begin a life with these assets. Raises AssetInUse (a RouterError) where another gateway keeps one of them."""
        ...

    def renew_claims(self) -> None:
        """See that they are still this gateway's. Raises AssetInUse."""
        ...

    def assets_of(self, home: str) -> list[str]:
        """Every asset that `home` answers for, or did."""
        ...

    def note_on(self, name: str, from_us: int, to_us: int) -> None:
        """The asset was on."""
        ...

    def note_energy(self, name: str, stretches: Sequence[Stretch], boot: str) -> None:
        """The asset's cards have drawn this."""
        ...

    def last_looks(self, name: str, boot: str) -> list[CardLook]:
        """What the asset's cards were last seen at."""
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
    """Hardware whose hours are kept, and whether its engine takes it up now; `cards` tells of the cards it is made of.

    `on_us` are intervals in which it was on and that are not all told yet; the last one may still grow.
    """

    terms: AssetTerms
    is_on: Callable[[], bool]
    cards: Cards = lambda: None
    on_us: list[tuple[int, int]] = field(default_factory=list)
    was_on: bool = False
    said_us: int = 0
    meter: Meter = field(default_factory=Meter)
    metered_us: int = 0
    _looked_at_s: float = float("-inf")

    def look(self, now_us: int, now_s: float) -> None:
        """Note whether it is on now (what is always on needs no noting), and what its cards have drawn."""
        if self.terms.energy is not None:
            self._read_meter(now_us, now_s)
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

    def _read_meter(self, now_us: int, now_s: float) -> None:
        seen = self.cards()
        if seen is None or seen[0] <= self._looked_at_s:
            return
        self._looked_at_s, gpus = seen
        at_us = now_us - max(0, round((now_s - self._looked_at_s) * 1e6))
        self.meter.look(looks_at(gpus, at_us), len(gpus))

    def on_times(self) -> list[OnTime]:
        """What has not been told yet of when it was on."""
        last = len(self.on_us) - 1
        return [OnTime(self.terms.asset, a, b, self.was_on and at == last) for at, (a, b) in enumerate(self.on_us)]


class PeriodKeeper:
    """One task for all `assets`. `ready` says whether the database may be used now; else notes wait in memory.

    What it has not told the database yet of when hardware was on is also in a file of `data_dir` (see `on_times`).
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
        self._boot = boot_id()
        self._on_times = OnTimes(data_dir, self._boot)
        self._left_on: list[OnTime] = []  # by an earlier life
        self._synced_us = 0

    async def start(self) -> None:
        """Begin; an asset that is always on is on from now.

        Raises AssetInUse where another gateway keeps the hours of hardware of the same name. What else is wrong with
        the database is tried again later.
        """
        self._born_us = self._now_us()
        self._hour_us = hour_of(self._born_us)
        self._left_on = await asyncio.to_thread(self._on_times.left, self._born_us)
        if self._kept and self._ready():  # without hardware there is nothing that another gateway may have
            try:
                await self._register()
            except RouterError:
                raise
            except Exception as error:  # noqa: BLE001 - see `turn`
                self._fell_behind(error)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End after one last turn; what cannot be booked now is booked by the next start."""
        if self._task is None:
            self._store.close()
            return
        async with self._turn:
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._advanced_us = 0
        for kept in self._kept:
            kept.said_us = kept.metered_us = 0
        await self.turn()
        for kept in self._kept:  # what goes on without us is no longer ours to tell
            kept.was_on = False
        await self._write_on_times(self._now_us())
        await asyncio.to_thread(self._store.close)

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
                kept.look(now_us, self._clock.now_s())
            self._sweep(now_us)
            await self._write_on_times(now_us)
            if not self._ready():
                return
            try:
                await self._book(now_us)
            except Exception as error:  # noqa: BLE001 - whatever the database says, requests are served and we try again
                self._fell_behind(error)
            else:
                self._behind = False

    def _fell_behind(self, error: Exception) -> None:
        if not self._behind:
            self._behind = True
            self._warn("hours_behind", cause=type(error).__name__)

    async def _write_on_times(self, now_us: int) -> None:
        times = [*self._left_on, *(one for kept in self._kept for one in kept.on_times())]
        sync = now_us - self._synced_us >= SYNC_US or now_us < self._synced_us
        if sync:
            self._synced_us = now_us
        await asyncio.to_thread(self._on_times.write, times, sync=sync and bool(times))

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
        assets = self._assets if self._assets is not None else await self._register()
        for left in tuple(self._left_on):
            await asyncio.to_thread(self._store.note_on, left.asset, left.from_us, left.to_us)
            self._left_on.remove(left)
        for kept in self._kept:
            await self._book_on_times(kept, now_us)
            await self._book_energy(kept, now_us)
        while self._notes:
            notes, done_us = self._notes[0]
            await asyncio.to_thread(self._store.note_progress, notes, done_us)
            del self._notes[0]
        if now_us - self._advanced_us >= _ADVANCE_EVERY_US or now_us < self._advanced_us:
            unseen = self._unseen(now_us)
            for name in assets:
                while name not in unseen and await asyncio.to_thread(self._store.advance, name, now_us):
                    await self._clock.sleep(_BREATH_S)
            self._advanced_us = now_us

    def _unseen(self, now_us: int) -> set[str]:
        """Assets whose cards may still tell what they drew while no gateway ran: their hours are not closed yet."""
        if now_us - self._born_us >= _FIRST_LOOK_US:
            return set()
        metered = (kept for kept in self._kept if kept.terms.energy is not None and not kept.meter.has_looked)
        return {kept.terms.asset for kept in metered}

    async def _register(self) -> list[str]:
        self._assets = await asyncio.to_thread(self._begin)
        return self._assets

    def _begin(self) -> list[str]:
        home = installation_id(self._data_dir)
        self._store.register([kept.terms for kept in self._kept], home, self._born_us)
        for kept in self._kept:
            if kept.terms.energy is not None:
                kept.meter.resume(self._store.last_looks(kept.terms.asset, self._boot))
        return self._store.assets_of(home)

    async def _book_on_times(self, kept: KeptAsset, now_us: int) -> None:
        """Told when it changes, and now and then while it is on."""
        if now_us - kept.said_us < _SAY_ON_EVERY_US:
            return
        for from_us, to_us in tuple(kept.on_us):
            await asyncio.to_thread(self._store.note_on, kept.terms.asset, from_us, to_us)
        del kept.on_us[: None if not kept.was_on else -1]
        kept.said_us = now_us
        await asyncio.to_thread(self._store.renew_claims)

    async def _book_energy(self, kept: KeptAsset, now_us: int) -> None:
        """Told now and then: the counter goes on counting, whatever becomes of us."""
        if now_us - kept.metered_us < _SAY_ENERGY_EVERY_US:
            return
        stretches = kept.meter.to_keep()
        if stretches:
            await asyncio.to_thread(self._store.note_energy, kept.terms.asset, stretches, self._boot)
            kept.meter.kept(stretches)
        kept.metered_us = now_us


def installation_id(data_dir: Path) -> str:
    """What names this installation over its restarts: kept in `data_dir`, made at the first start."""
    path = data_dir / _HOME_FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    data_dir.mkdir(parents=True, exist_ok=True)
    made = token_hex(8)
    path.write_text(made + "\n", encoding="ascii")
    return made
