"""What is worth a look is an alert: a metric and a log line that names the model."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from router.core.attempts import AttemptRecord, Charge, RoutingRecord
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Tier
from router.telemetry import PrometheusTelemetry

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
USAGE = TokenUsage(10, 3)


def record(outcome: Outcome, *flags: Flag) -> RoutingRecord:
    charge = Charge(100, "v", flags=flags)
    attempt = AttemptRecord(1, "luna", Tier.CHEAP, "openai", "luna", outcome, USAGE, charge, NOW, 1.0)
    return RoutingRecord(
        schema_version=1,
        request_id="r",
        tenant="acme",
        received_at_utc=NOW,
        requested_model="auto",
        stream=False,
        features=None,
        score=None,
        decision=None,
        attempts=(attempt,),
        outcome=outcome,
        usage=USAGE,
        cost_nanousd=100,
        duration_s=1.0,
        first_token_s=None,
        exploration_probability=0.0,
        prompt_sha256="",
    )


def alerts(telemetry: PrometheusTelemetry) -> dict[str, float]:
    return {
        sample.labels["event"]: sample.value
        for family in telemetry.registry.collect()
        for sample in family.samples
        if sample.name == "router_warnings_total"
    }


@pytest.mark.parametrize(
    ("outcome", "flags", "expected"),
    [
        (Outcome.CREDENTIALS, (), {"upstream_credentials_refused": 1.0}),
        (Outcome.NOT_SERVED, (), {"upstream_model_not_found": 1.0}),
        (Outcome.OK, (Flag.USAGE_ESTIMATED,), {"usage_missing": 1.0}),
        (Outcome.OK, (Flag.USAGE_INCONSISTENT,), {"usage_inconsistent": 1.0}),
        (Outcome.OK, (), {}),
        (Outcome.OK, (Flag.TIER_CLIFF, Flag.UNPRICED_ASSET), {}),
        (Outcome.CLIENT_GONE, (Flag.USAGE_ESTIMATED,), {}),  # nobody could have told the usage
        (Outcome.UNAVAILABLE, (), {}),
    ],
)
def test_alerts_of_an_attempt(
    outcome: Outcome, flags: tuple[Flag, ...], expected: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PrometheusTelemetry(models={"luna"}, tenants={"acme"}, now_s=lambda: 100.0)
    with caplog.at_level(logging.WARNING, logger="router.alerts"):
        telemetry.request_done(record(outcome, *flags), overhead_s=0.001)
    assert alerts(telemetry) == expected
    assert [line.message for line in caplog.records] == list(expected)
    assert [line.fields for line in caplog.records] == [{"model": "luna"}] * len(expected)  # type: ignore[attr-defined]
