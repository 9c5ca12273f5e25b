"""What is always compared: the model API called directly, a bare pass-through, and the gateway."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from bench.tools import HERE, ROOT, BenchError, pinned
from bench.wire import OPENAI, Wire

API_KEY = "sk-bench"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
PASSED_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Contestant:
    """A server under measurement. `direct` has no process: its port is the upstream's own."""

    def __init__(
        self,
        name: str,
        port: int,
        process: subprocess.Popen[bytes] | None,
        log: Path | None,
        wire: Wire = OPENAI,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.port = port
        self.process = process
        self.log = log
        self.wire = wire
        self.ready_timeout_s = ready_timeout_s

    @property
    def pid(self) -> int | None:
        """Root of its process tree."""
        return self.process.pid if self.process is not None else None

    def wait_ready(self, body: bytes) -> None:
        """Return with the first chat completion it answers."""
        deadline_s = time.monotonic() + self.ready_timeout_s
        last = "no answer"
        while time.monotonic() < deadline_s:
            if self.process is not None and self.process.poll() is not None:
                self.stop()  # what it started may live on
                raise BenchError(f"{self.name} ended with {self.process.returncode}: {self.log_end()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
                connection.request("POST", self.wire.path, body, headers | self.wire.header_pairs())
                reply = connection.getresponse()
                text = reply.read()
                if reply.status == 200:
                    return
                last = f"{reply.status} {text[:300].decode(errors='replace')}"
                time.sleep(0.005)
            except (OSError, http.client.HTTPException):
                time.sleep(0.005)
            finally:
                connection.close()
        self.stop()
        raise BenchError(f"{self.name} was not ready after {self.ready_timeout_s:.0f} s: {last} {self.log_end()}")

    def log_end(self) -> str:
        """The last words of its log."""
        return self.log.read_text(errors="replace")[-1500:] if self.log is not None else ""

    def stop(self) -> None:
        """End it and whatever it started."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def launch(
    name: str,
    argv: list[str],
    port: int,
    core: int | None,
    work_dir: Path,
    env: dict[str, str],
    *,
    wire: Wire = OPENAI,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Contestant:
    """Start `argv` on `core` with `env` and little else of our environment; its output goes to a log."""
    log = work_dir / f"{name}-{port}.log"
    kept = {key: os.environ[key] for key in PASSED_ENVIRONMENT if key in os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned(core, argv),
            env=kept | env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Contestant(name, port, process, log, wire, ready_timeout_s)


def direct(upstream_port: int) -> Contestant:
    """No gateway at all."""
    return Contestant("direct", upstream_port, None, None)


def passthrough(upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    """`bench/passthrough.py` in front of the upstream."""
    port = free_port()
    argv = [sys.executable, str(HERE / "passthrough.py"), str(port), f"http://127.0.0.1:{upstream_port}/v1"]
    return launch("pass-through", argv, port, core, work_dir, {})


def gateway(upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    """The product, started as a user starts it, with a fresh data folder."""
    port = free_port()
    data_dir = work_dir / f"data-{port}"
    values = {"MODEL_URL": f"http://127.0.0.1:{upstream_port}/v1", "GATEWAY_PORT": str(port), "DATA_DIR": str(data_dir)}
    lines = (HERE / "router.yaml").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))
    for name, value in values.items():
        text = text.replace(name, value)
    config = work_dir / f"router-{port}.yaml"
    config.write_text(text)
    argv = [sys.executable, "-m", "router", "serve", "--config", str(config), "--port", str(port)]
    env = {"ROUTER_API_KEY": API_KEY, "BENCH_MODEL_KEY": "sk-upstream"}
    return launch("gateway", argv, port, core, work_dir, env)
