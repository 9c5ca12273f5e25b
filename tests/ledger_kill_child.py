"""A gateway's ledger whose database goes away and comes back, killed on the way: see `hours_child`.

`python ledger_kill_child.py STEP URL|FOLDER...`. Each line on stdout is a promise that the ledger of a life has made:
`LIFE reserved|opened|settled ID`; the last one is `lives N`.
"""

from __future__ import annotations

import asyncio
import os
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
from tests.kill_points import die_at, lives
from tests.ledger_samples import WallClock, hold, opened, settled, tried

QUICK = WriterConfig(retry_s=0.005, max_retry_s=0.01, linger_s=0.002)


class Remote(Database):
    """Can be out of reach."""

    away = False

    def apply(self, events: Sequence[Event]) -> list[bool]:
        if self.away:
            raise self.engine.dialect.loaded_dbapi.OperationalError("out of reach")  # type: ignore[union-attr]
        return super().apply(events)


async def work(life: int, url: str, folder: Path) -> None:
    def say(kind: str, request_id: str) -> None:
        os.write(1, f"{life} {kind} {request_id}\n".encode())

    store = Remote(parse_url(url), "dead", lambda: datetime.now(UTC))
    ledger = SqlLedger(url, folder, clock=WallClock(), instance="dead", store=store, config=QUICK)
    await ledger.start()
    for name, away in (("near", False), ("far", True), ("near-again", False)):
        store.away = away
        await ledger.reserve(hold(name, tier=Tier.CHEAP, reserve_nanousd=900))
        say("reserved", name)
        await ledger.open_attempt(opened(name, number=2, tier=Tier.PREMIUM, reserve_nanousd=8000))
        say("opened", name)
        if away:
            while ledger.state().healthy:  # noqa: ASYNC110 - the ledger has no event for it
                await asyncio.sleep(0.001)
        attempts = tried(1, amount_nanousd=10), tried(2, tier=Tier.PREMIUM, amount_nanousd=100)
        ledger.settle(settled(name, *attempts), hold_open=True)
        await ledger.flush()
        say("settled", name)
    await ledger.reserve(hold("open", tier=Tier.CHEAP, reserve_nanousd=900))
    say("reserved", "open")
    await ledger.flush()


def main(step: int, places: list[str]) -> None:
    def run(position: int) -> None:
        life = position // step
        url, _, folder = places[life].partition("|")
        die_at(position, files=True)
        asyncio.run(work(life, url, Path(folder)))
        os._exit(0)

    last = lives(run, range(1, 1 + step * len(places), step))
    os.write(1, f"lives {last // step + 1}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
