"""Two engines of one model behind one gateway: shared load, one that dies, both full, and the books of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from router.core.policy import decide
from router.core.replay import restore
from router.stores.periods import PeriodStore
from router.stores.reports import Hours, hours
from tests.e2e.conftest import EASY, HARD, KEYS
from tests.gateway import RunningGateway, running, three_tiers, until
from tests.patience import PATIENCE_S
from tests.upstream import FakeUpstream, ok, stall, status

MODEL = "house-model"


@dataclass
class Pair:
    """A gateway, its engines `a` and `b`, two APIs and a client."""

    front: RunningGateway
    engines: Mapping[str, FakeUpstream]
    apis: tuple[FakeUpstream, FakeUpstream]
    client: AsyncOpenAI

    async def ask(self, messages: Any = EASY, **options: Any) -> tuple[Any, Any]:
        """(parsed answer, headers) of a plain completion, without the SDK's own retries."""
        options.setdefault("model", "auto")
        raw = await self.client.chat.completions.with_raw_response.create(messages=messages, **options)
        return raw.parse(), raw.headers

    async def get(self, path: str) -> tuple[int, Any]:
        """(status, body) of a page."""
        async with aiohttp.ClientSession() as session, session.get(self.front.url + path) as response:
            return response.status, await (response.text() if path == "/metrics" else response.json())

    @property
    def calls(self) -> dict[str, int]:
        """Chats that reached each engine, and those that left the house."""
        at_home = {name: len(engine.chats) for name, engine in self.engines.items()}
        return at_home | {"api": sum(len(api.chats) for api in self.apis)}

    async def ask_together(self, count: int) -> list[tuple[Any, Any]]:
        """What is answered to `count` that are all in the engines before one of them is."""
        begin = asyncio.Event()
        for engine in self.engines.values():
            engine.default = replace(ok("Blue."), held=begin)
        asked = [asyncio.create_task(self.ask()) for _ in range(count)]
        await self.in_engines(count)
        begin.set()
        return await asyncio.gather(*asked)

    async def in_engines(self, count: int) -> None:
        """Wait until so many requests are held by the engines."""
        rooms = self.front.gateway.state.engines.values()
        await until(lambda: sum(room.inflight.n for room in rooms) == count)


def engines_config(tmp_path: Path, urls: Mapping[str, str], cheap: str, big: str, **local: Any) -> dict[str, Any]:
    """Engines by name, the second one twice as dear; what they share stands beside."""
    config = three_tiers(tmp_path, local="unused", cheap=cheap, big=big)
    shared = config["tiers"]["local"]
    del shared["api_base"]
    engines: list[dict[str, Any]] = [{"name": name, "api_base": url} for name, url in urls.items()]
    engines[-1]["hardware"] = {"kind": "rented", "usd_per_hour": 5}
    shared |= {"engines": engines, **local}
    return config


@asynccontextmanager
async def pair(tmp_path: Path, **local: Any) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        engines = {name: await stack.enter_async_context(FakeUpstream(api_key=None)) for name in ("a", "b")}
        cheap = await stack.enter_async_context(FakeUpstream(api_key=KEYS["CHEAP_KEY"]))
        big = await stack.enter_async_context(FakeUpstream(api_key=KEYS["BIG_KEY"]))
        urls = {name: engine.base_url for name, engine in engines.items()}
        config = engines_config(tmp_path, urls, cheap.base_url, big.base_url, **local)
        front = await stack.enter_async_context(running(config, KEYS))
        client = await stack.enter_async_context(
            AsyncOpenAI(base_url=front.v1, api_key="unused", max_retries=0, timeout=PATIENCE_S)
        )
        yield Pair(front, engines, (cheap, big), client)


async def posted(front: RunningGateway, *assets: str) -> Hours:
    """The hours once everything settled is posted."""
    gateway = front.gateway
    await gateway.ledger.flush()
    await gateway.hours.turn()
    store = PeriodStore(gateway.settings.server.database_url)
    for asset in assets:
        await asyncio.to_thread(store.advance, asset, int(datetime.now(UTC).timestamp() * 1e6))
    store.close()
    return await asyncio.to_thread(hours, gateway.ledger.read_engine, datetime.now(UTC))


async def test_requests_that_come_together_are_shared_and_look_like_one_model(tmp_path: Path) -> None:
    async with pair(tmp_path) as house:
        answers = await house.ask_together(8)
        assert house.calls == {"a": 4, "b": 4, "api": 0}
        for answer, headers in answers:
            assert (headers["x-router-tier"], headers["x-router-model"], answer.model) == ("local", MODEL, MODEL)
        assert {chat.json["model"] for engine in house.engines.values() for chat in engine.chats} == {MODEL}
        report = await house.front.costs()
        assert [(row.tier, row.model, row.requests, row.attempts) for row in report.rows] == [("local", MODEL, 8, 8)]


async def test_one_engine_dies_and_the_other_answers_before_anything_leaves_the_house(tmp_path: Path) -> None:
    async with pair(tmp_path) as house:
        await house.engines["a"].stop()
        _, headers = await house.ask()
        assert (headers["x-router-reason"], headers["x-router-attempts"]) == ("FALLBACK_AFTER_ERROR", "2")
        record = await house.front.record(headers["x-request-id"])
        assert [(a.candidate, a.outcome) for a in record.attempts] == [("local/a", "unavailable"), ("local/b", "ok")]
        local = house.front.gateway.local
        assert local is not None
        await until(lambda: local.engines[0].room.process()[0] == "down")
        for model in ("auto", "auto:local", "local", MODEL):
            _, headers = await house.ask(HARD if model == "auto:local" else EASY, model=model)
            assert (headers["x-router-tier"], headers["x-router-attempts"]) == ("local", "1")
        assert house.calls == {"a": 0, "b": 5, "api": 0}
        code, told = await house.get("/health/readiness")
        assert (code, told["status"]) == (200, "degraded")
        states = {tier.get("engine"): tier["state"] for tier in told["tiers"] if tier["tier"] == "local"}
        assert states == {"local/a": "unavailable", "local/b": "ready"}


async def test_what_must_stay_at_home_makes_no_cloud_call_when_both_are_gone(tmp_path: Path) -> None:
    async with pair(tmp_path) as house:
        for engine in house.engines.values():
            engine.default = status(500)
        with pytest.raises(openai.InternalServerError):
            await house.ask(model="auto:local")
        assert house.calls["api"] == 0
        assert house.calls["a"] >= 1 and house.calls["b"] >= 1
        _, headers = await house.ask()
        assert headers["x-router-tier"] == "cheap"


async def test_when_both_are_full_the_next_one_spills_and_room_in_either_brings_it_back(tmp_path: Path) -> None:
    async with pair(tmp_path, max_num_seqs=1) as house:
        for engine in house.engines.values():
            engine.default = stall()
        held = [asyncio.create_task(house.ask(model="local")) for _ in range(2)]
        await house.in_engines(2)
        _, headers = await house.ask()
        assert (headers["x-router-tier"], headers["x-router-reason"]) == ("cheap", "SPILL_SEQS")
        assert house.calls == {"a": 1, "b": 1, "api": 1}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await house.in_engines(0)
        house.engines["a"].default = house.engines["b"].default = ok("Blue.")
        _, headers = await house.ask()
        assert headers["x-router-tier"] == "local"


async def test_each_engine_has_its_own_hours_and_each_balances(tmp_path: Path) -> None:
    assets = ("local/a", "local/b")
    async with pair(tmp_path) as house:
        asked = await house.ask_together(6)
        records = [await house.front.record(headers["x-request-id"]) for _, headers in asked]
        found = await posted(house.front, *assets)
        booked = dict.fromkeys(assets, 0)
        for record in records:
            (only,) = record.attempts
            assert only.charge.asset == only.candidate
            booked[only.candidate] += only.charge.amount_nanousd
        absorbed = {name: sum(p.absorbed_nanousd for p in found.periods if p.asset == name) for name in assets}
        assert absorbed == booked
        assert sum(booked.values()) == (await house.front.costs()).totals.cost_nanousd
        # the same answers, on hardware that costs twice as much
        assert booked["local/b"] == pytest.approx(2 * booked["local/a"], rel=1e-6)
        rates = {period.asset: period.usd_per_hour for period in found.periods}
        assert rates == {"local/a": Decimal("2.50"), "local/b": Decimal(5)}
        for period in found.periods:
            assert period.absorbed_nanousd + period.unabsorbed_nanousd == period.invoice_nanousd
    async with FakeUpstream(api_key=None) as a, running(without_b(tmp_path, a.base_url), KEYS) as front:
        looks = [await posted(front, *assets) for _ in range(2)]
        for name in assets:
            assert sum(p.absorbed_nanousd for p in looks[0].periods if p.asset == name) == booked[name]
        on_b = [sum(p.on_us for p in look.periods if p.asset == "local/b") for look in looks]
        assert on_b[0] == on_b[1] > 0  # its hours stay in the books, and its hardware is off from the restart on


def without_b(tmp_path: Path, url: str) -> dict[str, Any]:
    """The config after engine b has been sold."""
    config = engines_config(tmp_path, {"a": url}, "http://127.0.0.1:9", "http://127.0.0.1:9")
    del config["tiers"]["local"]["engines"][0]["hardware"]
    return config


async def test_an_engine_can_be_named_and_a_session_stays_with_one(tmp_path: Path) -> None:
    async with pair(tmp_path) as house:
        await house.ask(model="local/b")
        assert house.calls == {"a": 0, "b": 1, "api": 0}
        for session in ("s1", "s2", "s3", "s4"):
            before = house.calls
            for _ in range(3):
                await house.ask(extra_headers={"x-router-session": session})
            grown = {name: house.calls[name] - before[name] for name in before}
            assert sorted(grown.values()) == [0, 0, 3], grown
        assert house.calls["a"] and house.calls["b"] > 1  # sessions are spread


async def test_what_is_shown_tells_the_engines_apart(tmp_path: Path) -> None:
    async with pair(tmp_path) as house:
        _, headers = await house.ask()
        _, text = await house.get("/metrics")
        for name in ("local/a", "local/b"):
            assert f'router_engine_requests_in_flight{{engine="{name}"}} 0.0' in text
            assert f'router_engine_state{{engine="{name}",state="ready"}} 1.0' in text
        assert 'router_attempts_total{model="local/a",outcome="ok",tier="local"} 1.0' in text
        cards = {card.id: card.model_dump() for card in (await house.client.models.list()).data}
        assert [one["name"] for one in cards[MODEL]["engines"]] == ["local/a", "local/b"]
        assert (cards[MODEL]["configured_as"], cards[MODEL]["state"]) == (MODEL, "ready")
        record = await house.front.record(headers["x-request-id"])
        assert [a.name for a in record.decision.alternatives][:2] == ["local/a", "local/b"]
        assert decide(*restore(record.world, record.moment)).inputs_hash == record.decision.inputs_hash
        lines = house.front.gateway.tier_lines()
        assert lines[:2] == [f"local: ready ({MODEL} on local/a)", f"local: ready ({MODEL} on local/b)"]
