"""kill -9 at each step of the ledger's journal, spool and database in turn, while the database goes and comes back."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from router.core.vocabulary import Outcome
from router.stores import queries
from router.stores.database import Database
from router.stores.engines import parse_url, read_engine
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock
from tests.postgres import Cluster

CHILD = Path(__file__).resolve().parents[1] / "ledger_kill_child.py"
Promises = dict[str, set[str]]


def killed(step: int, urls: list[str], folder: Path) -> list[tuple[str, Path, Promises]]:
    """(books, folder, what had been promised) of each that died, and of the one that came to its end."""
    folders = [folder / str(life) for life in range(len(urls))]
    places = [f"{url}|{home}" for url, home in zip(urls, folders, strict=True)]
    done = subprocess.run([sys.executable, CHILD, str(step), *places], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    *lines, last = done.stdout.decode().splitlines()
    promised: dict[int, Promises] = defaultdict(lambda: defaultdict(set))
    for line in lines:
        life, kind, request_id = line.split()
        promised[int(life)][kind].add(request_id)
    count = int(last.removeprefix("lives "))
    return [(urls[life], folders[life], promised[life]) for life in range(count)]


def with_schema(url: str) -> None:
    database = Database(parse_url(url), "first", lambda: NOON)
    database.connect()
    database.close()


async def check_life(url: str, folder: Path, promised: Promises) -> None:
    heir = await SqlLedger.open(url, folder, clock=WallClock())
    assert heir.state().healthy
    await heir.close()
    engine = read_engine(url)
    found = {record.request_id: record for record in queries.iterate_records(engine)}
    assert promised["reserved"] <= set(found)
    for name, record in found.items():
        tries = len(record.attempts)
        assert tries == 2 or name not in promised["opened"]
        if record.outcome is Outcome.LOST:
            assert name not in promised["settled"]
            assert record.cost_nanousd == 900 + 8000 * (tries - 1)  # what may have been spent counts as spent
        else:
            assert record.cost_nanousd == 110
    totals = queries.costs(engine).totals
    assert totals.cost_nanousd == sum(record.cost_nanousd for record in found.values())
    assert (totals.requests, totals.open_reservations) == (len(found), 0)
    engine.dispose()


async def test_on_sqlite(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{life}/ledger.db" for life in range(400)]
    lives = killed(2, urls, tmp_path)
    assert len(lives) > 20
    for life in lives:
        await check_life(*life)


@pytest.mark.postgres
async def test_on_postgres(postgres: Cluster | None, postgres_url: str, tmp_path: Path) -> None:
    assert postgres is not None
    with_schema(postgres_url)
    lives = killed(5, postgres.copies(postgres_url, 60), tmp_path)
    assert len(lives) > 10
    for life in lives:
        await check_life(*life)
