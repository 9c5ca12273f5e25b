"""`LaunchConfig` to an argument list and an environment. Pure.

Secrets travel in the environment, never in the arguments, which every user of the machine can read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_llm.datamodels import EngineKind, LaunchConfig

EMBEDDED_SCRIPT = str(Path(__file__).with_name("embedded.py"))
EMBEDDED_KEY_ENV = "EMBEDDED_ENGINE_API_KEY"
VLLM_KEY_ENV = "VLLM_API_KEY"

# An engine needs no provider's key: only these reach it.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|XDG_\w+|VIRTUAL_ENV|LD_LIBRARY_PATH|LD_PRELOAD|CC|CXX"
    r"|(HTTP|HTTPS|NO)_PROXY|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|(CUDA|NVIDIA|NCCL|GPU|ROCM|ROCR|HIP|HF|HUGGINGFACE|TRANSFORMERS|VLLM|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|FLASHINFER"
    r"|OMP|MKL|KMP|GGML|LLAMA)_\w+",
    re.IGNORECASE,
)
# Development mode lets anyone who reaches the port call any function of the engine.
DEV_MODE_ENV = "VLLM_SERVER_DEV_MODE"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_NEVER_PASSED_ON = frozenset({DEV_MODE_ENV, VLLM_KEY_ENV, EMBEDDED_KEY_ENV})


def argv(config: LaunchConfig) -> tuple[str, ...]:
    """The command that starts `config`. Raises ValueError while `port` is 0: choose one first."""
    if config.port <= 0:
        raise ValueError("an engine is started on a port that has been chosen")
    if config.can_sleep and (config.host not in _LOOPBACK or names_host(config.extra_args)):
        raise ValueError("an engine that can be put to sleep obeys whoever reaches it: it listens on loopback only")
    return _embedded(config) if config.kind is EngineKind.EMBEDDED else _vllm(config)


def named(extra_args: Sequence[str]) -> frozenset[str]:
    """The options among further arguments of `vllm serve`, without their values; `_` and `-` are the same to it."""
    return frozenset(
        argument.partition("=")[0].replace("_", "-") for argument in extra_args if argument.startswith("--")
    )


def names_host(extra_args: Sequence[str]) -> bool:
    """Whether arguments for `vllm serve` say where it listens (a host or a socket), past what we say."""
    return not named(extra_args).isdisjoint(("--host", "--uds"))


def environment(config: LaunchConfig, inherited: Mapping[str, str], *, api_key: str) -> dict[str, str]:
    """The engine's environment: what it may need of `inherited`, and its own key."""
    passed_on = {
        name: value for name, value in inherited.items() if _PASSED_ON.fullmatch(name) and name not in _NEVER_PASSED_ON
    }
    if config.kind is EngineKind.EMBEDDED:
        return passed_on | {EMBEDDED_KEY_ENV: api_key, "PYTHONUNBUFFERED": "1"}
    if config.gpus is not None:
        passed_on["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.gpus))
    if config.can_sleep:
        passed_on[DEV_MODE_ENV] = "1"
    return passed_on | {
        VLLM_KEY_ENV: api_key,
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts them: see `gpus_used`
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def gpus_used(config: LaunchConfig, inherited: Mapping[str, str]) -> frozenset[int] | None:
    """NVML's numbers of the cards that the engine works on; empty for the embedded one, `None` if that cannot be told.

    The trouble of another card of the machine is none of this engine's.
    """
    if config.kind is EngineKind.EMBEDDED:
        return frozenset()
    needed = cards_needed(config.extra_args)
    if needed is None:
        return None
    if config.gpus is not None:
        return frozenset(config.gpus[:needed])
    visible = inherited.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return frozenset(range(needed))
    named = [name.strip() for name in visible.split(",") if name.strip()]
    if not all(name.isdigit() for name in named):
        return None  # by UUID, or slices of a card
    return frozenset(int(name) for name in named[:needed])


def cards_needed(extra_args: Sequence[str]) -> int | None:
    """How many cards `vllm serve` with these arguments works on; `None` if that cannot be told."""
    needed = 1
    for flag in ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp"):
        for at, argument in enumerate(extra_args):
            name, _, value = argument.partition("=")
            if name == flag:
                value = value or "".join(extra_args[at + 1 : at + 2])
                if not value.isdigit():
                    return None
                needed *= int(value)
    return needed


def _embedded(config: LaunchConfig) -> tuple[str, ...]:
    command = [
        *(config.executable, "-P", EMBEDDED_SCRIPT),
        *("--model-path", config.model),
        *("--host", config.host),
        *("--port", str(config.port)),
        *("--api-key-env", EMBEDDED_KEY_ENV),
        *("--threads", str(config.threads)),
        *("--n-parallel", str(config.max_num_seqs)),
        *("--slot-context-tokens", str(config.context_window_tokens)),
        *("--batched-tokens", str(config.max_batched_tokens)),
    ]
    if config.model_sha256 is not None:
        command += ["--model-sha256", config.model_sha256]
    if config.served_model_name is not None:
        command += ["--model-name", config.served_model_name]
    return (*command, *config.extra_args)


def _vllm(config: LaunchConfig) -> tuple[str, ...]:
    command = [
        *(config.executable, "serve", config.model),
        *("--host", config.host),
        *("--port", str(config.port)),
        *("--served-model-name", config.served_model_name or config.model),
        *("--max-model-len", str(config.context_window_tokens)),
        *("--max-num-seqs", str(config.max_num_seqs)),
        # a chunk of prefill stalls every stream for as long as it takes: 2048 keeps the stall short
        *("--max-num-batched-tokens", str(config.max_batched_tokens)),
        "--enable-prompt-tokens-details",  # without it a cached prompt is billed as if it had been read
    ]
    if config.max_queued_requests is not None:
        # vLLM counts those that run as well
        command += ["--max-num-queued-reqs", str(config.max_num_seqs + config.max_queued_requests)]
    if config.can_sleep:
        command.append("--enable-sleep-mode")
    if config.gpu_memory_utilization_ratio is not None:
        command += ["--gpu-memory-utilization", str(config.gpu_memory_utilization_ratio)]
    return (*command, *config.extra_args)
