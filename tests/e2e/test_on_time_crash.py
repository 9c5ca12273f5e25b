"""Hardware that is paid for while its engine runs, and a gateway that is killed: no second of it is missing."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from router.on_times import BEAT_US, FILE
from tests.gateway import three_tiers
from tests.process import gateway_process, run_command, until
from tests.upstream import FakeUpstream

KEYS = {"CHEAP_KEY": "sk-cheap-1", "BIG_KEY": "sk-big-1"}
NOWHERE = "http://127.0.0.1:1/v1"
TOLD_TO_THE_DATABASE_EVERY_S = 30.0


def config_for(tmp_path: Path, engine: str) -> dict[str, Any]:
    config = three_tiers(tmp_path, local=engine, cheap=NOWHERE, big=NOWHERE)
    config["tiers"]["local"]["hardware"] = {"kind": "rented", "usd_per_hour": 3600, "on": "while_engine_runs"}
    return config


async def test_the_time_on_is_booked_up_to_the_death_of_the_gateway(tmp_path: Path) -> None:
    work = tmp_path / "work"
    async with FakeUpstream(api_key=None) as engine:
        config = config_for(tmp_path, engine.base_url)
        file = Path(config["server"]["data_dir"]) / FILE
        async with gateway_process(config, work, environ=KEYS) as gateway:

            def told() -> list[Any]:
                found = json.loads((work / file).read_text())["on"] if (work / file).exists() else []
                return [one for one in found if one[3] and one[2] - one[1] > 3_000_000]

            await until(told)
            ((_, from_us, _, _),) = told()
            gateway.kill()
            died_us = time.time_ns() // 1000
    # the engine is gone with it: whatever stands in the books now was on before
    async with gateway_process(config_for(tmp_path, NOWHERE), work, environ=KEYS):
        await until(lambda: not (work / file).exists())
    done = await asyncio.to_thread(
        run_command, "report", "periods", "--config", "test-router.yaml", "--format", "json", folder=work, environ=KEYS
    )
    rows = json.loads(done.stdout)["rows"]
    on_s = sum(row["on_s"] for row in rows)
    really_s = (died_us - from_us) / 1e6
    assert really_s < TOLD_TO_THE_DATABASE_EVERY_S  # so the database alone would not have known
    # a starved machine may beat a little late
    assert really_s - 1.0 <= on_s <= really_s + BEAT_US / 1e6
    assert sum(row["invoice_nanousd"] for row in rows) == round(on_s * 10**9)
