"""What `doctor` looks at before vLLM is started: its environment, driver and CUDA, memory against the model's needs."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_llm import memory
from local_llm.datamodels import EngineKind, GpuReading, LaunchConfig
from local_llm.launch import gpus_used
from router.checks import Check, State
from router.settings import Engine, Settings
from router.settings_types import LocalSettings

_PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class GpuLook:
    """What NVML tells of this machine; `problem` says why it tells nothing."""

    readings: tuple[GpuReading, ...] = ()
    problem: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None


def engine_start(settings: Settings, seen: GpuLook, environ: Mapping[str, str], *, asked: bool) -> Iterator[Check]:
    """Whether `vllm serve` would start here; nothing for other engines. `asked`: about to start, so trouble fails."""
    told: set[str] = set()
    for local in settings.tiers.engines:
        if local.engine is not Engine.VLLM or local.launch.gpus == ():
            continue
        if local.launch.executable not in told:
            yield from _driver(seen, engine_packages(local.launch.executable), asked=asked)
            told.add(local.launch.executable)
        cards = _cards(local, seen.readings, environ)
        if isinstance(cards, Check):
            yield cards
        elif cards:
            yield from _memory(local, cards, environ, asked=asked)


def utilization_caps(settings: Settings, seen: GpuLook) -> Iterator[Check]:
    """Engines under `max_gpu_utilization_ratio` whose cards do not tell it: what is not known counts as full."""
    told = [gpu.utilization_ratio is not None for gpu in seen.readings]
    for local in settings.tiers.engines:
        if local.max_gpu_utilization_ratio is not None and not any(told):
            why = seen.problem or "no card tells its utilisation"
            detail = f"{why}, so max_gpu_utilization_ratio keeps every request from it (METRICS_STALE)"
            cure = f"remove {local.where}.max_gpu_utilization_ratio, or run where NVML answers"
            yield Check(_called(local, "utilisation cap"), State.WARN, detail, cure)


def _called(local: LocalSettings, what: str) -> str:
    return f"engine {what}" if local.name is None else f"engine {local.name} {what}"


def _smaller(local: LocalSettings) -> str:
    return (
        f"lower {local.where}.context_window_tokens, choose a smaller or quantized model, or spread it over more cards "
        "with launch.extra_args: [--tensor-parallel-size, N]"
    )


def engine_packages(executable: str) -> dict[str, str]:
    """Versions of `vllm` and of the CUDA runtime (as `cuda`) beside an engine's executable; from file names only."""
    found = shutil.which(executable)
    if found is None:
        return {}
    versions: dict[str, str] = {}
    for info in Path(found).parent.parent.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        if name == "vllm":
            versions["vllm"] = version
        elif re.fullmatch(r"nvidia_cuda_runtime(_cu\d+)?", name):
            versions["cuda"] = version
    return versions


def _driver(seen: GpuLook, packages: Mapping[str, str], *, asked: bool) -> Iterator[Check]:
    if not seen.readings:
        state = State.FAIL if asked else State.WARN
        yield Check(
            "engine driver", state, seen.problem or "no card is seen", "install the NVIDIA driver; nvidia-smi must work"
        )
        return
    driver = f"driver {seen.driver_version or 'version not told'}, CUDA {seen.cuda_version or 'version not told'}"
    built = packages.get("cuda")
    if built is None or seen.cuda_version is None:
        yield Check("engine driver", State.OK, driver)
        return
    # a driver runs what was built for any minor version of its major one
    if int(seen.cuda_version.partition(".")[0]) < int(built.partition(".")[0]):
        detail = f"{driver}; vLLM {packages.get('vllm', '')} is built for CUDA {built}"
        yield Check(
            "engine driver", State.FAIL, detail, f"install a driver for CUDA {built.partition('.')[0]} (or newer)"
        )
    else:
        yield Check("engine driver", State.OK, f"{driver}, enough for CUDA {built}")


def _cards(
    local: LocalSettings, readings: Sequence[GpuReading], environ: Mapping[str, str]
) -> list[GpuReading] | Check:
    """The cards that vLLM would use, or what is wrong with them."""
    launch = LaunchConfig(
        kind=EngineKind.VLLM,
        model=local.model,
        executable=local.launch.executable,
        extra_args=local.launch.extra_args,
        gpus=local.launch.gpus,
    )
    used = gpus_used(launch, environ)
    cards = [gpu for gpu in readings if used is None or gpu.index in used]
    missing = sorted(used - {gpu.index for gpu in readings}) if used is not None and readings else []
    if missing:
        numbers = ", ".join(str(index) for index in missing)
        cure = "correct launch.gpus, launch.extra_args or CUDA_VISIBLE_DEVICES"
        return Check(
            _called(local, "cards"), State.FAIL, f"vLLM would use card {numbers}; there are {len(readings)}", cure
        )
    return cards


def _memory(
    local: LocalSettings, cards: Sequence[GpuReading], environ: Mapping[str, str], *, asked: bool
) -> Iterator[Check]:
    sizes = [gpu.memory_total_bytes for gpu in cards if gpu.memory_total_bytes is not None]
    if len(sizes) < len(cards):
        yield Check(_called(local, "memory"), State.WARN, "a card does not tell its memory", "")
        return
    yield from _free_memory(local, cards, asked=asked)
    shape = model_shape(local, environ)
    if shape is None:
        yield Check(
            _called(local, "memory"), State.WARN, f"the size of {local.model} is not known before it is downloaded"
        )
        return
    needs = memory.plan(
        shape,
        card_bytes=sizes,
        gpu_memory_utilization=local.launch.gpu_memory_utilization,
        window_tokens=local.context_window_tokens,
        max_num_seqs=local.max_num_seqs,
        kv_bytes_ratio=0.5 if _argument(local, "--kv-cache-dtype").startswith("fp8") else 1.0,
    )
    a_card = " a card" if len(cards) > 1 else ""
    told = f"{_gib(needs.weight_bytes)} of weights{a_card}, vLLM takes {_gib(needs.taken_bytes)}{a_card}"
    if shape.guessed:
        told += " (sizes guessed from the model's name)"
    if needs.kv_tokens < 0 or (not needs.starts and not shape.guessed):
        yield Check(_called(local, "memory"), State.FAIL, f"{told}: {_lack(needs)}", _smaller(local))
    elif not needs.starts:
        yield Check(_called(local, "memory"), State.WARN, f"{told}: {_lack(needs)}", _smaller(local))
    elif needs.concurrency() < min(local.max_num_seqs, 8):
        yield Check(_called(local, "memory"), State.WARN, f"{told}: {_room(needs)}", _smaller(local))
    else:
        yield Check(_called(local, "memory"), State.OK, f"{told}: {_room(needs)}")


def _free_memory(local: LocalSettings, cards: Sequence[GpuReading], *, asked: bool) -> Iterator[Check]:
    """vLLM refuses a card whose free memory is less than the share it is to take."""
    if _listens(local.api_base or ""):
        return  # the engine itself, at work
    for gpu in cards:
        if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
            continue
        wanted = gpu.memory_total_bytes * local.launch.gpu_memory_utilization
        free = gpu.memory_total_bytes - gpu.memory_used_bytes
        if free < wanted:
            detail = (
                f"{_gib(gpu.memory_used_bytes)} are in use by others, {_gib(free)} free; vLLM takes {_gib(int(wanted))}"
            )
            cure = "end what uses the card (nvidia-smi names it), or lower launch.gpu_memory_utilization"
            yield Check(_called(local, f"memory of GPU {gpu.index}"), State.FAIL if asked else State.WARN, detail, cure)


def model_shape(local: LocalSettings, environ: Mapping[str, str]) -> memory.ModelShape | None:
    """What of the model takes memory: from its files where they are on this machine, else from its name."""
    shape = None
    for folder in _folders(local.model, environ):
        config = _read_json(folder / "config.json")
        if config is not None:
            shape = memory.shape_from_config(config, _weight_bytes(folder), memory.parameters_of(local.model))
            break
    shape = shape or memory.shape_from_name(local.model)
    if shape is not None and shape.guessed and _argument(local, "--quantization") == "fp8":
        return memory.ModelShape(shape.weight_bytes // 2, shape.kv_bytes_per_token, guessed=True)
    return shape


def _folders(model: str, environ: Mapping[str, str]) -> Iterator[Path]:
    if Path(model).is_dir():
        yield Path(model)
    home = environ.get("HF_HOME") or Path(environ.get("HOME", "~"), ".cache", "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    yield from sorted(hub.glob(f"models--{model.replace('/', '--')}/snapshots/*"))


def _weight_bytes(folder: Path) -> int | None:
    index = _read_json(folder / "model.safetensors.index.json")
    total = (index or {}).get("metadata", {}).get("total_size")
    if isinstance(total, int):
        return total
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _argument(local: LocalSettings, flag: str) -> str:
    arguments = local.launch.extra_args
    for at, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            return value or "".join(arguments[at + 1 : at + 2])
    return ""


def _listens(api_base: str) -> bool:
    parts = urlsplit(api_base)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), _PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _lack(needs: memory.MemoryPlan) -> str:
    if needs.kv_tokens < 0:
        return "not even the weights fit"
    return f"room for {needs.kv_tokens} tokens of KV cache, a window of {needs.window_tokens} does not fit"


def _room(needs: memory.MemoryPlan) -> str:
    return (
        f"room for {needs.kv_tokens} tokens of KV cache, about {needs.concurrency()} requests of "
        f"{memory.TYPICAL_REQUEST_TOKENS} tokens at once"
    )


def _gib(count: int) -> str:
    return f"{count / memory.GIB:.1f} GiB"
