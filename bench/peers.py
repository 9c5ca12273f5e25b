"""Other gateways, measured in the same rounds: what they are installed from, how they are set up and started.

Each has a folder of its own under `.venv-peers`, so that nothing of theirs meets our environment. All forward to one
OpenAI-compatible model API, write no logs and keep no records; LiteLLM checks its master key, the others no key.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.contestants import API_KEY, Contestant, free_port, launch
from bench.rounds import Entry
from bench.tools import HERE, ROOT, BenchError
from bench.wire import OPENAI, Wire

HOME = ROOT / ".venv-peers"
INSTALL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 120.0
PORTKEY_SERVER = Path("node_modules") / "@portkey-ai" / "gateway" / "build" / "start-server.js"
UPSTREAM_KEY = "sk-upstream"
STAMP = ".installed"


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway by others. Versions are exact; `accepted_ratio`: how many times its requests/s we must serve."""

    name: str
    accepted_ratio: float
    launch: Callable[[Path, int, int | None, Path], Contestant]
    requirements: tuple[str, ...] = ()  # of the Python package index
    modules: tuple[tuple[str, str], ...] = ()  # of the Node package registry: name and version
    commands: tuple[str, ...] = ()  # that the machine must have

    @property
    def folder(self) -> str:
        """The name of its own folder."""
        return self.name.lower().replace(" ", "-").replace("+", "").replace("--", "-")

    @property
    def version(self) -> str:
        """The version that is installed; empty for what is ours."""
        if self.modules:
            return self.modules[0][1]
        return self.requirements[0].partition("==")[2] if self.requirements else ""


def litellm_config(upstream_base: str) -> str:
    """LiteLLM's proxy with one model, by its production checklist: a master key, a bounded wait, not verbose."""
    return "\n".join(
        [
            "model_list:",
            f"  - model_name: {OPENAI.model}",
            "    litellm_params:",
            "      model: openai/bench-small",
            f"      api_base: {upstream_base}",
            f"      api_key: {UPSTREAM_KEY}",
            "litellm_settings:",
            "  request_timeout: 600",
            "  set_verbose: false",
            "  telemetry: false",
            "general_settings:",
            f"  master_key: {API_KEY}",
            "",
        ]
    )


def tensorzero_config(upstream_base: str) -> str:
    """TensorZero with one model and without its observability, which would need a database."""
    return "\n".join(
        [
            "[gateway]",
            "observability.enabled = false",
            "[models.bench]",
            'routing = ["upstream"]',
            "[models.bench.providers.upstream]",
            'type = "openai"',
            'model_name = "bench-small"',
            f'api_base = "{upstream_base}/"',
            'api_key_location = "none"',
            "",
        ]
    )


def portkey_wire(upstream_base: str) -> Wire:
    """Portkey has no file of settings: every request says where it goes."""
    return Wire(headers=("x-portkey-provider: openai", f"x-portkey-custom-host: {upstream_base}"))


def node_manifest(peer: Peer) -> str:
    """The package.json that pins `peer`."""
    return json.dumps({"private": True, "dependencies": dict(peer.modules)}, indent=1) + "\n"


def _base(upstream_port: int) -> str:
    return f"http://127.0.0.1:{upstream_port}/v1"


def _launch_litellm(folder: Path, upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    port = free_port()
    config = work_dir / f"litellm-{port}.yaml"
    config.write_text(litellm_config(_base(upstream_port)))
    binaries = folder / "bin"
    argv = [str(binaries / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--num_workers", "1", "--run_granian"]
    env = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return launch("LiteLLM", argv, port, core, work_dir, env, ready_timeout_s=START_TIMEOUT_S)


def _launch_portkey(folder: Path, upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    port = free_port()
    argv = ["node", str(folder / PORTKEY_SERVER), "--headless", f"--port={port}"]
    env = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    wire = portkey_wire(_base(upstream_port))
    return launch("Portkey", argv, port, core, work_dir, env, wire=wire, ready_timeout_s=START_TIMEOUT_S)


def _launch_tensorzero(folder: Path, upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    serial = free_port()
    config, port_file = work_dir / f"tensorzero-{serial}.toml", work_dir / f"tensorzero-{serial}.port"
    config.write_text(tensorzero_config(_base(upstream_port)))
    argv = [str(folder / "bin" / "python"), str(HERE / "tensorzero_start.py"), str(config), str(port_file)]
    wire = Wire(path="/openai/v1/chat/completions", model="tensorzero::model_name::bench")
    contestant = launch(
        "TensorZero", argv, serial, core, work_dir, {"RUST_LOG": "error"}, wire=wire, ready_timeout_s=START_TIMEOUT_S
    )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not port_file.exists():
        ended = contestant.process is not None and contestant.process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            contestant.stop()
            raise BenchError(f"TensorZero did not start: {contestant.log_end()}")
        time.sleep(0.005)
    contestant.port = int(port_file.read_text())
    return contestant


def _launch_fastapi(_folder: Path, upstream_port: int, core: int | None, work_dir: Path) -> Contestant:
    port = free_port()
    argv = [sys.executable, str(HERE / "fastapi_proxy.py"), str(port), _base(upstream_port)]
    return launch("FastAPI + aiohttp", argv, port, core, work_dir, {})


PEERS = (
    Peer(
        "LiteLLM",
        20.0,
        _launch_litellm,
        requirements=("litellm[proxy]==1.106.2", "granian==2.8.7"),
    ),
    Peer(
        "Portkey",
        2.5,
        _launch_portkey,
        modules=(("@portkey-ai/gateway", "1.15.2"), ("@hono/node-server", "1.19.19")),
        commands=("node", "npm"),
    ),
    Peer(
        "FastAPI + aiohttp",
        0.5,
        _launch_fastapi,
    ),
    Peer(
        "TensorZero",
        0.25,
        _launch_tensorzero,
        requirements=("tensorzero==2026.6.0",),
    ),
)


def _command(argv: list[str], what: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{what} could not be installed: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BenchError(f"{what} could not be installed: {lines[-1] if lines else 'no reason given'}")


def is_installed(peer: Peer, home: Path = HOME) -> bool:
    """Whether these very versions stand in its folder; true of what is ours."""
    stamp = home / peer.folder / STAMP
    return not (peer.requirements or peer.modules) or (stamp.exists() and stamp.read_text() == _wanted(peer))


def _wanted(peer: Peer) -> str:
    return json.dumps([peer.requirements, peer.modules])


def install(peer: Peer, home: Path = HOME) -> None:
    """Put these very versions into its folder. Raises BenchError with the reason where that cannot be."""
    folder = home / peer.folder
    folder.mkdir(parents=True, exist_ok=True)
    if peer.requirements:
        _command([sys.executable, "-m", "venv", "--clear", str(folder)], peer.name)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        _command([*pip, *peer.requirements], peer.name)
    else:
        (folder / "package.json").write_text(node_manifest(peer))
        npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        _command(npm, peer.name)
    (folder / STAMP).write_text(_wanted(peer))


def entries(
    say: Callable[[str], None], home: Path = HOME, peers: Sequence[Peer] = PEERS
) -> tuple[list[Entry], dict[str, str]]:
    """Peers that stand ready to be measured, installed first where need be, and the reason for each that does not.

    `say` is told before something takes its time.
    """
    ready: list[Entry] = []
    absent: dict[str, str] = {}
    for peer in peers:
        missing = [command for command in peer.commands if shutil.which(command) is None]
        if missing:
            absent[peer.name] = f"{' and '.join(missing)} not on this machine"
            continue
        try:
            if not is_installed(peer, home):
                say(f"installing {peer.name} {peer.version} into {home.name}/{peer.folder}")
                install(peer, home)
        except (BenchError, OSError) as error:
            absent[peer.name] = str(error)
            continue
        ready.append(Entry(peer.name, partial(peer.launch, home / peer.folder), optional=True))
    return ready, absent
