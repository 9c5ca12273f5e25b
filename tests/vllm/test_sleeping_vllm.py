"""A real vLLM put to sleep and woken by our own hand (on a CPU it frees no memory; all else is as on a card)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from local_llm.coefficients import PRESETS
from local_llm.datamodels import ProcessState, SloTargets
from local_llm.inflight import Inflight
from local_llm.poller import EnginePoller
from local_llm.probe import AiohttpGet, ProbeError
from local_llm.sleep import Phase, Sleeper
from router.clock import SystemClock
from tests.gateway import until
from tests.vllm.vllm_servers import MODEL, SupervisedStart, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


class Watched:
    """The engine as a gateway watches it."""

    def __init__(self, engine: VllmServer, start: SupervisedStart) -> None:
        self.engine, self.process = engine, start.engine
        self.headers = {"Authorization": f"Bearer {engine.api_key}"}
        self.get, clock, slo = AiohttpGet(), SystemClock(), SloTargets()
        inflight = Inflight(PRESETS["h100-8b-fp16"], slo)
        self.poller = EnginePoller(
            root_url=lambda: self.process.root_url,
            headers=self.headers,
            inflight=inflight,
            slo=slo,
            clock=clock,
            get=self.get,
            process=lambda: (self.process.state, self.process.problem),
        )
        self.sleeper = Sleeper(
            after_idle_s=0.5,
            root_url=lambda: self.process.root_url,
            headers=self.headers,
            post=self.get.post,
            inflight=inflight,
            clock=clock,
        )

    async def keep_looking(self) -> None:
        """As `LocalEngine` does, a little quicker."""
        while True:
            await self.poller.poll()
            await self.sleeper.look(alive=self.process.state is ProcessState.READY, reading=self.poller.reading)
            await asyncio.sleep(0.1)

    async def gives_a_token(self, timeout_s: float) -> bool:
        """Whether it answers in time."""
        base = self.process.base_url
        try:
            return await self.get.one_token(base, model=MODEL, headers=self.headers, timeout_s=timeout_s)
        except ProbeError:
            return False


@pytest.fixture
async def watched(supervised_engine: VllmServer, supervised_start: SupervisedStart) -> AsyncIterator[Watched]:
    made = Watched(supervised_engine, supervised_start)
    yield made
    await made.get.post(f"{made.process.root_url}/wake_up", headers=made.headers, timeout_s=60.0)
    await made.sleeper.close()
    await made.get.close()


async def test_it_sleeps_when_nobody_uses_it_says_so_and_works_again_when_it_is_woken(watched: Watched) -> None:
    assert await watched.gives_a_token(60.0)
    looking = asyncio.create_task(watched.keep_looking())
    try:
        await until(lambda: watched.poller.state()[0] is ProcessState.ASLEEP)
        assert watched.sleeper.phase is Phase.ASLEEP
        status, _ = await asyncio.to_thread(watched.engine.ask, "GET", "/health")
        assert status == 200  # only its metric tells
        assert not await watched.gives_a_token(1.0)
        watched.sleeper.wake()
        await until(lambda: watched.poller.state()[0] is ProcessState.READY)
        looking.cancel()
        assert await watched.gives_a_token(60.0)
    finally:
        looking.cancel()
