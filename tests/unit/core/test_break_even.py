"""From which load on hardware of one's own pays."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.break_even import BreakEven, Verdict, break_even, sensitivity


def at(usd_per_hour: str, api_input: str, api_output: str) -> BreakEven:
    """512 in, 256 out on an engine that carries 20.57 requests a second within its promise and 24.37 at most."""
    return break_even(
        usd_per_hour=Decimal(usd_per_hour),
        input_tokens=512,
        output_tokens=256,
        api_input_usd_per_mtok=Decimal(api_input),
        api_output_usd_per_mtok=Decimal(api_output),
        slo_capacity_rps=Decimal("20.57"),
        saturation_rps=Decimal("24.37"),
    )


@pytest.mark.parametrize(
    ("usd_per_hour", "api_input", "api_output", "usd_per_request", "requests_per_s", "share", "verdict"),
    [
        ("2.50", "0.10", "0.50", "0.0001792", "3.8752", "0.1884", Verdict.YES),
        ("2.50", "0.15", "0.60", "0.0002304", "3.0141", "0.1465", Verdict.YES),
        ("2.50", "0.05", "0.08", "0.00004608", "15.0704", "0.7326", Verdict.YES),
        ("2.50", "0.02", "0.05", "0.00002304", "30.1408", "1.4653", Verdict.NEVER),
        ("2.00", "0.02", "0.05", "0.00002304", "24.1127", "1.1722", Verdict.ABOVE_SLO),
        ("2.50", "2", "10", "0.003584", "0.1938", "0.0094", Verdict.YES),
        ("6.98", "0.10", "0.50", "0.0001792", "10.8197", "0.5260", Verdict.YES),
        ("6.98", "0.05", "0.08", "0.00004608", "42.0766", "2.0455", Verdict.NEVER),
    ],
)
def test_an_h100_against_real_prices(
    usd_per_hour: str,
    api_input: str,
    api_output: str,
    usd_per_request: str,
    requests_per_s: str,
    share: str,
    verdict: Verdict,
) -> None:
    found = at(usd_per_hour, api_input, api_output)
    assert found.requests_per_s is not None and found.share_of_slo_capacity is not None
    assert found.usd_per_request == Decimal(usd_per_request)
    assert round(found.requests_per_s, 4) == Decimal(requests_per_s)
    assert round(found.share_of_slo_capacity, 4) == Decimal(share)
    assert found.verdict is verdict


def test_requests_per_hour_to_the_cent() -> None:
    per_hour = at("2.50", "0.10", "0.50").requests_per_hour
    assert per_hour is not None and round(per_hour, 2) == Decimal("13950.89")


def test_an_api_that_costs_no_more_than_the_power_is_never_beaten() -> None:
    found = break_even(
        usd_per_hour=Decimal(2),
        input_tokens=512,
        output_tokens=256,
        api_input_usd_per_mtok=Decimal("0.02"),
        api_output_usd_per_mtok=Decimal("0.05"),
        slo_capacity_rps=Decimal(20),
        saturation_rps=Decimal(24),
        marginal_usd_per_request=Decimal("0.00002304"),
    )
    assert (found.requests_per_hour, found.requests_per_s, found.share_of_slo_capacity) == (None, None, None)
    assert found.verdict is Verdict.NEVER


@pytest.mark.parametrize(("slo", "saturation"), [("0", "1"), ("-1", "1"), ("2", "1")])
def test_capacities_that_cannot_be_are_refused(slo: str, saturation: str) -> None:
    with pytest.raises(ValueError, match="capacities"):
        break_even(
            usd_per_hour=Decimal(1),
            input_tokens=1,
            output_tokens=1,
            api_input_usd_per_mtok=Decimal(1),
            api_output_usd_per_mtok=Decimal(1),
            slo_capacity_rps=Decimal(slo),
            saturation_rps=Decimal(saturation),
        )


_usd = st.decimals(min_value=Decimal("0.001"), max_value=1000, places=3)


@given(cheaper=_usd, more=_usd, price=_usd)
def test_dearer_hardware_needs_more_load(cheaper: Decimal, more: Decimal, price: Decimal) -> None:
    low, high = (
        at(str(usd), str(price), str(price)).requests_per_s or Decimal("inf") for usd in (cheaper, cheaper + more)
    )
    assert low < high


def test_the_answer_moves_with_rate_price_and_utilisation() -> None:
    rows = sensitivity(
        Decimal("0.0001792"),
        usd_per_hour=Decimal("2.50"),
        slo_capacity_rps=Decimal("20.57"),
        saturation_rps=Decimal("24.37"),
    )
    by = {(row.what, row.factor): row for row in rows}
    assert round(by["usd_per_hour", Decimal(2)].requests_per_s or 0, 4) == Decimal("7.7505")
    assert by["api_price", Decimal("0.25")].verdict is Verdict.YES
    assert round(by["api_price", Decimal("0.25")].share_of_slo_capacity or 0, 4) == Decimal("0.7536")
    # it breaks even at 18.84 % of the capacity: at 10 % a request is dearer than the API's, at 25 % it is not
    assert by["utilization", Decimal("0.1")].verdict is Verdict.NO, "at a higher load it pays"
    assert by["utilization", Decimal("0.25")].verdict is Verdict.YES
    assert by["utilization", Decimal(1)].usd < by["utilization", Decimal("0.5")].usd
