"""From the settings of a local engine to what its hardware costs: the terms of its hours and its standard rate."""

from __future__ import annotations

from decimal import Decimal
from socket import gethostname
from urllib.parse import urlsplit

from router.core.charges import standard_rate
from router.core.energy import EnergyTerms
from router.core.hardware import OwnedHardware, energy_usd_per_gpu_s, hourly_cost, wall_usd_per_kwh
from router.core.periods import AssetTerms, OnMode
from router.core.snapshot import AssetRate
from router.settings_checks import is_loopback
from router.settings_types import Engine, LocalSettings


def asset_terms(settings: LocalSettings) -> AssetTerms | None:
    """What is paid for the hardware; `None` where the config names none."""
    hardware = settings.hardware
    if hardware is None:
        return None
    capacity = Decimal(str(settings.practical_capacity_ratio))
    energy = None
    if isinstance(hardware, OwnedHardware):
        cost = hourly_cost(hardware)
        energy = EnergyTerms(hardware.power_kw, wall_usd_per_kwh(hardware))
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
        version=f"{kind}-{_short(usd_per_hour)}/h@{_short(capacity)}/{settings.coefficients.name}",
        energy=energy,
        shared_engine=_shared_engine(settings),
    )


def _short(figure: Decimal) -> str:
    return f"{round(figure, 12).normalize():f}"


def _shared_engine(settings: LocalSettings) -> str | None:
    """The engine that other gateways may use too: only one that none of them has started."""
    if settings.engine is not Engine.EXTERNAL or settings.api_base is None:
        return None
    parts = urlsplit(settings.api_base)
    here = is_loopback(parts.hostname or "")
    return f"{gethostname() if here else parts.hostname}:{parts.port or parts.scheme}{parts.path}"


def asset_rate(settings: LocalSettings) -> AssetRate:
    """The standard rate of the hardware; unpriced where the config names none."""
    terms = asset_terms(settings)
    if terms is None:
        return AssetRate(settings.candidate_name, None, coefficients=settings.coefficients)
    hardware = settings.hardware
    energy = energy_usd_per_gpu_s(hardware) if isinstance(hardware, OwnedHardware) else Decimal(0)
    rate = standard_rate(terms.usd_per_hour, terms.practical_capacity_ratio)
    return AssetRate(terms.asset, rate, energy, terms.version, settings.coefficients)
