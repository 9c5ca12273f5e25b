"""Starting, asking and killing real vLLM servers on CPU."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from local_llm.datamodels import EngineKind, EngineReading, LaunchConfig
from local_llm.metrics_text import parse_metrics
from local_llm.process import EngineProcess
from tests.patience import PATIENCE_S
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "engine" / "vllm_cpu.sh"
ENGINE_DIR = Path(os.environ.get("VLLM_CPU_ENV", ROOT / ".venv-engine-cpu"))
API_KEY = "sk-vllm-test"
MODEL = "tiny-llama"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 20.0
MAX_NUM_SEQS, MAX_QUEUED = 4, 2
WINDOW_TOKENS = 4096
KV_BLOCKS = 40

T = TypeVar("T")


def wait_until(look: Callable[[], T], wanted: Callable[[T], bool], timeout_s: float = PATIENCE_S) -> T:
    """Look again and again until it is as `wanted`; fail with the last look when it never is."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        seen = look()
        if wanted(seen):
            return seen
        if time.monotonic() > deadline_s:
            pytest.fail(f"it never came to this: the last look gave {seen!r}")
        time.sleep(0.02)


@dataclass
class VllmServer:
    """A running vLLM and the process group it lives in."""

    port: int
    group: int
    api_key: str

    @property
    def api_base(self) -> str:
        """What `tiers.local.api_base` would say."""
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
        """(status, body) of one request with the right key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def count_tokens(self, messages: list[dict[str, str]]) -> int:
        """The engine's own count of a conversation, chat template included."""
        status, text = self.ask("POST", "/tokenize", {"model": MODEL, "messages": messages})
        assert status == 200, text
        return int(json.loads(text)["count"])

    def reading(self) -> EngineReading:
        """The metrics page as the product reads it."""
        _, page = self.ask("GET", "/metrics")
        return parse_metrics(page, taken_at_s=time.monotonic())

    async def wait_reading(
        self, wanted: Callable[[EngineReading], bool], timeout_s: float = PATIENCE_S
    ) -> EngineReading:
        """Poll the metrics until they are as `wanted`; fail with the last ones when they never are."""
        return await asyncio.to_thread(wait_until, self.reading, wanted)

    @contextlib.contextmanager
    def strangers(self, count: int, *, max_tokens: int, words: int = 8) -> Iterator[None]:
        """`count` long streams of other clients, each with a prompt of its own, until the block ends."""
        with contextlib.ExitStack() as open_connections:
            for number in range(count):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
                open_connections.callback(connection.close)
                body = {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": f"stranger {number} " * words}],
                    "max_tokens": max_tokens,
                    "ignore_eos": True,
                    "stream": True,
                }
                headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            yield

    def kill_worker(self) -> None:
        """End the process that runs the model, as the kernel does when memory runs out."""
        os.kill(self.process_of("VLLM::Worker"), signal.SIGKILL)

    @contextlib.contextmanager
    def frozen_core(self) -> Iterator[None]:
        """Hold the process that schedules the requests: the HTTP server beside it goes on as if nothing were wrong."""
        pid = self.process_of("VLLM::EngineCore")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def process_of(self, title: str) -> int:
        """The process of the engine's group that calls itself `title`."""
        found = [pid for pid in members(self.group) if title in command_line(pid)]
        assert found, f"the engine has no process {title}"
        return found[0]


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(pgrp) == group and state != "Z":
                    found.append(int(entry.name))
    return found


def command_line(pid: int) -> str:
    """The command line of a process, empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


class ScriptedStart:
    """`vllm_cpu.sh serve-tiny`, leader of its own process group."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.port = free_port()
        # in spite of its name this vLLM option counts the running requests too
        in_flight = str(MAX_NUM_SEQS + MAX_QUEUED)
        limits = ("--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-queued-reqs", in_flight)
        window = ("--max-model-len", str(WINDOW_TOKENS))
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [str(SCRIPT), "serve-tiny", str(self.port), "--api-key", API_KEY, *limits, *window],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> VllmServer:
        """The server, once /health says 200; fails with the end of the log when it never does."""
        server = VllmServer(self.port, self.process.pid, API_KEY)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if server.ask("GET", "/health", timeout_s=10.0)[0] == 200:
                    return server
            time.sleep(0.2)
        pytest.fail(f"vLLM did not start:\n{self.log.read_text(errors='replace')[-3000:]}", pytrace=False)

    def stop(self) -> None:
        """End the whole group: EngineCore and Worker outlive a killed API process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)


class MonotonicClock:
    """Real time."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


WITHOUT_MEMORY_TO_FREE = """#!/bin/sh
# On a CPU there is no card to free, and vLLM refuses the flag; its scheduler falls asleep all the same.
for argument; do
  shift
  [ "$argument" = --enable-sleep-mode ] || set -- "$@" "$argument"
done
exec {vllm} "$@"
"""


class SupervisedStart:
    """Our own supervision of `vllm serve`, on an event loop in a thread of its own: it outlives every test's loop."""

    def __init__(self, folder: Path) -> None:
        program = folder / "vllm"
        program.write_text(WITHOUT_MEMORY_TO_FREE.format(vllm=ENGINE_DIR / "bin" / "vllm"))
        program.chmod(0o755)
        cpu_only = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self.engine = EngineProcess(
            LaunchConfig(
                kind=EngineKind.VLLM,
                model=str(ENGINE_DIR / "models" / "tiny-llama"),
                executable=str(program),
                served_model_name=MODEL,
                context_window_tokens=2048,
                max_num_seqs=16,
                can_sleep=True,
                extra_args=("--dtype", "bfloat16", "--enforce-eager", "--num-gpu-blocks-override", str(KV_BLOCKS)),
            ),
            clock=MonotonicClock(),
            inherited_environment=os.environ | cpu_only | offline,
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.do(self.engine.start(), timeout_s=PATIENCE_S)

    def do(self, work: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
        """Run `work` on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def wait_ready(self) -> VllmServer:
        """The server, once the supervision calls it ready."""
        if not self.do(self.engine.wait_ready(START_TIMEOUT_S), timeout_s=START_TIMEOUT_S + 5.0):
            log = "\n".join(self.engine.log.tail)
            pytest.fail(f"vLLM did not start: {self.engine.problem}\n{log[-3000:]}", pytrace=False)
        assert self.engine.pid is not None
        return VllmServer(self.engine.launch.port, self.engine.pid, self.engine.api_key)

    def stop(self) -> None:
        """End the engine, then the loop."""
        try:
            self.do(self.engine.stop(), timeout_s=PATIENCE_S)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(STOP_TIMEOUT_S)
            self.loop.close()
