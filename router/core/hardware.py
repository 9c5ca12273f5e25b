"""What an hour of the local tier's hardware costs, and what is invoiced for the time it was on. Pure.

Rented: the rate. Owned: capital recovered by an annuity over the years in service, energy at the wall (PUE included),
floor space and operations; every line stays visible. A tensor-parallel group is one asset.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

HOURS_PER_YEAR = Decimal(8766)
"""The mean year, leap days included."""

MIG_SLICES = 7
"""Compute slices that a card is cut into."""

_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN)
_NS_PER_HOUR = 3_600_000_000_000
_NANO_PER_USD = Decimal(1_000_000_000)


@dataclass(frozen=True, slots=True)
class OwnedHardware:
    """One asset that was bought. `availability_ratio` is the share of the year in which it can serve."""

    purchase_usd: Decimal
    residual_usd: Decimal
    years: Decimal
    discount_rate_ratio: Decimal
    availability_ratio: Decimal
    power_kw: Decimal
    pue_ratio: Decimal
    usd_per_kwh: Decimal
    colo_usd_per_hour: Decimal = Decimal(0)
    ops_usd_per_hour: Decimal = Decimal(0)
    other_usd_per_hour: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        if self.years <= 0:
            raise ValueError(f"years must be above 0: {self.years}")
        if not 0 < self.availability_ratio <= 1:
            raise ValueError(f"availability_ratio must be in (0, 1]: {self.availability_ratio}")
        if self.discount_rate_ratio < 0:
            raise ValueError(f"discount_rate_ratio must not be negative: {self.discount_rate_ratio}")
        if self.residual_usd > self.purchase_usd:
            raise ValueError(f"residual_usd {self.residual_usd} exceeds purchase_usd {self.purchase_usd}")


@dataclass(frozen=True, slots=True)
class HourlyCost:
    """The lines of an hour, in USD. `energy_usd` is the only one that moves with the load."""

    capital_usd: Decimal
    energy_usd: Decimal
    colo_usd: Decimal
    ops_usd: Decimal
    other_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        """All lines."""
        return self.capital_usd + self.cash_opex_usd

    @property
    def cash_opex_usd(self) -> Decimal:
        """What is paid each hour besides the capital."""
        return self.energy_usd + self.colo_usd + self.ops_usd + self.other_usd

    def lines(self) -> tuple[tuple[str, Decimal], ...]:
        """Every line by name."""
        return (
            ("capital", self.capital_usd),
            ("energy", self.energy_usd),
            ("colo", self.colo_usd),
            ("ops", self.ops_usd),
            ("other", self.other_usd),
        )


def annuity_usd(purchase_usd: Decimal, residual_usd: Decimal, discount_rate_ratio: Decimal, years: Decimal) -> Decimal:
    """Yearly payment that recovers the purchase less the discounted residual: (P - R/(1+w)^n) * w / (1 - (1+w)^-n).

    Straight-line, (P - R)/n, at a discount rate of 0.
    """
    if discount_rate_ratio == 0:
        return _CONTEXT.divide(purchase_usd - residual_usd, years)
    growth = _CONTEXT.power(1 + discount_rate_ratio, years)
    to_recover = purchase_usd - _CONTEXT.divide(residual_usd, growth)
    return _CONTEXT.divide(_CONTEXT.multiply(to_recover, discount_rate_ratio), 1 - _CONTEXT.divide(Decimal(1), growth))


def hourly_cost(hardware: OwnedHardware) -> HourlyCost:
    """The lines of an hour in which the owned asset is on."""
    yearly = annuity_usd(hardware.purchase_usd, hardware.residual_usd, hardware.discount_rate_ratio, hardware.years)
    return HourlyCost(
        capital_usd=_CONTEXT.divide(yearly, _hours_in_service(hardware)),
        energy_usd=_energy_usd_per_hour(hardware),
        colo_usd=hardware.colo_usd_per_hour,
        ops_usd=hardware.ops_usd_per_hour,
        other_usd=hardware.other_usd_per_hour,
    )


def payback_years(hardware: OwnedHardware, rent_usd_per_hour: Decimal) -> Decimal | None:
    """Years until the purchase is cheaper than renting at `rent_usd_per_hour`; `None` if it never is."""
    saved_per_hour = rent_usd_per_hour - hourly_cost(hardware).cash_opex_usd
    if saved_per_hour <= 0:
        return None
    return _CONTEXT.divide(hardware.purchase_usd, _CONTEXT.multiply(saved_per_hour, _hours_in_service(hardware)))


def energy_usd_per_gpu_s(hardware: OwnedHardware) -> Decimal:
    """The true marginal cost of a busy second: kW * PUE * USD/kWh / 3600. For rented hardware it is 0."""
    return _CONTEXT.divide(_energy_usd_per_hour(hardware), Decimal(3600))


def invoice_nanousd(usd_per_hour: Decimal, on_ns: int) -> int:
    """What the asset costs for `on_ns` nanoseconds of being on, half-even to the nano-dollar.

    Powered is what counts, not serving: loading a model and waiting are paid for too.
    """
    if on_ns < 0:
        raise ValueError(f"on_ns must not be negative: {on_ns}")
    usd = _CONTEXT.divide(_CONTEXT.multiply(usd_per_hour, Decimal(on_ns)), Decimal(_NS_PER_HOUR))
    return int(_CONTEXT.multiply(usd, _NANO_PER_USD).to_integral_value(rounding=ROUND_HALF_EVEN))


def wall_usd_per_kwh(hardware: OwnedHardware) -> Decimal:
    """What a kilowatt-hour at the cards costs, with what the room takes on top."""
    return _CONTEXT.multiply(hardware.pue_ratio, hardware.usd_per_kwh)


def share_of_card(usd: Decimal, mig_slices: int | None) -> Decimal:
    """What of `usd` falls on a MIG instance of `mig_slices` compute slices; the whole card's without."""
    return usd if mig_slices is None else _CONTEXT.divide(usd * mig_slices, Decimal(MIG_SLICES))


def _hours_in_service(hardware: OwnedHardware) -> Decimal:
    return _CONTEXT.multiply(HOURS_PER_YEAR, hardware.availability_ratio)


def _energy_usd_per_hour(hardware: OwnedHardware) -> Decimal:
    return _CONTEXT.multiply(_CONTEXT.multiply(hardware.power_kw, hardware.pue_ratio), hardware.usd_per_kwh)
