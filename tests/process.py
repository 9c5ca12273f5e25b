"""The real `python -m router serve` as a child process: started on a free port, looked at, stopped or killed.

    async with gateway_process(config, folder, environ={"CHEAP_KEY": "sk-…"}) as gateway:
        ...                                       # gateway.url, gateway.log, gateway.kill(), await gateway.ended()

Nothing of the test's own environment reaches the child but PATH, HOME and the language.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

from tests.patience import PATIENCE_S, until

OBEDIENT = Path(__file__).with_name("obedient.py")
_URL = re.compile(r"^hybrid-llm-router \S+ on (http://\S+)  \(config: ", re.MULTILINE)
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")


def child_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment: no key and no setting of the machine the tests run on."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


def run_command(
    *arguments: str, folder: Path, environ: Mapping[str, str] | None = None, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """`python -m router ARGUMENTS` in `folder`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "router", *arguments],
        cwd=folder,
        env=child_environ(environ),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def descendants(pid: int) -> list[int]:
    """Processes started by `pid`, directly or not, oldest first; dead ones that nobody has waited for left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: list[int] = []
    level = [pid]
    while level:
        level = sorted(child for child, parent in parents.items() if parent in level)
        found += level
    return found


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class GatewayProcess:
    """One life of a gateway. `folder` is its working directory; `config=None` takes the shipped default.

    `obeys_file_permissions` makes files marked read-only count even where the tests run as root.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None,
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        obeys_file_permissions: bool = False,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("gateway-*.out"))) + 1
        self.out_path, self.log_path = (folder / f"gateway-{number}.{kind}" for kind in ("out", "log"))
        launcher = [sys.executable, str(OBEDIENT)] if obeys_file_permissions else [sys.executable]
        command = [*launcher, "-m", "router", "serve", "--port", "0", *arguments]
        if config is not None:
            path = folder / "test-router.yaml"
            path.write_text(yaml.safe_dump(dict(config)))
            command += ["--config", str(path)]
        with self.out_path.open("wb") as out, self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=child_environ(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        self.url = ""
        self.started_at_s = time.monotonic()
        self.up_after_s = 0.0

    @property
    def pid(self) -> int:
        """The gateway's own process."""
        return self.process.pid

    @property
    def banner(self) -> str:
        """What it printed for people."""
        return self.out_path.read_text()

    @property
    def log(self) -> str:
        """What it logged."""
        return self.log_path.read_text()

    @property
    def v1(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    def _is_up(self) -> bool:
        code = self.process.poll()
        if code is not None:
            raise AssertionError(f"the gateway ended with {code} before it was up:\n{self.banner}{self.log}")
        found = _URL.search(self.banner)
        if found and not self.url:
            self.url, self.up_after_s = found[1], time.monotonic() - self.started_at_s
        return bool(found)

    async def up(self) -> Self:
        """Wait for the banner."""
        await until(self._is_up, PATIENCE_S)
        return self

    def wait_up(self) -> Self:
        """The same where no event loop runs."""
        ends_at_s = time.monotonic() + PATIENCE_S
        while not self._is_up():
            assert time.monotonic() < ends_at_s, f"no banner in time:\n{self.log}"
            time.sleep(0.02)
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the gateway alone."""
        self.process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: drain and end."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait for the death."""
        self.process.kill()
        self.process.wait()

    def limit_file_sizes(self, limit_bytes: int) -> None:
        """No file may grow past this from now on: a full disk for the larger ones."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))

    async def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code."""
        await until(lambda: self.process.poll() is not None, timeout_s)
        return self.process.returncode

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """End it in whatever state it is; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """(status, decoded body) of a GET; text where it is no JSON."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def readiness(self) -> str:
        """`ready`, `degraded` or `unavailable`."""
        return str((await self.get("/health/readiness"))[1]["status"])

    async def readiness_is(self, wanted: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it is `wanted`."""
        ends_at_s = time.monotonic() + timeout_s
        while (status := await self.readiness()) != wanted:
            assert time.monotonic() < ends_at_s, f"still {status} instead of {wanted}:\n{self.log}"
            await asyncio.sleep(0.05)

    def costs(self, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What the command `report costs` says of its books."""
        config = ["--config", "test-router.yaml"] if (self.folder / "test-router.yaml").exists() else []
        done = run_command("report", "costs", "--format", "json", *config, folder=self.folder, environ=environ)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@asynccontextmanager
async def gateway_process(
    config: Mapping[str, Any] | None, folder: Path, **options: Any
) -> AsyncIterator[GatewayProcess]:
    """A gateway that is up, and gone at the end."""
    gateway = GatewayProcess(config, folder, **options)
    try:
        yield await gateway.up()
    finally:
        await asyncio.to_thread(gateway.stop)
