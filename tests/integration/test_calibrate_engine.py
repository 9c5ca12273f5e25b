"""`calibrate-engine` on a real engine, and what keeps it from measuring."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from local_llm.steptime import prefill_s
from router.commands.calibrate import CannotCalibrate, calibrate, which
from router.errors import BadRequest
from router.settings import parse_settings
from tests.patience import PATIENCE_S, wait_until
from tests.process import alive, child_environ, descendants, run_command
from tests.upstream import FakeUpstream

EMBEDDED = {"engine": "embedded", "context_window_tokens": 512, "max_num_seqs": 2}


def config(folder: Path, local: dict[str, object]) -> str:
    return yaml.safe_dump({"server": {"data_dir": str(folder / "data")}, "tiers": {"local": local}})


def external(upstream: FakeUpstream, **changes: object) -> dict[str, object]:
    return {"engine": "external", "api_base": upstream.base_url, "model": "m", "max_num_seqs": 2, **changes}


@pytest.mark.timeout(240)
def test_the_embedded_engine_is_measured_and_the_file_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(config(tmp_path, EMBEDDED))
    options = ("--seconds", "3", "--output", "coefficients.yaml")
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_command("calibrate-engine", *options, folder=tmp_path, environ=here, timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert "first token after" in done.stderr
    assert "c_prefill_s" in done.stdout
    measured = yaml.safe_load((tmp_path / "coefficients.yaml").read_text())
    settings = parse_settings(config(tmp_path, EMBEDDED | measured), {})
    row = settings.tiers.local.coefficients
    # with few points on a busy machine the quadratic term may explain all of it: what counts is a prompt's cost
    assert 1e-4 < prefill_s(row, 96) / 96 < 1.0
    assert 1e-4 < row.t0_s + row.c_seq_s < 1.0
    assert row.calibrated


async def refusal(folder: Path, local: dict[str, object]) -> str:
    settings = parse_settings(config(folder, local), {"OPENAI_API_KEY": "sk-x"})
    with pytest.raises(CannotCalibrate) as refused:
        await calibrate(settings, seconds=1, note=lambda _: None)
    return refused.value.message


async def test_an_engine_that_others_use_is_not_measured(tmp_path: Path) -> None:
    async with FakeUpstream(api_key=None) as upstream:
        page = b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_waiting{engine="0"} 1\n'
        upstream.pages["/metrics"] = (200, page, "text/plain")
        assert "busy with 4 requests" in await refusal(tmp_path, external(upstream))
        assert upstream.chats == []


async def test_an_engine_that_does_not_tell_its_tokens_cannot_be_measured(tmp_path: Path) -> None:
    async with FakeUpstream(api_key="sk-another") as upstream:
        upstream.pages["/metrics"] = (404, b"", "text/plain")
        assert "the engine answers 401" in await refusal(tmp_path, external(upstream))


async def test_a_vllm_that_runs_already_is_not_started_twice(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        local: dict[str, object] = {"engine": "vllm", "api_base": upstream.base_url, "model": "m"}
        assert "stop the gateway" in await refusal(tmp_path, local)


async def test_no_engine_is_told_so(tmp_path: Path) -> None:
    settings = parse_settings("tiers: {cheap: {model: openai/gpt-6-luna}}", {"OPENAI_API_KEY": "sk-x"})
    with pytest.raises(CannotCalibrate, match="no local engine"):
        await calibrate(settings, seconds=1, note=lambda _: None)


def test_of_several_engines_the_one_to_measure_must_be_named(tmp_path: Path) -> None:
    engines = [{"name": "a", "api_base": "http://127.0.0.1:9/v1"}, {"name": "b", "api_base": "http://127.0.0.1:10/v1"}]
    settings = parse_settings(config(tmp_path, {"engine": "external", "model": "m", "engines": engines}), {})
    assert which(settings, "b").where == "tiers.local.engines[1]"
    assert which(settings, "local/a").name == "a"
    for name, said in ((None, "--engine; there are: a, b"), ("c", "there is no engine 'c'; there are: a, b")):
        with pytest.raises(BadRequest, match=said):
            which(settings, name)


def test_a_wrong_engine_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(config(tmp_path, EMBEDDED))
    done = run_command("calibrate-engine", "--engine", "gpu7", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no engine 'gpu7'" in done.stderr


async def test_the_engine_that_is_named_is_the_one_that_is_asked(tmp_path: Path) -> None:
    async with FakeUpstream(api_key=None) as one, FakeUpstream(api_key="sk-another") as other:
        other.pages["/metrics"] = (404, b"", "text/plain")
        engines = [{"name": "a", "api_base": one.base_url}, {"name": "b", "api_base": other.base_url}]
        settings = parse_settings(config(tmp_path, {"engine": "external", "model": "m", "engines": engines}), {})
        with pytest.raises(CannotCalibrate, match="the engine answers 401"):
            await calibrate(settings, engine="b", seconds=1, note=lambda _: None)
        assert (len(one.chats), len(other.chats)) == (0, 1)


@contextmanager
def measuring(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command on the embedded engine, in a session of its own, once it has measured something."""
    (folder / "router.yaml").write_text(config(folder, EMBEDDED))
    (folder / "coefficients.yaml").write_text("# of last week\n")
    command = [sys.executable, "-m", "router", "calibrate-engine", "--seconds", "600", "--output", "coefficients.yaml"]
    environ = child_environ({"PYTHONPATH": str(Path(__file__).parents[2])})
    with (folder / "said").open("wb") as said:
        started = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=said, stderr=subprocess.STDOUT, start_new_session=True, text=True
        )
    try:

        def measures() -> bool:
            assert started.poll() is None, (folder / "said").read_text()
            return "first token after" in (folder / "said").read_text()

        wait_until(measures)
        yield started
    finally:
        for pid in [started.pid, *descendants(started.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait()


@pytest.mark.parametrize("what", ["Ctrl-C", "SIGTERM", "the engine dies"])
@pytest.mark.timeout(240)
def test_a_measurement_that_is_broken_off_leaves_no_engine_and_the_old_figures(tmp_path: Path, what: str) -> None:
    with measuring(tmp_path) as started:
        family = descendants(started.pid)
        assert family
        if what == "the engine dies":
            os.kill(family[-1], signal.SIGKILL)
        elif what == "Ctrl-C":
            os.killpg(started.pid, signal.SIGINT)
        else:
            started.terminate()
        code = started.wait(PATIENCE_S)
        said = (tmp_path / "said").read_text()
        assert "Traceback" not in said
        assert (tmp_path / "coefficients.yaml").read_text() == "# of last week\n"
        if what == "the engine dies":
            assert code == 1
            assert "the engine stopped answering" in said
        else:
            assert code == {"Ctrl-C": 130, "SIGTERM": -signal.SIGTERM}[what]
        wait_until(lambda: not any(alive(pid) for pid in family))
