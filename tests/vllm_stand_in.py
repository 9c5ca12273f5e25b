"""A server that starts, sleeps and answers as `vllm serve` does, without a model: what a gateway supervises in tests.

    write_executable(folder)          # what goes into tiers.local.launch.executable

It takes vLLM's own arguments and environment. /sleep and /wake_up are there only in the development mode and with
--enable-sleep-mode; while it sleeps /health is 200, the metric says so and a chat hangs, as with the real one.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def write_executable(folder: Path) -> Path:
    """A `vllm` program in `folder`; it writes what it is asked into `calls` beside it."""
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__)} {folder / "calls"} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


class Server(ThreadingHTTPServer):
    """State of one server."""

    daemon_threads = True

    def __init__(self, calls: Path, model: str, port: int, *, can_sleep: bool) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.calls, self.model, self.can_sleep = calls, model, can_sleep
        self.key = os.environ["VLLM_API_KEY"]
        self.awake = threading.Event()
        self.awake.set()
        self.answers = 0


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Pages."""
        if self.path == "/health":
            self._answer(200, b"")
        elif self.path == "/metrics":
            awake = int(self.server.awake.is_set())
            self._answer(
                200,
                f'vllm:num_requests_running{{engine="0"}} 0\nvllm:num_requests_waiting{{engine="0"}} 0\n'
                f'vllm:kv_cache_usage_perc{{engine="0"}} 0\n'
                f'vllm:generation_tokens_total{{engine="0"}} {self.server.answers}\n'
                f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}\n'
                f'vllm:engine_sleep_state{{engine="0",sleep_state="weights_offloaded"}} {1 - awake}\n'.encode(),
            )
        elif self._authorized():
            self._answer(200, {"object": "list", "data": [{"id": self.server.model, "object": "model"}]})

    def do_POST(self) -> None:
        """Chats and commands."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        with self.server.calls.open("a") as calls:
            calls.write(f"{self.path}\n")
        if path in ("/sleep", "/wake_up") and self.server.can_sleep:
            (self.server.awake.clear if path == "/sleep" else self.server.awake.set)()
            self._answer(200, {"status": path})
        elif path != "/v1/chat/completions":
            self._answer(404, {"detail": "Not Found"})
        elif self._authorized():
            self.server.awake.wait()
            self.server.answers += 1
            asked = json.loads(body)
            usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
            message = {"role": "assistant", "content": "Blue."}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
            self._answer(200, {**whole, "choices": choices, "usage": usage})

    def _authorized(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {self.server.key}":
            return True
        self._answer(401, {"error": "Unauthorized"})
        return False

    def _answer(self, status: int, body: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nothing."""


def main(calls: str, *arguments: str) -> None:
    """`vllm serve MODEL --port N …`"""
    port = int(arguments[arguments.index("--port") + 1])
    name = arguments[arguments.index("--served-model-name") + 1]
    dev_mode = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
    Server(Path(calls), name, port, can_sleep=dev_mode and "--enable-sleep-mode" in arguments).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
