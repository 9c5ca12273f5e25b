"""A gateway as users start it, in front of a real vLLM."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.vllm.vllm_servers import MAX_NUM_SEQS, MODEL, ROOT, WINDOW_TOKENS, VllmServer

ROUTER_KEY = "sk-router-test"
STOP_TIMEOUT_S = 30.0
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that answers."""

    port: int

    @property
    def base_url(self) -> str:
        """For an OpenAI client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def page(self, path: str) -> tuple[int, str]:
        """(status, body) of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {ROUTER_KEY}"})
            response = connection.getresponse()
            return response.status, response.read().decode()


def external_tier(engine: VllmServer) -> dict[str, object]:
    """`tiers.local` for an engine that somebody else runs."""
    return {
        "engine": "external",
        "api_base": engine.api_base,
        "api_key_env": "ENGINE_KEY",
        "model": MODEL,
        "context_window_tokens": WINDOW_TOKENS,
        "max_num_seqs": 4 * MAX_NUM_SEQS,  # more than is true: the engine itself shall turn calls away
        "slo": {"ttft_s": 15, "tpot_s": 0.5, "slack_s": 10},
    }


def api_tier(engine: VllmServer) -> dict[str, object]:
    """`tiers.cheap` for the same or another engine, taken for somebody's API."""
    return {
        "model": f"openai/{MODEL}",
        "name": "second",
        "api_base": engine.api_base,
        "api_key_env": "SECOND_KEY",
        "context_window_tokens": WINDOW_TOKENS,
        "price": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0},
    }


@contextlib.contextmanager
def running_gateway(
    folder: Path, tiers: Mapping[str, object], environment: Mapping[str, str]
) -> Iterator[RunningGateway]:
    """`python -m router serve` with `tiers`, until the block ends."""
    port = free_port()
    config = folder / "router.yaml"
    server = {"data_dir": str(folder / "data"), "auth": {"required": True}}
    timeouts = {"connect_s": 30, "first_byte_s": 60, "idle_s": 60}
    config.write_text(yaml.safe_dump({"server": server, "timeouts": timeouts, "tiers": dict(tiers)}))
    log = folder / "gateway.log"
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "router", "serve", "--config", str(config), "--port", str(port)],
            env=kept | {"ROUTER_API_KEY": ROUTER_KEY} | dict(environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    gateway = RunningGateway(port)
    try:
        _wait_ready(gateway, process, log)
        yield gateway
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)


def _wait_ready(gateway: RunningGateway, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            if gateway.page("/health/readiness")[0] == 200:
                return
        time.sleep(0.05)
    pytest.fail(f"the gateway did not start:\n{log.read_text(errors='replace')[-3000:]}", pytrace=False)
