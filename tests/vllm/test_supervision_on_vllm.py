"""Our supervision and our reading of the metrics, against a real vLLM with almost no KV cache."""

from __future__ import annotations

import asyncio
import threading

import pytest

from local_llm.datamodels import ProcessState
from tests.vllm.vllm_servers import KV_BLOCKS, MODEL, SupervisedStart, VllmServer, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

LONG_PROMPT = [{"role": "user", "content": "count every token of this " * 60}]


def ask_in_background(engine: VllmServer, requests: int, max_tokens: int) -> list[threading.Thread]:
    """Plain calls with long prompts, each in a thread."""
    body = {"model": MODEL, "messages": LONG_PROMPT, "max_tokens": max_tokens, "ignore_eos": True}
    threads = [
        threading.Thread(target=engine.ask, args=("POST", "/v1/chat/completions", body, 120.0)) for _ in range(requests)
    ]
    for thread in threads:
        thread.start()
    return threads


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
    threads = ask_in_background(supervised_engine, requests=16, max_tokens=200)
    full = await supervised_engine.wait_reading(
        lambda r: (r.kv_cache_usage_ratio or 0.0) > 0.8 and (r.waiting_requests or 0) > 0
    )
    assert full.problem is None
    for thread in threads:
        await asyncio.to_thread(thread.join, 120.0)
    after = await supervised_engine.wait_reading(lambda r: r.running_requests == 0 and r.waiting_requests == 0)
    assert after.output_tokens is not None
    assert before.output_tokens is not None
    assert after.output_tokens - before.output_tokens == 16 * 200


async def test_an_engine_whose_worker_dies_is_started_again(
    supervised_engine: VllmServer, supervised_start: SupervisedStart
) -> None:
    watched = supervised_start.engine
    starts = watched.starts
    supervised_engine.kill_worker()
    await asyncio.to_thread(wait_until, lambda: watched.starts, lambda seen: seen == starts + 1, 60.0)
    assert watched.state is ProcessState.STARTING
    again = await asyncio.to_thread(supervised_start.wait_ready)
    assert again.group != supervised_engine.group
    status, _ = again.ask(
        "POST", "/v1/chat/completions", {"model": MODEL, "messages": LONG_PROMPT[:1], "max_tokens": 2}
    )
    assert status == 200
