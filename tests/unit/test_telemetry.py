"""What is counted, and that no caller can grow it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.core.attempts import AttemptRecord, Charge, RoutingRecord
from router.core.request import TokenUsage
from router.core.vocabulary import CircuitState, Outcome, Reason, Tier
from router.ports import Telemetry
from router.telemetry import MAX_EVENTS, PrometheusTelemetry

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
USAGE = TokenUsage(1000, 300, cached_input_tokens=100, reasoning_tokens=20)


def attempt(candidate: str = "luna", *, tier: Tier = Tier.CHEAP, outcome: Outcome = Outcome.OK) -> AttemptRecord:
    return AttemptRecord(1, candidate, tier, "openai", candidate, outcome, USAGE, Charge(250_000, "v"), NOW, 1.0)


def record(*attempts: AttemptRecord, tenant: str = "acme", outcome: Outcome = Outcome.OK) -> RoutingRecord:
    return RoutingRecord(
        schema_version=1,
        request_id="r",
        tenant=tenant,
        received_at_utc=NOW,
        requested_model="auto",
        stream=True,
        features=None,
        score=None,
        decision=None,
        attempts=attempts,
        outcome=outcome,
        usage=USAGE,
        cost_nanousd=250_000,
        duration_s=1.25,
        first_token_s=0.3,
        exploration_probability=0.0,
        prompt_sha256="",
        reason=Reason.CHEAP_API_CHEAPEST,
    )


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def telemetry(**options: Any) -> PrometheusTelemetry:
    return PrometheusTelemetry(models=["luna", "sol"], tenants=["acme"], now_s=FakeTime(), **options)


def series(metrics: PrometheusTelemetry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: PrometheusTelemetry, name: str, **labels: str) -> float:
    return series(metrics)[name, frozenset(labels.items())]


def test_it_is_what_the_flow_asks_for() -> None:
    port: Telemetry = telemetry()
    port.request_done(record(attempt()), overhead_s=0.002)


def test_a_request_is_counted_with_its_attempts_tokens_cost_and_times() -> None:
    metrics = telemetry()
    failed = replace(attempt("sol", tier=Tier.PREMIUM, outcome=Outcome.TIMEOUT), usage=None, charge=Charge(0, "v"))
    metrics.request_done(record(failed, attempt()), overhead_s=0.002)
    assert value(metrics, "router_requests_total", tenant="acme", tier="cheap", outcome="ok") == 1
    assert value(metrics, "router_attempts_total", tier="premium", model="sol", outcome="timeout") == 1
    assert value(metrics, "router_attempts_total", tier="cheap", model="luna", outcome="ok") == 1
    kinds = {"input": 1000, "output": 300, "cached_input": 100, "reasoning": 20}
    for kind, tokens in kinds.items():
        assert value(metrics, "router_tokens_total", tier="cheap", model="luna", kind=kind) == tokens
    assert value(metrics, "router_cost_usd_total", tenant="acme", tier="cheap", model="luna") == pytest.approx(0.00025)
    assert value(metrics, "router_decisions_total", reason="CHEAP_API_CHEAPEST") == 1
    assert value(metrics, "router_request_duration_seconds_sum", tier="cheap") == 1.25
    assert value(metrics, "router_first_token_seconds_count", tier="cheap") == 1
    assert value(metrics, "router_overhead_seconds_sum") == 0.002


def test_a_request_without_an_attempt_has_no_tier() -> None:
    metrics = telemetry()
    metrics.request_done(record(outcome=Outcome.NO_ROUTE), overhead_s=0.001)
    assert value(metrics, "router_requests_total", tenant="acme", tier="none", outcome="no_route") == 1


def test_ten_thousand_tenants_and_models_make_no_more_series_than_one() -> None:
    def after(count: int) -> int:
        metrics = telemetry()
        for number in range(count):
            metrics.request_done(record(attempt(f"junk-{number}"), tenant=f"user-{number}"), overhead_s=0.001)
            metrics.warn(f"event-{number % (3 * MAX_EVENTS)}")
        assert value(metrics, "router_requests_total", tenant="other", tier="cheap", outcome="ok") == count
        return len([name for name, _ in series(metrics) if name != "router_warnings_total"])

    assert after(1) == after(10_000)


def test_alerts_beyond_the_bound_are_counted_as_other() -> None:
    metrics = telemetry()
    for number in range(MAX_EVENTS + 50):
        metrics.warn(f"event-{number}")
    assert value(metrics, "router_warnings_total", event="other") == 50
    assert len([name for name, _ in series(metrics) if name == "router_warnings_total"]) == MAX_EVENTS + 1


def test_a_broken_record_is_counted_and_never_raises() -> None:
    metrics = telemetry()
    metrics.request_done(replace(record(attempt()), attempts=None), overhead_s=0.001)  # type: ignore[arg-type]
    assert value(metrics, "router_telemetry_failures_total") == 1


def test_an_alert_is_counted_always_and_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeTime()
    metrics = PrometheusTelemetry(models=[], tenants=[], now_s=clock, log_every_s=1.0)
    with caplog.at_level(logging.WARNING, "router.alerts"):
        for _ in range(1000):
            metrics.warn("ledger_spooling", cause="timeout")
        clock.now_s += 1.0
        metrics.warn("ledger_spooling", cause="timeout")
    assert value(metrics, "router_warnings_total", event="ledger_spooling") == 1001
    assert [entry.fields for entry in caplog.records] == [  # type: ignore[attr-defined]
        {"cause": "timeout"},
        {"cause": "timeout", "left_out": "999"},
    ]


def test_states_are_read_when_the_page_is() -> None:
    metrics = telemetry()
    circuits = {"luna": CircuitState.CLOSED, "junk": CircuitState.OPEN}
    state = ["healthy"]
    metrics.watch(
        in_flight=lambda: 7, circuits=lambda: circuits, ledger=lambda: state[0], ledger_states=("healthy", "spooling")
    )
    assert value(metrics, "router_requests_in_flight") == 7
    assert value(metrics, "router_circuit_open_ratio", model="luna") == 0
    circuits["luna"] = CircuitState.HALF_OPEN
    state[0] = "spooling"
    assert value(metrics, "router_circuit_open_ratio", model="luna") == 0.5
    assert value(metrics, "router_circuit_open_ratio", model="other") == 1
    assert value(metrics, "router_ledger_state", state="spooling") == 1
    assert value(metrics, "router_ledger_state", state="healthy") == 0


def test_each_engine_has_a_state_of_its_own_and_an_unknown_one_is_other() -> None:
    metrics = telemetry()
    states = {"luna": "ready", "sol": "on fire", "junk": "down"}
    metrics.states_of("router_engine_state", "State", ("ready", "down"), "engine", lambda: states)
    seen = {
        (labels["engine"], labels["state"])
        for (name, pairs), number in series(metrics).items()
        if name == "router_engine_state" and number == 1 and (labels := dict(pairs))
    }
    assert seen == {("luna", "ready"), ("sol", "other"), ("other", "down")}


def test_what_is_not_known_is_left_out_and_never_zero() -> None:
    metrics = telemetry()
    metrics.gauge("router_local_kv_cache_usage_ratio", "KV cache in use", lambda: None)
    assert ("router_local_kv_cache_usage_ratio", frozenset()) not in series(metrics)


def test_a_reading_that_fails_does_not_take_the_page_with_it() -> None:
    metrics = telemetry()

    def broken() -> float:
        raise RuntimeError("no reading")

    metrics.gauge("router_broken", "a reading that fails", broken)
    assert value(metrics, "router_build_info", version=_version()) == 1
    assert value(metrics, "router_telemetry_failures_total") == 1


def test_no_series_is_named_created() -> None:
    metrics = telemetry()
    metrics.request_done(record(attempt()), overhead_s=0.001)
    assert not [name for name, _ in series(metrics) if name.endswith("_created")]


def _version() -> str:
    from router import __version__

    return __version__
