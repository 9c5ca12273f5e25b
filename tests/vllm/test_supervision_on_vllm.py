"""Our supervision and our reading of the metrics, against a real vLLM with almost no KV cache."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from local_llm.datamodels import ProcessState
from tests.vllm.vllm_servers import KV_BLOCKS, MODEL, SupervisedStart, VllmServer, members, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MESSAGES = [{"role": "user", "content": "hello"}]


async def test_an_idle_engine_reads_as_idle_and_tells_the_size_of_its_cache(supervised_engine: VllmServer) -> None:
    reading = await supervised_engine.wait_reading(lambda r: r.running_requests == 0)
    assert reading.problem is None
    assert reading.waiting_requests == 0
    assert reading.kv_cache_usage_ratio == 0.0
    assert reading.asleep is False
    assert reading.kv_tokens is not None
    assert reading.kv_tokens % KV_BLOCKS == 0


async def test_a_full_cache_shows_as_usage_and_a_queue(supervised_engine: VllmServer) -> None:
    before = supervised_engine.reading()
    with supervised_engine.strangers(16, max_tokens=1000, words=100):
        full = await supervised_engine.wait_reading(
            lambda r: (r.kv_cache_usage_ratio or 0.0) > 0.8 and (r.waiting_requests or 0) > 0
        )
    assert full.problem is None
    after = await supervised_engine.wait_reading(lambda r: r.running_requests == 0 and r.waiting_requests == 0)
    assert after.kv_cache_usage_ratio == 0.0
    assert before.prompt_tokens is not None
    assert after.prompt_tokens is not None
    assert after.prompt_tokens > before.prompt_tokens


async def test_an_engine_whose_worker_dies_is_started_again(
    supervised_engine: VllmServer, supervised_start: SupervisedStart
) -> None:
    watched = supervised_start.engine
    starts = watched.starts
    supervised_engine.kill_worker()
    await asyncio.to_thread(wait_until, lambda: watched.state, lambda seen: seen is not ProcessState.READY)
    await asyncio.to_thread(wait_until, lambda: watched.starts, lambda seen: seen == starts + 1)
    assert watched.state is ProcessState.STARTING
    again = await asyncio.to_thread(supervised_start.wait_ready)
    assert again.group != supervised_engine.group
    status, _ = again.ask("POST", "/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "max_tokens": 2})
    assert status == 200


async def test_an_engine_whose_server_is_killed_is_missed_at_once_and_leaves_no_process_behind(
    supervised_engine: VllmServer, supervised_start: SupervisedStart
) -> None:
    watched, group = supervised_start.engine, supervised_engine.group
    for title in ("VLLM::EngineCore", "VLLM::Worker"):
        assert supervised_engine.process_of(title)  # alone they would hold their memory for ever
    os.kill(supervised_engine.process_of(" serve "), signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: watched.state, lambda seen: seen is not ProcessState.READY)
    await asyncio.to_thread(wait_until, lambda: members(group), lambda left: left == [], 10.0)
    assert "signal 9" in (watched.problem or "")
