"""Two gateways on one Postgres, each with a local tier: hardware of one name is one machine, or one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import three_tiers
from tests.patience import PATIENCE_S
from tests.process import GatewayProcess, gateway_process
from tests.upstream import FakeUpstream

pytestmark = pytest.mark.postgres
KEYS = {"CHEAP_KEY": "sk-cheap-1", "BIG_KEY": "sk-big-1"}


@pytest.fixture
async def config(tmp_path: Path, postgres_url: str) -> AsyncIterator[dict[str, Any]]:
    async with FakeUpstream(api_key=None) as engine:
        found = three_tiers(tmp_path, local=engine.base_url, cheap="http://127.0.0.1:1/v1", big="http://127.0.0.1:1/v1")
        found["server"]["database_url"] = postgres_url
        yield found


def costing(config: dict[str, Any], usd_per_hour: float) -> dict[str, Any]:
    local = config["tiers"]["local"] | {"hardware": {"kind": "rented", "usd_per_hour": usd_per_hour}}
    return config | {"tiers": config["tiers"] | {"local": local}}


async def test_a_gateway_that_would_book_the_same_hardware_at_another_price_says_so_and_ends(
    config: dict[str, Any], tmp_path: Path
) -> None:
    async with gateway_process(costing(config, 2.50), tmp_path / "one", environ=KEYS):
        second = GatewayProcess(costing(config, 4.00), tmp_path / "two", environ=KEYS)
        code = await asyncio.to_thread(second.process.wait, PATIENCE_S)
        assert code == 1
        assert "at 2.5 USD an hour, here it costs 4" in second.log
        assert "hardware.asset" in second.log
    # its owner has gone: now it may
    async with gateway_process(costing(config, 4.00), tmp_path / "two", environ=KEYS) as second:
        assert (await second.get("/health/readiness"))[0] == 200


async def test_gateways_that_share_an_engine_at_one_price_run_side_by_side(
    config: dict[str, Any], tmp_path: Path
) -> None:
    async with (
        gateway_process(costing(config, 2.50), tmp_path / "one", environ=KEYS) as first,
        gateway_process(costing(config, 2.50), tmp_path / "two", environ=KEYS) as second,
    ):
        for gateway in (first, second):
            assert (await gateway.get("/health/readiness"))[0] == 200
