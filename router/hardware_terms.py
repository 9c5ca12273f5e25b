"""From the settings of a local engine to what its hardware costs: the terms of its hours and its standard rate."""

from __future__ import annotations

from decimal import Decimal

from router.core.charges import standard_rate
from router.core.datamodels import AssetRate
from router.core.hardware import OwnedHardware, energy_usd_per_gpu_s, hourly_cost
from router.core.periods import AssetTerms, OnMode
from router.settings_types import LocalSettings


def asset_terms(settings: LocalSettings) -> AssetTerms | None:
    """What is paid for the hardware; `None` where the config names none."""
    hardware = settings.hardware
    if hardware is None:
        return None
    capacity = Decimal(str(settings.practical_capacity_ratio))
    if isinstance(hardware, OwnedHardware):
        cost = hourly_cost(hardware)
        kind, on, usd_per_hour, lines = "owned", OnMode.ALWAYS, cost.total_usd, cost.lines()
    else:
        usd_per_hour = hardware.usd_per_hour
        kind, on, lines = "rented", OnMode(hardware.on), (("rent", usd_per_hour),)
    return AssetTerms(
        asset=settings.asset or settings.candidate_name,
        kind=kind,
        on=on,
        usd_per_hour=usd_per_hour,
        practical_capacity_ratio=capacity,
        cost_lines=lines,
        version=f"{kind}-{usd_per_hour.normalize():f}/h@{capacity.normalize():f}/{settings.coefficients.name}",
    )


def asset_rate(settings: LocalSettings) -> AssetRate:
    """The standard rate of the hardware; unpriced where the config names none."""
    terms = asset_terms(settings)
    if terms is None:
        return AssetRate(settings.candidate_name, None, coefficients=settings.coefficients)
    hardware = settings.hardware
    energy = energy_usd_per_gpu_s(hardware) if isinstance(hardware, OwnedHardware) else Decimal(0)
    rate = standard_rate(terms.usd_per_hour, terms.practical_capacity_ratio)
    return AssetRate(terms.asset, rate, energy, terms.version, settings.coefficients)
