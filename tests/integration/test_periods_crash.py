"""kill -9 at every statement of the books, then a restart: they balance, and no request is charged twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from router.core.periods import GRACE_US, HOUR_US
from router.stores.engines import parse_url, read_engine, write_engine
from router.stores.migrations import migrate
from router.stores.schema import attempt
from tests.hours import H0, MINUTE_US, OWNED, Books, check, local
from tests.hours_child import AMOUNTS
from tests.postgres import Cluster

CHILD = Path(__file__).resolve().parents[1] / "hours_child.py"


def killed(step: int, urls: list[str]) -> list[str]:
    """The databases of those that died at every `step`-th statement, and of the one that came to its end."""
    done = subprocess.run([sys.executable, CHILD, str(step), *urls], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return urls[: int(done.stdout)]


def test_a_death_at_any_statement_costs_no_balance_and_charges_nothing_twice(tmp_path: Path) -> None:
    lives = killed(1, [f"sqlite:///{tmp_path}/{life}.db" for life in range(1_000)])
    assert len(lives) > 100
    for url in lives:
        check_life(url)


@pytest.mark.postgres
def test_a_death_on_postgres_leaves_the_same_books(postgres: Cluster | None, postgres_url: str) -> None:
    assert postgres is not None
    engine = write_engine(parse_url(postgres_url))
    migrate(engine)
    engine.dispose()
    lives = killed(4, postgres.copies(postgres_url, 40))
    assert len(lives) > 20
    for url in lives:
        check_life(url)


def check_life(url: str) -> None:
    # the register of the dead gateway's hardware may not have happened: then it begins here
    books = Books(url, now_us=H0 + 3 * HOUR_US, terms=OWNED)
    books.advance(H0 + 5 * HOUR_US + GRACE_US)
    check(books)
    charged = amounts(books)
    assert all(charged[name] in (0, 400 if name == "a" else 0, AMOUNTS[name]) for name in charged)
    told_again(books)
    books.close()


def amounts(books: Books) -> dict[str, int]:
    with read_engine(books.url).connect() as connection:
        rows = connection.execute(select(attempt.c.request_id, attempt.c.amount_nanousd))
        return {row[0]: row[1] for row in rows}


def told_again(books: Books) -> None:
    """The spool holds every settlement: replayed, twice, each request is charged what it cost, once."""
    for _ in range(2):
        for name, amount in AMOUNTS.items():
            books.settle(name, local(amount, H0 + HOUR_US + MINUTE_US))
        books.advance(H0 + 7 * HOUR_US + GRACE_US)
        check(books)
    assert amounts(books) == AMOUNTS
