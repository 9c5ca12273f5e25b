"""A local engine in every kind of trouble, behind a whole gateway: what callers get, and that it comes back by itself.

What is not known about an engine counts as full: its requests go elsewhere, and those that must stay at home are told
when to come back. Nothing here restarts the gateway.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.engine_house import EASY, HOME, LONG, STALE_AFTER_S, house, page, readings_last, watcher
from tests.patience import PATIENCE_S, until
from tests.upstream import ok, stall_after_headers

# --- away, dying, coming back --------------------------------------------------------------------------------------


async def test_a_gateway_starts_without_its_engine_and_takes_it_up_when_it_comes(tmp_path: Path) -> None:
    loading = {"/health": (503, b"", "text/plain"), "/metrics": (503, b"", "text/plain")}
    async with house(tmp_path, engine_pages=loading, ready_s=None) as h:
        assert await h.tier() == "cheap"
        assert (await h.readiness())[:2] == (200, "degraded")
        h.engine.pages.update({"/health": (200, b"", "text/plain"), "/metrics": page()})
        await h.tier_becomes("local")
        assert (await h.readiness())[:2] == (200, "ready")


async def test_an_engine_that_dies_is_left_and_taken_up_again_at_its_old_address(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        assert await h.tier() == "local"
        await h.engine.stop()
        assert await h.tier() == "cheap"  # fallen back from, unseen
        await until(lambda: watcher(h.front.gateway).state()[0] == "down")
        before = len(h.cheap.chats)
        status, headers, _ = await h.ask()
        assert (status, headers["x-router-attempts"]) == (200, "1")  # not even tried
        assert len(h.cheap.chats) == before + 1
        await h.engine.start()
        await h.tier_becomes("local")  # health first, then the circuit lets a probe through
        assert h.front.gateway.state.engines["house-model"].inflight.n == 0


async def test_a_hung_engine_that_says_it_is_well_is_left_by_its_lack_of_progress_and_comes_back(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, timeouts={"first_byte_s": 30, "idle_s": 30, "total_s": 60}) as h:
        h.engine.default = stall_after_headers()
        waiting = asyncio.create_task(h.ask(headers=HOME, stream=True))
        await until(lambda: h.front.gateway.state.engines["house-model"].inflight.n == 1)
        await until(lambda: watcher(h.front.gateway).state()[0] == "degraded")
        assert await h.tier() == "cheap"
        _, word, why = await h.readiness()
        assert word == "degraded"
        assert why is not None and "no token for" in why
        status, _, body = await h.ask(headers=HOME)
        assert (status, body["error"]["code"]) == (503, "no_route")
        h.engine.default = ok()  # it works again: one token asked of it shows it
        await h.tier_becomes("local")
        waiting.cancel()


# --- pages that cannot be read -------------------------------------------------------------------------------------

NAN = page(float("nan"), float("nan"), float("nan"))
RENAMED = (200, b'vllm:requests_in_engine{engine="0"} 0\n', "text/plain")
UNREADABLE = {
    "404": (404, b'{"detail":"Not Found"}', "application/json"),
    "500": (500, b"", "text/plain"),
    "html": (200, b"<html><body>Welcome to nginx!</body></html>", "text/html"),
    "renamed": RENAMED,
    "nan": NAN,
    "negative": page(-1, -1),
    "absurd": page(1e12, 1e12),
    "absurd KV usage": page(0, 0, 5.0),
    "KV usage renamed": (200, page()[1].replace(b"kv_cache_usage_perc", b"kv_cache_fill_perc"), "text/plain"),
    "binary": (200, bytes(range(256)) * 50, "application/octet-stream"),
    "empty": (200, b"", "text/plain"),
    "100 MB": (200, b"# filler\n" * 11_111_111, "text/plain"),
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_an_engine_whose_metrics_cannot_be_read_counts_as_full_and_never_as_idle(
    tmp_path: Path, what: str
) -> None:
    async with house(tmp_path, local={"slo": {"ttft_s": 0.2}}) as h:
        await h.tier_becomes("local")
        failed = await h.gauge("router_engine_failed_scrapes")
        h.engine.pages["/metrics"] = UNREADABLE[what]
        readings_last(h.front.gateway, STALE_AFTER_S)
        await h.tier_becomes("cheap")
        status, headers, body = await h.ask(headers=HOME)
        assert (status, body["error"]["code"]) == (503, "local_saturated")
        assert int(headers["retry-after"]) >= 1
        assert (await h.readiness())[:2] == (200, "degraded")
        if what != "KV usage renamed":  # a page without it is whole: other engines never tell it
            while not (await h.gauge("router_engine_failed_scrapes") or 0.0) > (failed or 0.0):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        unread = "router_engine_kv_cache_usage_ratio" if "KV usage" in what else "router_engine_requests_running"
        assert await h.gauge(unread) in (None, 0.0 if what in ("404", "500", "100 MB") else None)
        h.engine.pages["/metrics"] = page()
        await h.tier_becomes("local")


async def test_an_engine_that_never_had_metrics_is_used_within_its_own_count(tmp_path: Path) -> None:
    async with house(tmp_path, engine_pages={}) as h:  # /metrics is a 404 from the start
        assert await h.tier() == "local"
        assert await h.gauge("router_engine_requests_running") is None
        assert await h.gauge("router_engine_requests_in_flight") == 0.0


async def test_an_engine_whose_metrics_cannot_be_read_from_the_start_is_not_used(tmp_path: Path) -> None:
    async with house(tmp_path, engine_pages={"/metrics": UNREADABLE["html"]}, ready_s=None) as h:
        await h.tier_becomes("cheap")
        status, _, body = await h.ask(headers=HOME)
        assert (status, body["error"]["code"]) == (503, "local_saturated")
        h.engine.pages["/metrics"] = page()
        await h.tier_becomes("local")


# --- full ----------------------------------------------------------------------------------------------------------


async def test_a_full_cache_and_a_long_queue_of_others_keep_requests_out_without_flapping(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.engine.pages["/metrics"] = page(8, 500, 0.99)
        await h.tier_becomes("cheap")
        for _ in range(20):
            _, headers, _ = await h.ask()
            assert headers["x-router-tier"] == "cheap"
            assert headers["x-router-reason"].startswith("SPILL_")
        before = len(h.engine.chats)
        h.engine.pages["/metrics"] = page()
        await h.tier_becomes("local")
        assert [await h.tier() for _ in range(10)] == ["local"] * 10
        assert len(h.engine.chats) == before + 11


async def test_a_full_engine_and_an_empty_purse_make_a_short_queue_and_then_a_429(tmp_path: Path) -> None:
    async with house(tmp_path, local={"slo": {"ttft_s": 0.5}}, budget_usd_per_day=0.0000001) as h:
        h.engine.pages["/metrics"] = page(8, 500, 0.99)
        await until(lambda: h.front.gateway.state.engines["house-model"].inflight.others.n > 100)
        began_s = time.monotonic()
        status, headers, body = await h.ask()
        waited_s = time.monotonic() - began_s  # until the first token could no longer come in time
        assert (status, body["error"]["code"]) == (429, "local_saturated")
        assert waited_s > 0.4
        assert int(headers["retry-after"]) >= 1
        assert h.api_calls == 0
        assert (await h.front.costs()).totals.cost_nanousd == 0


async def test_room_that_is_made_while_a_request_queues_is_taken(tmp_path: Path) -> None:
    async with house(tmp_path, local={"slo": {"ttft_s": PATIENCE_S}}) as h:
        h.engine.pages["/metrics"] = page(8, 500, 0.99)
        await until(lambda: h.front.gateway.state.engines["house-model"].inflight.others.n > 100)
        queued = asyncio.create_task(h.ask(headers=HOME))
        await asyncio.wait([queued], timeout=0.3)
        assert not queued.done()
        h.engine.pages["/metrics"] = page()
        status, headers, _ = await queued
        assert (status, headers["x-router-tier"]) == (200, "local")


async def test_what_must_stay_at_home_is_told_when_to_come_back_by_the_predicted_first_token(tmp_path: Path) -> None:
    slow = {"t0_s": 0.01, "c_seq_s": 1e-4, "c_kv_s": 1e-7, "c_prefill_s": 0.02}
    async with house(tmp_path, local={"slo": {"ttft_s": 0.3}, "coefficients": slow}) as h:
        h.engine.pages["/metrics"] = page(8, 500, 0.99)
        await until(lambda: h.front.gateway.state.engines["house-model"].inflight.others.n > 100)
        hints = []
        for text in (EASY, LONG):
            status, headers, body = await h.ask(text, headers=HOME)
            assert (status, body["error"]["code"]) == (503, "local_saturated")
            hints.append(int(headers["retry-after"]))
        assert hints[1] >= hints[0] + 5  # some 400 tokens more at 20 ms each
        assert h.api_calls == 0


async def test_what_must_stay_at_home_never_leaves_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.engine.pages["/health"] = (503, b"", "text/plain")
        await until(lambda: watcher(h.front.gateway).state()[0] == "down")
        for how in ({"headers": HOME}, {"model": "auto:local"}, {"stream": True, "headers": HOME}):
            status, _, body = await h.ask(**how)  # type: ignore[arg-type]
            assert (status, body["error"]["code"]) == (503, "no_route")
        assert h.api_calls == 0
        assert await h.tier() == "cheap"  # others may


async def test_a_full_engine_and_a_locked_database_at_once_cost_no_caller_an_answer(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        assert await h.tier() == "local"
        h.engine.pages["/metrics"] = page(8, 500, 0.99)
        await h.tier_becomes("cheap")
        asked = h.api_calls
        with closing(sqlite3.connect(tmp_path / "data" / "router.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answers = await asyncio.gather(*(h.ask() for _ in range(10)))
            other.execute("ROLLBACK")
        assert [status for status, _, _ in answers] == [200] * 10
        assert h.api_calls == asked + 10
        ledger = h.front.gateway.ledger
        await until(lambda: ledger.state().healthy and ledger.state().spooled_events == 0)
        report = await h.front.costs()
        assert report.totals.requests == len(h.cheap.chats) + len(h.big.chats) + len(h.engine.chats)
        assert report.totals.open_reservations == 0
