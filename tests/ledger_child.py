"""A gateway's ledger under traffic, made to be killed: `python ledger_child.py URL DATA_DIR PREFIX TROUBLE SEED`.

Each line on stdout is a promise the ledger has made: `reserved ID`, `opened ID`, `settled ID` (durable).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from router.core.vocabulary import Tier
from router.stores.database import Database
from router.stores.engines import parse_url
from router.stores.entries import WriterConfig
from router.stores.events import Event
from router.stores.sql import SqlLedger
from tests.ledger_samples import WallClock, hold, opened, settled, tried


class Troubled(Database):
    """Fails before or after one commit in five."""

    luck = random.Random(0)
    ratio = 0.0

    def apply(self, events: Sequence[Event]) -> list[bool]:
        before, after = self.luck.random() < self.ratio, self.luck.random() < self.ratio
        trouble: type[Exception] = self.engine.dialect.loaded_dbapi.OperationalError  # type: ignore[union-attr]
        if before:
            raise trouble("before the commit")
        known = super().apply(events)
        if after:
            raise trouble("after the commit")
        return known


def say(*words: str) -> None:
    os.write(1, (" ".join(words) + "\n").encode())


async def worker(ledger: SqlLedger, name: str, luck: random.Random) -> None:
    number = 0
    while True:
        number += 1
        request_id = f"{name}-{number}"
        tier = luck.choice((Tier.LOCAL, Tier.CHEAP))
        await ledger.reserve(hold(request_id, tier=tier, reserve_nanousd=0 if tier is Tier.LOCAL else 900))
        say("reserved", request_id)
        attempts = [tried(1, tier=tier, amount_nanousd=10)]
        if luck.random() < 0.5:
            await ledger.open_attempt(opened(request_id, number=2, tier=Tier.PREMIUM, reserve_nanousd=8000))
            say("opened", request_id)
            attempts.append(tried(2, tier=Tier.PREMIUM, amount_nanousd=100))
        ledger.settle(settled(request_id, *attempts), hold_open=True)
        if luck.random() < 0.3:
            await ledger.flush()
            say("settled", request_id)


async def main(url: str, data_dir: str, prefix: str, trouble: str, seed: str) -> None:
    luck = random.Random(int(seed))
    Troubled.luck, Troubled.ratio = random.Random(int(seed)), float(trouble)
    store = Troubled(parse_url(url), prefix, lambda: datetime.now(UTC))
    config = WriterConfig(retry_s=0.005, max_retry_s=0.02)
    ledger = SqlLedger(url, Path(data_dir), clock=WallClock(), instance=prefix, store=store, config=config)
    await ledger.start()
    say("ready", "-")
    await asyncio.gather(*(worker(ledger, f"{prefix}-{i}", luck) for i in range(8)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
