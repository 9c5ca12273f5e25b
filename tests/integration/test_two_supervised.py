"""Two supervised `vllm serve` (stand-ins) of one gateway: each sees its own cards, none wakes that is not missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from router.local_engines import LocalEngine
from tests.gateway import RunningGateway, running, until
from tests.ports import free_port
from tests.process import descendants
from tests.vllm_stand_in import write_executable


@dataclass
class House:
    """The gateway, its engines, and what each of them was asked."""

    front: RunningGateway
    engines: tuple[LocalEngine, ...]
    folders: tuple[Path, ...]
    session: aiohttp.ClientSession

    async def ask(self) -> tuple[int, str | None]:
        """(status, tier) of an easy question."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
        async with self.session.post(f"{self.front.v1}/chat/completions", json=body) as response:
            await response.read()
            return response.status, response.headers.get("x-router-tier")

    def asked(self, path: str) -> list[int]:
        """How often each engine was asked for `path`."""
        told = [folder / "calls" for folder in self.folders]
        return [calls.read_text().count(path) if calls.exists() else 0 for calls in told]


@asynccontextmanager
async def house(folder: Path, **launch: Any) -> AsyncIterator[House]:
    folders = tuple(folder / name for name in ("gpu0", "gpu1"))
    engines = []
    for number, own in enumerate(folders):
        own.mkdir()
        keys = {"executable": str(write_executable(own)), "gpus": [number]}
        engines.append({"name": own.name, "api_base": f"http://127.0.0.1:{free_port()}/v1", "launch": keys})
    local = {"engine": "vllm", "model": "house-model", "coefficients": "h100-8b-fp16", "launch": launch}
    config = {
        "server": {"data_dir": str(folder / "data")},
        "timeouts": {"connect_s": 30},
        "tiers": {"local": {**local, "engines": engines}},
    }
    async with aiohttp.ClientSession() as session, running(config, {}, ready_s=None) as front:
        assert front.gateway.local is not None
        found = front.gateway.local.engines
        await until(lambda: all(one.room.process()[0] in ("ready", "asleep") for one in found))
        yield House(front, found, folders, session)


def environment_of(engine: LocalEngine) -> dict[str, str]:
    """What the engine's own process was started with."""
    assert engine.process is not None and engine.process.pid is not None
    (child,) = descendants(engine.process.pid)
    raw = Path(f"/proc/{child}/environ").read_text().split("\0")
    return dict(line.partition("=")[::2] for line in raw if "=" in line)


async def test_each_engine_sees_its_own_cards_and_has_a_key_of_its_own(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        seen = [environment_of(engine) for engine in h.engines]
        assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["0", "1"]
        assert seen[0]["VLLM_API_KEY"] != seen[1]["VLLM_API_KEY"]
        answers = await asyncio.gather(*(h.ask() for _ in range(6)))
        assert set(answers) == {(200, "local")}
        assert sum(h.asked("/v1/chat/completions")) == 6


async def test_of_two_that_sleep_the_first_request_wakes_one_and_the_next_need_no_other(tmp_path: Path) -> None:
    async with house(tmp_path, sleep={"after_idle_s": 2}) as h:
        await until(lambda: all(engine.room.process()[0] == "asleep" for engine in h.engines))
        assert await h.ask() == (200, "local")
        for _ in range(3):
            assert await h.ask() == (200, "local")
        first, second = h.asked("/wake_up")
        assert first >= 1
        assert second == 0
        assert h.engines[1].room.process()[0] == "asleep"
