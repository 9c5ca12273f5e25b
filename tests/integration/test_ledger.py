"""The ledger on a real SQLite and a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from router.core.vocabulary import Flag, Outcome, Tier
from router.errors import ConfigError, Unavailable
from router.stores import queries
from router.stores.checkpoints import LogLimits
from router.stores.database import UNHURRIED_EVENTS, Database
from router.stores.engines import parse_url, read_engine
from router.stores.entries import WriterConfig
from router.stores.events import Reserved, Settled
from router.stores.liveness import LedgerInUse
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, hold, opened, settled, tried
from tests.patience import PATIENCE_S


@pytest.fixture
async def ledger(url: str, tmp_path: Path) -> AsyncIterator[SqlLedger]:
    opened_ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON))
    yield opened_ledger
    await opened_ledger.close()


async def test_a_settled_request_is_in_the_books_with_all_that_explains_it(ledger: SqlLedger) -> None:
    record = settled("r", tried(1, outcome=Outcome.TIMEOUT), tried(2, tier=Tier.PREMIUM, amount_nanousd=5000))
    await ledger.reserve(hold("r"))
    await ledger.open_attempt(opened("r", number=2, tier=Tier.PREMIUM))
    ledger.settle(record, hold_open=True)
    assert await ledger.record("r") == record


async def test_a_request_is_counted_where_its_last_attempt_is_and_costs_where_they_arose(ledger: SqlLedger) -> None:
    ledger.settle(settled("r", tried(1), tried(2, tier=Tier.PREMIUM, amount_nanousd=5000)), hold_open=True)
    report = (await ledger.costs()).as_dict()
    assert report == {
        "rows": [
            {"day": "2026-11-23", "tenant": "acme", "tier": "cheap", "model": "gpt-6-luna",
             "requests": 0, "attempts": 1, "cost_nanousd": 250},
            {"day": "2026-11-23", "tenant": "acme", "tier": "premium", "model": "gpt-6.1-sol",
             "requests": 1, "attempts": 1, "cost_nanousd": 5000},
        ],
        "totals": {"requests": 1, "attempts": 2, "cost_nanousd": 5250, "open_reservations": 0},
    }  # fmt: skip


async def test_what_is_running_is_an_open_reservation_and_costs_nothing_yet(ledger: SqlLedger) -> None:
    await ledger.reserve(hold("r"))
    await ledger.open_attempt(opened("r", number=2))
    assert (await ledger.costs()).as_dict() == {
        "rows": [],
        "totals": {"requests": 0, "attempts": 0, "cost_nanousd": 0, "open_reservations": 1},
    }


async def test_the_sums_by_tenant_by_model_and_by_request_agree(ledger: SqlLedger) -> None:
    for i in range(30):
        tier = list(Tier)[i % 3]
        await ledger.reserve(hold(f"r{i}", tenant=f"t{i % 4}"))
        ledger.settle(
            settled(f"r{i}", tried(1, amount_nanousd=i), tried(2, tier=tier, amount_nanousd=7 * i), tenant=f"t{i % 4}"),
            hold_open=True,
        )
    total = (await ledger.costs()).totals.cost_nanousd
    by_tenant = [(await ledger.costs(tenant=f"t{i}")).totals.cost_nanousd for i in range(4)]
    by_request = [record.cost_nanousd for record in queries.iterate_records(ledger.read_engine, page_size=7)]
    assert total == sum(by_tenant) == sum(by_request) == 8 * sum(range(30))
    assert len(by_request) == 30


async def test_a_tenant_sees_its_own_spend_only(ledger: SqlLedger) -> None:
    ledger.settle(settled("a", tenant="acme"), hold_open=False)
    ledger.settle(settled("b", tenant="other"), hold_open=False)
    await ledger.reserve(hold("c", tenant="other"))
    report = await ledger.costs(tenant="acme")
    assert [row.tenant for row in report.rows] == ["acme"]
    assert report.totals.open_reservations == 0
    assert await ledger.record("b", tenant="acme") is None


async def test_a_day_is_a_utc_day_and_ranges_are_half_open(ledger: SqlLedger) -> None:
    midnight = datetime(2026, 11, 24, tzinfo=UTC)
    for name, moment in (("before", midnight - timedelta(microseconds=1)), ("at", midnight)):
        ledger.settle(settled(name, tried(at_utc=moment), at_utc=moment), hold_open=False)
    assert [row.day for row in (await ledger.costs()).rows] == ["2026-11-23", "2026-11-24"]
    assert [row.day for row in (await ledger.costs(to_utc=midnight)).rows] == ["2026-11-23"]
    assert [row.day for row in (await ledger.costs(from_utc=midnight)).rows] == ["2026-11-24"]


async def test_budgets_see_cash_only(ledger: SqlLedger) -> None:
    ledger.settle(
        settled("r", tried(1, tier=Tier.LOCAL, amount_nanousd=11), tried(2, amount_nanousd=5)), hold_open=True
    )
    await ledger.flush()
    assert await ledger.spent_since(NOON) == 5
    assert await ledger.spent_since(NOON + timedelta(microseconds=1)) == 0


async def test_a_second_settlement_changes_nothing(ledger: SqlLedger) -> None:
    ledger.settle(settled("r", tried(1, amount_nanousd=5)), hold_open=True)
    await ledger.flush()
    ledger.settle(settled("r", tried(1, amount_nanousd=6), tried(2, amount_nanousd=7)), hold_open=True)
    ledger.settle(settled("other", tried(1, amount_nanousd=1)), hold_open=True)
    assert (await ledger.costs()).totals.cost_nanousd == 6
    found = await ledger.record("r")
    assert found is not None
    assert [a.number for a in found.attempts] == [1]


async def test_a_request_nobody_could_answer_is_remembered_without_a_spend_row(ledger: SqlLedger) -> None:
    ledger.settle(settled("r", outcome=Outcome.OK), hold_open=False)
    none = settled("none", outcome=Outcome.NO_ROUTE)
    ledger.settle(
        type(none)(**{f: getattr(none, f) for f in none.__slots__} | {"attempts": (), "cost_nanousd": 0}),
        hold_open=False,
    )
    assert (await ledger.costs()).totals.requests == 1
    found = await ledger.record("none")
    assert found is not None
    assert (found.outcome, found.attempts) == (Outcome.NO_ROUTE, ())


async def test_two_hundred_at_once_are_all_booked(ledger: SqlLedger) -> None:
    async def one(i: int) -> None:
        await ledger.reserve(hold(f"r{i}"))
        ledger.settle(settled(f"r{i}"), hold_open=True)

    await asyncio.gather(*(one(i) for i in range(200)))
    totals = (await ledger.costs()).totals
    assert (totals.requests, totals.cost_nanousd, totals.open_reservations) == (200, 200 * 250, 0)


async def test_feedback_is_taken_for_ones_own_requests_only(ledger: SqlLedger) -> None:
    ledger.settle(settled("r"), hold_open=False)
    assert await ledger.add_feedback("r", "acme", 0.0, "wrong")
    assert await ledger.add_feedback("r", None, 1.0, None)
    assert not await ledger.add_feedback("r", "other", 1.0, "mine?")
    assert not await ledger.add_feedback("unknown", "acme", 1.0, None)
    found = list(queries.iterate_feedback(ledger.read_engine))
    assert [(f.request_id, f.tenant, f.score_ratio, f.comment) for f in found] == [("r", "acme", 1.0, None)]


async def test_text_that_no_database_keeps_does_no_harm(ledger: SqlLedger) -> None:
    assert not await ledger.add_feedback("r\x00", "acme\x00", 1.0, "\x00")
    ledger.settle(settled("r"), hold_open=False)
    assert await ledger.add_feedback("r", "acme", 1.0, "fine\x00 \ud800")
    assert ledger.state().healthy


async def test_a_caller_who_leaves_while_reserving_leaves_nothing_open(url: str, tmp_path: Path) -> None:
    # Only where the journal takes nothing is there anything to wait for.
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON), config=WriterConfig(max_journal_bytes=0))
    waiting = asyncio.ensure_future(ledger.reserve(hold("r")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await ledger.costs()).totals.open_reservations == 0
    await ledger.close()


async def test_what_a_gateway_left_open_is_booked_by_the_next(url: str, tmp_path: Path) -> None:
    first = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON))
    await first.reserve(hold("api", reserve_nanousd=900))
    await first.open_attempt(opened("api", number=2, tier=Tier.PREMIUM, reserve_nanousd=8000))
    await first.reserve(hold("local", tier=Tier.LOCAL, reserve_nanousd=0))
    await first.close()
    warnings: list[str] = []
    second = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON), on_warning=lambda e, **_: warnings.append(e))
    try:
        totals = (await second.costs()).totals
        assert (totals.requests, totals.attempts, totals.cost_nanousd, totals.open_reservations) == (2, 3, 8900, 0)
        api, local = await second.record("api"), await second.record("local")
        assert api is not None
        assert local is not None
        assert api.outcome is local.outcome is Outcome.LOST
        assert [a.charge.flags for a in api.attempts] == [(Flag.USAGE_ESTIMATED, Flag.LOST_IN_CRASH)] * 2
        assert local.attempts[0].charge.flags == (Flag.LOST_IN_CRASH,)
        assert local.attempts[0].charge.amount_nanousd == 0
        assert warnings == ["ledger_holds_resolved"]
        # The real settlement, should it come after all, replaces what recovery has booked.
        second.settle(settled("api", tried(1, amount_nanousd=250)), hold_open=True)
        totals = (await second.costs()).totals
        assert (totals.requests, totals.attempts, totals.cost_nanousd) == (2, 2, 250)
    finally:
        await second.close()


@pytest.mark.postgres
async def test_two_gateways_share_a_postgres_and_leave_each_others_requests_alone(
    tmp_path: Path, postgres_url: str
) -> None:
    url = postgres_url
    first, second = await asyncio.gather(*(SqlLedger.open(url, tmp_path, clock=WallClock(NOON)) for _ in range(2)))
    await first.reserve(hold("alive"))
    third = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON))
    assert (await third.costs()).totals.open_reservations == 1
    await first.close()
    fourth = await SqlLedger.open(url, tmp_path, clock=WallClock(NOON))
    assert (await fourth.costs()).totals.open_reservations == 0
    for ledger in (second, third, fourth):
        await ledger.close()


async def test_a_second_gateway_on_one_sqlite_file_is_told_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    first = await SqlLedger.open(url, tmp_path, clock=WallClock())
    with pytest.raises(LedgerInUse, match="Another gateway writes to"):
        await SqlLedger.open(url, tmp_path, clock=WallClock())
    await first.close()
    again = await SqlLedger.open(url, tmp_path, clock=WallClock())
    await again.close()


async def test_reports_can_be_read_beside_a_running_gateway(ledger: SqlLedger, url: str) -> None:
    ledger.settle(settled("r"), hold_open=False)
    await ledger.flush()
    assert queries.costs(read_engine(url)).totals.requests == 1


def test_a_ledger_that_does_not_exist_yet_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    engine = read_engine(f"sqlite:///{tmp_path}/none.db")
    assert queries.costs(engine).rows == ()
    assert queries.spent_since(engine, NOON) == 0
    assert queries.record(engine, "r") is None
    assert list(queries.iterate_records(engine)) == list(queries.iterate_feedback(engine)) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_closed_ledger_refuses(ledger: SqlLedger) -> None:
    await ledger.close()
    await ledger.close()
    with pytest.raises(Unavailable) as error:
        await ledger.reserve(hold("r"))
    assert error.value.code == "ledger_unavailable"
    assert not ledger.state().healthy


async def test_closing_drains(url: str, tmp_path: Path) -> None:
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock())
    for i in range(2000):
        ledger.settle(settled(f"r{i}", rich=False), hold_open=False)
    await ledger.close()
    assert queries.costs(read_engine(url)).totals.requests == 2000


@pytest.mark.parametrize("bad", ["sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_a_database_that_forgets_or_that_we_do_not_speak_is_a_config_error(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="database_url"):
        SqlLedger(bad, tmp_path, clock=WallClock())


def test_sqlites_log_is_folded_in_under_traffic_without_a_pause_and_stays_bounded(tmp_path: Path) -> None:
    path, log = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    store = Database(parse_url(f"sqlite:///{path}"), "me", lambda: NOON, LogLimits(events=50, pages=100))
    store.connect()
    written, deadline_s = 0, time.monotonic() + PATIENCE_S
    # Bytes 12 to 16 of the log count how often it was begun anew: unpaused traffic alone never lets it.
    while written == 0 or int.from_bytes(log.read_bytes()[12:16], "big") < 3:
        assert time.monotonic() < deadline_s
        for i in range(written, written + 100):
            store.apply([Settled(settled(f"r{i}", rich=False), False)])
        written += 100
    store.close()
    assert not log.exists()
    assert queries.costs(read_engine(f"sqlite:///{path}")).totals.requests == written


@pytest.mark.parametrize(("requests", "gives_way"), [(UNHURRIED_EVENTS // 2, True), (UNHURRIED_EVENTS // 2 + 1, False)])
def test_a_writer_with_much_to_do_gives_way_to_nobody(tmp_path: Path, requests: int, *, gives_way: bool) -> None:
    pauses: list[int] = []
    url = parse_url(f"sqlite:///{tmp_path}/ledger.db")
    store = Database(url, "me", lambda: NOON, give_way=lambda: pauses.append(1))
    store.connect()
    store.apply([e for i in range(requests) for e in (Reserved(hold(f"r{i}"), "me"), Settled(settled(f"r{i}"), True))])
    store.close()
    assert bool(pauses) is gives_way
