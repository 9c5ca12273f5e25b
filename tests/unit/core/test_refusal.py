"""What a caller is told where nothing may answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from local_llm.datamodels import ProcessState
from router.core.decision import PolicyConfig
from router.core.policy import decide
from router.core.refusal import why_nothing
from router.core.request import TokenEstimate
from router.core.vocabulary import Locality, Reject, Tier
from router.errors import Saturated
from tests.fakes import ALL, EASY, FULL, LOCAL, engine, facts, snapshot

HOME = facts(locality=Locality.LOCAL_ONLY)


def told(**changes: object) -> str:
    decision = decide(HOME, EASY, ALL, snapshot(engines={LOCAL.name: engine(**changes)}), PolicyConfig())
    error = why_nothing(decision, HOME, ALL, retry_after_s=3.0)
    assert isinstance(error, Saturated)
    assert error.code == "local_saturated"
    return error.message


def test_a_full_engine_is_called_full() -> None:
    assert told(inflight=FULL).startswith("The local engine is full and")


def test_an_engine_that_tells_nothing_is_not_called_full() -> None:
    said = told(metrics_required=("running_requests",))
    assert "cannot be told (METRICS_STALE" in said
    assert "full and" not in said


def test_who_knows_no_reason_codes_is_told_in_words_what_is_wrong() -> None:
    stopped = snapshot(engines={LOCAL.name: engine(state=ProcessState.STARTING)})
    said = why_nothing(decide(HOME, EASY, ALL, stopped, PolicyConfig()), HOME, ALL, retry_after_s=3.0).message
    assert f"{LOCAL.name}: UNHEALTHY (it does not run, or has not started yet)" in said
    assert "RESIDENCY (this request must stay at home)" in said


@pytest.mark.parametrize(
    ("prompt", "most", "param", "cure"),
    [
        (900_000, None, "messages", "Shorten the prompt."),
        (390_000, 20_000, "messages", "Shorten the prompt or lower max_tokens."),
        (200, 500_000, "max_tokens", "Lower max_tokens."),
    ],
)
def test_a_request_beyond_every_window_is_told_which_part_of_it_is_too_long(
    prompt: int, most: int | None, param: str, cure: str
) -> None:
    asked = facts(estimate=TokenEstimate(prompt, 100, 300, "class_mean", False), max_output_tokens=most)
    error = why_nothing(decide(asked, EASY, ALL, snapshot(), PolicyConfig()), asked, ALL, retry_after_s=3.0)
    assert (error.code, error.param) == ("context_length_exceeded", param)
    assert error.message.endswith(cure)


def test_who_pins_a_tier_is_told_of_that_tier_only() -> None:
    keyless = [
        replace(c, unavailable=Reject.UNCONFIGURED, unavailable_detail=f"no key for {c.tier.value}")
        for c in ALL
        if c.tier is not Tier.LOCAL
    ]
    asked = facts(pinned_tier=Tier.CHEAP)
    error = why_nothing(decide(asked, EASY, keyless, snapshot(), PolicyConfig()), asked, keyless, retry_after_s=3.0)
    assert "no key for cheap" in error.message
    assert "premium" not in error.message


@pytest.mark.parametrize("locality", list(Locality))
def test_who_asks_for_more_than_home_can_is_told_which_key_would_help(locality: Locality) -> None:
    at_home = replace(LOCAL, supports_tools=False)
    keyless = [
        replace(c, unavailable=Reject.UNCONFIGURED, unavailable_detail=f"{c.tier.value.upper()}_KEY is not set")
        for c in ALL
        if c.tier is not Tier.LOCAL
    ]
    some = [at_home, *keyless]
    for asked in (
        facts(locality=locality, needs_tools=True),
        facts(locality=locality, estimate=TokenEstimate(100_000, 100, 300, "class_mean", False)),
    ):
        error = why_nothing(decide(asked, EASY, some, snapshot(), PolicyConfig()), asked, some, retry_after_s=3.0)
        assert error.code in {"capability_missing", "context_length_exceeded"}
        assert ("but CHEAP_KEY is not set" in error.message) is (locality is Locality.ANY)
    asked = facts(locality=locality, estimate=TokenEstimate(200_000, 100, 300, "class_mean", False))
    error = why_nothing(decide(asked, EASY, some, snapshot(), PolicyConfig()), asked, some, retry_after_s=3.0)
    assert "CHEAP_KEY" not in error.message
