"""The database locked, read-only, full or gone while people ask: they notice nothing, and the books come out right."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.core.vocabulary import NANO_PER_USD
from router.stores import queries
from router.stores.engines import read_engine
from router.stores.spool import FOLDER
from tests.e2e.conftest import EASY, HARD, KEYS
from tests.gateway import running, three_tiers
from tests.patience import PATIENCE_S
from tests.postgres import Cluster
from tests.process import gateway_process
from tests.upstream import FakeUpstream

CALLERS = 4
LATE_S = 3.0  # what a caller may wait when the database does not answer at all


@dataclass
class Traffic:
    """Callers who ask without a pause; whoever is answered badly or late is in `complaints`."""

    url: str
    costs: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    stopping: bool = False

    async def ask(self, session: aiohttp.ClientSession, messages: Any, *, stream: bool) -> None:
        body = {"model": "auto", "messages": messages}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        started_s = time.monotonic()
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            raw = await answer.read()
        self.waits_s.append(time.monotonic() - started_s)
        if answer.status != 200 or (stream and not raw.endswith(b"data: [DONE]\n\n")):
            self.complaints.append(f"{answer.status} {raw[-300:]!r}")
            return
        usd = answer.headers["x-router-cost-usd"]
        if stream:
            usd = json.loads(raw.split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]["cost"]
        self.costs[answer.headers["x-request-id"]] = round(float(usd) * NANO_PER_USD)

    async def caller(self, number: int) -> None:
        async with aiohttp.ClientSession() as session:
            while not self.stopping:
                await self.ask(session, HARD if number % 2 else EASY, stream=number >= CALLERS / 2)
                await asyncio.sleep(0.02)  # a person, not a benchmark

    async def more(self, count: int) -> None:
        """Until so many more have been answered."""
        wanted = len(self.costs) + count
        await self.until(lambda: len(self.costs) >= wanted or bool(self.complaints))

    async def readiness(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/health/readiness") as answer:
            return str((await answer.json())["status"])

    async def readiness_is(self, wanted: str) -> None:
        ends_at_s = time.monotonic() + PATIENCE_S
        while (status := await self.readiness()) != wanted:
            assert time.monotonic() < ends_at_s, f"still {status}, not {wanted}"
            await asyncio.sleep(0.05)

    async def until(self, condition: Any) -> None:
        ends_at_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends_at_s, "waited in vain"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Traffic]:
    """Traffic from before the trouble to after it; nobody may have noticed anything."""
    traffic = Traffic(url)
    callers = [asyncio.create_task(traffic.caller(number)) for number in range(CALLERS)]
    try:
        await traffic.more(10)
        await traffic.readiness_is("ready")
        yield traffic
        await traffic.readiness_is("ready")
        await traffic.more(10)
    finally:
        traffic.stopping = True
        await asyncio.gather(*callers)
    assert traffic.complaints == []
    assert sorted(traffic.waits_s)[len(traffic.waits_s) * 3 // 4] < LATE_S  # a machine may stand still for some


def check_books(url: str, traffic: Traffic, data_dir: Path) -> None:
    """What callers were told is what is booked, each once, and nothing waits any more."""
    found = list(queries.iterate_records(read_engine(url)))
    assert {record.request_id: record.cost_nanousd for record in found} == traffic.costs
    assert len(found) == len(traffic.costs)
    totals = queries.costs(read_engine(url)).totals
    assert (totals.requests, totals.attempts) == (len(found), len(found))
    assert (totals.cost_nanousd, totals.open_reservations) == (sum(traffic.costs.values()), 0)
    assert list((data_dir / FOLDER).rglob("[0-9]*.jsonl")) == []


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """Three tiers on loopback, the database in a folder of its own."""
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(FakeUpstream(api_key=None))
        cheap = await stack.enter_async_context(FakeUpstream(api_key=KEYS["CHEAP_KEY"]))
        big = await stack.enter_async_context(FakeUpstream(api_key=KEYS["BIG_KEY"]))
        config = three_tiers(tmp_path, local=local.base_url, cheap=cheap.base_url, big=big.base_url)
        config["server"]["database_url"] = f"sqlite:///{tmp_path}/books/router.db"
        yield config


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else is in a long transaction."""
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


async def test_a_database_locked_for_seconds(config: dict[str, Any], tmp_path: Path) -> None:
    async with running(config, KEYS) as front, asking(front.url) as traffic:
        with locked(tmp_path / "books" / "router.db"):
            await traffic.readiness_is("degraded")
            locked_at_s = time.monotonic()
            await traffic.more(40)
            await traffic.until(lambda: time.monotonic() > locked_at_s + LATE_S)
            assert front.gateway.ledger.state().spooled_events > 0
    check_books(config["server"]["database_url"], traffic, tmp_path / "data")


async def test_a_database_that_may_not_be_written_when_the_gateway_starts(
    config: dict[str, Any], tmp_path: Path
) -> None:
    books, url = tmp_path / "books", config["server"]["database_url"]
    async with gateway_process(config, tmp_path, environ=KEYS):
        pass  # the books have been made
    files = [books / "router.db", books]
    for path in files:
        path.chmod(0o555)
    try:
        async with gateway_process(config, tmp_path, environ=KEYS, obeys_file_permissions=True) as gateway:
            traffic = Traffic(gateway.url)
            assert await traffic.readiness() == "degraded"
            async with aiohttp.ClientSession() as session:
                for number in range(8):
                    await traffic.ask(session, (EASY, HARD)[number % 2], stream=number >= 4)
            assert traffic.complaints == []
            assert queries.costs(read_engine(url)).totals.requests == 0
            for path in files:
                path.chmod(0o755)
            await traffic.readiness_is("ready")
            assert len(traffic.costs) == 8
            check_books(url, traffic, tmp_path / "data")
    finally:
        for path in files:
            path.chmod(0o755)


async def test_a_disk_that_fills_up_under_the_database(config: dict[str, Any], tmp_path: Path) -> None:
    books, url = tmp_path / "books", config["server"]["database_url"]
    async with gateway_process(config, tmp_path, environ=KEYS) as gateway, asking(gateway.url) as traffic:
        # Until the files of the database are the largest by far: they alone shall meet the limit.
        await traffic.until(lambda: (books / "router.db-wal").stat().st_size > 300_000)
        gateway.limit_file_sizes((books / "router.db-wal").stat().st_size)
        await traffic.readiness_is("degraded")
        # A new connection folds the log into the database, so it may go on for a while and fail again.
        await traffic.more(60)
        gateway.limit_file_sizes(2**40)
    check_books(url, traffic, tmp_path / "data")


async def test_where_nothing_can_be_written_no_money_is_spent_and_home_goes_on(
    config: dict[str, Any], tmp_path: Path
) -> None:
    url = config["server"]["database_url"]
    async with gateway_process(config, tmp_path, environ=KEYS) as gateway, aiohttp.ClientSession() as session:
        traffic = Traffic(gateway.url)
        await traffic.readiness_is("ready")
        gateway.limit_file_sizes(0)
        for _ in range(3):
            await traffic.ask(session, EASY, stream=False)
        assert traffic.complaints == []
        await traffic.readiness_is("degraded")
        body = {"model": "premium", "messages": HARD}
        async with session.post(f"{gateway.v1}/chat/completions", json=body) as refused:
            assert refused.status == 503
            assert (await refused.json())["error"]["code"] == "ledger_unavailable"
            assert refused.headers["x-request-id"].startswith("req_")
        gateway.limit_file_sizes(2**40)
        await traffic.readiness_is("ready")
        await traffic.ask(session, HARD, stream=False)
        assert traffic.complaints == []
        assert len(traffic.costs) == 4
    found = {record.request_id: record for record in queries.iterate_records(read_engine(url))}
    assert {i: found[i].cost_nanousd for i in traffic.costs} == traffic.costs
    refusals = [record for i, record in found.items() if i not in traffic.costs]
    assert [record.attempts for record in refusals] in ([], [()])
    assert queries.costs(read_engine(url)).totals.open_reservations == 0


@pytest.mark.postgres
@pytest.mark.parametrize("trouble", ["dies", "hangs"])
async def test_a_postgres_that_is_away_and_comes_back(
    trouble: str, config: dict[str, Any], tmp_path: Path, postgres: Cluster | None
) -> None:
    if postgres is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    leave, come_back = (postgres.stop, postgres.start) if trouble == "dies" else (postgres.freeze, postgres.thaw)
    url = config["server"]["database_url"] = postgres.new_database()
    async with running(config, KEYS) as front, asking(front.url) as traffic:
        await asyncio.to_thread(leave)
        try:
            await traffic.readiness_is("degraded")
            await traffic.more(40)
            assert await traffic.readiness() == "degraded"
        finally:
            await asyncio.to_thread(come_back)
    check_books(url, traffic, tmp_path / "data")
