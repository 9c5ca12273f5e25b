"""Hours of hardware: cut, invoiced, absorbed, and never more or less than the invoice."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.datamodels import EngineCoefficients
from router.core.charges import NANO_PER_CENT, apportion, local_charge, rounded_to, standard_rate
from router.core.periods import (
    GRACE_US,
    HOUR_US,
    OnInterval,
    Period,
    Rate,
    Span,
    due,
    fully_loaded,
    next_part,
    on_us,
    place,
    settle_period,
    span_at,
    spans,
    status_of,
)
from router.core.request import TokenUsage
from router.core.snapshot import AssetRate
from router.core.vocabulary import Outcome

H0 = 496_000 * HOUR_US  # some full hour
RENT = Rate(H0, Decimal("2.50"), "rented-2.50")
COEFFICIENTS = EngineCoefficients("at", t0_s=0.0, c_seq_s=190e-6, c_kv_s=0.0, c_prefill_s=35e-6, calibrated=True)
ASSET = AssetRate("gpu0", standard_rate(Decimal("2.50"), Decimal(1)), version="rented-2.50")
R1 = local_charge(ASSET, COEFFICIENTS, TokenUsage(1000, 300)).amount_nanousd
R2 = local_charge(ASSET, COEFFICIENTS, TokenUsage(2000, 120, cached_input_tokens=1500)).amount_nanousd
R3 = local_charge(ASSET, COEFFICIENTS, TokenUsage(0, 0)).amount_nanousd

moments = st.integers(H0, H0 + 10 * HOUR_US)


def closed(absorbed: int, on_for_us: int = HOUR_US) -> Period:
    return settle_period(
        "gpu0", Span(H0, H0 + HOUR_US, RENT), on_for_us=on_for_us, absorbed_nanousd=absorbed, work_gpu_ns=0
    )


def rates_at(*changes: int) -> list[Rate]:
    return [RENT, *(Rate(at, Decimal(index + 3), f"v{index}") for index, at in enumerate(sorted(set(changes))))]


def test_an_hour_of_two_kinds_of_requests_to_the_nano_dollar():
    hour = closed(20_000 * R1 + 1_000 * R2 + 50 * R3)
    assert (hour.absorbed_nanousd, hour.unabsorbed_nanousd, hour.invoice_nanousd) == (
        1_305_766_000,
        1_194_234_000,
        2_500_000_000,
    )
    assert hour.loading_factor is not None
    assert round(hour.loading_factor, 9) == Decimal("1.914585002")
    assert round(R1 * hour.loading_factor) == 122_321
    loaded = fully_loaded(hour.invoice_nanousd, [R1] * 20_000 + [R2] * 1_000 + [R3] * 50)
    assert loaded is not None
    assert sum(loaded) == 2_500_000_000
    assert set(loaded[:20_000]) <= {122_320, 122_321}
    assert loaded[-1] == 0


def test_an_hour_sold_beyond_its_standard_shows_a_variance_and_loads_less():
    hour = closed(40_000 * R1)
    assert (hour.absorbed_nanousd, hour.unabsorbed_nanousd) == (2_555_560_000, -55_560_000)
    assert hour.loading_factor is not None
    assert round(R1 * hour.loading_factor) == 62_500


def test_an_asset_that_was_on_for_forty_minutes_is_invoiced_for_them():
    assert closed(0, 40 * 60_000_000).invoice_nanousd == 1_666_666_667


def test_an_idle_hour_can_be_loaded_on_nobody():
    assert closed(0).loading_factor is None
    assert fully_loaded(2_500_000_000, [0, 0]) is None
    assert fully_loaded(2_500_000_000, []) is None


def test_the_invoice_by_line_adds_up_to_it():
    lines = (("capital", Decimal("1.1475")), ("energy", Decimal("0.1053")), ("colo", Decimal("0.15")))
    hour = replace(closed(0), cost_lines=lines, invoice_nanousd=1_402_800_001)
    assert sum(hour.invoice_lines().values()) == 1_402_800_001
    assert list(hour.invoice_lines()) == ["capital", "energy", "colo"]
    assert closed(0).invoice_lines() == {"rent": 2_500_000_000}


def test_ten_cents_printed_over_three():
    assert rounded_to(NANO_PER_CENT, apportion(100_000_000, [1, 1, 1])) == [4, 3, 3]


def test_a_new_rate_splits_its_hour():
    change = H0 + 15 * 60_000_000
    rates = [RENT, Rate(change, Decimal(4), "rented-4")]
    first, second, third = spans(rates, H0, H0 + 2 * HOUR_US)
    assert (first.start_us, first.end_us, second.start_us, second.end_us) == (H0, change, change, H0 + HOUR_US)
    assert third == Span(H0 + HOUR_US, H0 + 2 * HOUR_US, rates[1])
    invoices = [
        settle_period("gpu0", s, on_for_us=s.end_us - s.start_us, absorbed_nanousd=0, work_gpu_ns=0).invoice_nanousd
        for s in (first, second)
    ]
    assert invoices == [625_000_000, 3_000_000_000]


def test_a_period_is_due_when_its_grace_is_over_and_not_before():
    end = H0 + HOUR_US
    assert list(due([RENT], H0, end + GRACE_US - 1)) == []
    assert [s.end_us for s in due([RENT], H0, end + GRACE_US)] == [end]
    assert [s.end_us for s in due([RENT], H0, end + 5 * HOUR_US + GRACE_US)] == [end + i * HOUR_US for i in range(6)]


def test_late_work_is_booked_in_the_first_open_period_and_names_its_own():
    assert place([RENT], H0 + 5, H0 + 3 * HOUR_US) == (H0 + 3 * HOUR_US, H0)
    assert place([RENT], H0 + 5, H0) == (H0, None)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("ok", "ok"), ("client_gone", "aborted"), ("timeout", "failed"), ("broken", "failed"), ("lost", "lost")],
)
def test_how_a_charge_came_about(outcome, status):
    assert status_of(Outcome(outcome)) == status


@given(st.lists(moments, max_size=5), moments)
def test_periods_cover_time_without_gap_or_overlap(changes, at):
    rates = rates_at(*changes)
    found = list(spans(rates, H0, H0 + 11 * HOUR_US))
    assert found[0].start_us == H0
    assert found[-1].end_us == H0 + 11 * HOUR_US
    assert all(a.end_us == b.start_us for a, b in pairwise(found))
    assert [s for s in found if s.start_us <= at < s.end_us] == [span_at(rates, at)]
    # one rate in each: a change of rate is a change of period
    assert {r.from_us for r in rates[1:]} <= {s.start_us for s in found}


@given(
    st.lists(st.tuples(moments, st.one_of(st.none(), moments)), max_size=6), st.lists(moments, min_size=2, max_size=2)
)
def test_on_time_is_counted_once_and_adds_up_over_periods(intervals, ends):
    on = [OnInterval(begin, end if end is None else max(begin, end)) for begin, end in intervals]
    start, end = sorted(ends)
    whole = on_us(on, start, end)
    assert 0 <= whole <= end - start
    middle = (start + end) // 2
    assert on_us(on, start, middle) + on_us(on, middle, end) == whole
    assert on_us([*on, *on], start, end) == whole


@given(st.lists(st.tuples(st.integers(0, 10**9), moments, moments), min_size=1, max_size=8), st.integers(0, 10**9))
def test_parts_add_up_to_the_last_total_however_often_they_are_told(told, total):
    booked: list[int] = []
    for cumulated, done, until in [*told, (total, H0 + HOUR_US, H0), (total, H0 + HOUR_US, H0)]:
        part = next_part(
            "r", 1, total_nanousd=cumulated, total_gpu_ns=cumulated, earlier=(len(booked), sum(booked), sum(booked)),
            done_us=done, rates=[RENT], closed_until_us=until - until % HOUR_US,
        )  # fmt: skip
        if part is not None:
            assert part.part == len(booked)
            booked.append(part.amount_nanousd)
    assert sum(booked) == total


@given(st.integers(0, 10**13), st.integers(-(10**13), 10**13), st.integers(0, HOUR_US))
def test_absorbed_and_unabsorbed_are_the_invoice(rate_nanousd, absorbed, on_for):
    span = Span(H0, H0 + HOUR_US, Rate(H0, Decimal(rate_nanousd) / 10**9, "v"))
    hour = settle_period("gpu0", span, on_for_us=on_for, absorbed_nanousd=absorbed, work_gpu_ns=0)
    assert hour.absorbed_nanousd + hour.unabsorbed_nanousd == hour.invoice_nanousd
    assert (hour.unabsorbed_nanousd < 0) == (absorbed > hour.invoice_nanousd)


@given(st.integers(0, 10**13), st.lists(st.integers(-(10**6), 10**9), max_size=50))
def test_loaded_costs_sum_to_the_invoice_whenever_something_was_absorbed(invoice, amounts):
    loaded = fully_loaded(invoice, amounts)
    if sum(amounts) <= 0:
        assert loaded is None
    else:
        assert loaded is not None
        assert sum(loaded) == invoice


@given(st.permutations([R1, R2, R3, 5, 7]), st.integers(0, 2000), st.integers(0, 400))
def test_what_a_request_costs_does_not_depend_on_who_else_was_served(neighbours, prompt, out):
    alone = local_charge(ASSET, COEFFICIENTS, TokenUsage(prompt, out))
    assert local_charge(ASSET, COEFFICIENTS, TokenUsage(prompt, out)) == alone
    loaded = fully_loaded(10**9, [*neighbours, alone.amount_nanousd])
    assert loaded is not None
    assert sum(loaded) == 10**9
