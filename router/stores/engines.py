"""Engines for SQLite and Postgres, and what tells their failures apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from router.errors import ConfigError, RouterError

# How long SQLite itself waits for another process's lock. The caller of a reservation does not wait for it.
_BUSY_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 5


def parse_url(url: str) -> URL:
    """`url` as SQLAlchemy reads it. Raises ConfigError for a database we do not speak to, or SQLite without a file."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(
            [(None, "server.database_url", f"{parsed.drivername} is not supported: use sqlite:///… or postgresql://…")]
        )
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise ConfigError(
            [(None, "server.database_url", "a ledger in memory would forget what was spent: name a file, sqlite:///…")]
        )
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """The database file, resolved against the working directory; `None` for a server."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database).absolute()


def write_engine(url: URL) -> Engine:
    """For the one writer of a process: transactions begin where we say so."""
    if url.get_backend_name() == "sqlite":
        # A process that dies loses nothing; a machine that loses power may lose the last commits, never the rest.
        # Immediate: a transaction that will write takes the lock at once instead of failing half way.
        return _sqlite_engine(url, begin="BEGIN IMMEDIATE", pragmas=("journal_mode=WAL", "synchronous=NORMAL"))
    return create_engine(url, poolclass=NullPool, connect_args=_postgres_args())


def read_engine(url: str | URL) -> Engine:
    """For reports, safe beside a running gateway; writes nothing, creates nothing."""
    parsed = parse_url(url) if isinstance(url, str) else url
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, begin="BEGIN", pragmas=("query_only=ON",))
    # Repeatable read: the rows of a report and its totals come from one look at the books.
    return create_engine(parsed, poolclass=NullPool, isolation_level="REPEATABLE READ", connect_args=_postgres_args())


def _postgres_args() -> dict[str, Any]:
    # Keep-alives notice a server that has vanished without a word.
    return {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "application_name": "hybrid-llm-router",
    }


def describe(error: BaseException) -> str:
    """An error for an operator's eyes: its kind and, where they can name no host and no data, SQLite's own words."""
    original = getattr(error, "orig", None) or error
    if isinstance(original, RouterError):
        return original.message
    kind = type(original).__name__
    return f"{kind}: {original}" if type(original).__module__ == "sqlite3" else f"the database failed ({kind})"


def _sqlite_engine(url: URL, *, begin: str, pragmas: Sequence[str]) -> Engine:
    """Connections of our own making: SQLite's driver would begin transactions when it likes."""
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
