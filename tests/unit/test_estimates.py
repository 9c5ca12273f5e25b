"""Cost before the call: models, tiers, the local engine, and what `auto` may come to."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Tier
from router.errors import BadRequest, NotFound
from router.estimates import estimate, estimate_shown
from router.prices import PriceBook
from router.settings import Settings, parse_settings

AT = datetime(2026, 11, 22, tzinfo=UTC)
USAGE = TokenUsage(1000, 300)
LOCAL = """
tiers:
  local:
    engine: external
    api_base: http://127.0.0.1:9/v1
    model: llama
    practical_capacity_ratio: 1
    hardware: {kind: rented, usd_per_hour: 2.50}
    coefficients: {t0_s: 0, c_seq_s: 0.000190, c_kv_s: 0, c_prefill_s: 0.000035}
"""
CHEAP = "  cheap: {model: openai/gpt-6-luna, api_key_env: K}\n"
PREMIUM = (
    "  premium: {models: [{model: openai/gpt-6.1-sol, api_key_env: K}, {model: openai/gpt-6-sol, api_key_env: M}]}\n"
)


def house(text: str = LOCAL + CHEAP + PREMIUM) -> Settings:
    return parse_settings(text, {"K": "sk-1"})


def told(model: str, settings: Settings | None = None, usage: TokenUsage = USAGE) -> dict[str, object]:
    settings = settings or house()
    found = estimate(settings, PriceBook.load(settings.price_overrides()), model, usage, AT)
    return estimate_shown(found, usage)


@pytest.mark.parametrize("name", ["local", "llama", "auto:local"])
def test_a_local_answer_is_estimated_at_the_standard_cost_it_will_be_booked_at(name: str) -> None:
    assert told(name) == {
        "model": name,
        "input_tokens": 1000,
        "output_tokens": 300,
        "tier": "local",
        "expected_cost_usd": 0.000063889,
        "expected_cost_nanousd": 63_889,
        "basis": "standard cost",
        "price_version": "rented-2.5/h@1/config-417e441d/config-417e441d",
        "unavailable": None,
        "flags": [],
    }


def test_cached_tokens_make_a_local_answer_cheaper() -> None:
    assert told("local", usage=TokenUsage(2000, 120, 1500))["expected_cost_nanousd"] == 27_986


def test_a_local_tier_without_hardware_is_estimated_at_nothing_and_says_why() -> None:
    settings = house(LOCAL.replace("    hardware: {kind: rented, usd_per_hour: 2.50}\n", ""))
    found = told("local", settings)
    assert (found["expected_cost_nanousd"], found["flags"]) == (0, [Flag.UNPRICED_ASSET.value])


@pytest.mark.parametrize("name", ["cheap", "openai/gpt-6-luna", "gpt-6-luna"])
def test_a_tier_of_one_model_is_that_model(name: str) -> None:
    found = told(name)
    assert (found["tier"], found["expected_cost_nanousd"], found["basis"]) == ("cheap", 250_000, "price")


def test_a_tier_of_several_models_has_a_range_over_those_that_can_answer() -> None:
    settings = house()
    found = estimate(settings, PriceBook.load(), "premium", USAGE, AT)
    assert [(quote.model, quote.unavailable) for quote in found.quotes] == [
        ("openai/gpt-6.1-sol", None),
        ("openai/gpt-6-sol", "M is not set"),
    ]
    assert found.sole is None
    assert found.usd_range == (Decimal("0.005"), Decimal("0.005"))
    assert found.depends_on is not None and "which model of the tier" in found.depends_on


@pytest.mark.parametrize("name", ["auto", "auto:cheap", "auto:quality"])
def test_auto_tells_its_range_and_what_it_depends_on(name: str) -> None:
    found = told(name)
    assert found["expected_cost_usd"] is None
    assert (found["min_cost_nanousd"], found["max_cost_nanousd"]) == (63_889, 5_000_000)
    assert "how full the local engine is" in str(found["depends_on"])
    choices = found["choices"]
    assert isinstance(choices, list)
    assert [(c["tier"], c["model"]) for c in choices] == [
        ("local", "llama"),
        ("cheap", "openai/gpt-6-luna"),
        ("premium", "openai/gpt-6.1-sol"),
        ("premium", "openai/gpt-6-sol"),
    ]


def test_auto_with_one_model_is_that_model() -> None:
    assert told("auto", house("tiers:\n" + CHEAP))["expected_cost_nanousd"] == 250_000


def test_a_model_of_the_price_book_needs_no_config() -> None:
    found = told("anthropic/claude-sonnet-5-5")
    assert (found["tier"], found["expected_cost_nanousd"]) == (None, 5_000_000)


@pytest.mark.parametrize(("name", "error"), [("local", NotFound), ("premium", NotFound), ("nonsense", BadRequest)])
def test_what_is_not_there_is_a_clear_error(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"tiers\.|price"):
        told(name, house("tiers:\n" + CHEAP))


def test_every_tier_can_be_asked_by_its_name() -> None:
    assert [told(tier.value)["tier"] for tier in (Tier.LOCAL, Tier.CHEAP)] == ["local", "cheap"]


REPLICAS = """
tiers:
  local:
    engine: external
    model: llama
    practical_capacity_ratio: 1
    hardware: {kind: rented, usd_per_hour: 2.50}
    coefficients: {t0_s: 0, c_seq_s: 0.000190, c_kv_s: 0, c_prefill_s: 0.000035}
    engines:
      - {name: a, api_base: 'http://127.0.0.1:9/v1'}
      - {name: b, api_base: 'http://127.0.0.1:10/v1', hardware: {kind: rented, usd_per_hour: RATE}}
"""


def test_replicas_of_one_price_are_estimated_as_one_engine_and_others_as_a_range() -> None:
    same, dearer = house(REPLICAS.replace("RATE", "2.50")), house(REPLICAS.replace("RATE", "5"))
    assert told("llama", same)["expected_cost_nanousd"] == told("local", same)["expected_cost_nanousd"] == 63_889
    assert told("local/b", dearer)["expected_cost_nanousd"] == 127_778
    both = told("llama", dearer)
    assert (both["min_cost_nanousd"], both["max_cost_nanousd"]) == (63_889, 127_778)
    assert [choice["model"] for choice in both["choices"]] == ["local/a", "local/b"]  # type: ignore[attr-defined]
