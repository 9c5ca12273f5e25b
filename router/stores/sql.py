"""The ledger: what may be spent is durable before it can be, what was spent is booked exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from router.core.attempts import AttemptOpened, Hold, RoutingRecord
from router.core.judgements import JudgedAnswer
from router.ports import Clock
from router.stores import queries
from router.stores.database import Database, Store
from router.stores.engines import parse_url, read_engine
from router.stores.entries import LedgerState, WriterConfig
from router.stores.events import FeedbackGiven, Judged, Opened, Released, Reserved, Settled
from router.stores.journal import Journal
from router.stores.liveness import LifeFolder
from router.stores.rows import to_us
from router.stores.spool import FOLDER, Spool
from router.stores.writer import Writer

__all__ = ["LedgerState", "SqlLedger", "WriterConfig"]

_START_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 10.0


def _silent(_event: str, **_labels: str) -> None:
    return None


class SqlLedger:
    """The `Ledger` port on SQLite or Postgres, with a spool in `data_dir` for when the database is away.

    A reservation is durable against the death of the process when `reserve` returns: journalled, committed or spooled.
    Whatever was open when a gateway died is resolved by the next start (see `recovery`).
    """

    def __init__(
        self, url: str, data_dir: Path, *, clock: Clock, on_warning: Callable[..., None] = _silent,
        config: WriterConfig | None = None, instance: str | None = None, store: Store | None = None,
    ) -> None:  # fmt: skip
        """Build without touching anything. Raises ConfigError for a URL that is not SQLite on a file or Postgres.

        `on_warning(event, **labels)` is called on the event loop's thread. `instance` names this life of a
        gateway and is never used again; `store` replaces the database in tests.
        """
        parsed = parse_url(url)
        config = config or WriterConfig()
        self._clock = clock
        self._config = config
        self._instance = instance or token_hex(8)
        self.read_engine = read_engine(parsed)
        folder = LifeFolder(data_dir / FOLDER, self._instance)
        self._writer = Writer(
            store or Database(parsed, self._instance, clock.now_utc),
            Spool(folder, max_bytes=config.max_spool_bytes),
            Journal(folder, max_bytes=config.max_journal_bytes),
            config,
            lambda event, labels: on_warning(event, **labels),
        )

    @classmethod
    async def open(
        cls, url: str, data_dir: Path, *, clock: Clock, on_warning: Callable[..., None] = _silent, **options: Any
    ) -> SqlLedger:
        """Build and `start`."""
        ledger = cls(url, data_dir, clock=clock, on_warning=on_warning, **options)
        await ledger.start()
        return ledger

    async def start(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Migrate, replay the spool, resolve what dead gateways left. A database that is away is no failure.

        Raises LedgerInUse when another gateway owns the SQLite file, SchemaError when the schema is not ours.
        """
        await self._writer.start(timeout_s)

    async def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Drain, to the database or else to the spool; idempotent."""
        await self._writer.close(timeout_s)
        self.read_engine.dispose()

    def state(self) -> LedgerState:
        """Healthy or why not, and what waits."""
        return self._writer.state()

    async def reserve(self, hold: Hold) -> None:
        """See `ports.Ledger`. A zero-cash hold is kept in memory when nothing durable is left."""
        event = Reserved(hold, self._instance)
        if self._writer.promise(event):
            return
        try:
            await self._writer.submit(event, spends=hold.reserve_nanousd > 0)
        except BaseException:
            # Refused, or the caller has gone: should the event arrive late all the same, nothing is open.
            self._writer.withdraw(Released(hold.request_id, hold.tenant))
            raise

    async def open_attempt(self, attempt: AttemptOpened) -> None:
        """See `ports.Ledger`; the request's hold stays open when it raises."""
        event = Opened(attempt, self._instance)
        if not self._writer.promise(event):
            await self._writer.submit(event, spends=attempt.reserve_nanousd > 0)

    def settle(self, record: RoutingRecord, *, hold_open: bool) -> None:
        """See `ports.Ledger`."""
        self._writer.post(Settled(record, hold_open))

    async def add_feedback(self, request_id: str, tenant: str | None, score_ratio: float, comment: str | None) -> bool:
        """Note an opinion; False if `tenant` has no such request (`None` may judge any). The last one counts.

        While the database is away it is taken (True) and checked when that is back.
        """
        given = FeedbackGiven(request_id, tenant, score_ratio, comment, to_us(self._clock.now_utc()))
        return await self._writer.submit(given, spends=True)

    def note_judgement(self, answer: JudgedAnswer) -> None:
        """Keep what a judge or a check has said; never blocks and never raises."""
        self._writer.post(Judged(answer))

    async def flush(self) -> None:
        """Wait until all that was settled before is durable."""
        await self._writer.flush()

    async def costs(
        self, from_utc: datetime | None = None, to_utc: datetime | None = None, tenant: str | None = None
    ) -> queries.CostReport:
        """`queries.costs`, off the loop and with everything settled before."""
        await self.flush()
        return await asyncio.to_thread(queries.costs, self.read_engine, from_utc, to_utc, tenant)

    async def record(self, request_id: str, tenant: str | None = None) -> RoutingRecord | None:
        """`queries.record`, off the loop and with everything settled before."""
        await self.flush()
        return await asyncio.to_thread(queries.record, self.read_engine, request_id, tenant)

    async def spent_since(self, from_utc: datetime, tenant: str | None = None) -> int:
        """`queries.spent_since`, off the loop."""
        return await asyncio.to_thread(queries.spent_since, self.read_engine, from_utc, tenant)

    async def explored_since(self, from_utc: datetime) -> int:
        """`queries.explored_since`, off the loop."""
        return await asyncio.to_thread(queries.explored_since, self.read_engine, from_utc)
