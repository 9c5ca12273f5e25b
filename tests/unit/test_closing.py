"""The keeper of the hours: what it notes, when it books, and what it does while it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from router.closing import KeptAsset, PeriodKeeper, installation_id
from router.core.datamodels import WorkDone
from router.core.periods import AssetTerms, OnMode
from tests.fakes import NOON, FakeClock

RENTED = AssetTerms("gpu0", "rented", OnMode.ALWAYS, Decimal("2.50"), Decimal(1), (), "rented-2.50")
COUNTED = AssetTerms("gpu0", "rented", OnMode.WHILE_ENGINE_RUNS, Decimal("2.50"), Decimal(1), (), "rented-2.50")


def us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


@dataclass
class FakeBooks:
    """Remembers what it was told; fails while `broken`."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    more: list[bool] = field(default_factory=list)
    broken: bool = False

    def _tell(self, *what: Any) -> None:
        if self.broken:
            raise OSError("the database is away")
        self.told.append(what)

    def register(self, terms: Sequence[AssetTerms], home: str, now_us: int) -> None:
        self._tell("register", tuple(t.asset for t in terms), now_us)

    def assets_of(self, home: str) -> list[str]:
        return ["gpu0", "sold"]

    def note_on(self, name: str, from_us: int, to_us: int) -> None:
        self._tell("on", name, from_us, to_us)

    def note_progress(self, notes: Sequence[WorkDone], done_us: int) -> None:
        self._tell("progress", tuple(n.request_id for n in notes), done_us)

    def advance(self, name: str, now_us: int) -> bool:
        self._tell("advance", name, now_us)
        return self.more.pop() if self.more else False

    def close(self) -> None:
        self.told.append(("close",))

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.told if call[0] == what]


@dataclass(eq=False)
class Running:
    """A request in the engine."""

    begun: datetime
    shows: bool = True

    def work_done(self) -> WorkDone | None:
        if not self.shows:
            return None
        return WorkDone("r1", 1, "acme", "llama", "gpu0", self.begun, 5, 5, "v")


async def _for_ever(_seconds: float) -> None:
    await asyncio.Event().wait()


@dataclass
class Kept:
    """A keeper whose turns the test takes itself."""

    keeper: PeriodKeeper
    books: FakeBooks
    clock: FakeClock
    running: set[Running]
    world: dict[str, bool]
    warnings: list[str]

    async def turn(self, after_s: float = 0.0) -> None:
        self.clock.tick(after_s)
        await self.keeper.turn()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def keep(data_dir: Path, terms: AssetTerms | None = RENTED) -> Kept:
    books, clock, running = FakeBooks(), FakeClock(), set[Running]()
    world, warnings = {"on": True, "ready": True}, list[str]()

    def warn(event: str, **labels: str) -> None:
        warnings.append(event)

    assets = [KeptAsset(terms, lambda: world["on"])] if terms is not None else []
    keeper = PeriodKeeper(
        books, assets=assets, in_progress=running, data_dir=data_dir, clock=clock,
        ready=lambda: world["ready"], on_warning=warn, ticker=_for_ever,
    )  # fmt: skip
    return Kept(keeper, books, clock, running, world, warnings)


async def test_the_hardware_is_on_from_the_start_even_if_the_database_comes_later(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.world["ready"] = False
    kept.keeper.start()
    await kept.turn(30)
    assert kept.books.told == []
    kept.world["ready"] = True
    await kept.turn(30)
    assert kept.books.of("register") == [(("gpu0",), us(NOON))]
    await kept.keeper.stop()


async def test_every_asset_of_the_installation_is_advanced_until_nothing_is_left(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.books.more = [False, True, True]
    kept.keeper.start()
    await kept.turn()
    assert [name for name, _ in kept.books.of("advance")] == ["gpu0", "gpu0", "gpu0", "sold"]
    await kept.turn(1)
    assert len(kept.books.of("advance")) == 4
    await kept.turn(2)
    assert len(kept.books.of("advance")) == 6
    await kept.keeper.stop()


async def test_at_the_hour_the_progress_of_what_began_before_it_is_noted_once(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.keeper.start()
    await kept.turn(3599.5)
    kept.running |= {
        Running(kept.clock.utc),
        Running(kept.clock.utc, shows=False),
        Running(NOON + timedelta(hours=1, microseconds=1)),
    }
    await kept.turn(0.6)
    await kept.turn(1)
    assert kept.books.of("progress") == [(("r1",), us(NOON + timedelta(hours=1)) - 1)]
    await kept.keeper.stop()


async def test_notes_wait_in_memory_while_the_database_is_away_and_it_is_told_once(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.keeper.start()
    kept.running.add(Running(NOON))
    kept.books.broken = True
    for _ in range(3):
        await kept.turn(1200)
    assert kept.warnings == ["hours_behind"]
    kept.books.broken = False
    await kept.turn(10)
    assert kept.books.of("progress") == [(("r1",), us(NOON + timedelta(hours=1)) - 1)]
    kept.books.broken = True
    await kept.turn(10)
    assert kept.warnings == ["hours_behind", "hours_behind"]
    kept.books.broken = False
    await kept.keeper.stop()


async def test_an_engine_counted_while_it_runs_is_on_from_its_start_to_its_end(data_dir: Path) -> None:
    kept = keep(data_dir, COUNTED)
    kept.world["on"] = False
    kept.keeper.start()
    await kept.turn(10)
    kept.world["on"] = True
    await kept.turn(10)
    for _ in range(31):
        await kept.turn(1)
    kept.world["on"] = False
    await kept.turn(1)
    await kept.turn(60)
    kept.world["on"] = True
    await kept.turn(1)
    begun = us(NOON) + 20_000_000
    told = kept.books.of("on")
    assert told[0] == ("gpu0", begun, begun)
    assert ("gpu0", begun, begun + 30_000_000) in told  # while it runs, now and then
    assert told[-2] == ("gpu0", begun, begun + 32_000_000)
    assert told[-1] == ("gpu0", begun + 93_000_000, begun + 93_000_000)
    await kept.keeper.stop()
    assert kept.books.told[-1] == ("close",)


async def test_engines_counted_while_they_run_are_each_on_for_themselves(data_dir: Path) -> None:
    kept = keep(data_dir)
    on = {"gpu0": True, "gpu1": False}
    assets = [KeptAsset(replace(COUNTED, asset=name), lambda name=name: on[name]) for name in on]  # type: ignore[misc]
    keeper = PeriodKeeper(
        kept.books, assets=[*assets, KeptAsset(replace(RENTED, asset="rack"), lambda: True)], in_progress=(),
        data_dir=data_dir, clock=kept.clock, ready=lambda: True, on_warning=lambda event, **labels: None,
        ticker=_for_ever,
    )  # fmt: skip
    keeper.start()
    for gpu0, gpu1 in ((True, False), (True, True), (False, True)):
        on |= {"gpu0": gpu0, "gpu1": gpu1}
        await keeper.turn()
        kept.clock.tick(40)
    await keeper.stop()
    assert kept.books.of("register")[0][0] == ("gpu0", "gpu1", "rack")
    longest: dict[str, tuple[int, int]] = {}
    for name, from_us, to_us in kept.books.of("on"):
        longest[name] = (from_us, max(to_us, longest.get(name, (0, 0))[1]))
    noon = us(NOON)
    assert longest == {"gpu0": (noon, noon + 80_000_000), "gpu1": (noon + 40_000_000, noon + 120_000_000)}


async def test_without_hardware_nothing_is_noted_but_what_was_sold_is_still_closed(data_dir: Path) -> None:
    kept = keep(data_dir, None)
    kept.keeper.start()
    await kept.turn()
    assert kept.books.of("register") == [((), us(NOON))]
    assert [name for name, _ in kept.books.of("advance")] == ["gpu0", "sold"]
    assert kept.books.of("on") == []
    await kept.keeper.stop()


async def test_it_runs_by_itself_and_wakes_for_the_hour(data_dir: Path) -> None:
    kept = keep(data_dir)
    waits: list[float] = []
    enough = asyncio.Event()

    async def ticker(seconds: float) -> None:
        waits.append(seconds)
        kept.clock.tick(seconds)
        await asyncio.sleep(0)
        if len(waits) > 20:
            enough.set()
            await asyncio.Event().wait()

    keeper = PeriodKeeper(
        kept.books, assets=[KeptAsset(RENTED, lambda: True)], in_progress=(), data_dir=data_dir, clock=kept.clock,
        ready=lambda: True, on_warning=lambda event, **labels: None, ticker=ticker,
    )  # fmt: skip
    kept.clock.utc = NOON + timedelta(minutes=59, seconds=50, milliseconds=250)
    keeper.start()
    await asyncio.wait_for(enough.wait(), 5)
    assert waits[9] == pytest.approx(0.75)
    assert all(wait == pytest.approx(1.0) for wait in (*waits[:9], *waits[10:]))
    await keeper.stop()


def test_an_installation_keeps_its_name(tmp_path: Path) -> None:
    first = installation_id(tmp_path / "new")
    assert len(first) == 16
    assert installation_id(tmp_path / "new") == first
    assert installation_id(tmp_path / "other") != first
