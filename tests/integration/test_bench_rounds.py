"""A run of the benchmark over real processes: who is measured, who is left out, and how each is asked."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bench.contestants import Contestant, free_port, launch
from bench.peers import PEERS
from bench.phases import PHASES, Cores, make_body
from bench.rounds import Entry, Plan, Rounds
from bench.tools import HERE, BenchError, Tools, build_tools, run_load
from bench.wire import Wire
from tests.loopback_http import Exchange, LoopbackServer

PHASE = replace(next(phase for phase in PHASES if phase.name == "one_in_flight"), requests=20)
PLAN = Plan((PHASE,), rounds=2, cold_starts=1, length_ratio=1.0)
ANYWHERE = Cores(None, None)


def ends_at_once(_upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    code = "import sys; sys.exit('no licence')"
    return launch("Broken", [sys.executable, "-c", code], free_port(), core, work_dir, {})


class Model(LoopbackServer):
    """A model API that notes how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str | None, str]] = []

    async def handle(self, exchange: Exchange) -> None:
        request = exchange.request
        self.asked.append((request.path, request.headers.get("x-where"), request.json["model"]))
        await exchange.answer(200, b"{}")


def test_a_peer_that_fails_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    fastapi = next(peer for peer in PEERS if peer.name == "FastAPI + aiohttp")
    peers = [
        Entry("Broken", ends_at_once, optional=True),
        Entry(fastapi.name, partial(fastapi.launch, tmp_path), optional=True),
    ]
    measured = Rounds(build_tools(tmp_path), ANYWHERE, tmp_path, PLAN, peers).run()
    assert measured.names() == ["direct", fastapi.name]
    assert [w["done"] for w in measured.windows] == [20] * 4
    assert measured.pss_mb[fastapi.name] > 1
    assert list(measured.cold_start_s) == [fastapi.name]
    assert "no licence" in measured.not_measured["Broken"]


def test_a_core_that_the_direct_call_leaves_free_is_not_disturbed_by_its_use(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0)) if shutil.which("taskset") else None
    plan = Plan((replace(PHASE, requests=0, seconds=0.3),), rounds=1, cold_starts=1, length_ratio=1.0)
    measured = Rounds(build_tools(tmp_path), Cores(core, core), tmp_path, plan, []).run()
    assert [(w["contestant"], w["foreign_ratio"]) for w in measured.windows] == [("direct", 0.0)]


def test_what_must_be_measured_ends_the_run_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no licence"):
        Rounds(build_tools(tmp_path), ANYWHERE, tmp_path, PLAN, [Entry("Broken", ends_at_once)]).run()


def in_python(_work_dir: Path) -> Tools:
    return Tools((), (sys.executable, str(HERE / "python_tools.py"), "load"), "Python")


@pytest.mark.parametrize("made", [build_tools, in_python])
async def test_each_contestant_is_asked_in_its_own_way(made: Callable[[Path], Tools], tmp_path: Path) -> None:
    wire = Wire(path="/openai/v1/chat", model="a::b", headers=("x-where: http://127.0.0.1:9/v1",))
    async with Model() as model:
        report = await asyncio.to_thread(
            run_load,
            made(tmp_path),
            None,
            port=model.port,
            body=make_body(tmp_path, 200, stream=False, model=wire.model),
            key="k",
            connections=2,
            arguments=["-n", "6"],
            wire=wire,
        )
    assert report["done"] == 6
    assert model.asked == [(wire.path, "http://127.0.0.1:9/v1", "a::b")] * 6
