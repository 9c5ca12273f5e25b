"""Calls made to learn from, in the books: nobody's requests, everybody's money, also when a crash has lost them."""

from __future__ import annotations

from pathlib import Path

from router.core.judgements import SHADOW_TENANT, seen_probability
from router.core.vocabulary import Tier
from router.stores.reports import count_answered, served_requests
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, hold, settled, tried


async def test_a_shadow_run_lost_in_a_crash_is_booked_at_its_reserve_as_overhead(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    first = await SqlLedger.open(url, tmp_path, clock=WallClock(), instance="dies")
    await first.reserve(hold("lost-shadow", tenant=SHADOW_TENANT, reserve_nanousd=700))
    await first.reserve(hold("lost-request", reserve_nanousd=900))
    await first.close()
    ledger = await SqlLedger.open(url, tmp_path, clock=WallClock(), instance="next")
    try:
        found = {served.request_id: served for served in served_requests(ledger.read_engine)}
        assert found["lost-shadow"].overhead and not found["lost-request"].overhead
        rows = {row.tenant: (row.requests, row.cost_nanousd) for row in (await ledger.costs()).rows}
        assert rows == {SHADOW_TENANT: (0, 700), "acme": (1, 900)}
        assert await ledger.spent_since(NOON, SHADOW_TENANT) == 700
    finally:
        await ledger.close()


async def test_overhead_is_no_traffic_to_reckon_with(tmp_path: Path) -> None:
    ledger = await SqlLedger.open(f"sqlite:///{tmp_path}/ledger.db", tmp_path, clock=WallClock())
    try:
        ledger.settle(settled("asked", tried(tier=Tier.CHEAP)), hold_open=False)
        ledger.settle(settled("shadow", tried(tier=Tier.CHEAP), tenant=SHADOW_TENANT), hold_open=False)
        await ledger.flush()
        assert count_answered(ledger.read_engine, Tier.CHEAP, None, None)[0] == 1
    finally:
        await ledger.close()


def test_the_chance_to_see_a_tier_counts_both_ways_of_seeing_it() -> None:
    # three tiers, one taken for certain: it is seen in any case, each other one every second time
    assert (seen_probability(1.0, 2), seen_probability(0.0, 2)) == (1.0, 0.5)
    # with exploration: taken, or drawn when one of the others was taken
    chances = {"local": 0.9, "cheap": 0.05, "premium": 0.05}
    seen = [seen_probability(p, 2) for p in chances.values()]
    assert abs(sum(seen) - 2.0) < 1e-12  # two tiers are seen each time
    assert seen_probability(0.0, 2, 0.1) == 0.05
