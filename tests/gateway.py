"""A whole gateway in the test's own event loop, on a free loopback port: real settings, real ledger, real HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from router.api.app import create_app
from router.api.bounded_http import bounded_http
from router.bootstrap import build
from router.gateway import Gateway
from router.settings import parse_settings
from router.stores.queries import CostReport
from tests.patience import PATIENCE_S, until

CHEAP_PRICE = {"input_usd_per_mtok": 0.10, "cached_input_usd_per_mtok": 0.01, "output_usd_per_mtok": 0.50}
BIG_PRICE = {"input_usd_per_mtok": 2, "cached_input_usd_per_mtok": 0.1, "output_usd_per_mtok": 10}


@dataclass
class RunningGateway:
    """A gateway that answers on `url`."""

    gateway: Gateway
    url: str

    @property
    def v1(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.url}/v1"

    async def costs(self) -> CostReport:
        """What `report costs` would show."""
        return await self.gateway.ledger.costs()

    def alerts(self, event: str) -> int:
        """How often `event` has been warned of."""
        return int(self.gateway.telemetry.registry.get_sample_value("router_warnings_total", {"event": event}) or 0)

    async def record(self, request_id: str) -> Any:
        """The routing record of a request."""
        return await self.gateway.ledger.record(request_id)


def settings_of(config: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """Settings as from a file."""
    return parse_settings(yaml.safe_dump(dict(config)), environ, source="test.yaml")


@asynccontextmanager
async def running(
    config: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    ready_s: float | None = PATIENCE_S,
    adjust: Callable[[Gateway], None] = lambda _: None,
) -> AsyncIterator[RunningGateway]:
    """Start, serve, stop. With `ready_s` the local engine must be admitted to before the test begins.

    `adjust` sets, before anything starts, what no config can say.
    """
    gateway = build(settings_of(config, environ))
    adjust(gateway)
    await gateway.start()
    server, listening, serving = None, None, None
    try:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        face = gateway.face()
        options = {
            "lifespan": "off",
            "access_log": False,
            "log_config": None,
            "http": bounded_http(gateway.deps.new_id),
        }
        server = uvicorn.Server(uvicorn.Config(create_app(face), **options))  # type: ignore[arg-type]
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serving = asyncio.create_task(server._serve([listening]))
        await until(lambda: server.started)
        if gateway.local is not None and ready_s is not None:
            assert await gateway.local.wait_ready(ready_s)
        yield RunningGateway(gateway, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        if server is not None and serving is not None:
            server.should_exit = True
            await serving
        if listening is not None:
            listening.close()
        await gateway.stop()


def three_tiers(tmp_path: Path, *, local: str | None, cheap: str, big: str, **policy: Any) -> dict[str, Any]:
    """A config of three loopback tiers; `local` is the address of an engine that somebody else runs."""
    tiers: dict[str, Any] = {
        "cheap": {
            "model": "openai/cheap-model",
            "api_base": cheap,
            "api_key_env": "CHEAP_KEY",
            "price": CHEAP_PRICE,
            "context_window_tokens": 16_000,
        },
        "premium": {
            "model": "openai/big-model",
            "api_base": big,
            "api_key_env": "BIG_KEY",
            "price": BIG_PRICE,
            "context_window_tokens": 64_000,
        },
        "local": {"engine": "none"},
    }
    if local is not None:
        tiers["local"] = {
            "engine": "external",
            "api_base": local,
            "model": "house-model",
            "context_window_tokens": 4096,
            "coefficients": "h100-8b-fp16",
            "hardware": {"kind": "rented", "usd_per_hour": 2.50},
        }
    return {
        "server": {"data_dir": str(tmp_path / "data")},
        # Long enough for any machine; a test of silence sets its own.
        "timeouts": {"connect_s": 30, "first_byte_s": 30, "idle_s": 30, "total_s": 60},
        "tiers": tiers,
        "policy": policy,
        # Where a prompt goes is what most tests rest on: rules that a reader can check, not weights that may change.
        "classifier": {"model": "heuristic"},
    }
