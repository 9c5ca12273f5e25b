"""A gateway before an engine whose pages a test can change, and two APIs beside it; the engine is looked at often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from local_llm.poller import EnginePoller
from router.gateway import Gateway
from tests.gateway import RunningGateway, running, three_tiers
from tests.patience import PATIENCE_S
from tests.upstream import FakeUpstream

KEYS = {"CHEAP_KEY": "sk-cheap-1", "BIG_KEY": "sk-big-1"}
EASY = "Name a colour."
LONG = "Name a colour. " * 100
HOME = {"x-router-locality": "local"}
STALE_AFTER_S = 0.5


def page(running_: float = 0, waiting: float = 0, kv: float = 0.0) -> tuple[int, bytes, str]:
    """What vLLM says of itself."""
    text = (
        f'vllm:num_requests_running{{engine="0"}} {running_}\n'
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {kv}\n'
    )
    return 200, text.encode(), "text/plain"


@dataclass
class House:
    """A gateway before an engine with pages of its own, and two APIs."""

    front: RunningGateway
    engine: FakeUpstream
    cheap: FakeUpstream
    big: FakeUpstream
    session: aiohttp.ClientSession

    async def ask(
        self, text: str = EASY, headers: dict[str, str] | None = None, **body: Any
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body) of one chat."""
        whole = {"model": "auto", "messages": [{"role": "user", "content": text}], **body}
        url = f"{self.front.v1}/chat/completions"
        async with self.session.post(url, json=whole, headers=headers or {}) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
            streamed = response.content_type == "text/event-stream"
            return response.status, told, await response.read() if streamed else await response.json()

    async def tier(self) -> str:
        """Who answers an easy question now."""
        status, headers, body = await self.ask()
        assert status == 200, body
        return headers["x-router-tier"]

    async def tier_becomes(self, wanted: str, timeout_s: float = PATIENCE_S) -> None:
        """Ask until it is `wanted` that answers."""
        ends_at_s = time.monotonic() + timeout_s
        while (seen := await self.tier()) != wanted:
            assert time.monotonic() < ends_at_s, f"still {seen}"
            await asyncio.sleep(0.05)

    async def is_answered_by(self, wanted: str, timeout_s: float = PATIENCE_S) -> None:
        """The same where nobody may answer for a while."""
        ends_at_s = time.monotonic() + timeout_s
        while (seen := await self.ask())[1].get("x-router-tier") != wanted:
            assert time.monotonic() < ends_at_s, seen
            await asyncio.sleep(0.05)

    async def readiness(self) -> tuple[int, str, str | None]:
        """(status, word, what is wrong with the local tier)."""
        async with self.session.get(f"{self.front.url}/health/readiness") as response:
            body = await response.json()
        (local,) = (tier for tier in body["tiers"] if tier["tier"] == "local")
        return response.status, body["status"], local["detail"]

    async def gauge(self, name: str) -> float | None:
        """The engine's value from /metrics, `None` where it is not shown."""
        async with self.session.get(f"{self.front.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{")), None)

    @property
    def api_calls(self) -> int:
        """Chats that left the house."""
        return len(self.cheap.chats) + len(self.big.chats)


def readings_last(gateway: Gateway, stale_after_s: float = PATIENCE_S) -> None:
    """Say when a reading is too old: not before the test ends, or soon (`STALE_AFTER_S`) where a test waits for it."""
    for room in gateway.state.engines.values():
        room.stale_after_s = stale_after_s


def watcher(gateway: Gateway) -> EnginePoller:
    """Of the only engine."""
    assert gateway.local is not None
    (engine,) = gateway.local.engines
    assert engine.poller is not None
    return engine.poller


async def keep_looking(gateway: Gateway) -> None:
    """Look at the engine ten times as often as is usual."""
    while True:
        await watcher(gateway).poll()
        await asyncio.sleep(0.1)


@asynccontextmanager
async def house(
    tmp_path: Path,
    *,
    engine_pages: dict[str, tuple[int, bytes, str]] | None = None,
    ready_s: float | None = PATIENCE_S,
    local: dict[str, Any] | None = None,
    timeouts: dict[str, float] | None = None,
    **policy: Any,
) -> AsyncIterator[House]:
    async with (
        FakeUpstream(api_key=None) as engine,
        FakeUpstream(api_key=KEYS["CHEAP_KEY"]) as cheap,
        FakeUpstream(api_key=KEYS["BIG_KEY"]) as big,
        aiohttp.ClientSession() as session,
    ):
        engine.pages |= {"/metrics": page()} if engine_pages is None else engine_pages
        config = three_tiers(tmp_path, local=engine.base_url, cheap=cheap.base_url, big=big.base_url, **policy)
        config["tiers"]["local"] |= local or {}
        config["timeouts"] |= timeouts or {}
        async with running(config, KEYS, ready_s=ready_s, adjust=readings_last) as front:
            looking = asyncio.create_task(keep_looking(front.gateway))
            try:
                yield House(front, engine, cheap, big, session)
            finally:
                looking.cancel()
