"""What `doctor --gpu` finds before vLLM is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from local_llm.datamodels import GpuReading
from router.checks import Check, State
from router.commands.doctor import examine_start
from router.commands.doctor_gpu import GpuLook
from router.settings import parse_settings

A10G = GpuReading(0, "A10G", memory_total_bytes=24_146_608_128, memory_used_bytes=450_000_000)
H100 = GpuReading(0, "H100", memory_total_bytes=85_520_809_984, memory_used_bytes=600_000_000)
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    """A vllm command in an environment that was built for CUDA 13."""
    site = tmp_path / "engine" / "lib" / "python3.11" / "site-packages"
    for info in ("vllm-0.32.0.dist-info", "nvidia_cuda_runtime-13.0.96.dist-info", "torch-2.13.0.dist-info"):
        (site / info).mkdir(parents=True)
    command = tmp_path / "engine" / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return command


def found(
    executable: Path,
    *gpus: GpuReading,
    model: str = LLAMA,
    cuda: str | None = "13.0",
    more: str = "",
    environ: Mapping[str, str] | None = None,
    args: str = "[]",
    problem: str | None = None,
) -> dict[str, Check]:
    text = (
        f"tiers: {{local: {{engine: vllm, model: {model}, api_base: 'http://127.0.0.1:1/v1', max_num_seqs: 64, "
        f"launch: {{executable: '{executable}', extra_args: {args}}}{more}}}}}"
    )
    seen = GpuLook(gpus, problem, "580.65.06", cuda)
    checks = examine_start(parse_settings(text, {}), seen=seen, environ=environ or {"HOME": "/nonexistent"})
    return {check.name: check for check in checks}


def test_a_card_with_room_is_well_and_says_how_much(executable: Path) -> None:
    checks = found(executable, H100)
    assert all(check.state in (State.OK, State.WARN) for check in checks.values())
    assert checks["engine driver"].detail == "driver 580.65.06, CUDA 13.0, enough for CUDA 13.0.96"
    assert checks["engine memory"].state is State.OK
    assert "14.9 GiB of weights, vLLM takes 71.7 GiB" in checks["engine memory"].detail
    assert "guessed" in checks["engine memory"].detail


def test_no_driver_fails_with_the_cure(executable: Path) -> None:
    check = found(executable, problem="no NVIDIA driver on this machine")["engine driver"]
    assert (check.state, check.detail) == (State.FAIL, "no NVIDIA driver on this machine")
    assert "nvidia-smi" in check.cure


def test_a_utilisation_cap_that_nothing_can_be_held_against_is_told(executable: Path) -> None:
    cap = ", max_gpu_utilization_ratio: 0.8"
    silent = found(executable, H100, more=cap)["engine utilisation cap"]
    assert silent.state is State.WARN and "keeps every request from it (METRICS_STALE)" in silent.detail
    assert "tiers.local.max_gpu_utilization_ratio" in silent.cure
    assert "engine utilisation cap" not in found(executable, replace(H100, utilization_ratio=0.3), more=cap)
    assert "engine utilisation cap" not in found(executable, H100)


def test_a_driver_too_old_for_the_engine_fails(executable: Path) -> None:
    check = found(executable, H100, cuda="12.8")["engine driver"]
    assert check.state is State.FAIL
    assert "vLLM 0.32.0 is built for CUDA 13.0.96" in check.detail
    assert found(executable, H100, cuda="13.2")["engine driver"].state is State.OK
    assert found(executable, H100, cuda=None)["engine driver"].state is State.OK


def test_a_model_that_is_too_large_fails_before_it_is_loaded(executable: Path) -> None:
    check = found(executable, A10G, model="x/Llama-3.1-70B")["engine memory"]
    assert check.state is State.FAIL
    assert "not even the weights fit" in check.detail
    assert "quantized" in check.cure


def test_cards_that_are_not_there_fail(executable: Path) -> None:
    check = found(executable, H100, args="[--tensor-parallel-size, '2']")["engine cards"]
    assert (check.state, check.detail) == (State.FAIL, "vLLM would use card 1; there are 1")
    second = GpuReading(1, "H100", memory_total_bytes=85_520_809_984, memory_used_bytes=0)
    checks = found(executable, H100, second, args="[--tensor-parallel-size=2]", model="x/Model-32B")
    assert checks["engine memory"].state is State.OK
    assert "29.8 GiB of weights a card" in checks["engine memory"].detail


def test_memory_that_others_hold_is_named(executable: Path) -> None:
    busy = GpuReading(0, "A10G", memory_total_bytes=24 * 2**30, memory_used_bytes=10 * 2**30)
    check = found(executable, busy)["engine memory of GPU 0"]
    assert check.state is State.FAIL
    assert check.detail == "10.0 GiB are in use by others, 14.0 GiB free; vLLM takes 21.6 GiB"


def test_the_files_of_a_downloaded_model_count_more_than_its_name(executable: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--meta-llama--Llama-3.1-8B-Instruct" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    (snapshot / "config.json").write_text(json.dumps(shape))
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 16 * 2**30}}))
    environ = {"HF_HOME": str(tmp_path / "hf")}
    assert found(executable, A10G, environ=environ)["engine memory"].detail == (
        "16.0 GiB of weights, vLLM takes 20.2 GiB: room for 22148 tokens of KV cache, about 21 requests of 1024 "
        "tokens at once"
    )
    long = found(executable, A10G, environ=environ, more=", context_window_tokens: 65536")["engine memory"]
    assert long.state is State.FAIL
    assert "a window of 65536 does not fit" in long.detail


def test_a_model_in_a_folder_is_weighed(executable: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    assert "0.0 GiB of weights" in found(executable, A10G, model=str(folder))["engine memory"].detail


def test_a_model_of_unknown_size_is_a_warning(executable: Path) -> None:
    assert found(executable, A10G, model="microsoft/phi-4")["engine memory"].state is State.WARN


def test_a_missing_engine_fails_with_the_cure(tmp_path: Path) -> None:
    check = found(tmp_path / "no-vllm", H100)["tier local: vllm"]
    assert check.state is State.FAIL
    assert "make engine" in check.cure


def test_each_of_several_engines_is_looked_at_on_its_own_cards(executable: Path) -> None:
    text = f"""
tiers:
  local:
    engine: vllm
    model: {LLAMA}
    max_num_seqs: 64
    launch: {{executable: '{executable}'}}
    engines:
      - {{name: big, api_base: 'http://127.0.0.1:1/v1', launch: {{gpus: [0]}}}}
      - {{name: small, api_base: 'http://127.0.0.1:2/v1', launch: {{gpus: [1]}}, model: x/Llama-70B}}
      - {{name: gone, api_base: 'http://127.0.0.1:3/v1', launch: {{gpus: [7]}}}}
      - {{name: cpu, api_base: 'http://127.0.0.1:4/v1', launch: {{gpus: []}}}}
"""
    second = GpuReading(1, "A10G", memory_total_bytes=24_146_608_128, memory_used_bytes=450_000_000)
    seen = GpuLook((H100, second), None, "580.65.06", "13.0")
    listed = examine_start(parse_settings(text, {}), seen=seen, environ={"HOME": "/nonexistent"})
    checks = {check.name: check for check in listed}
    assert [check.name for check in listed].count("engine driver") == 1
    assert checks["tier local small: vllm"].detail == f"{executable} will serve x/Llama-70B on card 1"
    assert checks["engine big memory"].state is State.OK
    assert checks["engine small memory"].state is State.FAIL
    assert "tiers.local.engines[1].context_window_tokens" in checks["engine small memory"].cure
    assert checks["engine gone cards"].detail == "vLLM would use card 7; there are 2"
    assert not any(name.startswith("engine cpu") and "coefficients" not in name for name in checks)
    assert checks["engine big coefficients"].cure.startswith("run `calibrate-engine --engine big`")
