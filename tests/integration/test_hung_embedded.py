"""The embedded engine really stopped in its tracks (SIGSTOP): its port is open, and nothing comes out of it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local_llm.datamodels import EngineKind, LaunchConfig, ProcessState
from local_llm.embedded import find_model
from local_llm.process import EngineProcess
from router.clock import SystemClock
from tests.gateway import CHEAP_PRICE, RunningGateway, running, until
from tests.patience import PATIENCE_S, until_seen
from tests.process import descendants
from tests.upstream import FakeUpstream

MODEL = "smollm2-135m-instruct"
KEY = "sk-api"
SLO_TTFT_S = 1.5
PATIENT_S = 2 * SLO_TTFT_S  # no token for twice the promised time to the first one


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Hold every process under the guardian `pid`."""
    held = descendants(pid)
    assert held
    for one in held:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in held:
            try:
                os.kill(one, signal.SIGCONT)
            except ProcessLookupError:
                continue


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[tuple[RunningGateway, FakeUpstream]]:
    async with FakeUpstream(api_key=KEY) as api:
        config = {
            "server": {"data_dir": str(folder)},
            "policy": {"quality_target_ratio": 0.01},
            "timeouts": {"connect_s": 60, "first_byte_s": 60, "idle_s": 60, "total_s": 120, "min_tokens_per_s": 0},
            "tiers": {
                "local": {
                    "engine": "embedded",
                    "context_window_tokens": 1024,
                    "max_num_seqs": 2,
                    "slo": {"ttft_s": SLO_TTFT_S, "tpot_s": 0.5, "slack_s": 5},
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
        async with running(config, {"API_KEY": KEY}, ready_s=PATIENCE_S) as front:
            yield front, api


async def ask(session: aiohttp.ClientSession, front: RunningGateway, **headers: str) -> tuple[int, str | None, Any]:
    """(status, tier, body) of a short chat."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 4}
    quality = {"x-router-quality": "0"}
    async with session.post(f"{front.v1}/chat/completions", json=body, headers=quality | headers) as response:
        return response.status, response.headers.get("x-router-tier"), await response.json()


async def test_it_is_left_by_its_lack_of_progress_and_taken_up_again_without_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path) as (front, api), aiohttp.ClientSession() as session:
        (engine,) = front.gateway.local.engines
        assert engine.process is not None and engine.process.pid is not None
        long = {"model": "local", "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 400}
        streamed = long | {"ignore_eos": True, "stream": True}
        async with session.post(f"{front.v1}/chat/completions", json=streamed) as stream:
            assert stream.status == 200
            await stream.content.readline()
            with frozen(engine.process.pid):
                await until(lambda: engine.room.process()[0] == "degraded")
                told = re.fullmatch(r"no token for ([\d.]+) s with 1 requests .*", engine.room.process()[1] or "")
                assert told is not None, engine.room.process()  # the lack of tokens has told it, nothing else
                assert float(told[1]) >= PATIENT_S
                answered = [await ask(session, front) for _ in range(3)]
                assert [(status, tier) for status, tier, _ in answered] == [(200, "cheap")] * 3
                status, _, body = await ask(session, front, **{"x-router-locality": "local"})
                assert (status, body["error"]["code"]) == (503, "no_route")
                assert len(api.chats) == 3
            await until(lambda: engine.room.process()[0] == "ready")
            rest = await stream.content.read()
        assert rest.rstrip().endswith(b"data: [DONE]")  # who had waited has lost nothing
        # a slow machine may have made it look busy for a moment
        await until_seen(lambda: ask(session, front, **{"x-router-locality": "local"}), lambda answer: answer[0] == 200)
        assert engine.process.starts == 1
        await until(lambda: engine.room.inflight.n == 0)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    model = find_model()
    launch = LaunchConfig(
        kind=EngineKind.EMBEDDED,
        model=str(model.path),
        model_sha256=model.sha256,
        executable=sys.executable,
        max_num_seqs=1,
        context_window_tokens=512,
    )
    engine = EngineProcess(launch, clock=SystemClock(), log_path=tmp_path / "engine.log")
    await engine.start()
    assert await engine.wait_ready(PATIENCE_S), engine.problem
    yield engine
    await engine.stop()


async def test_one_that_stays_hung_is_ended_though_it_hears_no_signal_and_started_anew(engine: EngineProcess) -> None:
    assert engine.pid is not None
    before = descendants(engine.pid)
    with frozen(engine.pid):
        await asyncio.wait_for(engine.report_hung("no token for 30 s"), PATIENCE_S)
        assert engine.problem == "no token for 30 s"
        assert not set(before) & set(descendants(os.getpid()))
    assert await engine.wait_ready(PATIENCE_S)
    assert (engine.state, engine.starts) == (ProcessState.READY, 2)
