"""What is known of the local engines, as Prometheus gauges. What is not known is left out, never shown as 0.

Every gauge has the label `engine`, the candidate's name, so that one engine and several are asked for alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from local_llm.datamodels import EngineReading, GpuReading, InflightState, ProcessState
from router.ports import Clock
from router.telemetry import PrometheusTelemetry

if TYPE_CHECKING:  # only their shape: the engines' machinery stays unloaded where there is no engine
    from router.local_engines import LocalEngine

_MAX_CARDS = 64


def watch_engines(telemetry: PrometheusTelemetry, engines: Sequence[LocalEngine], clock: Clock) -> None:
    """Register the gauges of `engines`; they are read when `/metrics` is."""
    telemetry.states_of(
        "router_engine_state",
        "State of each local engine",
        tuple(state.value for state in ProcessState),
        "engine",
        lambda: {engine.candidate.name: engine.room.process()[0].value for engine in engines},
    )
    shown = _Gauges(telemetry, engines)
    _own_count(shown, clock)
    shown.add(
        "slowdown_ratio",
        "How many times slower its cards are made to run, 1 for not at all",
        lambda engine: engine.room.inflight.slowdown,
    )
    _engines_own_words(shown, clock)
    if any(engine.poller is not None for engine in engines):
        shown.add("scrapes", "Looks at its metrics since the start", lambda e: e.poller.scrapes if e.poller else None)
        shown.add("failed_scrapes", "Those that gave nothing", lambda e: e.poller.scrape_errors if e.poller else None)
    if any(engine.process is not None for engine in engines):
        shown.add("starts", "How often it has been started", lambda e: e.process.starts if e.process else None)
    _cards(telemetry, engines, clock)


class _Gauges:
    """Adds gauges of which every engine has a value, or none."""

    def __init__(self, telemetry: PrometheusTelemetry, engines: Sequence[LocalEngine]) -> None:
        self._telemetry = telemetry
        self._engines = engines

    def add(self, name: str, text: str, pick: Callable[[LocalEngine], float | None]) -> None:
        """`router_engine_NAME`."""
        self._telemetry.gauges(
            f"router_engine_{name}",
            text,
            "engine",
            lambda: {engine.candidate.name: pick(engine) for engine in self._engines},
        )


def _own_count(shown: _Gauges, clock: Clock) -> None:
    gauges: dict[str, tuple[str, Callable[[InflightState], float]]] = {
        "requests_in_flight": ("Requests of ours in the engine", lambda s: s.n),
        "streaming_requests": ("Those past their first token", lambda s: s.streaming),
        "waiting_prompt_tokens": (
            "Prompt tokens sent to it without a first token yet",
            lambda s: s.waiting_prompt_tokens,
        ),
        "reserved_tokens": ("Prompt and expected output tokens of what is in it", lambda s: s.reserved_tokens),
        "prefill_bucket_seconds": ("Prefill work that is not yet done", lambda s: s.bucket_s),
        "unseen_load_factor": ("Load by others on it, as a multiple of ours", lambda s: s.unseen_factor),
    }
    for name, (text, pick) in gauges.items():

        def read(engine: LocalEngine, pick: Callable[[InflightState], float] = pick) -> float:
            return pick(engine.room.inflight.state(clock.now_s()))

        shown.add(name, text, read)


def _engines_own_words(shown: _Gauges, clock: Clock) -> None:
    gauges: dict[str, tuple[str, Callable[[EngineReading], float | None]]] = {
        "reading_age_seconds": (
            "Age of the last reading of its metrics",
            lambda last: clock.now_s() - last.taken_at_s,
        ),
        "kv_cache_usage_ratio": ("Its KV cache in use, as it says", lambda last: last.kv_cache_usage_ratio),
        "requests_running": ("Requests it works on, as it says", lambda last: last.running_requests),
        "requests_waiting": ("Requests in its queue, as it says", lambda last: last.waiting_requests),
    }
    for name, (text, pick) in gauges.items():

        def read(engine: LocalEngine, pick: Callable[[EngineReading], float | None] = pick) -> float | None:
            last = engine.room.reading()
            return None if last is None else pick(last)

        shown.add(name, text, read)


def _cards(telemetry: PrometheusTelemetry, engines: Sequence[LocalEngine], clock: Clock) -> None:
    numbers = frozenset(str(index) for index in range(_MAX_CARDS))

    def age_s() -> float | None:
        looked = [gpus[0] for engine in engines if (gpus := engine.room.gpus()) is not None]
        return clock.now_s() - min(looked) if looked else None

    telemetry.gauge("router_gpu_reading_age_seconds", "Age of the last reading of the engines' cards", age_s)
    gauges: dict[str, tuple[str, Callable[[GpuReading], float | None]]] = {
        "healthy": (
            "1 for a card that can be trusted with work, 0 for one in trouble",
            lambda g: float(g.problem is None),
        ),
        "utilization_ratio": (
            "Share of time in which a kernel ran; says nothing about room",
            lambda g: g.utilization_ratio,
        ),
        "memory_used_bytes": ("Memory in use", lambda g: g.memory_used_bytes),
        "memory_total_bytes": ("Memory of the card", lambda g: g.memory_total_bytes),
        "power_watts": ("Power drawn now", lambda g: g.power_w),
        "energy_joules": ("Energy drawn since the driver was loaded", lambda g: g.energy_j),
        "ecc_uncorrected_errors": (
            "Memory errors since the start that could not be mended",
            lambda g: g.ecc_uncorrected,
        ),
        "temperature_celsius": ("Temperature of the chip", lambda g: g.temperature_c),
        "throttled": ("1 while something slows the card down", lambda g: float(bool(g.throttle_reasons))),
    }
    for name, (text, pick) in gauges.items():

        def read(pick: Callable[[GpuReading], float | None] = pick) -> dict[str, float | None]:
            looked = [engine.room.gpus() for engine in engines]
            return {str(gpu.index): pick(gpu) for one in looked if one is not None for gpu in one[1]}

        telemetry.gauges(f"router_gpu_{name}", text, "gpu", read, known=numbers)
