"""A gateway that puts its engine to sleep, spills meanwhile and wakes it for the first request that misses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from router.local_engines import LocalEngine
from tests.gateway import CHEAP_PRICE, RunningGateway, running, until
from tests.ports import free_port
from tests.upstream import FakeUpstream
from tests.vllm_stand_in import write_executable

MODEL = "house-model"
KEY = "sk-api"
HOME = {"x-router-locality": "local"}


@dataclass
class House:
    """A gateway, its engine, and an API to spill to."""

    front: RunningGateway
    engine: LocalEngine
    api: FakeUpstream
    session: aiohttp.ClientSession
    calls_path: Path

    async def ask(self, **headers: str) -> tuple[int, str | None, Any]:
        """(status, tier, body) of an easy question."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
        url = f"{self.front.v1}/chat/completions"
        async with self.session.post(url, json=body, headers={"x-router-quality": "0"} | headers) as response:
            return response.status, response.headers.get("x-router-tier"), await response.json()

    async def page(self, path: str) -> Any:
        """A page of the gateway."""
        async with self.session.get(f"{self.front.url}{path}") as response:
            return response.status, await (response.text() if path == "/metrics" else response.json())

    def commands(self) -> list[str]:
        """What the engine has been told beside chats."""
        lines = self.calls_path.read_text().split() if self.calls_path.exists() else []
        return [line for line in lines if not line.startswith("/v1/")]

    async def falls_asleep(self) -> None:
        """Wait for it."""
        sleeper = self.engine.sleeper
        assert sleeper is not None
        await until(lambda: sleeper.phase == "asleep")
        assert self.engine.room.process()[0] == "asleep"


@asynccontextmanager
async def house(folder: Path, *, sleep: dict[str, float] | None, api: bool = True) -> AsyncIterator[House]:
    async with FakeUpstream(api_key=KEY) as upstream, aiohttp.ClientSession() as session:
        launch: dict[str, Any] = {"executable": str(write_executable(folder))}
        if sleep is not None:
            launch["sleep"] = sleep
        local = {
            "engine": "vllm",
            "model": MODEL,
            "api_base": f"http://127.0.0.1:{free_port()}/v1",
            "launch": launch,
            "coefficients": "h100-8b-fp16",
            "hardware": {"kind": "rented", "usd_per_hour": 2.50, "on": "while_engine_runs"},
        }
        cheap = {
            "model": "openai/api-model",
            "api_base": upstream.base_url,
            "api_key_env": "API_KEY",
            "price": CHEAP_PRICE,
            "context_window_tokens": 16_000,
        }
        tiers = {"local": local} | ({"cheap": cheap} if api else {})
        server, policy = {"data_dir": str(folder / "data")}, {"quality_target_ratio": 0.01}
        config = {"server": server, "policy": policy, "tiers": tiers, "timeouts": {"connect_s": 30}}
        async with running(config, {"API_KEY": KEY} if api else {}, ready_s=None) as front:
            assert front.gateway.local is not None
            (engine,) = front.gateway.local.engines
            await until(lambda: engine.room.process()[0] in ("ready", "asleep"))
            yield House(front, engine, upstream, session, folder / "calls")


async def test_an_idle_engine_sleeps_spills_and_is_woken_by_the_first_that_misses_it(tmp_path: Path) -> None:
    async with house(tmp_path, sleep={"after_idle_s": 1}) as h:
        assert (await h.ask(**HOME))[:2] == (200, "local")
        await h.falls_asleep()
        told = h.commands()
        assert told[-1] == "/sleep?level=1&mode=wait"
        # looked at, and asked about, it sleeps on
        status, body = await h.page("/health/readiness")
        local = next(tier for tier in body["tiers"] if tier["tier"] == "local")
        assert (status, body["status"], local["state"]) == (200, "ready", "asleep")
        assert 'state="asleep"} 1.0' in (await h.page("/metrics"))[1]
        asked = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
        async with h.session.post(f"{h.front.v1}/route/explain", json=asked) as response:
            assert response.status == 200
        assert h.commands() == told
        assert h.engine.is_on()  # it takes up its card and costs what it costs
        status, tier, _ = await h.ask()
        assert (status, tier) == (200, "cheap")  # answered at once; the next ones stay at home
        await until(lambda: h.engine.room.process()[0] == "ready")
        assert h.commands()[len(told)] == "/wake_up"
        assert (await h.ask(**HOME))[:2] == (200, "local")
        assert h.engine.process is not None and h.engine.process.starts == 1


async def test_a_request_that_would_go_elsewhere_anyway_lets_it_sleep(tmp_path: Path) -> None:
    async with house(tmp_path, sleep={"after_idle_s": 1}) as h:
        await h.falls_asleep()
        body = {"model": "cheap", "messages": [{"role": "user", "content": "Name a colour."}]}
        async with h.session.post(f"{h.front.v1}/chat/completions", json=body) as response:
            assert response.status == 200
        assert h.commands() == ["/sleep?level=1&mode=wait"]
        assert h.engine.room.process()[0] == "asleep"


async def test_what_may_not_leave_the_house_waits_until_it_is_awake(tmp_path: Path) -> None:
    async with house(tmp_path, sleep={"after_idle_s": 1}, api=False) as h:
        await h.falls_asleep()
        answers = await asyncio.gather(*(h.ask(**HOME) for _ in range(5)))
        assert [(status, tier) for status, tier, _ in answers] == [(200, "local")] * 5
        assert h.commands().count("/wake_up") == 1
        await until(lambda: h.engine.room.inflight.n == 0)


async def test_nobody_is_put_to_sleep_who_was_not_meant_to_be(tmp_path: Path) -> None:
    async with house(tmp_path, sleep=None) as h:
        assert h.engine.sleeper is None
        async with h.session.post(f"{h.engine.base_url.removesuffix('/v1')}/sleep") as response:
            assert response.status == 404  # its engine would not listen to anybody
        assert (await h.ask(**HOME))[:2] == (200, "local")
