"""Energy of owned hardware: from looks at its cards to what an hour of it has used, and what that costs. Pure.

A card's energy counter runs on whatever the gateway does, so two looks at it tell exactly what it drew between them,
over a restart of the gateway too. Without a counter, two looks at its power that are close together stand in. What
neither covers (the counter was reset, the card is lost, the gateway was away) is modelled at the configured mean power,
and the hour says so.

    energy of an hour = sum of the stretches measured in it + mean power * the card-time that nothing was measured of
    its cost          = kWh * power usage effectiveness of the room * USD/kWh

NVML counts the cards, not the host around them. Energy is in integer millijoules, time in microseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum

MJ_PER_KWH = 3_600_000_000
_US_PER_HOUR = 3_600_000_000
_NANO_PER_USD = 1_000_000_000
_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN)
_MAX_CARD_W = 5_000
"""No card draws more: a counter that says so was reset in between, or lies."""
_COUNTER_MOVES_WITHIN_US = 500_000
"""A card that is on draws something: a counter that stands still longer than this is not counting, or began anew."""
_MAX_POWER_GAP_US = 5_000_000
"""Two looks at the power further apart than this say little about what was drawn between them."""


class Basis(StrEnum):
    """How the energy of a stretch is known."""

    COUNTER = "counter"  # the card's own energy counter
    POWER = "power"  # its power, looked at every second


class EnergyBasis(StrEnum):
    """How the energy of an hour is known."""

    MEASURED = "measured"
    PARTLY_MEASURED = "partly_measured"
    MODELLED = "modelled"


@dataclass(frozen=True, slots=True)
class CardLook:
    """One look at one card. `card` names it over restarts; `counter_mj` runs since its driver was loaded."""

    card: str
    at_us: int
    counter_mj: int | None
    power_mw: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one card drew from `from_us` to `to_us`. `counter_mj` is what its counter said at the end.

    `cards` is how many the asset had then, those included that told nothing.
    """

    card: str
    from_us: int
    to_us: int
    energy_mj: int
    basis: Basis
    counter_mj: int | None
    cards: int

    def within(self, start_us: int, end_us: int) -> int:
        """Its millijoules in [`start_us`, `end_us`), evenly spread; adjoining ranges add up to the whole exactly."""
        return self._until(end_us) - self._until(start_us)

    def _until(self, at_us: int) -> int:
        if self.to_us <= self.from_us:
            return self.energy_mj if at_us > self.from_us else 0
        passed = min(max(at_us - self.from_us, 0), self.to_us - self.from_us)
        return self.energy_mj * passed // (self.to_us - self.from_us)


@dataclass(frozen=True, slots=True)
class EnergyTerms:
    """What a kilowatt-hour of the asset's cards costs at the wall, and the power they draw where nothing is measured.

    `wall_usd_per_kwh` includes what the room takes on top (PUE).
    """

    power_kw: Decimal
    wall_usd_per_kwh: Decimal


@dataclass(frozen=True, slots=True)
class EnergyUse:
    """The energy of a period, as far as it was measured and as far as it is modelled."""

    measured_mj: int
    modelled_mj: int
    basis: EnergyBasis
    nanousd: int

    @property
    def kwh(self) -> Decimal:
        """All of it."""
        return _CONTEXT.divide(Decimal(self.measured_mj + self.modelled_mj), Decimal(MJ_PER_KWH))


def together(one: EnergyUse | None, other: EnergyUse | None) -> EnergyUse | None:
    """The energy of two periods; `None` where neither knows of any."""
    if one is None or other is None:
        return one or other
    basis = one.basis if one.basis is other.basis else EnergyBasis.PARTLY_MEASURED
    return EnergyUse(
        one.measured_mj + other.measured_mj, one.modelled_mj + other.modelled_mj, basis, one.nanousd + other.nanousd
    )


def between(earlier: CardLook, later: CardLook, cards: int) -> Stretch | None:
    """What a card drew between two looks at it; `None` where they do not tell."""
    took_us = later.at_us - earlier.at_us
    if took_us <= 0:
        return None
    counted_mj = None
    if earlier.counter_mj is not None and later.counter_mj is not None:
        counted_mj = later.counter_mj - earlier.counter_mj
    if counted_mj is not None and (counted_mj > 0 or (counted_mj == 0 and took_us < _COUNTER_MOVES_WITHIN_US)):
        drawn_mj, basis = counted_mj, Basis.COUNTER
    elif earlier.power_mw is not None and later.power_mw is not None and took_us <= _MAX_POWER_GAP_US:
        drawn_mj, basis = (earlier.power_mw + later.power_mw) * took_us // 2_000_000, Basis.POWER
    else:
        return None
    if not 0 <= drawn_mj * 1_000 <= _MAX_CARD_W * took_us:  # mJ per us is kW
        return None
    return Stretch(earlier.card, earlier.at_us, later.at_us, drawn_mj, basis, later.counter_mj, cards)


def joined(first: Stretch, then: Stretch) -> Stretch | None:
    """Both as one, where the second goes on where the first ended, within the same hour; else `None`."""
    follows = first.to_us == then.from_us and first.from_us // _US_PER_HOUR == then.from_us // _US_PER_HOUR
    if not follows or (first.card, first.basis, first.cards) != (then.card, then.basis, then.cards):
        return None
    return replace(first, to_us=then.to_us, energy_mj=first.energy_mj + then.energy_mj, counter_mj=then.counter_mj)


def energy_use(
    stretches: Iterable[Stretch], terms: EnergyTerms, *, start_us: int, end_us: int, on_for_us: int
) -> EnergyUse:
    """The energy of [`start_us`, `end_us`), in which the asset was on for `on_for_us`."""
    inside = [s for s in stretches if s.from_us < end_us and s.to_us > start_us]
    cards = max((s.cards for s in inside), default=0) or 1
    measured_mj = sum(s.within(start_us, end_us) for s in inside)
    covered_us = sum(min(on_for_us, covered) for covered in _covered(inside, start_us, end_us).values())
    missing_us = max(0, cards * on_for_us - covered_us)
    # kW times microseconds is millijoules
    modelled = _CONTEXT.divide(_CONTEXT.multiply(terms.power_kw, Decimal(missing_us)), Decimal(cards))
    modelled_mj = int(modelled.to_integral_value(rounding=ROUND_HALF_EVEN))
    if missing_us == 0 and covered_us:
        basis = EnergyBasis.MEASURED
    else:
        basis = EnergyBasis.PARTLY_MEASURED if covered_us else EnergyBasis.MODELLED
    return EnergyUse(measured_mj, modelled_mj, basis, energy_nanousd(measured_mj + modelled_mj, terms.wall_usd_per_kwh))


def energy_nanousd(energy_mj: int, wall_usd_per_kwh: Decimal) -> int:
    """What so much energy costs, half-even to the nano-dollar."""
    nano = _CONTEXT.multiply(Decimal(energy_mj * _NANO_PER_USD), wall_usd_per_kwh)
    return int(_CONTEXT.divide(nano, Decimal(MJ_PER_KWH)).to_integral_value(rounding=ROUND_HALF_EVEN))


def _covered(stretches: Sequence[Stretch], start_us: int, end_us: int) -> Mapping[str, int]:
    """Microseconds of the range that were measured, by card; what overlaps (a clock set back) counts once."""
    covered: dict[str, int] = {}
    reached: dict[str, int] = {}
    for s in sorted(stretches, key=lambda s: s.from_us):
        begin, end = max(s.from_us, start_us, reached.get(s.card, start_us)), min(s.to_us, end_us)
        covered[s.card] = covered.get(s.card, 0) + max(0, end - begin)
        reached[s.card] = max(reached.get(s.card, start_us), end)
    return covered


class Meter:
    """What has been measured of one asset's cards and not been kept yet. One look after the other goes in."""

    def __init__(self) -> None:
        self._first: dict[str, CardLook] = {}
        self._last: dict[str, CardLook] = {}
        self._cards = 0
        self._open: dict[str, Stretch] = {}
        self._ended: list[Stretch] = []

    @property
    def has_looked(self) -> bool:
        """Whether any card has told anything in this life."""
        return bool(self._first)

    def resume(self, looks: Iterable[CardLook]) -> None:
        """Go on where an earlier life ended: `looks` are its last ones, of cards that may have been looked at since."""
        for look in looks:
            first = self._first.get(look.card)
            if first is None:
                self._last[look.card] = look
            elif (meanwhile := between(look, first, self._cards)) is not None:
                self._ended.append(meanwhile)

    def look(self, looks: Sequence[CardLook], cards: int) -> None:
        """One look at those of the asset's `cards` that told something."""
        self._cards = cards
        for look in looks:
            earlier = self._last.get(look.card)
            self._last[look.card] = look
            self._first.setdefault(look.card, look)
            drawn = between(earlier, look, cards) if earlier is not None else None
            grown = self._open.get(look.card)
            if drawn is None:
                self._end(look.card)
            elif grown is not None and (longer := joined(grown, drawn)) is not None:
                self._open[look.card] = longer
            else:
                self._end(look.card)
                self._open[look.card] = drawn

    def _end(self, card: str) -> None:
        ended = self._open.pop(card, None)
        if ended is not None:
            self._ended.append(ended)

    def to_keep(self) -> tuple[Stretch, ...]:
        """Every stretch that is not kept whole: those that ended, and those that may still grow as they are now."""
        return (*self._ended, *self._open.values())

    def kept(self, stretches: Iterable[Stretch]) -> None:
        """`stretches` are safe; those that ended are forgotten."""
        safe = set(stretches)
        self._ended = [one for one in self._ended if one not in safe]
