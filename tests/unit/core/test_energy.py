"""The energy of an hour: what the cards' counters tell, what is modelled where they do not, and what it costs."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.energy import (
    Basis,
    CardLook,
    EnergyBasis,
    EnergyTerms,
    Meter,
    Stretch,
    between,
    energy_nanousd,
    energy_use,
)
from router.core.periods import HOUR_US, Rate, Span, settle_period

H0 = 1_795_435_200_000_000
SECOND_US, MINUTE_US = 1_000_000, 60_000_000
TERMS = EnergyTerms(power_kw=Decimal("0.9"), wall_usd_per_kwh=Decimal("0.117"))  # PUE 1.3 at 0.09 USD/kWh
LINES = (
    ("capital", Decimal("1.1475")),
    ("energy", Decimal("0.1053")),
    ("colo", Decimal("0.15")),
    ("ops", Decimal("0.25")),
)
RATE = Rate(H0, Decimal("1.6528"), "owned-1.6528", LINES, TERMS)
HOUR = Span(H0, H0 + HOUR_US, RATE)


def look(after_s: float, counter_j: float | None = None, power_w: float | None = None, card: str = "A") -> CardLook:
    counter, power = (None if value is None else round(value * 1000) for value in (counter_j, power_w))
    return CardLook(card, H0 + round(after_s * 1e6), counter, power)


def stretch(from_s: int, to_s: int, energy_j: int, card: str = "A", cards: int = 1) -> Stretch:
    return Stretch(card, H0 + from_s * SECOND_US, H0 + to_s * SECOND_US, energy_j * 1000, Basis.COUNTER, 0, cards)


def use_of(*stretches: Stretch, on_for_us: int = HOUR_US) -> tuple[int, int, EnergyBasis]:
    found = energy_use(stretches, TERMS, start_us=H0, end_us=H0 + HOUR_US, on_for_us=on_for_us)
    return found.measured_mj, found.modelled_mj, found.basis


# --- between two looks ---------------------------------------------------------------------------------------------


def test_the_counter_tells_what_was_drawn_between_two_looks_however_far_apart() -> None:
    drawn = between(look(0, 1_000), look(7_200, 2_161_000), 1)
    assert drawn is not None
    assert (drawn.energy_mj, drawn.basis, drawn.counter_mj) == (2_160_000_000, Basis.COUNTER, 2_161_000_000)


def test_a_counter_that_began_anew_tells_nothing_of_the_time_before() -> None:
    assert between(look(0, 50_000), look(600, 400), 1) is None


def test_a_counter_that_stands_still_is_not_counting() -> None:
    assert between(look(0, 0), look(600, 0), 1) is None
    drawn = between(look(0, 0, 300), look(1, 0, 310), 1)
    assert drawn is not None and (drawn.energy_mj, drawn.basis) == (305_000, Basis.POWER)


def test_no_card_draws_five_kilowatts() -> None:
    assert between(look(0, 0), look(1, 6_000), 1) is None


def test_without_a_counter_power_is_integrated_between_looks_that_are_close() -> None:
    drawn = between(look(0, None, 300), look(2, None, 400), 1)
    assert drawn is not None and (drawn.energy_mj, drawn.basis) == (700_000, Basis.POWER)
    assert between(look(0, None, 300), look(60, None, 400), 1) is None


def test_a_clock_that_was_set_back_tells_nothing() -> None:
    assert between(look(10, 1_000), look(5, 1_100), 1) is None


# --- an hour -------------------------------------------------------------------------------------------------------


def test_an_hour_that_was_measured_throughout_is_its_counter() -> None:
    assert use_of(stretch(0, 3600, 2_520_000)) == (2_520_000_000, 0, EnergyBasis.MEASURED)


def test_what_is_missing_of_an_hour_is_modelled_at_the_mean_power() -> None:
    assert use_of(stretch(0, 1800, 1_260_000)) == (1_260_000_000, 1_620_000_000, EnergyBasis.PARTLY_MEASURED)
    assert use_of() == (0, 3_240_000_000, EnergyBasis.MODELLED)


def test_only_the_part_of_a_stretch_within_the_hour_counts() -> None:
    assert use_of(stretch(-3600, 3600, 5_000_000)) == (2_500_000_000, 0, EnergyBasis.MEASURED)


def test_a_card_that_was_lost_is_modelled_at_its_share_of_the_power() -> None:
    both = (stretch(0, 3600, 1_000_000, "A", 2), stretch(0, 1200, 300_000, "B", 2))
    # 2400 s of one of two cards at 0.45 kW
    assert use_of(*both) == (1_300_000_000, 1_080_000_000, EnergyBasis.PARTLY_MEASURED)


def test_a_card_that_never_told_anything_is_modelled_too() -> None:
    assert use_of(stretch(0, 3600, 1_000_000, "A", 2)) == (1_000_000_000, 1_620_000_000, EnergyBasis.PARTLY_MEASURED)


def test_what_one_card_was_read_for_beyond_the_time_on_does_not_stand_in_for_another_card() -> None:
    # on for the last half hour; A was read for 45 minutes, B for 15 of its 30: a quarter hour of B is modelled
    read = stretch(900, 3_600, 800, "A", cards=2), stretch(2_700, 3_600, 200, "B", cards=2)
    missing_mj = round(0.9 * 900 * 1e6 / 2)
    assert use_of(*read, on_for_us=HOUR_US // 2) == (1_000_000, missing_mj, EnergyBasis.PARTLY_MEASURED)


def test_stretches_that_overlap_do_not_cover_more_time_than_there_is() -> None:
    twice = (stretch(0, 2400, 1_000_000), stretch(1200, 3600, 900_000))
    assert use_of(*twice) == (1_900_000_000, 0, EnergyBasis.MEASURED)


def test_energy_costs_what_a_kilowatt_hour_at_the_wall_costs() -> None:
    assert energy_nanousd(3_240_000_000, Decimal("0.117")) == 105_300_000  # 0.9 kWh


# --- the invoice ---------------------------------------------------------------------------------------------------


def test_a_modelled_hour_is_invoiced_at_the_rate() -> None:
    period = settle_period("gpu0", HOUR, on_for_us=HOUR_US, absorbed_nanousd=0, work_gpu_ns=0)
    assert period.invoice_nanousd == 1_652_800_000
    assert period.invoice_lines()["energy"] == 105_300_000
    assert period.energy is not None and period.energy.basis is EnergyBasis.MODELLED


def test_without_its_energy_the_rate_is_the_other_lines() -> None:
    assert RATE.without_energy == Decimal("1.5475")


def test_a_measured_hour_is_invoiced_at_what_its_cards_drew() -> None:
    period = settle_period(
        "gpu0", HOUR, on_for_us=HOUR_US, absorbed_nanousd=5, work_gpu_ns=5, stretches=[stretch(0, 3600, 1_440_000)]
    )
    assert period.invoice_nanousd == 1_547_500_000 + 46_800_000  # 0.4 kWh instead of 0.9
    lines = period.invoice_lines()
    assert (lines["energy"], lines["capital"], sum(lines.values())) == (46_800_000, 1_147_500_000, 1_594_300_000)
    assert period.absorbed_nanousd + period.unabsorbed_nanousd == period.invoice_nanousd


@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.integers(-4000, 4000), st.integers(1, 3000), st.integers(0, 10**7)),
        max_size=8,
    ),
    st.integers(0, 3600),
    st.integers(0, 10**10),
)
def test_the_lines_of_any_hour_add_up_to_its_invoice_and_the_books_balance(
    told: list[tuple[str, int, int, int]], on_s: int, absorbed: int
) -> None:
    stretches = [stretch(begin, begin + took, joules, card, 2) for card, begin, took, joules in told]
    period = settle_period(
        "g", HOUR, on_for_us=on_s * SECOND_US, absorbed_nanousd=absorbed, work_gpu_ns=0, stretches=stretches
    )
    assert sum(period.invoice_lines().values()) == period.invoice_nanousd
    assert period.absorbed_nanousd + period.unabsorbed_nanousd == period.invoice_nanousd
    assert period.energy is not None and period.energy.measured_mj >= 0 <= period.energy.modelled_mj


@given(st.integers(0, 10**12), st.integers(1, 10**10), st.lists(st.integers(0, 10**10), max_size=6))
def test_however_a_stretch_is_cut_its_parts_add_up_to_it(energy: int, took: int, cuts: list[int]) -> None:
    one = Stretch("A", H0, H0 + took, energy, Basis.COUNTER, None, 1)
    edges = [H0 - 1, *sorted(H0 + cut for cut in cuts), H0 + 10**10 + 1]
    assert sum(one.within(a, b) for a, b in pairwise(edges)) == energy


# --- the meter -----------------------------------------------------------------------------------------------------


def test_looks_that_follow_each_other_make_one_stretch_an_hour() -> None:
    meter = Meter()
    for second in range(3_590, 3_612):
        meter.look([look(second, second * 100)], 1)
    first, second = meter.to_keep()
    assert (first.from_us, first.to_us, first.energy_mj) == (H0 + 3_590 * SECOND_US, H0 + HOUR_US, 1_000_000)
    assert (second.from_us, second.to_us) == (H0 + HOUR_US, H0 + 3_611 * SECOND_US)


def test_what_is_kept_is_told_again_only_if_it_has_grown() -> None:
    meter = Meter()
    for second in range(3_599, 3_603):
        meter.look([look(second, second * 100)], 1)
    kept = meter.to_keep()
    meter.kept(kept)
    assert meter.to_keep() == kept[1:]
    meter.look([look(3_603, 360_300)], 1)
    assert [one.to_us for one in meter.to_keep()] == [H0 + 3_603 * SECOND_US]


def test_a_reset_ends_a_stretch_and_the_next_one_begins_after_it() -> None:
    meter = Meter()
    for second, joules in ((0, 1000), (1, 1100), (2, 50), (3, 150)):
        meter.look([look(second, joules)], 1)
    assert [(one.from_us - H0, one.energy_mj) for one in meter.to_keep()] == [(0, 100_000), (2 * SECOND_US, 100_000)]


@pytest.mark.parametrize("resumed_late", [False, True])
def test_the_time_without_a_gateway_is_measured_by_the_counter_that_went_on(resumed_late: bool) -> None:
    meter, left = Meter(), look(-1800, 1_000)
    if not resumed_late:
        meter.resume([left])
    meter.look([look(600, 481_000)], 1)
    meter.look([look(601, 481_200)], 1)
    if resumed_late:
        meter.resume([left])
    assert sorted((one.from_us - H0, one.energy_mj) for one in meter.to_keep()) == [
        (-1800 * SECOND_US, 480_000_000),
        (600 * SECOND_US, 200_000),
    ]


def test_several_cards_are_measured_each_by_its_own_counter() -> None:
    meter = Meter()
    meter.look([look(0, 100), look(0, 5_000, card="B")], 2)
    meter.look([look(1, 400), look(1, 5_500, card="B")], 2)
    meter.look([look(2, 700)], 2)  # B is lost
    assert sorted((one.card, one.energy_mj, one.to_us - H0) for one in meter.to_keep()) == [
        ("A", 600_000, 2 * SECOND_US),
        ("B", 500_000, SECOND_US),
    ]
