"""A real vLLM whose scheduler stands still while its HTTP server says that all is well."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway import CHEAP_PRICE, RunningGateway, running, until
from tests.patience import until_seen
from tests.upstream import FakeUpstream
from tests.vllm.vllm_servers import MODEL, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SLO_TTFT_S = 1.5
PATIENCE_S = 2 * SLO_TTFT_S  # no token for twice the promised time to the first one
KEY = "sk-api"


@asynccontextmanager
async def house(folder: Path, engine: VllmServer) -> AsyncIterator[tuple[RunningGateway, FakeUpstream]]:
    """A gateway before the engine, and an API to spill to."""
    async with FakeUpstream(api_key=KEY) as api:
        config = {
            "server": {"data_dir": str(folder)},
            "policy": {"quality_target_ratio": 0.01},
            "timeouts": {"connect_s": 60, "first_byte_s": 60, "idle_s": 60, "total_s": 120},
            "tiers": {
                "local": {
                    "engine": "external",
                    "api_base": engine.api_base,
                    "api_key_env": "ENGINE_KEY",
                    "model": MODEL,
                    "context_window_tokens": 2048,
                    "max_num_seqs": 16,
                    "slo": {"ttft_s": SLO_TTFT_S, "tpot_s": 0.5, "slack_s": 5},
                    "coefficients": {"t0_s": 0.005, "c_seq_s": 0.001, "c_kv_s": 1e-7, "c_prefill_s": 1e-4},
                },
                "cheap": {
                    "model": "openai/api-model",
                    "api_base": api.base_url,
                    "api_key_env": "API_KEY",
                    "price": CHEAP_PRICE,
                    "context_window_tokens": 16_000,
                },
            },
        }
        async with running(config, {"ENGINE_KEY": engine.api_key, "API_KEY": KEY}, ready_s=60.0) as front:
            yield front, api


async def ask(session: aiohttp.ClientSession, front: RunningGateway, **headers: str) -> tuple[int, str | None, Any]:
    """(status, tier, body) of a short chat."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 4}
    quality = {"x-router-quality": "0"}
    async with session.post(f"{front.v1}/chat/completions", json=body, headers=quality | headers) as response:
        return response.status, response.headers.get("x-router-tier"), await response.json()


async def test_it_is_left_by_its_lack_of_progress_and_taken_up_again_when_it_gives_a_token(
    supervised_engine: VllmServer, tmp_path: Path
) -> None:
    engine = supervised_engine
    async with house(tmp_path, engine) as (front, api), aiohttp.ClientSession() as session:
        room = front.gateway.state.engines[MODEL]
        assert (await ask(session, front))[:2] == (200, "local")
        long = {"model": "local", "messages": [{"role": "user", "content": "Tell."}], "max_tokens": 1500}
        streamed = long | {"ignore_eos": True, "stream": True}
        async with session.post(f"{front.v1}/chat/completions", json=streamed) as stream:
            assert stream.status == 200
            await stream.content.readline()
            with engine.frozen_core():
                await until(lambda: room.process()[0] == "degraded")
                told = re.fullmatch(r"no token for ([\d.]+) s with 1 requests in flight", room.process()[1] or "")
                assert told is not None, room.process()  # the lack of tokens has told it, nothing else
                assert float(told[1]) >= PATIENCE_S
                status, _ = await asyncio.to_thread(engine.ask, "GET", "/health")
                assert status == 200
                answered = [await ask(session, front) for _ in range(5)]
                assert [(status, tier) for status, tier, _ in answered] == [(200, "cheap")] * 5
                status, _, body = await ask(session, front, **{"x-router-locality": "local"})
                assert (status, body["error"]["code"]) == (503, "no_route")
                assert len(api.chats) == 5
            await until(lambda: room.process()[0] == "ready")
            # a slow machine may have made it look busy for a moment
            await until_seen(lambda: ask(session, front), lambda answer: answer[:2] == (200, "local"))
            rest = await stream.content.read()
        assert rest.rstrip().endswith(b"data: [DONE]")  # who had waited has lost nothing
        await until(lambda: room.inflight.n == 0)
        assert (await front.costs()).totals.open_reservations == 0
