"""The database, the spool's disk, or both are away: requests go on, nothing is lost, nothing is booked twice."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.core.vocabulary import Tier
from router.errors import Unavailable
from router.stores.spool import FOLDER
from router.stores.sql import SqlLedger
from tests.ledger_bench import QUICK, Bench, bench, serve
from tests.ledger_samples import NOON, WallClock, hold, opened, settled, tried
from tests.patience import PATIENCE_S, until
from tests.postgres import Cluster, binaries, cluster


async def test_a_database_away_at_the_start_is_no_reason_not_to_start(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.store.fail = sqlite3.OperationalError("unable to open database file")
        await b.ledger.start()
        assert not b.ledger.state().healthy
        assert b.ledger.state().reason == "OperationalError: unable to open database file"
        await serve(b.ledger, "r1")
        await b.ledger.open_attempt(opened("r2"))
        await until(lambda: b.ledger.state().spooled_events >= 2)
        b.store.fail = None
        await until(lambda: b.ledger.state().healthy)
        await b.ledger.flush()
        assert b.totals() == (1, 250, 1)
        assert b.spool_files() == []
        await until(lambda: b.warnings == ["ledger_degraded", "ledger_recovered"])


async def test_a_folder_that_cannot_be_made_yet_is_waited_for(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        (tmp_path / "db").write_text("the volume is not mounted")
        await b.ledger.start()
        await serve(b.ledger, "r1")
        (tmp_path / "db").unlink()
        await until(lambda: b.ledger.state().healthy)
        await b.ledger.flush()
        assert b.totals() == (1, 250, 0)


@pytest.mark.parametrize(
    "text", ["database is locked", "attempt to write a readonly database", "database or disk is full", "disk I/O error"]
)
async def test_a_failure_in_mid_traffic_costs_no_request(tmp_path: Path, text: str) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        await serve(b.ledger, "before")
        b.store.fail = sqlite3.OperationalError(text)
        await asyncio.gather(*(serve(b.ledger, f"during{i}") for i in range(50)))
        await until(lambda: not b.ledger.state().healthy)
        b.store.fail = None
        await until(lambda: b.ledger.state().healthy)
        await serve(b.ledger, "after")
        await b.ledger.flush()
        assert b.totals() == (52, 52 * 250, 0)


async def test_a_database_that_hangs_delays_no_request(tmp_path: Path) -> None:
    async with bench(tmp_path, replace(QUICK, stall_s=PATIENCE_S, give_up_s=2 * PATIENCE_S)) as b:
        await b.ledger.start()
        b.store.answers.clear()
        await asyncio.wait_for(asyncio.gather(*(serve(b.ledger, f"r{i}") for i in range(10))), PATIENCE_S / 2)
        assert b.ledger.state().healthy  # they had been served before anybody called it a stall
        b.store.answers.set()
        await b.ledger.flush()
        assert b.totals() == (10, 10 * 250, 0)


async def test_a_database_that_hangs_is_told_of(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        b.store.answers.clear()
        await asyncio.gather(*(serve(b.ledger, f"first{i}") for i in range(10)))
        await serve(b.ledger, "second")
        await until(lambda: b.ledger.state().reason == "the database does not answer")
        await until(lambda: b.warnings == ["ledger_degraded"])
        b.store.answers.set()
        await until(lambda: b.ledger.state().healthy)
        await b.ledger.flush()
        assert b.totals() == (11, 11 * 250, 0)


async def test_a_process_that_gets_no_cpu_does_not_blame_the_database(tmp_path: Path) -> None:
    # what may be slow here is the disk, and that is the database's affair: it gets a second and a half
    patient = replace(QUICK, stall_s=1.5)
    async with bench(tmp_path, patient) as b:
        await b.ledger.start()
        for number in range(2):
            b.store.answers.clear()  # the thread gets no further
            asked = asyncio.create_task(serve(b.ledger, f"r{number}"))
            await asyncio.sleep(0)
            time.sleep(1.2 * patient.stall_s)  # noqa: ASYNC251 - and neither does the loop
            b.store.answers.set()
            await asked
        await b.ledger.flush()
        assert b.warnings == []
        assert b.totals() == (2, 2 * 250, 0)


async def test_reports_hold_what_was_spooled_as_soon_as_the_ledger_is_well_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        for turn in range(5):
            b.store.answers.clear()
            await asyncio.gather(*(serve(b.ledger, f"r{turn}-{number}") for number in range(20)))
            b.store.answers.set()
            await until(lambda: b.ledger.state().healthy)
            totals = (await b.ledger.costs()).totals
            assert (totals.requests, totals.open_reservations) == (20 * (turn + 1), 0)


async def test_a_commit_whose_answer_was_lost_is_not_booked_twice(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        for i in range(5):
            b.store.fail_after_commit = True
            await serve(b.ledger, f"r{i}")
            await until(lambda: not b.store.fail_after_commit and b.ledger.state().healthy)
        await b.ledger.flush()
        await until(lambda: b.ledger.state().healthy)
        assert b.totals() == (5, 1250, 0)


async def test_without_a_journal_a_hanging_database_delays_the_first_request_by_the_stall_time(tmp_path: Path) -> None:
    async with bench(tmp_path, replace(QUICK, stall_s=0.3, give_up_s=PATIENCE_S, max_journal_bytes=0)) as b:
        await b.ledger.start()
        b.store.answers.clear()
        took_s = []
        for number in range(6):
            began_s = time.monotonic()
            await serve(b.ledger, f"r{number}")
            took_s.append(time.monotonic() - began_s)
        assert took_s[0] >= 0.3
        assert min(took_s) < 0.3  # of five, one has met no other work on this machine
        b.store.answers.set()
        await until(lambda: b.ledger.state().healthy)
        await b.ledger.flush()
        assert b.totals() == (6, 6 * 250, 0)


async def test_the_journal_keeps_only_what_is_nowhere_else(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        for turn in range(30):
            await asyncio.gather(*(serve(b.ledger, f"r{turn}-{i}") for i in range(100)))
            await b.ledger.flush()
        assert b.totals() == (3000, 3000 * 250, 0)
        assert len(b.journal_files()) <= 2  # the one in use, and one to be used next
    assert not (tmp_path / "data" / FOLDER).exists() or list((tmp_path / "data" / FOLDER).iterdir()) == []


async def test_a_reservation_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """A copy of the disk, as a crash would leave it, is booked by the next start."""
    async with bench(tmp_path / "first") as first, bench(tmp_path / "next") as second:
        await first.ledger.start()
        first.store.answers.clear()
        await first.ledger.reserve(hold("open", reserve_nanousd=900))
        await first.ledger.open_attempt(opened("open", number=2))
        shutil.copytree(first.data_dir, second.data_dir)
        await second.ledger.start()
        assert second.totals() == (1, 900 + opened("open").reserve_nanousd, 0)


async def test_with_nothing_durable_left_money_is_refused_and_local_work_goes_on(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        b.forbid_spooling()
        b.store.fail = sqlite3.OperationalError("database or disk is full")
        with pytest.raises(Unavailable) as error:
            await b.ledger.reserve(hold("api"))
        assert error.value.code == "ledger_unavailable"
        with pytest.raises(Unavailable):
            await b.ledger.open_attempt(opened("api", number=2))
        await serve(b.ledger, "local", Tier.LOCAL)
        assert b.ledger.state().held_events > 0
        b.store.fail = None
        await until(lambda: b.ledger.state().healthy)
        await b.ledger.flush()
        assert b.totals() == (1, 250, 0)
        assert b.ledger.state().dropped_events == 0


async def test_when_both_hang_money_is_refused_in_time(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        b.forbid_spooling()
        b.store.answers.clear()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(b.ledger.reserve(hold("api")), PATIENCE_S)
        await asyncio.wait_for(b.ledger.reserve(hold("local", tier=Tier.LOCAL, reserve_nanousd=0)), PATIENCE_S)
        b.store.answers.set()
        await until(lambda: b.ledger.state().healthy)
        await b.ledger.flush()
        assert b.totals() == (0, 0, 1)


async def test_a_spool_that_comes_back_takes_what_was_held(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        b.forbid_spooling()
        b.store.fail = sqlite3.OperationalError("database is locked")
        await serve(b.ledger, "local", Tier.LOCAL)
        await until(lambda: b.ledger.state().held_events == 2)
        b.allow_spooling()
        await serve(b.ledger, "api")
        await until(lambda: b.ledger.state().held_events == 0 and b.ledger.state().spooled_events == 4)


async def test_the_spool_is_bounded(tmp_path: Path) -> None:
    config = replace(QUICK, max_spool_bytes=2000, max_journal_bytes=2000)
    async with bench(tmp_path, config) as b:
        b.store.fail = sqlite3.OperationalError("unable to open database file")
        await b.ledger.start()
        with pytest.raises(Unavailable):
            for i in range(200):
                await b.ledger.reserve(hold(f"r{i}"))
        for files in (b.spool_files(), b.journal_files()):
            assert sum(path.stat().st_size for path in files) <= 2000


async def test_memory_is_bounded_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    config = replace(QUICK, max_queued_events=100)
    async with bench(tmp_path, config) as b:
        await b.ledger.start()
        b.forbid_spooling()
        b.store.answers.clear()
        for i in range(1000):
            b.ledger.settle(settled(f"r{i}", rich=False), hold_open=True)
        assert b.ledger.state().dropped_events > 0
        assert b.ledger.state().held_events <= 100 + config.max_batch_events
        assert "ledger_event_dropped" in await _eventually(b)


async def _eventually(b: Bench) -> list[str]:
    await until(lambda: bool(b.warnings))
    return b.warnings


async def test_what_was_spooled_is_replayed_by_the_next_start(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.store.fail = sqlite3.OperationalError("unable to open database file")
    await first.ledger.start()
    await serve(first.ledger, "done")
    await first.ledger.reserve(hold("open", reserve_nanousd=900))
    await first.ledger.close()
    assert first.spool_files()
    async with bench(tmp_path) as second:
        await second.ledger.start()
        assert second.totals() == (2, 250 + 900, 0)
        assert list((second.data_dir / FOLDER).iterdir()) == []


async def test_torn_and_damaged_lines_are_set_aside_and_the_others_are_booked(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.store.fail = sqlite3.OperationalError("unable to open database file")
    await first.ledger.start()
    for i in range(3):
        await serve(first.ledger, f"r{i}")
    await first.ledger.close()
    (spooled,) = first.spool_files()
    lines = spooled.read_bytes().splitlines(keepends=True)
    damaged = next(i for i, line in enumerate(lines) if b'"settled"' in line)
    lines[damaged] = lines[damaged].replace(b"250", b"999")
    spooled.write_bytes(b"".join(lines) + lines[0][: len(lines[0]) // 2])
    async with bench(tmp_path) as second:
        await second.ledger.start()
        # What was damaged is the end of a request: it counts as lost, at its reserve.
        assert second.totals() == (3, 250 + 250 + 900, 0)
        await until(lambda: "ledger_spool_damaged" in second.warnings)
        assert len((second.data_dir / FOLDER / "rejected.jsonl").read_bytes().splitlines()) == 2


async def test_one_event_that_no_database_takes_does_not_stop_the_others(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.ledger.start()
        b.ledger.settle(settled("too-big", tried(amount_nanousd=2**70), rich=False), hold_open=False)
        await asyncio.gather(*(serve(b.ledger, f"r{i}") for i in range(5)))
        await b.ledger.flush()
        assert b.totals() == (5, 1250, 0)
        await b.ledger.reserve(hold("no-number-for-a-database", reserve_nanousd=2**70))
        await b.ledger.flush()
        assert b.ledger.state().healthy
        await until(lambda: b.warnings.count("ledger_event_rejected") == 2)
        assert b.totals() == (5, 1250, 0)


async def test_another_process_holding_the_write_lock_is_a_stall_like_any_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON), config=QUICK)
    try:
        backup = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        backup.execute("BEGIN IMMEDIATE")
        await asyncio.gather(*(serve(ledger, f"r{i}") for i in range(20)))
        await until(lambda: not ledger.state().healthy)
        backup.execute("ROLLBACK")
        backup.close()
        await until(lambda: ledger.state().healthy)
        assert (await ledger.costs()).totals.requests == 20
    finally:
        await ledger.close()


async def test_a_ledger_closed_while_the_database_hangs_keeps_everything_in_the_spool(tmp_path: Path) -> None:
    b = Bench(tmp_path)
    await b.ledger.start()
    b.store.answers.clear()
    for i in range(10):
        b.ledger.settle(settled(f"r{i}", rich=False), hold_open=False)
    await b.ledger.close(timeout_s=0.3)
    assert b.spool_files()
    b.store.answers.set()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster]:
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    with cluster(found) as server:
        yield server


@pytest.mark.postgres
async def test_a_postgres_that_is_restarted_under_traffic_loses_nothing(tmp_path: Path, postgres: Cluster) -> None:
    url = postgres.new_database()
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON), config=QUICK)
    try:
        await asyncio.gather(*(serve(ledger, f"before{i}") for i in range(20)))
        await asyncio.to_thread(postgres.stop)
        await asyncio.gather(*(serve(ledger, f"during{i}") for i in range(20)))
        await until(lambda: not ledger.state().healthy)
        await asyncio.to_thread(postgres.start)
        await until(lambda: ledger.state().healthy)
        await asyncio.gather(*(serve(ledger, f"after{i}") for i in range(20)))
        totals = (await ledger.costs()).totals
        assert (totals.requests, totals.cost_nanousd, totals.open_reservations) == (60, 60 * 250, 0)
    finally:
        await ledger.close()


@pytest.mark.postgres
async def test_a_postgres_that_freezes_delays_nobody(tmp_path: Path, postgres: Cluster) -> None:
    url = postgres.new_database()
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON), config=QUICK)
    try:
        postgres.freeze()
        try:
            await asyncio.wait_for(asyncio.gather(*(serve(ledger, f"r{i}") for i in range(20))), PATIENCE_S)
            await until(lambda: not ledger.state().healthy)
        finally:
            postgres.thaw()
        await until(lambda: ledger.state().healthy)
        assert (await ledger.costs()).totals.requests == 20
    finally:
        await ledger.close()
