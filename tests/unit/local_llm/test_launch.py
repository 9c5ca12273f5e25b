"""From a configuration to a command and an environment, with no secret in the first."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from local_llm.datamodels import EngineKind, LaunchConfig
from local_llm.launch import argv, environment, gpus_used

VLLM = LaunchConfig(
    kind=EngineKind.VLLM,
    model="meta-llama/Llama-3.1-8B-Instruct",
    executable="engine/bin/vllm",
    port=8000,
    context_window_tokens=8192,
    max_num_seqs=256,
    gpu_memory_utilization_ratio=0.9,
    extra_args=("--dtype", "bfloat16"),
)
EMBEDDED = LaunchConfig(
    kind=EngineKind.EMBEDDED, model="model.gguf", executable=sys.executable, port=8001, model_sha256="ab"
)


def value_of(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_vllm_serves_on_loopback_with_a_bounded_queue_and_cached_tokens_told() -> None:
    command = argv(VLLM)
    assert command[:3] == ("engine/bin/vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct")
    assert value_of(command, "--host") == "127.0.0.1"
    assert value_of(command, "--port") == "8000"
    assert value_of(command, "--max-num-queued-reqs") == str(VLLM.max_num_seqs + 64)
    assert value_of(command, "--max-num-batched-tokens") == "2048"
    assert value_of(command, "--max-num-seqs") == "256"
    assert value_of(command, "--max-model-len") == "8192"
    assert value_of(command, "--gpu-memory-utilization") == "0.9"
    assert "--enable-prompt-tokens-details" in command
    assert command[-2:] == ("--dtype", "bfloat16")


def test_what_is_left_to_the_engine_is_not_passed() -> None:
    command = argv(replace(VLLM, max_queued_requests=None, gpu_memory_utilization_ratio=None))
    assert "--max-num-queued-reqs" not in command
    assert "--gpu-memory-utilization" not in command


def test_the_embedded_engine_runs_our_server_with_its_checksum() -> None:
    command = argv(EMBEDDED)
    assert command[0] == sys.executable
    assert command[2].endswith("embedded.py")
    assert value_of(command, "--model-path") == "model.gguf"
    assert value_of(command, "--model-sha256") == "ab"
    assert value_of(command, "--threads") == "1"


def test_a_port_must_have_been_chosen() -> None:
    with pytest.raises(ValueError, match="port"):
        argv(replace(VLLM, port=0))


@pytest.mark.parametrize("config", [VLLM, EMBEDDED])
def test_the_key_is_in_the_environment_and_never_in_the_command(config: LaunchConfig) -> None:
    variables = environment(config, {}, api_key="s3cret")
    assert "s3cret" in variables.values()
    assert not any("s3cret" in argument for argument in argv(config))


def test_an_engine_gets_no_keys_of_providers_and_no_development_mode() -> None:
    inherited = {
        "PATH": "/bin",
        "HF_TOKEN": "hf",
        "CUDA_VISIBLE_DEVICES": "1",
        "https_proxy": "http://proxy",
        "OPENAI_API_KEY": "sk",
        "AWS_SECRET_ACCESS_KEY": "aws",
        "ROUTER_API_KEY": "r",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_API_KEY": "of another engine",
        "PYTHONPATH": "elsewhere",
    }
    variables = environment(VLLM, inherited, api_key="own")
    assert {name: variables[name] for name in inherited if name in variables} == {
        "PATH": "/bin",
        "HF_TOKEN": "hf",
        "CUDA_VISIBLE_DEVICES": "1",
        "https_proxy": "http://proxy",
        "VLLM_API_KEY": "own",
    }


@pytest.mark.parametrize(
    ("extra_args", "visible", "used"),
    [
        ((), None, {0}),
        ((), "3", {3}),
        ((), "2,3", {2}),
        (("--tensor-parallel-size", "2"), None, {0, 1}),
        (("--tensor-parallel-size=2",), "1, 3", {1, 3}),
        (("-tp", "2", "-pp", "2"), None, {0, 1, 2, 3}),
        (("-tp", "many"), None, None),
        ((), "GPU-8932f937", None),
    ],
)
def test_the_cards_of_an_engine_are_known_by_the_numbers_of_nvml(
    extra_args: tuple[str, ...], visible: str | None, used: set[int] | None
) -> None:
    inherited = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus_used(replace(VLLM, extra_args=extra_args), inherited) == used
    assert environment(VLLM, inherited, api_key="k")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_embedded_engine_uses_no_card() -> None:
    assert gpus_used(EMBEDDED, {"CUDA_VISIBLE_DEVICES": "0"}) == frozenset()


def test_an_engine_is_never_in_development_mode_by_itself() -> None:
    assert "VLLM_SERVER_DEV_MODE" not in environment(VLLM, {"VLLM_SERVER_DEV_MODE": "1"}, api_key="sk-own")
    assert "--enable-sleep-mode" not in argv(VLLM)


def test_one_that_can_be_put_to_sleep_is_in_development_mode_and_on_loopback_only() -> None:
    sleepy = replace(VLLM, can_sleep=True)
    assert "--enable-sleep-mode" in argv(sleepy)
    assert environment(sleepy, {}, api_key="sk-own")["VLLM_SERVER_DEV_MODE"] == "1"
    for elsewhere in (replace(sleepy, host="0.0.0.0"), replace(sleepy, extra_args=("--host=10.0.0.1",))):
        with pytest.raises(ValueError, match="loopback only"):
            argv(elsewhere)


@pytest.mark.parametrize(
    ("gpus", "extra_args", "visible", "used"),
    [
        ((2,), (), "2", {2}),
        ((2, 3), ("-tp", "2"), "2,3", {2, 3}),
        ((2, 3), (), "2,3", {2}),  # vLLM takes the first of what it sees
        ((), (), "", set()),
    ],
)
def test_an_engine_sees_the_cards_it_was_given_and_no_others(
    gpus: tuple[int, ...], extra_args: tuple[str, ...], visible: str, used: set[int]
) -> None:
    config = replace(VLLM, gpus=gpus, extra_args=extra_args)
    variables = environment(config, {"CUDA_VISIBLE_DEVICES": "7"}, api_key="k")
    assert variables["CUDA_VISIBLE_DEVICES"] == visible
    assert gpus_used(config, {"CUDA_VISIBLE_DEVICES": "7"}) == used
