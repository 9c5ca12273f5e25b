"""systemd units: hardened, accepted by systemd, and fit for the example configs as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy_files import CONFIGS, DEPLOY, KEYS, settings_of

UNITS = sorted(path.name for path in (DEPLOY / "systemd").glob("*.service"))


def unit(name: str) -> dict[str, list[str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "systemd" / name).read_text())
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardened_and_stops_all_it_started(name: str) -> None:
    keys = unit(name)
    assert keys["NoNewPrivileges"] == ["yes"]
    assert keys["ProtectSystem"] == ["strict"]
    assert keys["KillMode"] == ["mixed"]
    assert keys["EnvironmentFile"] and keys["User"] == ["hybrid-llm-router"]
    assert keys["DeviceAllow"] == ["char-nvidia* rw"]
    assert not [line for line in keys.get("Environment", ()) if re.search(r"(KEY|TOKEN|PASSWORD)=", line)]


def test_the_gateways_unit_leaves_time_to_drain_and_to_end_the_engine() -> None:
    grace_s = settings_of("one-h100.yaml").server.drain_grace_s
    assert int(unit("hybrid-llm-router.service")["TimeoutStopSec"][0]) >= grace_s + 20


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "compose.yaml"])
def test_an_example_config_works_under_the_gateways_unit_as_it_is(name: str) -> None:
    lines = unit("hybrid-llm-router.service")["Environment"]
    environ = dict(line.split("=", 1) for line in lines if line.startswith("ROUTER_"))
    settings = settings_of(name, KEYS | environ)
    assert settings.server.data_dir.is_relative_to(unit("hybrid-llm-router.service")["WorkingDirectory"][0])
    assert settings.tiers.local.launch.executable.startswith("/opt/hybrid-llm-router/")
    assert settings.ignored_env == ()


def test_the_engines_unit_listens_on_loopback_only() -> None:
    (command,) = unit("hybrid-llm-engine.service")["ExecStart"]
    assert "--host 127.0.0.1" in command
    assert "--api-key" not in command  # every user of the machine can read arguments
    assert "VLLM_SERVER_DEV_MODE" in unit("hybrid-llm-engine.service")["UnsetEnvironment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_a_unit(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / name).read_text()
    # verify wants the commands to be there; nothing else is changed
    copy = tmp_path / name
    copy.write_text(re.sub(r"/opt/hybrid-llm-router/\.venv[\w-]*/bin/[\w-]+", shutil.which("true") or "", text))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert name not in done.stderr, done.stderr
