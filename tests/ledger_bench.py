"""A ledger on a database that a test can break."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

from router.core.vocabulary import Tier
from router.stores import queries
from router.stores.database import Database
from router.stores.engines import parse_url, read_engine
from router.stores.entries import WriterConfig
from router.stores.events import Event
from router.stores.spool import FOLDER
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, hold, settled, tried

QUICK = WriterConfig(stall_s=0.1, give_up_s=0.4, retry_s=0.02, max_retry_s=0.1)


class Fragile(Database):
    """A real database that the test can break: `fail` says no, clearing `answers` makes it hang."""

    def __init__(self, url: str, instance: str) -> None:
        super().__init__(parse_url(url), instance, lambda: NOON)
        self.fail: Exception | None = None
        self.fail_after_commit = False
        self.answers = threading.Event()
        self.answers.set()

    def connect(self) -> None:
        self._trouble()
        super().connect()

    def apply(self, events: Sequence[Event]) -> list[bool]:
        self._trouble()
        known = super().apply(events)
        if self.fail_after_commit and events:
            self.fail_after_commit = False
            raise sqlite3.OperationalError("the answer to COMMIT never came")
        return known

    def _trouble(self) -> None:
        self.answers.wait()
        if self.fail is not None:
            raise self.fail


class Bench:
    """A ledger on a fragile database, with what it warned of."""

    def __init__(self, folder: Path, config: WriterConfig = QUICK) -> None:
        self.url = f"sqlite:///{folder}/db/ledger.db"
        self.data_dir = folder / "data"
        instance = token_hex(4)
        self.store = Fragile(self.url, instance)
        self.warnings: list[str] = []
        self.ledger = SqlLedger(
            self.url,
            self.data_dir,
            clock=WallClock(NOON),
            on_warning=lambda event, **_labels: self.warnings.append(event),
            config=config,
            instance=instance,
            store=self.store,
        )

    def spool_files(self) -> list[Path]:
        return list((self.data_dir / FOLDER).glob("*/[0-9]*.jsonl"))

    def journal_files(self) -> list[Path]:
        return list((self.data_dir / FOLDER).glob("*/journal-*.jsonl"))

    def forbid_spooling(self) -> None:
        """A file stands where the folder should: even root cannot write there."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.data_dir / FOLDER, ignore_errors=True)
        (self.data_dir / FOLDER).write_text("not a folder")

    def allow_spooling(self) -> None:
        (self.data_dir / FOLDER).unlink()

    def totals(self) -> tuple[int, int, int]:
        totals = queries.costs(read_engine(self.url)).totals
        return totals.requests, totals.cost_nanousd, totals.open_reservations


@asynccontextmanager
async def bench(folder: Path, config: WriterConfig = QUICK) -> AsyncIterator[Bench]:
    made = Bench(folder, config)
    try:
        yield made
    finally:
        made.store.answers.set()
        await made.ledger.close()


async def serve(ledger: SqlLedger, request_id: str, tier: Tier = Tier.CHEAP) -> None:
    reserve = 0 if tier is Tier.LOCAL else 900
    await ledger.reserve(hold(request_id, tier=tier, reserve_nanousd=reserve))
    ledger.settle(settled(request_id, tried(tier=tier), rich=False), hold_open=True)
