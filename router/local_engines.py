"""From the settings of the local tier to running objects: the candidate, its engine room, and how it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from local_llm.datamodels import EngineKind, EngineLimits, LaunchConfig, ProcessState
from local_llm.embedded import EmbeddedModelError, engine_installed, find_model
from local_llm.process import EngineProcess
from router.core.charges import standard_rate
from router.core.datamodels import AssetRate, Candidate, Flag, Reject, Tier
from router.core.hardware import OwnedHardware, energy_usd_per_gpu_s, hourly_cost
from router.live_state import EngineRoom
from router.ports import Clock
from router.settings_types import Engine, LocalSettings

_EMBEDDED_BATCHED_TOKENS = 512


@dataclass(slots=True)
class LocalTier:
    """The local tier, built and not yet started. `process` is `None` for an engine that somebody else runs."""

    candidate: Candidate
    room: EngineRoom
    asset: AssetRate
    base_url: str
    api_key: str | None
    process: EngineProcess | None
    problem: str | None = None


def build_local_tier(
    settings: LocalSettings,
    *,
    clock: Clock,
    data_dir: Path,
    on_change: Callable[[ProcessState], None] | None = None,
) -> LocalTier | None:
    """The local tier of `settings`, or `None` where there is none. Starts nothing."""
    if settings.engine is Engine.NONE:
        return None
    problem = settings.unavailable
    process: EngineProcess | None = None
    base_url, api_key = settings.api_base or "", None
    if settings.api_key is not None:
        api_key = settings.api_key.get_secret_value()
    if settings.engine in (Engine.EMBEDDED, Engine.VLLM) and problem is None:
        launch, problem = _launch(settings)
        if launch is not None:
            process = EngineProcess(
                launch,
                clock=clock,
                log_path=data_dir / "engine.log",
                on_change=on_change,
            )
            base_url, api_key = process.base_url, process.api_key
    candidate = Candidate(
        name=settings.model,
        tier=Tier.LOCAL,
        provider=settings.engine.value,
        wire_model=settings.model,
        context_window_tokens=settings.context_window_tokens,
        max_output_tokens=settings.max_output_tokens,
        supports_tools=settings.supports_tools,
        supports_images=settings.supports_images,
        supports_json=settings.supports_json,
        unavailable=Reject.UNCONFIGURED if problem is not None else None,
        unavailable_detail=problem,
    )
    return LocalTier(candidate, _room(settings, process), _asset(settings), base_url, api_key, process, problem)


def _launch(settings: LocalSettings) -> tuple[LaunchConfig | None, str | None]:
    """How to start the engine, or why that is not possible here."""
    if settings.engine is Engine.VLLM:
        host, port = _address(settings.api_base or "")
        return (
            LaunchConfig(
                kind=EngineKind.VLLM,
                model=settings.model,
                executable=settings.launch.executable,
                host=host,
                port=port,
                context_window_tokens=settings.context_window_tokens,
                max_num_seqs=settings.max_num_seqs,
                gpu_memory_utilization_ratio=settings.launch.gpu_memory_utilization,
                extra_args=settings.launch.extra_args,
            ),
            None,
        )
    if not engine_installed():
        return None, "the embedded engine is not installed; run: pip install 'hybrid-llm-router[embedded]'"
    model_path, sha256 = settings.model_path, None
    if model_path is None:
        try:
            model = find_model()
        except EmbeddedModelError as error:
            return None, str(error)
        model_path, sha256 = model.path, model.sha256
    return (
        LaunchConfig(
            kind=EngineKind.EMBEDDED,
            model=str(model_path),
            executable=sys.executable,
            served_model_name=settings.model,
            context_window_tokens=settings.context_window_tokens,
            max_num_seqs=settings.max_num_seqs,
            max_batched_tokens=_EMBEDDED_BATCHED_TOKENS,
            model_sha256=sha256,
        ),
        None,
    )


def _address(api_base: str) -> tuple[str, int]:
    from urllib.parse import urlsplit

    parts = urlsplit(api_base)
    return parts.hostname or "127.0.0.1", parts.port or 8000


def _room(settings: LocalSettings, process: EngineProcess | None) -> EngineRoom:
    def life() -> tuple[ProcessState, str | None]:
        if process is None:
            return ProcessState.READY, None
        return process.state, process.problem

    batched = _EMBEDDED_BATCHED_TOKENS if settings.engine is Engine.EMBEDDED else 2048
    kv_tokens = settings.context_window_tokens * settings.max_num_seqs if settings.engine is Engine.EMBEDDED else None
    return EngineRoom(
        coefficients=settings.coefficients,
        limits=EngineLimits(
            max_num_seqs=settings.max_num_seqs,
            max_batched_tokens=batched,
            kv_tokens=kv_tokens,
            context_window_tokens=settings.context_window_tokens,
        ),
        slo=settings.slo,
        process=life,
        max_gpu_utilization_ratio=settings.max_gpu_utilization_ratio,
        warnings=(Flag.METRICS_ABSENT.value,) if settings.engine is Engine.EXTERNAL else (),
    )


def _asset(settings: LocalSettings) -> AssetRate:
    """The standard rate of the hardware; unpriced where the config names none."""
    hardware = settings.hardware
    capacity = Decimal(str(settings.practical_capacity_ratio))
    if hardware is None:
        return AssetRate(settings.model, None)
    if isinstance(hardware, OwnedHardware):
        usd_per_hour = hourly_cost(hardware).total_usd
        energy = energy_usd_per_gpu_s(hardware)
        kind = "owned"
    else:
        usd_per_hour, energy, kind = hardware.usd_per_hour, Decimal(0), "rented"
    version = f"{kind}-{usd_per_hour.normalize():f}/h@{capacity.normalize():f}/{settings.coefficients.name}"
    return AssetRate(settings.model, standard_rate(usd_per_hour, capacity), energy, version)
