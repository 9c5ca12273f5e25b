"""From the settings of one engine to running objects: the candidate, its engine room, and how it is called."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from local_llm.coefficients import may_flatter
from local_llm.datamodels import EngineKind, EngineLimits, GpuReading, LaunchConfig, ProcessState
from local_llm.embedded import BATCHED_TOKENS, EmbeddedModelError, engine_installed, find_model
from local_llm.launch import gpus_used
from local_llm.poller import INTERVAL_S, EnginePoller
from local_llm.probe import AiohttpGet
from local_llm.process import EngineProcess
from local_llm.sleep import Phase, Sleeper
from local_llm.steptime import tokens_per_step
from router.core.decision import Candidate
from router.core.eligibility import engine_problems
from router.core.periods import AssetTerms
from router.core.snapshot import AssetRate
from router.core.vocabulary import Reject, Tier
from router.hardware_terms import asset_rate, asset_terms
from router.live_state import EngineRoom
from router.ports import Clock
from router.settings_types import Engine, LocalSettings

Cards = Callable[[], tuple[float, tuple[GpuReading, ...]] | None]
"""When the GPUs were last read, and what they told; `None` before the first time."""

_EMBEDDED_STALE_AFTER_S = 10.0  # it shares its few cores with everything else, and its own count is always fresh
_EAGER_POLL_S = 0.1
_VLLM_DEFAULT_BATCHED_TOKENS = 2048
_PROBE_TIMEOUT_S = 10.0
_REQUIRED = {
    Engine.EMBEDDED: ("running_requests", "waiting_requests"),
    Engine.VLLM: ("running_requests", "waiting_requests", "kv_cache_usage_ratio"),
    Engine.EXTERNAL: ("running_requests", "waiting_requests"),
    Engine.NONE: (),
}


@dataclass(slots=True)
class LocalEngine:
    """One engine of ours. `process` is `None` where somebody else runs it, `poller` where nothing may be asked."""

    candidate: Candidate
    room: EngineRoom
    asset: AssetRate
    base_url: str
    api_key: str | None
    process: EngineProcess | None
    poller: EnginePoller | None
    get: AiohttpGet
    clock: Clock
    terms: AssetTerms | None = None
    sleeper: Sleeper | None = None
    metered: Cards = lambda: None  # the cards whose energy is this engine's
    _watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the engine if it is ours, and look at it from now on."""
        if self.process is not None:
            await self.process.start()
        if self.poller is not None:
            self._watching = asyncio.create_task(self._watch(self.poller))

    async def _watch(self, poller: EnginePoller) -> None:
        while True:
            await poller.poll()
            if self.sleeper is not None and self.process is not None:
                alive = self.process.state is ProcessState.READY
                await self.sleeper.look(alive=alive, reading=poller.reading)
            # Until it has been seen, look often: nothing is admitted before the first reading.
            unseen = poller.state()[0] is not ProcessState.READY or poller.reading is None
            await self.clock.sleep(_EAGER_POLL_S if unseen and not self._rests() else INTERVAL_S)

    def _rests(self) -> bool:
        """Asleep, and nobody has asked for it yet."""
        if self.sleeper is not None:
            return self.sleeper.phase is Phase.ASLEEP
        return self.room.process()[0] is ProcessState.ASLEEP

    def is_on(self) -> bool:
        """Whether the engine takes up its hardware now: from the start of its process on, loading included."""
        if self.process is not None:
            return self.process.pid is not None
        return self.room.process()[0] in (ProcessState.READY, ProcessState.DEGRADED, ProcessState.ASLEEP)

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether the engine may be admitted to; waits for that up to `timeout_s`."""
        ends_at_s = self.clock.now_s() + timeout_s
        while engine_problems(self.room.look(self.clock.now_s()), self.clock.now_s()):
            gone = self.process is not None and self.process.state is ProcessState.FAILED
            if gone or self.clock.now_s() >= ends_at_s:
                return False
            await self.clock.sleep(0.05)
        return True

    async def stop(self) -> None:
        """Stop looking, and stop the engine if it is ours."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self.sleeper is not None:
            await self.sleeper.close()
        if self.process is not None:
            await self.process.stop()
        await self.get.close()


def build_local_engine(settings: LocalSettings, *, clock: Clock, data_dir: Path, cards: Cards) -> LocalEngine:
    """The engine of `settings`, which has one; `cards` tells of all GPUs of this machine. Starts nothing."""
    problem = settings.unavailable
    process: EngineProcess | None = None
    base_url, api_key = settings.api_base or "", None
    if settings.api_key is not None:
        api_key = settings.api_key.get_secret_value()
    if settings.engine in (Engine.EMBEDDED, Engine.VLLM) and problem is None:
        launch, problem = _launch(settings)
        if launch is not None:
            process = EngineProcess(launch, clock=clock, log_path=data_dir / _log_name(settings))
            base_url, api_key = process.base_url, process.api_key
    candidate = Candidate(
        name=settings.candidate_name,
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
    room, get = _room(settings), AiohttpGet()
    poller, sleeper = None, None
    metered: Cards = _no_cards
    if problem is None:
        if runs_on_this_machine(settings):
            used = _cards_used(settings, process)
            room.gpus = _cards_of_engine(cards, used)
            metered = room.gpus if used is not None else _only_card(cards)
        poller = _poller(settings, room, process, base_url, api_key, clock, get)
        room.process = poller.state
        room.reading = lambda: poller.reading
        room.metrics_absent = lambda: poller.metrics_absent
        if process is not None and settings.launch.sleep_after_idle_s is not None:
            sleeper = _sleeper(settings.launch.sleep_after_idle_s, room, process, get, clock)
            room.process, room.wake = _life_with_rests(poller, sleeper), sleeper.wake
    asset, terms = asset_rate(settings), asset_terms(settings)
    return LocalEngine(candidate, room, asset, base_url, api_key, process, poller, get, clock, terms, sleeper, metered)


def _log_name(settings: LocalSettings) -> str:
    return "engine.log" if settings.name is None else f"engine-{settings.name}.log"


def runs_on_this_machine(settings: LocalSettings) -> bool:
    """Whether the cards of this machine are the engine's."""
    if settings.engine is Engine.EXTERNAL:
        return _address(settings.api_base or "")[0] in ("127.0.0.1", "localhost", "::1")
    return settings.engine is Engine.VLLM


def _cards_used(settings: LocalSettings, process: EngineProcess | None) -> frozenset[int] | None:
    """NVML's numbers of the engine's cards; `None` where nobody says which of this machine's they are."""
    if process is not None:
        return gpus_used(process.launch, os.environ)
    return frozenset(settings.launch.gpus) if settings.launch.gpus is not None else None


def _no_cards() -> None:
    return None


def _only_card(cards: Cards) -> Cards:
    """The machine's card, if it has but one: where nobody says which are the engine's, no other can be."""

    def look() -> tuple[float, tuple[GpuReading, ...]] | None:
        latest = cards()
        return latest if latest is not None and len(latest[1]) == 1 else None

    return look


def _cards_of_engine(cards: Cards, used: frozenset[int] | None) -> Cards:
    """The last look at the cards that the engine works on: what another card does is none of its business."""

    def look() -> tuple[float, tuple[GpuReading, ...]] | None:
        latest = cards()
        if latest is None or used is None:
            return latest
        return latest[0], tuple(gpu for gpu in latest[1] if gpu.index in used)

    return look


def _sleeper(after_idle_s: float, room: EngineRoom, process: EngineProcess, get: AiohttpGet, clock: Clock) -> Sleeper:
    return Sleeper(
        after_idle_s=after_idle_s,
        root_url=lambda: process.root_url,
        headers={"Authorization": f"Bearer {process.api_key}"},
        post=get.post,
        inflight=room.inflight,
        clock=clock,
        on_stuck=process.report_hung,
    )


def _life_with_rests(poller: EnginePoller, sleeper: Sleeper) -> Callable[[], tuple[ProcessState, str | None]]:
    def life() -> tuple[ProcessState, str | None]:
        state, problem = poller.state()
        if sleeper.phase is not Phase.AWAKE and state in (ProcessState.READY, ProcessState.ASLEEP):
            return ProcessState.ASLEEP, sleeper.told
        return state, problem

    return life


def _poller(
    settings: LocalSettings,
    room: EngineRoom,
    process: EngineProcess | None,
    base_url: str,
    api_key: str | None,
    clock: Clock,
    get: AiohttpGet,
) -> EnginePoller:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key is not None else {}
    root_url = base_url.removesuffix("/v1")

    def life() -> tuple[ProcessState, str | None]:
        if process is None:
            return ProcessState.READY, None
        return process.state, process.problem

    async def one_token() -> bool:
        return await get.one_token(base_url, model=settings.model, headers=headers, timeout_s=_PROBE_TIMEOUT_S)

    return EnginePoller(
        root_url=lambda: root_url,
        headers=headers,
        inflight=room.inflight,
        slo=settings.slo,
        clock=clock,
        get=get,
        process=life if process is not None else None,
        generate=one_token,
        on_hung=process.report_hung if process is not None else None,
        gpus=room.gpus,
    )


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
                max_batched_tokens=_batched_tokens(settings),
                gpu_memory_utilization_ratio=settings.launch.gpu_memory_utilization,
                extra_args=settings.launch.extra_args,
                can_sleep=settings.launch.sleep_after_idle_s is not None,
                gpus=settings.launch.gpus,
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
            max_batched_tokens=BATCHED_TOKENS,
            model_sha256=sha256,
        ),
        None,
    )


def _batched_tokens(settings: LocalSettings) -> int:
    """Prompt tokens read in one step: what the engine is started with, or does by itself."""
    if settings.engine is Engine.EMBEDDED:
        return BATCHED_TOKENS
    if settings.engine is not Engine.VLLM:
        return _VLLM_DEFAULT_BATCHED_TOKENS
    return tokens_per_step(settings.coefficients, settings.slo)


def _address(api_base: str) -> tuple[str, int]:
    parts = urlsplit(api_base)
    return parts.hostname or "127.0.0.1", parts.port or 8000


def _room(settings: LocalSettings) -> EngineRoom:
    """The engine as nobody has seen it yet: the poller fills in what it learns."""
    embedded = settings.engine is Engine.EMBEDDED
    return EngineRoom(
        coefficients=settings.coefficients,
        limits=EngineLimits(
            max_num_seqs=settings.max_num_seqs,
            max_batched_tokens=_batched_tokens(settings),
            kv_tokens=settings.context_window_tokens * settings.max_num_seqs if embedded else None,
            context_window_tokens=settings.context_window_tokens,
        ),
        slo=settings.slo,
        process=lambda: (ProcessState.STOPPED, "not started"),
        metrics_required=_REQUIRED[settings.engine],
        metrics_optional=settings.engine is Engine.EXTERNAL,
        stale_after_s=_EMBEDDED_STALE_AFTER_S if embedded else 3.0 * INTERVAL_S,
        max_gpu_utilization_ratio=settings.max_gpu_utilization_ratio,
        careful=may_flatter(settings.coefficients),
    )
