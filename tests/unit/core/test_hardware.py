"""The hourly cost of owned hardware and the invoice of an asset."""

from dataclasses import replace
from decimal import Decimal

import pytest

from router.core.hardware import (
    OwnedHardware,
    annuity_usd,
    energy_usd_per_gpu_s,
    hourly_cost,
    invoice_nanousd,
    payback_years,
)

CARD = OwnedHardware(
    purchase_usd=Decimal(40_000),
    residual_usd=Decimal(10_000),
    years=Decimal(4),
    discount_rate_ratio=Decimal("0.08"),
    availability_ratio=Decimal("0.98"),
    power_kw=Decimal("0.9"),
    pue_ratio=Decimal("1.3"),
    usd_per_kwh=Decimal("0.09"),
    colo_usd_per_hour=Decimal("0.15"),
    ops_usd_per_hour=Decimal("0.25"),
)
FOUR = Decimal("0.0001")


def test_an_owned_card_costs_capital_energy_space_and_operations():
    cost = hourly_cost(CARD)
    assert cost.capital_usd.quantize(FOUR) == Decimal("1.1475")
    assert cost.energy_usd == Decimal("0.1053")
    assert cost.total_usd.quantize(FOUR) == Decimal("1.6528")


def test_capital_is_straight_line_without_a_discount_rate():
    cost = hourly_cost(replace(CARD, discount_rate_ratio=Decimal(0)))
    assert cost.capital_usd.quantize(FOUR) == Decimal("0.8730")


def test_a_tiny_discount_rate_is_close_to_straight_line():
    near = annuity_usd(Decimal(40_000), Decimal(10_000), Decimal("1e-9"), Decimal(4))
    assert abs(near - 7500) < Decimal("0.001")


def test_it_pays_back_against_renting_in_2_334_years():
    years = payback_years(CARD, Decimal("2.50"))
    assert years is not None
    assert years.quantize(Decimal("0.001")) == Decimal("2.334")


def test_it_never_pays_back_where_rent_is_below_the_running_cost():
    assert payback_years(CARD, Decimal("0.50")) is None


def test_energy_is_the_marginal_cost_of_a_busy_second():
    assert energy_usd_per_gpu_s(CARD) * 3600 == Decimal("0.1053")


def test_forty_minutes_of_being_on_cost_two_thirds_of_the_rate():
    assert invoice_nanousd(Decimal("2.50"), 40 * 60 * 10**9) == 1_666_666_667


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("years", 0),
        ("availability_ratio", 0),
        ("availability_ratio", 2),
        ("discount_rate_ratio", -1),
        ("residual_usd", 50_000),
    ],
)
def test_impossible_figures_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        replace(CARD, **{field: Decimal(value)})


def test_time_that_did_not_pass_is_refused():
    with pytest.raises(ValueError, match="on_ns"):
        invoice_nanousd(Decimal(1), -1)
