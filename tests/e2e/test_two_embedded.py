"""Two real engines as children of one gateway: both answer, one is killed and comes back, none is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from router.server import ENGINE_PATIENCE_S
from tests.patience import PATIENCE_S
from tests.process import alive, descendants, gateway_process, until

MODEL = "smollm2-135m-instruct"
CAPITAL: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
    "max_tokens": 8,
    "temperature": 0,
}
HARDWARE = {"kind": "rented", "usd_per_hour": 1, "on": "while_engine_runs"}


async def test_two_children_share_one_model_and_one_of_them_is_enough(tmp_path: Path) -> None:
    local = {
        "engine": "embedded",
        "context_window_tokens": 512,
        "max_num_seqs": 1,
        "hardware": HARDWARE,
        "engines": [{"name": "left"}, {"name": "right"}],
    }
    config = {"server": {"data_dir": "data"}, "tiers": {"local": local}}
    async with (
        gateway_process(config, tmp_path) as gateway,
        AsyncOpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE_S) as client,
    ):

        async def ask(model: str) -> str:
            raw = await client.chat.completions.with_raw_response.create(model=model, **CAPITAL)
            answer = raw.parse()
            assert (raw.headers["x-router-tier"], raw.headers["x-router-model"], answer.model) == (
                "local",
                MODEL,
                MODEL,
            )
            return answer.choices[0].message.content or ""

        async def states() -> dict[str, str]:
            _, body = await gateway.get("/health/readiness")
            return {tier["engine"]: tier["state"] for tier in body["tiers"]}

        await gateway.readiness_is("ready")
        for name in ("left", "right"):
            ready = f"  local: ready ({MODEL} on local/{name})" in gateway.banner
            assert ready or gateway.up_after_s > ENGINE_PATIENCE_S
        words = {name: await ask(name) for name in ("local/left", "local/right")}
        assert words["local/left"] == words["local/right"]
        assert "Tokyo" in words["local/left"]

        family = descendants(gateway.pid)
        assert len(family) == 4  # each engine under a guardian of its own
        os.kill(family[-1], signal.SIGKILL)
        await gateway.readiness_is("degraded")
        down = [name for name, state in (await states()).items() if state != "ready"]
        assert len(down) == 1
        assert "Tokyo" in await ask("auto")
        assert "Tokyo" in await ask("auto:local")
        await gateway.readiness_is("ready")
        assert "Tokyo" in await ask(down[0])
        assert {path.name for path in (tmp_path / "data").glob("engine*.log")} == {
            "engine-left.log",
            "engine-right.log",
        }

        family += descendants(gateway.pid)
        gateway.terminate()
        assert await gateway.ended() == 0
        await until(lambda: not any(alive(pid) for pid in family))
    totals = gateway.costs()["totals"]
    assert (totals["requests"], totals["open_reservations"]) == (5, 0)
