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

from local_llm.datamodels import GpuReading
from router.closing import KeptAsset, PeriodKeeper, installation_id
from router.core.attempts import WorkDone
from router.core.energy import CardLook, EnergyTerms, Stretch
from router.core.periods import AssetTerms, OnMode
from router.metering import Cards, boot_id
from router.on_times import BEAT_US
from router.stores.claims import AssetInUse
from tests.fakes import NOON, FakeClock

RENTED = AssetTerms("gpu0", "rented", OnMode.ALWAYS, Decimal("2.50"), Decimal(1), (), "rented-2.50")
COUNTED = AssetTerms("gpu0", "rented", OnMode.WHILE_ENGINE_RUNS, Decimal("2.50"), Decimal(1), (), "rented-2.50")


OWNED = AssetTerms(
    "gpu0", "owned", OnMode.ALWAYS, Decimal("1.60"), Decimal(1), (), "owned-1.60",
    EnergyTerms(Decimal("0.9"), Decimal("0.117")),
)  # fmt: skip


def us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


@dataclass
class FakeBooks:
    """Remembers what it was told; fails while `broken`."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    more: list[bool] = field(default_factory=list)
    broken: bool = False
    looks: list[CardLook] = field(default_factory=list)
    in_use: bool = False

    def _tell(self, *what: Any) -> None:
        if self.broken:
            raise OSError("the database is away")
        self.told.append(what)

    def register(self, terms: Sequence[AssetTerms], home: str, now_us: int) -> None:
        if self.in_use:
            raise AssetInUse("somebody else has it")
        self._tell("register", tuple(t.asset for t in terms), now_us)

    def assets_of(self, home: str) -> list[str]:
        return ["gpu0", "sold"]

    def note_on(self, name: str, from_us: int, to_us: int) -> None:
        self._tell("on", name, from_us, to_us)

    def note_energy(self, name: str, stretches: Sequence[Stretch], boot: str) -> None:
        self._tell("energy", name, tuple(stretches))

    def last_looks(self, name: str, boot: str) -> list[CardLook]:
        self._tell("last looks", name)
        return list(self.looks)

    def renew_claims(self) -> None:
        self._tell("renew")

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


def keep(data_dir: Path, terms: AssetTerms | None = RENTED, cards: Cards = lambda: None) -> Kept:
    books, clock, running = FakeBooks(), FakeClock(), set[Running]()
    world, warnings = {"on": True, "ready": True}, list[str]()

    def warn(event: str, **labels: str) -> None:
        warnings.append(event)

    assets = [KeptAsset(terms, lambda: world["on"], cards)] if terms is not None else []
    keeper = PeriodKeeper(
        books, assets=assets, in_progress=running, data_dir=data_dir, clock=clock,
        ready=lambda: world["ready"], on_warning=warn, ticker=_for_ever,
    )  # fmt: skip
    return Kept(keeper, books, clock, running, world, warnings)


async def test_the_hardware_is_on_from_the_start_even_if_the_database_comes_later(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.world["ready"] = False
    await kept.keeper.start()
    await kept.turn(30)
    assert kept.books.told == []
    kept.world["ready"] = True
    await kept.turn(30)
    assert kept.books.of("register") == [(("gpu0",), us(NOON))]
    await kept.keeper.stop()


async def test_every_asset_of_the_installation_is_advanced_until_nothing_is_left(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.books.more = [False, True, True]
    await kept.keeper.start()
    await kept.turn()
    assert [name for name, _ in kept.books.of("advance")] == ["gpu0", "gpu0", "gpu0", "sold"]
    await kept.turn(1)
    assert len(kept.books.of("advance")) == 4
    await kept.turn(2)
    assert len(kept.books.of("advance")) == 6
    await kept.keeper.stop()


async def test_at_the_hour_the_progress_of_what_began_before_it_is_noted_once(data_dir: Path) -> None:
    kept = keep(data_dir)
    await kept.keeper.start()
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
    await kept.keeper.start()
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
    await kept.keeper.start()
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
    await keeper.start()
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
    await kept.keeper.start()
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
    await keeper.start()
    await asyncio.wait_for(enough.wait(), 5)
    assert waits[9] == pytest.approx(0.75)
    assert all(wait == pytest.approx(1.0) for wait in (*waits[:9], *waits[10:]))
    await keeper.stop()


async def test_after_a_death_the_time_on_is_booked_up_to_the_latest_end_it_may_have_had(data_dir: Path) -> None:
    dead = keep(data_dir, COUNTED)
    dead.world["ready"] = False  # nothing of it has reached the database
    await dead.keeper.start()
    for _ in range(10):
        await dead.turn(1)
    heir = keep(data_dir, COUNTED)
    heir.world["on"] = False
    heir.clock.tick(600)
    await heir.keeper.start()
    await heir.turn()
    begun = us(NOON) + 1_000_000
    assert heir.books.of("on") == [("gpu0", begun, us(NOON) + 10_000_000 + BEAT_US)]
    await heir.turn(1)
    assert not (data_dir / "on-times.json").exists()
    await heir.keeper.stop()


async def test_what_an_orderly_end_has_told_is_not_made_longer_by_the_next_start(data_dir: Path) -> None:
    first = keep(data_dir, COUNTED)
    await first.keeper.start()
    await first.turn(5)
    await first.turn(5)
    await first.keeper.stop()
    told = first.books.of("on")[-1]
    second = keep(data_dir, COUNTED)
    second.world["on"] = False
    second.clock.tick(3_000)
    await second.keeper.start()
    await second.turn()
    assert set(second.books.of("on")) <= {told}
    await second.keeper.stop()


async def test_hardware_that_another_gateway_keeps_is_refused_at_the_start(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.books.in_use = True
    with pytest.raises(AssetInUse):
        await kept.keeper.start()
    await kept.keeper.stop()
    assert kept.books.told == [("close",)]


async def test_hardware_found_taken_once_the_database_is_back_is_told_and_its_hours_wait(data_dir: Path) -> None:
    kept = keep(data_dir)
    kept.world["ready"] = False
    await kept.keeper.start()
    kept.world["ready"], kept.books.in_use = True, True
    await kept.turn(1)
    await kept.turn(1)
    assert kept.warnings == ["hours_behind"]
    assert kept.books.of("advance") == []
    kept.books.in_use = False
    await kept.turn(1)
    assert len(kept.books.of("advance")) == 2
    await kept.keeper.stop()


async def test_the_claims_on_the_hardware_are_looked_after(data_dir: Path) -> None:
    kept = keep(data_dir)
    await kept.keeper.start()
    await kept.turn()
    before = len(kept.books.of("renew"))
    await kept.turn(31)
    assert len(kept.books.of("renew")) == before + 1
    await kept.keeper.stop()


@dataclass
class Card:
    """A card that draws 300 W; what a watcher last saw of it."""

    clock: FakeClock | None = None
    counter_j: float | None = 5_000.0
    seen: tuple[float, tuple[GpuReading, ...]] | None = None

    def look(self) -> None:
        assert self.clock is not None
        counter = None if self.counter_j is None else self.counter_j + 300 * self.clock.t_s
        reading = GpuReading(0, "L4", power_w=300.0, energy_j=counter, uuid="GPU-1")
        self.seen = (self.clock.t_s, (reading,))


async def test_what_the_cards_of_owned_hardware_draw_is_noted_and_goes_on_after_a_restart(data_dir: Path) -> None:
    card = Card()
    kept = keep(data_dir, OWNED, lambda: card.seen)
    card.clock = kept.clock
    await kept.keeper.start()
    for _ in range(31):
        card.look()
        await kept.turn(1)
    await kept.keeper.stop()
    name, stretches = kept.books.of("energy")[-1]
    (whole,) = stretches
    assert (name, whole.card, whole.energy_mj, whole.to_us - whole.from_us) == ("gpu0", "GPU-1", 9_000_000, 30_000_000)
    heir = keep(data_dir, OWNED, lambda: card.seen)
    heir.books.looks = [CardLook("GPU-1", whole.to_us, whole.counter_mj, None)]
    heir.clock.tick(630)
    card.clock = heir.clock
    await heir.keeper.start()
    assert heir.books.of("last looks") == [("gpu0",)]
    card.look()
    await heir.turn(0)
    (_, (gap,)) = heir.books.of("energy")[0]
    assert (gap.from_us, gap.energy_mj) == (whole.to_us, 300_000 * round((gap.to_us - gap.from_us) / 1e6))
    await heir.keeper.stop()


async def test_hours_that_went_by_wait_a_moment_for_the_first_look_at_the_cards(data_dir: Path) -> None:
    kept = keep(data_dir, OWNED)
    await kept.keeper.start()
    await kept.turn(3)
    assert [name for name, _ in kept.books.of("advance")] == ["sold"]
    await kept.turn(8)
    assert [name for name, _ in kept.books.of("advance")] == ["sold", "gpu0", "sold"]
    await kept.keeper.stop()


async def test_rented_hardware_is_not_metered(data_dir: Path) -> None:
    def nobody_asks() -> None:
        raise AssertionError("a card was looked at")

    kept = keep(data_dir, RENTED, nobody_asks)
    await kept.keeper.start()
    await kept.turn(1)
    await kept.keeper.stop()
    assert kept.books.of("energy") == []


def test_the_start_of_the_machine_has_a_name_that_stays() -> None:
    assert boot_id() == boot_id() != ""


def test_an_installation_keeps_its_name(tmp_path: Path) -> None:
    first = installation_id(tmp_path / "new")
    assert len(first) == 16
    assert installation_id(tmp_path / "new") == first
    assert installation_id(tmp_path / "other") != first
