"""The writer's own connection: applies batches of events, each in one transaction, each any number of times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime
from time import sleep
from typing import Any, Protocol

from sqlalchemy import URL, Engine

from router.stores import recovery, rows
from router.stores.checkpoints import Checkpointer, LogLimits
from router.stores.engines import sqlite_path, write_engine
from router.stores.events import Event, FeedbackGiven
from router.stores.liveness import FileLock, LedgerInUse, advisory_key
from router.stores.migrations import migrate, verify
from router.stores.rows import Batch, Worlds, batch_of
from router.stores.statements import Statements

# Rows asked for by id in one statement when a batch turns out to hold replays.
_IDS_PER_STATEMENT = 200
# Not 0: who merely offers the processor to others is given it back before they have begun.
_PAUSE_S = 50e-6
UNHURRIED_EVENTS = 64
"""Where more than these gather in a while the processor has enough to do: what counts then is how much it gets done."""


class Store(Protocol):
    """What the writer needs of a database; every method is called from the writer's thread alone.

    `steps` grows with every answer of the database: how others see that it answers, if slowly.
    """

    steps: int

    def connect(self) -> None:
        """Lock, migrate, register; what dead gateways left open is left to `resolve_dead`."""
        ...

    def apply(self, events: Sequence[Event]) -> list[bool]:
        """All of `events` durable, or none and an exception. One bool per FeedbackGiven: was its request known?"""
        ...

    def resolve_dead(self) -> int:
        """Book what every dead instance left open; how many requests that were."""
        ...

    def blames_event(self, error: Exception) -> bool:
        """Is it the data that is wrong (True), or is the database away (False)?"""
        ...

    def disconnect(self) -> None:
        """Drop the connection, whatever its state; what proves this gateway alive is kept where it can be."""
        ...

    def close(self) -> None:
        """Drop everything."""
        ...


def _give_way() -> None:
    """Let the event loop have interpreter and processor: a group is a millisecond of work, an answer takes less."""
    sleep(_PAUSE_S)


def _go_on() -> None:
    pass


class _Replays(Exception):
    """The batch holds requests that are already booked."""


class Database:
    """A `Store` on SQLite or Postgres. `instance` names this gateway's life, not its host.

    `give_way` is called now and then within a batch that is not large, on the writer's thread.
    """

    def __init__(
        self,
        url: URL,
        instance: str,
        now_utc: Callable[[], datetime],
        log: LogLimits | None = None,
        *,
        give_way: Callable[[], None] = _give_way,
    ) -> None:
        self.engine: Engine = write_engine(url)
        self._instance = instance
        self._now_utc = now_utc
        self._give_way = give_way
        self._log_limits = log or LogLimits()
        self._sqlite = self.engine.dialect.name == "sqlite"
        self._path = sqlite_path(url)
        self._file_lock = FileLock(self._path.with_name(self._path.name + ".lock")) if self._path else None
        self._sql = Statements(qmark=self._sqlite)
        self._worlds = Worlds()
        self._known_worlds: set[str] = set()
        self.steps = 0
        self._connection: Any = None
        self._cursor: Any = None
        self._checkpointer: Checkpointer | None = None

    def connect(self) -> None:
        """See `Store`. Raises LedgerInUse, SchemaError, or whatever the driver says."""
        if self._path is not None and self._file_lock is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._file_lock.acquire():
                raise LedgerInUse(
                    f"Another gateway writes to {self._path}. One process owns a SQLite ledger; for several, "
                    "set server.database_url to a Postgres."
                )
        migrate(self.engine)
        with self.engine.connect() as connection:
            verify(connection)
        self._connection = self.engine.raw_connection()
        driver = self._connection.driver_connection
        if not self._sqlite:
            driver.autocommit = True  # BEGIN and COMMIT are ours
        self._cursor = driver.cursor()
        if not self._sqlite:
            # Before the name is known to others: whoever sees the name without the lock takes it for dead.
            self._cursor.execute("SELECT pg_try_advisory_lock(%s)", (advisory_key(self._instance),))
        else:
            self._cursor.execute("PRAGMA wal_autocheckpoint=0").fetchall()
            self._checkpointer = Checkpointer(self.engine, self._log_limits)
        self._known_worlds.clear()
        started_at_us = rows.to_us(self._now_utc())
        self._cursor.execute(self._sql.instance, (self._instance, started_at_us))

    def resolve_dead(self) -> int:
        """See `Store`."""
        resolved = 0
        with self.engine.begin() as connection:
            for owner in recovery.owners_of_open_attempts(connection):
                if owner == self._instance:
                    continue
                if self._sqlite:  # our lock on the file says that nobody else lives
                    resolved += recovery.resolve(connection, owner)
                    continue
                key = advisory_key(owner)
                # Held to the end of the transaction, so that two newcomers do not both resolve it.
                if connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(%s)", (key,)).scalar():
                    resolved += recovery.resolve(connection, owner)
        return resolved

    def apply(self, events: Sequence[Event]) -> list[bool]:
        """See `Store`."""
        give_way = self._give_way if len(events) <= UNHURRIED_EVENTS else _go_on
        batch = batch_of(events, self._worlds, give_way)
        self.steps += 1
        cursor = self._cursor
        cursor.execute(self._sql.begin)
        self.steps += 1
        try:
            try:
                results = self._write(batch, give_way)
            except _Replays:
                cursor.execute("ROLLBACK")
                cursor.execute(self._sql.begin)
                self._drop_replays(batch)
                results = self._write(batch, give_way)
            cursor.execute("COMMIT")
            self.steps += 1
        except BaseException:
            with contextlib.suppress(Exception):
                cursor.execute("ROLLBACK")
            raise
        self._known_worlds.update(batch.worlds)
        if self._checkpointer is not None:
            self._checkpointer.noted(len(events))
            if self._checkpointer.overdue():
                with contextlib.suppress(Exception):  # the commit has happened, whatever becomes of the log
                    cursor.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        return results

    def _write(self, batch: Batch, give_way: Callable[[], None]) -> list[bool]:
        cursor, sql = self._cursor, self._sql
        if batch.opened:
            cursor.executemany(sql.opened, batch.opened)
            self.steps += 1
        for name, body in batch.worlds.items():
            if name not in self._known_worlds:
                cursor.execute(sql.world, (name, body))
        if batch.requests:
            # The row of the request is the proof that it has been booked: no row, no charge.
            if sql.request.write(cursor, batch.requests, give_way) != len(batch.requests):
                raise _Replays
            self.steps += 1
        if batch.attempts:
            sql.attempt.write(cursor, batch.attempts)
            self.steps += 1
        if batch.closed:
            sql.closed.write(cursor, batch.closed)
            self.steps += 1
        if batch.judgements:
            cursor.executemany(sql.judgement, batch.judgements)
            self.steps += 1
        return [self._give_feedback(f) for f in batch.feedback]

    def _give_feedback(self, f: FeedbackGiven) -> bool:
        whose = (rows.storable(f.request_id), f.tenant is None, rows.storable(f.tenant) or "")
        self._cursor.execute(self._sql.feedback, (f.score, rows.storable(f.comment), f.received_at_us, *whose))
        if self._cursor.rowcount == 1:
            return True
        # Perhaps an older opinion, arriving late: the request is known all the same.
        self._cursor.execute(self._sql.owned, whose)
        return self._cursor.fetchone() is not None

    def _drop_replays(self, batch: Batch) -> None:
        """Leave only requests that are not booked yet; a booking by crash recovery gives way to the real one."""
        ids = [row[0] for row in batch.requests]
        booked: dict[str, bool] = {}
        for start in range(0, len(ids), _IDS_PER_STATEMENT):
            part = ids[start : start + _IDS_PER_STATEMENT]
            self._cursor.execute(self._sql.booked(len(part)), part)
            booked.update((row[0], bool(row[1])) for row in self._cursor.fetchall())
        for request_id, resolved in booked.items():
            if resolved:
                self._cursor.execute(self._sql.forget_request, (request_id,))
                self._cursor.execute(self._sql.forget_attempts, (request_id,))
        final = {request_id for request_id, resolved in booked.items() if not resolved}
        batch.requests = [row for row in batch.requests if row[0] not in final]
        batch.attempts = [row for row in batch.attempts if row[0] not in final]

    def blames_event(self, error: Exception) -> bool:
        """See `Store`."""
        dbapi: Any = self.engine.dialect.loaded_dbapi
        if isinstance(error, (dbapi.DataError, dbapi.IntegrityError)):
            return True
        if isinstance(error, OSError) or (
            isinstance(error, dbapi.Error) and not isinstance(error, dbapi.ProgrammingError)
        ):
            return False
        # A driver's ProgrammingError, or no driver's error at all: the data, unless a plain look fails too.
        try:
            self._cursor.execute(self._sql.look)
            self._cursor.fetchall()
        except Exception:  # noqa: BLE001 - whatever it says, it does not answer
            return False
        return True

    def disconnect(self) -> None:
        """See `Store`."""
        if self._checkpointer is not None:
            self._checkpointer.stop()
            self._checkpointer = None
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()

    def close(self) -> None:
        """See `Store`."""
        self.disconnect()
        with contextlib.suppress(Exception):
            self.engine.dispose()
        if self._file_lock is not None:
            self._file_lock.release()
