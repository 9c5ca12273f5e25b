"""The databases that the books are kept in: a SQLite file, or a database of its own on a Postgres that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Cluster, cluster_if_any


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster | None]:
    """A running server that nobody may stop or freeze; `None` where the machine has no Postgres."""
    yield from cluster_if_any()


@pytest.fixture
def postgres_url(postgres: Cluster | None) -> str:
    """An empty database on Postgres."""
    if postgres is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    return postgres.new_database()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, on each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    found: str = request.getfixturevalue("postgres_url")
    return found
