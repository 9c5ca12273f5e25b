"""What is known of the local engine, as Prometheus gauges. What is not known is left out, never shown as 0."""

from __future__ import annotations

from collections.abc import Callable

from local_llm.datamodels import EngineReading, GpuReading, InflightState, ProcessState
from router.local_engines import LocalTier
from router.ports import Clock
from router.telemetry import PrometheusTelemetry

_MAX_CARDS = 64


def watch_engine(telemetry: PrometheusTelemetry, tier: LocalTier, clock: Clock) -> None:
    """Register the gauges of `tier`; they are read when `/metrics` is."""
    room = tier.room
    telemetry.states(
        "router_engine_state",
        "State of the local engine",
        tuple(state.value for state in ProcessState),
        lambda: room.process()[0].value,
    )
    _own_count(telemetry, lambda: room.inflight.state(clock.now_s()))
    telemetry.gauge(
        "router_engine_slowdown_ratio",
        "How many times slower its cards are made to run, 1 for not at all",
        lambda: room.inflight.slowdown,
    )
    _engines_own_words(telemetry, room.reading, clock)
    poller = tier.poller
    if poller is not None:
        telemetry.gauge("router_engine_scrapes", "Looks at its metrics since the start", lambda: poller.scrapes)
        telemetry.gauge("router_engine_failed_scrapes", "Those that gave nothing", lambda: poller.scrape_errors)
    process = tier.process
    if process is not None:
        telemetry.gauge("router_engine_starts", "How often it has been started", lambda: process.starts)
    _cards(telemetry, room.gpus, clock)


def _own_count(telemetry: PrometheusTelemetry, state: Callable[[], InflightState]) -> None:
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
        telemetry.gauge(f"router_engine_{name}", text, lambda pick=pick: pick(state()))  # type: ignore[misc]


def _engines_own_words(
    telemetry: PrometheusTelemetry, reading: Callable[[], EngineReading | None], clock: Clock
) -> None:
    def told(pick: Callable[[EngineReading], float | None]) -> Callable[[], float | None]:
        def read() -> float | None:
            last = reading()
            return None if last is None else pick(last)

        return read

    telemetry.gauge(
        "router_engine_reading_age_seconds",
        "Age of the last reading of its metrics",
        told(lambda last: clock.now_s() - last.taken_at_s),
    )
    telemetry.gauge(
        "router_engine_kv_cache_usage_ratio",
        "Its KV cache in use, as it says",
        told(lambda last: last.kv_cache_usage_ratio),
    )
    telemetry.gauge(
        "router_engine_requests_running", "Requests it works on, as it says", told(lambda last: last.running_requests)
    )
    telemetry.gauge(
        "router_engine_requests_waiting", "Requests in its queue, as it says", told(lambda last: last.waiting_requests)
    )


def _cards(
    telemetry: PrometheusTelemetry, gpus: Callable[[], tuple[float, tuple[GpuReading, ...]] | None], clock: Clock
) -> None:
    numbers = frozenset(str(index) for index in range(_MAX_CARDS))

    def age_s() -> float | None:
        looked = gpus()
        return None if looked is None else clock.now_s() - looked[0]

    telemetry.gauge("router_gpu_reading_age_seconds", "Age of the last reading of the engine's cards", age_s)
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
        "temperature_celsius": ("Temperature of the chip", lambda g: g.temperature_c),
        "throttled": ("1 while something slows the card down", lambda g: float(bool(g.throttle_reasons))),
    }
    for name, (text, pick) in gauges.items():

        def read(pick: Callable[[GpuReading], float | None] = pick) -> dict[str, float | None]:
            looked = gpus()
            return {str(gpu.index): pick(gpu) for gpu in (looked[1] if looked is not None else ())}

        telemetry.gauges(f"router_gpu_{name}", text, "gpu", read, known=numbers)
