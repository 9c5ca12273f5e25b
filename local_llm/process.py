"""Run an engine: the actions of `supervision`, with asyncio subprocesses. One class for every kind of engine.

The engine runs under a guardian in a session and process group of its own, so that stopping, crashing or being killed
ends all of it. Its death is noticed at once, its illness by polling /health.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol

from local_llm.datamodels import LaunchConfig, ProcessState
from local_llm.launch import argv, environment
from local_llm.probe import AiohttpGet, Get, ProbeError
from local_llm.supervision import (
    Action,
    Event,
    Exited,
    Healthy,
    RestartPolicy,
    StartAsked,
    StopAsked,
    Supervised,
    Tick,
    Unhealthy,
    policy_for,
    step,
)

GUARDIAN_SCRIPT = str(Path(__file__).with_name("guardian.py"))
LOG_LINES = 200
LOG_LINE_CHARS = 2000
LOG_FILE_BYTES = 5_000_000
_STARTING_POLL_S = 0.1
_READY_POLL_S = 1.0
_HEALTH_TIMEOUT_S = 3.0
_STOP_GRACE_S = 7.0  # the guardian takes up to 5 s over it


class Clock(Protocol):
    """The only source of time."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of `host` that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EngineLog:
    """The last lines of an engine's output, in memory and in a file that never grows past twice its bound."""

    def __init__(self, path: Path | None, *, secret: str) -> None:
        self.tail: deque[str] = deque(maxlen=LOG_LINES)
        self._path = path
        self._secret = secret
        self._file: BinaryIO | None = None

    def add(self, line: bytes) -> None:
        """One line. A log that cannot be written is no reason to stop an engine."""
        text = line[:LOG_LINE_CHARS].decode("utf-8", "replace").rstrip().replace(self._secret, "***")
        self.tail.append(text)
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._write(self._path, text.encode() + b"\n")

    def _write(self, path: Path, line: bytes) -> None:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        if self._file.tell() + len(line) > LOG_FILE_BYTES:
            self.close()
            path.replace(path.with_name(path.name + ".1"))
            self._file = path.open("ab", buffering=0)
        self._file.write(line)

    def close(self) -> None:
        """Close the file; it opens again with the next line."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EngineProcess:
    """One supervised engine. `start` returns at once; the engine becomes READY, or says why not in `problem`."""

    def __init__(
        self,
        launch: LaunchConfig,
        *,
        clock: Clock,
        policy: RestartPolicy | None = None,
        get: Get | None = None,
        log_path: Path | None = None,
        inherited_environment: Mapping[str, str] | None = None,
        on_change: Callable[[ProcessState], None] | None = None,
    ) -> None:
        self._launch = launch if launch.port > 0 else replace(launch, port=free_port(launch.host))
        self._clock = clock
        self._policy = policy or policy_for(launch.kind)
        self._own_get = AiohttpGet() if get is None else None
        self._get: Get = get or self._own_get  # type: ignore[assignment]
        self._environment = os.environ if inherited_environment is None else inherited_environment
        self._on_change = on_change
        self._state = Supervised()
        self._process: asyncio.subprocess.Process | None = None
        self._followers: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self.api_key = secrets.token_urlsafe(24)
        self.log = EngineLog(log_path, secret=self.api_key)

    @property
    def state(self) -> ProcessState:
        """Where the engine is in its life."""
        return self._state.phase

    @property
    def problem(self) -> str | None:
        """Why it is not READY, or the last trouble while it is."""
        return self._state.problem

    @property
    def retry_at_s(self) -> float:
        """When it will be started again (monotonic); infinity if that is not planned."""
        return self._state.retry_at_s

    @property
    def starts(self) -> int:
        """How often it has been started."""
        return self._state.starts

    @property
    def launch(self) -> LaunchConfig:
        """As started, with the port chosen."""
        return self._launch

    @property
    def root_url(self) -> str:
        """Where /health and /metrics are."""
        host = f"[{self._launch.host}]" if ":" in self._launch.host else self._launch.host
        return f"http://{host}:{self._launch.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes; with `api_key`."""
        return f"{self.root_url}/v1"

    @property
    def pid(self) -> int | None:
        """Leader of the engine's process group, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start and keep running. Returns once the process has been spawned or has failed to."""
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._watch())
        await self._tell(StartAsked())

    async def stop(self) -> None:
        """End the engine and all of its processes, and wait until they are gone."""
        loop_task, self._loop_task = self._loop_task, None
        if loop_task is not None:
            loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop_task
        await self._tell(StopAsked())
        followers = tuple(self._followers)
        if followers:
            await asyncio.wait(followers, timeout=_STOP_GRACE_S)
        if self._own_get is not None:
            await self._own_get.close()
        self.log.close()

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether it is READY; waits for that up to `timeout_s`, and not at all for what has been given up."""
        ends_at_s = self._clock.now_s() + timeout_s
        while self.state is not ProcessState.READY:
            left_s = ends_at_s - self._clock.now_s()
            if left_s <= 0 or self.state in (ProcessState.STOPPED, ProcessState.FAILED):
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
            self._changed.clear()
        return True

    async def report_hung(self, problem: str) -> None:
        """Someone has seen that the engine makes no progress though /health is well: it is started anew."""
        await self._tell(Unhealthy(problem, fatal=True))

    async def _tell(self, event: Event, *, of_start: int | None = None) -> None:
        """Let the machine take one step, to its end even if the caller is cancelled: half a kill leaves an orphan.

        `of_start` drops news of a process that has been replaced since.
        """
        turn = asyncio.create_task(self._take_turn(event, of_start))
        self._tasks.add(turn)
        turn.add_done_callback(self._tasks.discard)
        await asyncio.shield(turn)

    async def _take_turn(self, event: Event, of_start: int | None) -> None:
        async with self._turn:
            if of_start is not None and of_start != self._state.starts:
                return
            before = self._state.phase
            self._state, actions = step(self._state, event, self._clock.now_s(), self._policy)
            for action in actions:
                if action is Action.KILL:
                    await self._kill()
                else:
                    problem = await self._spawn()
                    if problem is not None:
                        self._state, _ = step(self._state, Exited(problem), self._clock.now_s(), self._policy)
            if self._state.phase is not before:
                self._changed.set()
                if self._on_change is not None:
                    self._on_change(self._state.phase)

    async def _spawn(self) -> str | None:
        """Start the engine under its guardian; what went wrong, or `None`."""
        self.log.tail.clear()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", GUARDIAN_SCRIPT, *argv(self._launch)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment(self._launch, self._environment, api_key=self.api_key),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return f"cannot start the engine: {error}"
        self._process = process
        follower = asyncio.create_task(self._follow(process, self._state.starts))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)
        return None

    async def _follow(self, process: asyncio.subprocess.Process, start: int) -> None:
        """Take in the engine's output until it ends, then say so."""
        reading = asyncio.create_task(self._read_log(process))
        code = await process.wait()
        _kill_group(process.pid)  # what outlived a guardian that was itself killed
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reading, 1.0)
        if process is self._process:
            self._process = None
            await self._tell(Exited(self._why(code)), of_start=start)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for as a pipe
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than the buffer: the reader has dropped it
                continue
            if not line:
                return
            self.log.add(line)

    def _why(self, code: int) -> str:
        how = f"killed by signal {-code if code < 0 else code - 128}" if code < 0 or code > 128 else f"exit code {code}"
        last = next((line for line in reversed(self.log.tail) if line.strip()), "")
        return f"the engine ended ({how})" + (f": {last[:300]}" if last else "")

    async def _kill(self) -> None:
        """End the whole group: the guardian does it when its input closes; if it cannot, we do."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_GRACE_S)
        _kill_group(process.pid)
        if process.returncode is None:
            await process.wait()

    async def _watch(self) -> None:
        """Poll /health while the engine lives, and let time pass while it does not."""
        while True:
            if self._state.alive:
                start = self._state.starts
                await self._tell(await self._look(), of_start=start)
            await self._tell(Tick())
            ready = self._state.phase is ProcessState.READY
            await self._clock.sleep(_READY_POLL_S if ready else _STARTING_POLL_S)

    async def _look(self) -> Event:
        """Is it well?"""
        starting = self._state.phase is ProcessState.STARTING
        headers = {"Authorization": f"Bearer {self.api_key}"}
        try:
            page = await self._get(f"{self.root_url}/health", headers={}, timeout_s=_HEALTH_TIMEOUT_S, max_bytes=65536)
            if page.status == 200 and starting:
                # /health needs no key: only the engine we started knows ours
                page = await self._get(
                    f"{self.base_url}/models", headers=headers, timeout_s=_HEALTH_TIMEOUT_S, max_bytes=1_000_000
                )
        except ProbeError as error:
            return Unhealthy(f"/health: {error}")
        if page.status == 200:
            return Healthy()
        return Unhealthy(f"/health answers {page.status}", fatal=page.status == 503)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
