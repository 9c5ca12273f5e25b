"""`calibrate-engine` on a real vLLM on CPU: the figures it writes are the ones a gateway then goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from local_llm.steptime import prefill_s
from router.bootstrap import build
from router.settings import parse_settings
from tests.process import run_command
from tests.vllm.gateways import external_tier
from tests.vllm.vllm_servers import MAX_NUM_SEQS, MODEL, ROOT, VllmServer, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_a_vllm_is_measured_and_the_figures_are_used(engine: VllmServer, tmp_path: Path) -> None:
    wait_until(engine.reading, lambda r: r.running_requests == 0 and r.waiting_requests == 0)
    local = external_tier(engine) | {"max_num_seqs": MAX_NUM_SEQS}
    config = {"server": {"data_dir": str(tmp_path / "data")}, "tiers": {"local": local}}
    (tmp_path / "router.yaml").write_text(yaml.safe_dump(config))
    keys = {"ENGINE_KEY": engine.api_key}
    options = ("--seconds", "5", "--output", "coefficients.yaml")
    environ = keys | {"PYTHONPATH": str(ROOT)}
    done = run_command("calibrate-engine", *options, folder=tmp_path, environ=environ, timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert "first token after" in done.stderr and "ms a step" in done.stderr
    measured = yaml.safe_load((tmp_path / "coefficients.yaml").read_text())
    local |= measured
    gateway = build(parse_settings(yaml.safe_dump(config), keys))
    used = gateway.state.engines[MODEL].coefficients
    figures = measured["coefficients"]
    assert {name: getattr(used, name) for name in figures} == figures
    assert used.calibrated
    # a model of 12 kB on a CPU: some milliseconds a step, far less for one more token of a prompt
    assert 5e-4 < used.t0_s + used.c_seq_s < 1.0, done.stderr
    assert prefill_s(used, 100) / 100 < used.t0_s + used.c_seq_s, done.stderr
