"""Costs are exact, cliffs are cliffs, impossible usage is clamped."""

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.pricing import (
    Forecast,
    cost_nanousd,
    cost_parts,
    divide_half_even,
    estimate_nanousd,
    estimate_usd,
    sane_usage,
    tier_for,
)
from router.core.request import TokenUsage
from router.core.snapshot import PriceRow, PriceTier
from router.core.vocabulary import Flag


def tier(start: int, input_usd: str, output_usd: str, cached: str | None = None, write: str | None = None) -> PriceTier:
    return PriceTier(
        from_input_tokens=start,
        input_usd_per_mtok=Decimal(input_usd),
        output_usd_per_mtok=Decimal(output_usd),
        cached_input_usd_per_mtok=None if cached is None else Decimal(cached),
        cache_write_usd_per_mtok=None if write is None else Decimal(write),
    )


def row(*tiers: PriceTier, fee: str = "0") -> PriceRow:
    return PriceRow(
        model="m",
        provider="p",
        tiers=tiers,
        effective_from_utc=datetime(2026, 1, 1, tzinfo=UTC),
        valid_until_utc=None,
        source="test",
        version="test/m@1",
        request_usd=Decimal(fee),
    )


LUNA = row(tier(0, "0.1", "0.5", "0.01", "0.125"), tier(272_001, "0.2", "0.75", "0.02", "0.25"))
SOL = row(tier(0, "2", "10", "0.1", "2.5"), tier(272_001, "4", "15", "0.2", "5"))
TURBO = row(tier(0, "10", "30"))
prices = st.decimals(min_value=0, max_value=1000, places=6, allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2_000_000)


def test_a_plain_call_costs_input_and_output_at_their_own_prices():
    assert cost_nanousd(LUNA, TokenUsage(1000, 300)) == 250_000
    assert estimate_usd(LUNA, 1000, 300) == Decimal("0.00025")


def test_cached_tokens_cost_the_cached_price_and_the_rest_the_input_price():
    assert cost_nanousd(SOL, TokenUsage(20_000, 500, cached_input_tokens=18_000)) == 10_800_000


def test_cached_tokens_cost_the_input_price_where_the_row_has_no_cached_price():
    usage = TokenUsage(20_000, 500, cached_input_tokens=18_000)
    assert cost_nanousd(TURBO, usage) == cost_nanousd(TURBO, TokenUsage(20_000, 500))


def test_written_tokens_cost_the_cache_write_price():
    usage = TokenUsage(10_000, 0, cached_input_tokens=2_000, cache_write_tokens=5_000)
    assert cost_nanousd(SOL, usage) == 3_000 * 2_000 + 2_000 * 100 + 5_000 * 2_500


def test_a_tier_is_a_cliff_that_applies_to_all_tokens():
    assert estimate_usd(SOL, 272_000, 500) == Decimal("0.549")
    assert estimate_usd(SOL, 272_001, 500) == Decimal("1.095504")
    assert cost_nanousd(SOL, TokenUsage(272_000, 0)) == 544_000_000
    assert cost_nanousd(SOL, TokenUsage(272_001, 0)) == 1_088_004_000


def test_cached_tokens_count_towards_the_cliff():
    usage = TokenUsage(272_001, 0, cached_input_tokens=272_001)
    assert cost_nanousd(SOL, usage) == 272_001 * 200
    assert tier_for(SOL, 272_001) is SOL.tiers[1]
    assert tier_for(SOL, 272_000) is SOL.tiers[0]


def test_a_fee_per_call_is_added_once():
    sonar = row(tier(0, "1", "1"), fee="0.005")
    assert cost_nanousd(sonar, TokenUsage(100, 100)) == 5_200_000
    assert cost_parts(sonar, TokenUsage(100, 100)).total_usd == Decimal("0.0052")


def test_halves_of_a_nano_dollar_go_to_the_even_side():
    half = row(tier(0, "0.0005", "0"))
    assert [cost_nanousd(half, TokenUsage(n, 0)) for n in (1, 3, 5)] == [0, 2, 2]
    assert estimate_usd(half, 1, 0) == Decimal("0.0000000005")


def test_no_float_drift_over_a_million_rows():
    # 0.1 and 0.3 have no binary form: a float sum of these drifts
    drifting = row(tier(0, "0.1", "0.3"))
    total = 0
    for tokens in range(1_000_000):
        total += cost_nanousd(drifting, TokenUsage(tokens & 7, 1))
    assert total == 125_000 * sum(n * 100 for n in range(8)) + 1_000_000 * 300
    floats = sum((n & 7) * 0.1 / 1e6 + 0.3 / 1e6 for n in range(1_000_000))
    assert Decimal(floats) != Decimal(total) / 10**9


@given(prices, prices, prices, counts, counts, counts)
def test_the_booked_cost_is_the_exact_cost_rounded_once(i, c, o, input_tokens, cached, output):
    cached = min(cached, input_tokens)
    r = row(tier(0, str(i), str(o), str(c)))
    exact = (Fraction(i) * (input_tokens - cached) + Fraction(c) * cached + Fraction(o) * output) / 10**6
    as_decimal = estimate_usd(r, input_tokens, output, cached)
    assert Fraction(as_decimal) == exact
    booked = cost_nanousd(r, TokenUsage(input_tokens, output, cached_input_tokens=cached))
    assert booked == int((as_decimal * 10**9).to_integral_value(rounding=ROUND_HALF_EVEN))
    assert booked == estimate_nanousd(r, input_tokens, output, cached)


@given(prices, prices, counts, counts)
def test_parts_add_up_to_the_cost(i, o, input_tokens, output):
    r = row(tier(0, str(i), str(o)))
    assert cost_parts(r, TokenUsage(input_tokens, output)).total_usd == estimate_usd(r, input_tokens, output)


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_half_even_division_agrees_with_decimal(numerator, denominator):
    expected = round(Fraction(numerator, denominator))
    assert divide_half_even(numerator, denominator) == expected


@given(*[st.integers(-1000, 1000)] * 5)
def test_impossible_usage_is_clamped_and_flagged_and_never_costs_less_than_nothing(i, c, w, o, r):
    usage = TokenUsage(i, o, cached_input_tokens=c, cache_write_tokens=w, reasoning_tokens=r)
    sane = sane_usage(usage)
    assert 0 <= sane.cached_input_tokens + sane.cache_write_tokens <= sane.input_tokens
    assert 0 <= sane.reasoning_tokens <= sane.output_tokens
    assert (sane is usage) == (Flag.USAGE_INCONSISTENT not in sane.flags)
    assert cost_nanousd(LUNA, usage) == cost_nanousd(LUNA, sane) >= 0


def test_more_cached_than_prompt_tokens_counts_as_all_cached():
    sane = sane_usage(TokenUsage(100, 5, cached_input_tokens=150))
    assert (sane.input_tokens, sane.cached_input_tokens) == (100, 100)
    assert sane.flags == (Flag.USAGE_INCONSISTENT,)


def test_consistent_usage_is_returned_as_it_is():
    usage = TokenUsage(100, 5, cached_input_tokens=100, reasoning_tokens=5)
    assert sane_usage(usage) is usage


def test_a_row_that_starts_above_zero_or_does_not_ascend_is_refused():
    with pytest.raises(ValueError, match="start at 0"):
        cost_nanousd(row(tier(1, "1", "1")), TokenUsage(1, 1))
    with pytest.raises(ValueError, match="ascend"):
        cost_nanousd(row(tier(0, "1", "1"), tier(0, "2", "2")), TokenUsage(1, 1))


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="-1"):
        cost_nanousd(row(tier(0, "-1", "1")), TokenUsage(1, 1))


def test_a_new_row_is_never_priced_with_the_table_of_an_old_one():
    for n in range(3000):  # more than the memo keeps; ids are reused by then
        assert cost_nanousd(row(tier(0, str(n), "0")), TokenUsage(1, 0)) == n * 1000


def test_a_support_bot_request_of_2100_tokens_costs_2_7_cents():
    parts = cost_parts(TURBO, TokenUsage(200 + 1_000 + 100 + 500, 300))
    assert (parts.input_usd, parts.output_usd) == (Decimal("0.018"), Decimal("0.009"))
    assert parts.total_usd == Decimal("0.027")


@pytest.mark.parametrize(
    ("per_day", "day", "month"), [(1_000, 27, 810), (10_000, 270, 8_100), (100_000, 2_700, 81_000)]
)
def test_a_forecast_scales_to_a_day_and_a_month_of_30_days(per_day, day, month):
    f = Forecast(cost_parts(TURBO, TokenUsage(1_800, 300)).total_usd, Decimal(per_day))
    assert (f.per_request_usd, f.per_day_usd, f.per_month_usd) == (Decimal("0.027"), day, month)


def test_a_million_requests_a_day_cost_what_the_measured_request_costs():
    request_usd = cost_parts(TURBO, TokenUsage(1_800, 300)).total_usd
    assert Forecast(request_usd, Decimal(1_000_000)).per_month_usd == 810_000


def test_3_cents_per_1k_times_100k_users_times_2k_tokens_is_180_000_a_month():
    flat = row(tier(0, "30", "30"))
    request_usd = cost_parts(flat, TokenUsage(2_000, 0)).total_usd
    assert Forecast(request_usd, Decimal(100_000)).per_month_usd == Decimal("180000.00")


@pytest.mark.parametrize(
    ("i", "o", "tokens", "at_most"),
    [
        ("0.15", "0.60", 500, "0.0003"),
        ("2.50", "10", 2000, "0.020"),
        ("3", "15", 5000, "0.075"),
        ("0.15", "0.60", 300, "0.00018"),
    ],
)
def test_no_split_of_a_request_costs_more_than_all_of_it_as_output(i, o, tokens, at_most):
    r = row(tier(0, i, o))
    costs = [estimate_usd(r, tokens - out, out) for out in range(0, tokens + 1, 50)]
    assert max(costs) == Decimal(at_most)


@given(prices, prices, prices, prices, counts, counts, counts)
def test_what_is_reserved_is_what_the_same_call_would_be_booked_at(i, c, o, fee, input_tokens, cached, output):
    priced = row(tier(0, str(i), str(o), str(c)), fee=str(fee))
    cached = min(cached, input_tokens)
    booked = cost_nanousd(priced, TokenUsage(input_tokens, output, cached))
    assert estimate_nanousd(priced, input_tokens, output, cached) == booked
    exact = estimate_usd(priced, input_tokens, output, cached) * 10**9
    assert exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN) == booked
