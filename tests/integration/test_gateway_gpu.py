"""A running gateway whose cards change under it: the real pynvml on a stand-in for the driver's library."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway import three_tiers
from tests.nvml_stand_in import build_library
from tests.patience import PATIENCE_S
from tests.process import GatewayProcess, gateway_process, run_command
from tests.upstream import FakeUpstream, ok, status

ROOT = Path(__file__).parents[2]
KEYS = {"CHEAP_KEY": "sk-cheap-1", "BIG_KEY": "sk-big-1"}
TWO_CARDS = """
gpus 2
driver 580.65.06
cuda 13000
name NVIDIA L4
memory_total 24146608128
memory_used 450000000
utilization 30
power_mw 60000
temperature 50
clock_mhz 2000
clock_max_mhz 2000
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@dataclass
class Machine:
    """A gateway, and the state of the cards it sees."""

    gateway: GatewayProcess
    state: Path
    cheap: FakeUpstream
    big: FakeUpstream

    def api_calls(self) -> int:
        """Chats that left the house."""
        return len(self.cheap.chats) + len(self.big.chats)

    def cards(self, text: str) -> None:
        """What the driver says from now on."""
        changed = self.state.with_suffix(".new")
        changed.write_text(text)
        changed.replace(self.state)

    async def ask(self, **headers: str) -> tuple[int, str | None, dict[str, Any]]:
        """(status, tier, body) of an easy question."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
        url = f"{self.gateway.v1}/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
            return response.status, response.headers.get("x-router-tier"), await response.json()

    async def tier_becomes(self, wanted: str) -> None:
        ends_at_s = time.monotonic() + PATIENCE_S
        while (seen := await self.ask())[1] != wanted:
            assert seen[0] == 200, seen
            assert time.monotonic() < ends_at_s, f"still {seen[1]}"
            await asyncio.sleep(0.1)

    async def page_becomes(self, text: str, *, shown: bool = True) -> None:
        """Look until `text` is on the page, or is gone from it."""
        ends_at_s = time.monotonic() + PATIENCE_S
        while (text in await self.metrics()) != shown:
            assert time.monotonic() < ends_at_s, await self.metrics()
            await asyncio.sleep(0.1)

    async def explain(self) -> dict[str, Any]:
        """Why the local tier would not be taken now: its entry among the alternatives."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
        url = f"{self.gateway.v1}/route/explain"
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
            told = await response.json()
        return next(a for a in told["alternatives"] if a["tier"] == "local")

    async def metrics(self) -> str:
        """The page, GPU lines only."""
        _, text = await self.gateway.get("/metrics")
        return "\n".join(line for line in text.splitlines() if line.startswith(("router_gpu", "router_engine")))

    async def local_trouble(self) -> str | None:
        """What readiness says of the local tier."""
        _, body = await self.gateway.get("/health/readiness")
        return next(tier["detail"] for tier in body["tiers"] if tier["tier"] == "local")


@asynccontextmanager
async def machine(tmp_path: Path, library: Path, cards: str, **local: Any) -> AsyncIterator[Machine]:
    state = tmp_path / "cards.txt"
    state.write_text(cards)
    async with (
        FakeUpstream(api_key=None) as engine,
        FakeUpstream(api_key=KEYS["CHEAP_KEY"]) as cheap,
        FakeUpstream(api_key=KEYS["BIG_KEY"]) as big,
    ):
        config = three_tiers(tmp_path, local=engine.base_url, cheap=cheap.base_url, big=big.base_url)
        config["tiers"]["local"] |= local
        environ = KEYS | {"NVML_STATE": str(state), "LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(ROOT)}
        async with gateway_process(config, tmp_path / "work", environ=environ) as gateway:
            yield Machine(gateway, state, cheap, big)


async def test_a_shared_card_is_left_above_its_cap_and_used_again_below_it(tmp_path: Path, library: Path) -> None:
    async with machine(tmp_path, library, TWO_CARDS, max_gpu_utilization_ratio=0.8) as m:
        await m.tier_becomes("local")
        m.cards(TWO_CARDS + "1.utilization 95\n")
        await m.tier_becomes("cheap")
        assert (await m.explain())["reasons_against"] == ["GPU_SHARED_CAP"]
        assert 'router_gpu_utilization_ratio{gpu="1"} 0.95' in await m.metrics()
        m.cards(TWO_CARDS + "1.fail.Utilization 3\n")  # told no more: not idle, but unknown
        await m.page_becomes('router_gpu_utilization_ratio{gpu="1"}', shown=False)
        assert (await m.explain())["reasons_against"] == ["METRICS_STALE"]
        m.cards(TWO_CARDS)
        await m.tier_becomes("local")


async def test_a_card_that_is_lost_takes_its_engine_out_and_brings_it_back(tmp_path: Path, library: Path) -> None:
    async with machine(tmp_path, library, TWO_CARDS) as m:
        await m.tier_becomes("local")
        m.cards(TWO_CARDS + "1.fail.Memory 15\n")
        await m.tier_becomes("cheap")
        assert await m.local_trouble() == "GPU 1: the GPU has fallen off the bus"
        page = await m.metrics()
        assert 'router_gpu_healthy{gpu="0"} 1.0' in page
        assert 'router_gpu_healthy{gpu="1"} 0.0' in page
        assert 'router_gpu_memory_used_bytes{gpu="1"}' not in page
        assert 'router_engine_state{engine="house-model",state="down"} 1.0' in page
        before = m.api_calls()
        code, _, body = await m.ask(**{"x-router-locality": "local"})
        assert (code, body["error"]["code"]) == (503, "no_route")
        assert m.api_calls() == before
        m.cards(TWO_CARDS)
        await m.tier_becomes("local")


async def test_a_card_takes_only_its_own_engine_out(tmp_path: Path, library: Path) -> None:
    async with FakeUpstream(api_key=None) as first, FakeUpstream(api_key=None) as second:
        engines = [
            {"name": f"gpu{card}", "api_base": engine.base_url, "launch": {"gpus": [card]}}
            for card, engine in enumerate((first, second))
        ]
        async with machine(tmp_path, library, TWO_CARDS, api_base=None, engines=engines) as m:
            await m.tier_becomes("local")
            await m.page_becomes('router_gpu_healthy{gpu="1"} 1.0')
            m.cards(TWO_CARDS + "0.fail.Memory 15\n1.throttle 0x40\n1.clock_mhz 1000\n")
            await m.page_becomes('router_engine_state{engine="local/gpu0",state="down"} 1.0')
            await m.page_becomes('router_engine_slowdown_ratio{engine="local/gpu1"} 2.0')
            page = await m.metrics()
            assert 'router_engine_slowdown_ratio{engine="local/gpu0"} 1.0' in page
            assert 'router_engine_state{engine="local/gpu1",state="ready"} 1.0' in page
            answered = len(second.chats)
            assert [(await m.ask())[1] for _ in range(3)] == ["local"] * 3
            assert len(second.chats) == answered + 3
            assert m.api_calls() == 0


async def test_a_hot_card_makes_its_engine_slower_and_a_very_slow_one_is_left(tmp_path: Path, library: Path) -> None:
    async with machine(tmp_path, library, TWO_CARDS) as m:
        await m.tier_becomes("local")
        m.cards(TWO_CARDS + "0.throttle 0x40\n0.clock_mhz 1000\n")
        await m.page_becomes('router_engine_slowdown_ratio{engine="house-model"} 2.0')
        assert (await m.ask())[1] == "local"
        m.cards(TWO_CARDS + "0.throttle 0x40\n0.clock_mhz 400\n")
        await m.tier_becomes("cheap")
        assert (await m.explain())["reasons_against"] == ["GPU_THROTTLED"]


async def test_a_driver_that_is_not_loaded_is_a_machine_without_cards_until_it_is(
    tmp_path: Path, library: Path
) -> None:
    async with machine(tmp_path, library, TWO_CARDS + "fail.Init 9\n") as m:
        await m.tier_becomes("local")  # an engine that answers needs no card of ours
        assert "router_gpu_healthy" not in await m.metrics()
        m.cards(TWO_CARDS)
        await m.page_becomes('router_gpu_power_watts{gpu="0"} 60.0')
        m.cards(TWO_CARDS + "fail.Count 1\n")  # and reset under a running gateway
        await m.page_becomes("router_gpu_healthy", shown=False)
        assert (await m.ask())[1] == "local"


UNTOLD = "".join(
    f"fail.{what} 3\n"
    for what in ("Memory", "Utilization", "Power", "Energy", "Temperature", "Clock", "MaxClock", "Ecc")
)
STRANGE = {
    # what the driver says, what must then be on the page, and what must not
    "a slice of a card": (
        "0.mig 1\n0.fail.Utilization 3\n0.fail.Power 3\n",
        ('healthy{gpu="0"} 1.0',),
        ('ratio{gpu="0"}',),
    ),
    "a card that tells nothing": (
        UNTOLD,
        ('healthy{gpu="1"} 1.0',),
        ("power_watts{", "temperature_celsius{", "ratio{gpu"),
    ),
    "memory errors": ("1.ecc 2\n", ('ecc_uncorrected_errors{gpu="1"} 2.0', 'healthy{gpu="1"} 1.0'), ()),
    "no permission": ("fail.Init 4\nfail.Count 4\n", (), ("router_gpu_healthy",)),
    "an absurd figure": ("0.utilization 4000000000\n", ('healthy{gpu="0"} 1.0',), ('utilization_ratio{gpu="0"}',)),
}


async def test_whatever_a_driver_says_is_shown_as_it_is_and_the_gateway_goes_on(tmp_path: Path, library: Path) -> None:
    async with machine(tmp_path, library, TWO_CARDS) as m:
        await m.tier_becomes("local")
        for lines, shown, hidden in STRANGE.values():
            m.cards(TWO_CARDS + lines)
            for text in shown:
                await m.page_becomes(text)
            for text in hidden:
                await m.page_becomes(text, shown=False)
            assert (await m.ask())[1] == "local"
            m.cards(TWO_CARDS)
            await m.page_becomes('utilization_ratio{gpu="0"} 0.3')


async def test_a_fatal_driver_error_takes_its_engine_out_until_the_driver_begins_anew(
    tmp_path: Path, library: Path
) -> None:
    async with machine(tmp_path, library, TWO_CARDS) as m:
        await m.tier_becomes("local")
        m.cards(TWO_CARDS + "xid_serial 1\nxid 1 79\n")
        await m.tier_becomes("cheap")
        assert await m.local_trouble() == "GPU 1: XID 79"
        before = m.api_calls()
        code, _, body = await m.ask(**{"x-router-locality": "local"})
        assert (code, body["error"]["code"]) == (503, "no_route")
        assert m.api_calls() == before
        m.cards(TWO_CARDS + "xid_serial 1\nxid 1 79\nfail.Count 1\n")
        await m.page_becomes("router_gpu_healthy", shown=False)
        m.cards(TWO_CARDS + "xid_serial 1\nxid 1 79\n")
        await m.tier_becomes("local")


async def test_driver_and_library_that_differ_are_no_reason_not_to_serve_and_are_told(
    tmp_path: Path, library: Path
) -> None:
    async with machine(tmp_path, library, TWO_CARDS + "fail.Init 18\n") as m:
        await m.tier_becomes("local")
        assert "router_gpu_healthy" not in await m.metrics()
        assert "differ in version: reboot or reload the driver" in m.gateway.log
        m.cards(TWO_CARDS)
        await m.page_becomes("router_gpu_healthy")
        assert "gpu_driver: it answers again" in m.gateway.log


async def test_a_lost_card_and_a_failing_provider_at_once_leave_the_third_to_answer(
    tmp_path: Path, library: Path
) -> None:
    async with machine(tmp_path, library, TWO_CARDS) as m:
        await m.tier_becomes("local")
        m.cheap.default = status(503)
        m.cards(TWO_CARDS + "1.fail.Memory 15\n")
        await m.tier_becomes("premium")
        answers = [await m.ask() for _ in range(10)]
        assert [(code, tier) for code, tier, _ in answers] == [(200, "premium")] * 10
        m.cheap.default = ok()
        m.cards(TWO_CARDS)
        await m.tier_becomes("local")


OWNED = {
    "kind": "owned", "purchase_usd": 8766, "residual_usd": 0, "years": 1, "discount_rate_ratio": 0,
    "availability_ratio": 1, "power_kw": 0.06, "pue_ratio": 1, "usd_per_kwh": 0.25, "colo_usd_per_hour": 0,
    "ops_usd_per_hour": 0,
}  # fmt: skip


async def test_what_an_owned_card_draws_is_invoiced_over_a_restart_of_the_gateway(
    tmp_path: Path, library: Path
) -> None:
    one_card = TWO_CARDS.replace("gpus 2", "gpus 1") + "uuid GPU-5f1c\n"

    def periods() -> list[dict[str, Any]]:
        books = ("--config", "test-router.yaml", "--format", "json")
        done = run_command("report", "periods", *books, folder=tmp_path / "work", environ=KEYS)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
        return found

    async with machine(tmp_path, library, one_card + "energy_mj 5000000000\n", hardware=OWNED) as m:
        await m.page_becomes('router_gpu_power_watts{gpu="0"}')
        m.cards(one_card.replace("60000", "61000") + "energy_mj 5002000000\n")
        await m.page_becomes('router_gpu_power_watts{gpu="0"} 61.0')
    first = sum(row["energy_kwh"] for row in periods())
    # the gateway is gone, the card goes on: what it draws meanwhile is in its counter
    async with machine(tmp_path, library, one_card + "energy_mj 5003600000\n", hardware=OWNED) as m:
        await m.page_becomes('router_gpu_power_watts{gpu="0"}')
    rows = periods()
    assert rows
    assert {row["energy_basis"] for row in rows} <= {"partly_measured", "measured"}
    assert all(row["invoice_lines_nanousd"].keys() >= {"capital", "energy"} for row in rows)
    assert all(sum(row["invoice_lines_nanousd"].values()) == row["invoice_nanousd"] for row in rows)
    # 3600 J are a watt-hour, drawn from the first look to the last
    assert first > 2_000 / 3_600_000
    assert sum(row["energy_kwh"] for row in rows) > 3_600 / 3_600_000


def doctor(tmp_path: Path, library: Path, cards: str) -> tuple[int, dict[str, dict[str, str]]]:
    (tmp_path / "cards.txt").write_text(cards)
    (tmp_path / "router.yaml").write_text(
        "tiers: {local: {engine: vllm, model: x/Model-7B, api_base: 'http://127.0.0.1:1/v1', launch: {executable: sh}}}"
    )
    environ = {"NVML_STATE": "cards.txt", "LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(ROOT)}
    done = run_command("doctor", "--gpu", "--format", "json", folder=tmp_path, environ=environ)
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_doctor_reads_driver_cuda_and_memory_before_a_start(tmp_path: Path, library: Path) -> None:
    code, checks = doctor(tmp_path, library, TWO_CARDS)
    assert code == 0
    assert checks["engine driver"]["detail"] == "driver 580.65.06, CUDA 13.0"
    assert checks["engine memory"]["state"] == "ok"
    assert "vLLM takes 20.2 GiB" in checks["engine memory"]["detail"]


def test_doctor_stops_a_start_without_a_driver(tmp_path: Path, library: Path) -> None:
    code, checks = doctor(tmp_path, library, TWO_CARDS + "fail.Init 18\n")
    assert code == 1
    assert "differ in version" in checks["engine driver"]["detail"]
