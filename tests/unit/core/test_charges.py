"""Charges of attempts: exact, monotone, independent of neighbours; parts that add up to printed totals."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.datamodels import EngineCoefficients
from router.core.charges import (
    NANO_PER_CENT,
    api_charge,
    apportion,
    local_charge,
    rounded_to,
    standard_rate,
    work_cost_nanousd,
)
from router.core.request import TokenUsage
from router.core.snapshot import AssetRate, PriceRow, PriceTier
from router.core.vocabulary import Flag

COEFFICIENTS = EngineCoefficients(name="h100", t0_s=0.0, c_seq_s=190e-6, c_kv_s=0.0, c_prefill_s=35e-6, calibrated=True)
ASSET = AssetRate("gpu0", standard_rate(Decimal("2.50"), Decimal(1)), version="rented-2.50")
ROW = PriceRow(
    model="gpt-6.1-sol",
    provider="openai",
    tiers=(PriceTier(0, Decimal(2), Decimal(10)), PriceTier(272_001, Decimal(4), Decimal(15))),
    effective_from_utc=datetime(2026, 1, 1, tzinfo=UTC),
    valid_until_utc=None,
    source="test",
    version="v1",
)
counts = st.integers(0, 20_000)


def local(usage: TokenUsage) -> int:
    return local_charge(ASSET, COEFFICIENTS, usage).amount_nanousd


def test_a_complete_local_answer_costs_its_standard_work():
    charge = local_charge(ASSET, COEFFICIENTS, TokenUsage(1000, 300))
    assert charge.amount_nanousd == 63_889
    assert charge.work_gpu_ns == 92_000_000
    assert charge.flags == ()


def test_an_aborted_local_answer_pays_its_uncached_prefill_and_the_tokens_emitted():
    assert local(TokenUsage(2000, 120, cached_input_tokens=1500)) == 27_986


def test_an_answer_aborted_in_the_queue_costs_nothing():
    assert local(TokenUsage(0, 0)) == 0


def test_an_hour_of_such_charges_is_absorbed_to_the_nano_dollar():
    r1, r2, r3 = (
        local(TokenUsage(1000, 300)),
        local(TokenUsage(2000, 120, cached_input_tokens=1500)),
        local(TokenUsage(0, 0)),
    )
    absorbed = 20_000 * r1 + 1_000 * r2 + 50 * r3
    assert absorbed == 1_305_766_000
    assert 2_500_000_000 - absorbed == 1_194_234_000
    assert 40_000 * r1 == 2_555_560_000


def test_an_unpriced_asset_charges_nothing_and_says_so():
    charge = local_charge(AssetRate("gpu0", None), COEFFICIENTS, TokenUsage(1000, 300))
    assert charge.amount_nanousd == 0
    assert charge.work_gpu_ns == 92_000_000
    assert Flag.UNPRICED_ASSET in charge.flags


def test_uncalibrated_coefficients_and_estimated_usage_are_flagged():
    charge = local_charge(ASSET, replace(COEFFICIENTS, calibrated=False), TokenUsage(1000, 300, estimated=True))
    assert set(charge.flags) == {Flag.COEFFS_UNCALIBRATED, Flag.USAGE_ESTIMATED}


def test_the_price_version_names_rate_and_coefficients():
    assert local_charge(ASSET, COEFFICIENTS, TokenUsage(1, 1)).price_version == "rented-2.50/h100"


@given(counts, counts, counts)
def test_more_uncached_prompt_or_more_output_never_costs_less(prompt, cached, out):
    cached = min(cached, prompt)
    here = local(TokenUsage(prompt, out, cached_input_tokens=cached))
    assert here <= local(TokenUsage(prompt + 1, out, cached_input_tokens=cached))
    assert here <= local(TokenUsage(prompt, out + 1, cached_input_tokens=cached))


@given(counts, st.integers(0, 400))
def test_an_aborted_answer_costs_between_nothing_and_the_complete_one(prompt, emitted):
    assert 0 <= local(TokenUsage(prompt, emitted)) <= local(TokenUsage(prompt, 400))


@given(st.integers(0, 10**14), st.integers(1, 100_000), st.integers(1, 100))
def test_an_endless_rate_still_rounds_like_the_exact_ratio(work_ns, cents_per_hour, kappa_percent):
    rate = standard_rate(Decimal(cents_per_hour) / 100, Decimal(kappa_percent) / 100)
    exact = Fraction(cents_per_hour, 100) * work_ns / (3600 * Fraction(kappa_percent, 100))
    assert work_cost_nanousd(rate, work_ns) == round(exact)


def test_a_tie_under_an_endless_rate_goes_to_the_even_side():
    rate = standard_rate(Decimal("2.50"), Decimal(1))
    assert [work_cost_nanousd(rate, ns) for ns in (720, 2160, 3600, 13_680)] == [0, 2, 2, 10]


@pytest.mark.parametrize(
    ("usd_per_hour", "kappa", "work_ns", "nanousd"),
    [("0.60", "1", 3_000, 0), ("7", "1", 1_800, 4), ("3.10", "0.7", 63_000, 78), ("0.60", "0.85", 38_250, 8)],
)
def test_a_tie_that_the_rates_last_digit_would_break_goes_to_the_even_side(usd_per_hour, kappa, work_ns, nanousd):
    assert work_cost_nanousd(standard_rate(Decimal(usd_per_hour), Decimal(kappa)), work_ns) == nanousd


@pytest.mark.parametrize(("usd", "kappa"), [("-1", "1"), ("1", "0"), ("1", "1.01"), ("NaN", "1")])
def test_a_rate_out_of_range_is_refused(usd, kappa):
    with pytest.raises(ValueError, match=r"usd_per_hour|practical_capacity_ratio"):
        standard_rate(Decimal(usd), Decimal(kappa))


def test_an_api_charge_books_the_priced_usage_and_names_the_row():
    charge = api_charge(ROW, TokenUsage(272_000, 500))
    assert (charge.amount_nanousd, charge.price_version, charge.flags) == (549_000_000, "v1", ())
    assert charge.work_gpu_ns is None


def test_an_api_charge_beyond_the_cliff_says_so():
    charge = api_charge(ROW, TokenUsage(272_001, 500))
    assert (charge.amount_nanousd, charge.flags) == (1_095_504_000, (Flag.TIER_CLIFF,))


def test_flags_of_usage_and_row_travel_with_the_charge_once():
    peak = replace(ROW, flags=(Flag.PEAK_HOURS,))
    usage = TokenUsage(10, 5, cached_input_tokens=20, estimated=True, flags=(Flag.USAGE_ESTIMATED,))
    assert api_charge(peak, usage).flags == (Flag.USAGE_ESTIMATED, Flag.USAGE_INCONSISTENT, Flag.PEAK_HOURS)


def test_ten_cents_over_three_are_four_three_and_three():
    thirds = apportion(100_000_000, [1, 1, 1])
    assert sum(thirds) == 100_000_000
    assert rounded_to(NANO_PER_CENT, thirds) == [4, 3, 3]


@given(st.integers(-(10**12), 10**12), st.lists(st.integers(0, 10**9), min_size=1).filter(any))
def test_apportioned_parts_add_up_and_miss_their_share_by_less_than_one(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1


@given(st.lists(st.integers(-(10**12), 10**12)))
def test_printed_cents_add_up_to_the_printed_total(parts):
    cents = rounded_to(NANO_PER_CENT, parts)
    assert sum(cents) == round(Fraction(sum(parts), NANO_PER_CENT))
    assert all(abs(c * NANO_PER_CENT - p) < NANO_PER_CENT for c, p in zip(cents, parts, strict=True))


def test_nothing_can_be_apportioned_by_zero_or_negative_weights():
    with pytest.raises(ValueError, match="all weights"):
        apportion(10, [0, 0])
    with pytest.raises(ValueError, match="negative"):
        apportion(10, [1, -1])
