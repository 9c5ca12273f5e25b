"""Schema versions: old books stay readable, unusable ones are told apart, newcomers may arrive together."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, inspect

from router.core.vocabulary import Outcome, Tier
from router.stores import queries
from router.stores.engines import parse_url, read_engine, write_engine
from router.stores.migrations import MIGRATIONS, SchemaError, migrate, verify
from router.stores.schema import metadata
from router.stores.spool import FOLDER
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, settled, tried

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "ledger"


@pytest.fixture
def engine(url: str) -> Engine:
    return write_engine(parse_url(url))


def add_a_column(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE request ADD COLUMN colour TEXT")


def fail_half_way(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE request ADD COLUMN half TEXT")
    raise RuntimeError("the power went out")


def columns(engine: Engine, table: str) -> set[str]:
    with engine.connect() as connection:
        return {column["name"] for column in inspect(connection).get_columns(table)}


def test_the_migrations_end_at_the_schema_that_is_written_and_read(engine: Engine) -> None:
    assert migrate(engine) == len(MIGRATIONS)
    with engine.connect() as connection:
        verify(connection)
    for table in metadata.sorted_tables:
        assert columns(engine, table.name) == {column.name for column in table.columns}


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
async def test_rows_of_every_old_version_stay_readable(engine: Engine, url: str, version: int, tmp_path: Path) -> None:
    migrate(engine, MIGRATIONS[:version])
    with engine.begin() as connection:
        for line in (FIXTURES / f"v{version}.sql").read_text().splitlines():
            connection.exec_driver_sql(line)
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON))
    try:
        assert await ledger.record("settled-1") == settled(
            "settled-1", tried(1, outcome=Outcome.TIMEOUT), tried(2, tier=Tier.PREMIUM, amount_nanousd=5000)
        )
        plain, lost = await ledger.record("plain-1"), await ledger.record("open-1")
        assert plain is not None
        assert lost is not None
        assert (plain.cost_nanousd, lost.cost_nanousd, lost.outcome) == (63_889, 900, Outcome.LOST)
        assert await ledger.spent_since(NOON - timedelta(days=1)) == 250 + 5000 + 900
        assert [f.comment for f in queries.iterate_feedback(ledger.read_engine)] == ["it's fine"]
    finally:
        await ledger.close()


def test_a_later_version_is_added_to_an_earlier_one(engine: Engine) -> None:
    migrate(engine)
    assert migrate(engine, (*MIGRATIONS, add_a_column)) == len(MIGRATIONS) + 1
    assert "colour" in columns(engine, "request")


def test_a_migration_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    migrate(engine)
    with pytest.raises(RuntimeError):
        migrate(engine, (*MIGRATIONS, fail_half_way))
    assert "half" not in columns(engine, "request")
    assert migrate(engine) == len(MIGRATIONS)


def test_the_first_migration_is_whole_or_not_there(engine: Engine) -> None:
    def create_and_fail(connection: Connection) -> None:
        MIGRATIONS[0](connection)
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError):
        migrate(engine, (create_and_fail,))
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    assert migrate(engine) == len(MIGRATIONS)


async def test_a_newer_schema_is_refused_with_the_way_out(engine: Engine, url: str, tmp_path: Path) -> None:
    migrate(engine, (*MIGRATIONS, add_a_column))
    with pytest.raises(SchemaError, match="run the newer program"):
        await SqlLedger.open(url, tmp_path, clock=WallClock())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("DROP TABLE schema_version", "but no schema_version"),
        ("DELETE FROM schema_version", "half-done migration"),
        ("ALTER TABLE attempt DROP COLUMN amount_nanousd", "attempt lacks amount_nanousd"),
        ("DROP TABLE world", "world lacks world_hash, body"),
    ],
)
async def test_a_half_done_schema_is_refused(engine: Engine, url: str, damage: str, told: str, tmp_path: Path) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(damage)
    with pytest.raises(SchemaError, match=told):
        await SqlLedger.open(url, tmp_path, clock=WallClock())


def test_many_may_migrate_at_once(url: str) -> None:
    def one(_: int) -> int:
        return migrate(write_engine(parse_url(url)), (*MIGRATIONS, add_a_column))

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(one, range(6))) == {len(MIGRATIONS) + 1}


async def test_a_file_that_is_no_database_is_waited_out_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"somebody's diary" * 100)
    ledger = await SqlLedger.open(f"sqlite:///{path}", tmp_path, clock=WallClock())
    try:
        assert not ledger.state().healthy
        assert ledger.state().reason == "DatabaseError: file is not a database"
    finally:
        await ledger.close()
    assert path.read_bytes() == b"somebody's diary" * 100


def test_reports_of_a_database_that_is_not_ours_are_empty(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)").connection.close()
    assert queries.costs(read_engine(f"sqlite:///{tmp_path}/other.db")).rows == ()


@pytest.mark.parametrize("version", [1])
async def test_a_spool_written_by_an_old_version_is_replayed(tmp_path: Path, version: int) -> None:
    left = tmp_path / FOLDER / "0123456789abcdef"
    left.mkdir(parents=True)
    (left / "000001.jsonl").write_bytes((FIXTURES / f"spool_v{version}.jsonl").read_bytes())
    ledger = await SqlLedger.open(f"sqlite:///{tmp_path}/ledger.db", tmp_path, clock=WallClock(NOON))
    try:
        wanted = settled(
            "settled-1", tried(1, outcome=Outcome.TIMEOUT), tried(2, tier=Tier.PREMIUM, amount_nanousd=5000)
        )
        assert wanted.decision is not None  # and before there was exploration a choice had no probability
        wanted = replace(wanted, decision=replace(wanted.decision, exploration_probability=0.0))
        assert await ledger.record("settled-1") == wanted
        totals = (await ledger.costs()).totals
        assert (totals.requests, totals.cost_nanousd, totals.open_reservations) == (2, 250 + 5000 + 900, 0)
        assert not (tmp_path / FOLDER / "rejected.jsonl").exists()
    finally:
        await ledger.close()
