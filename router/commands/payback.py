"""`report payback`: when hardware of one's own has paid for itself against renting it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

from router.commands.output import Format, write_json, write_rows
from router.core.hardware import OwnedHardware, hourly_cost, payback_years
from router.errors import NotFound
from router.settings import load_settings

_MONTHS = 12


class Verdict(StrEnum):
    """Whether buying beats renting within the years in service."""

    YES = "yes"
    TOO_LATE = "too_late"  # only after it has been taken out of service
    NEVER = "never"  # renting is cheaper than running what is already paid for


def run(config: Path | None, form: Format, hardware: OwnedHardware | None, *, rent_usd_per_hour: Decimal) -> None:
    """Print what an hour costs, line by line, and the years to payback; of the config's hardware without `hardware`.

    Raises `NotFound` where the config has none that was bought.
    """
    assets = [("given", hardware)] if hardware is not None else _bought(config)
    rows = [_figures(name, one, rent_usd_per_hour) for name, one in assets]
    if form is Format.JSON:
        write_json(rows[0] if hardware is not None else rows)
        return
    if form is Format.CSV:
        write_rows(rows, list(rows[0]), form)
        return
    for row in rows:
        shown = [{"figure": key, "value": round(v, 10) if isinstance(v, Decimal) else v} for key, v in row.items()]
        write_rows(shown, ["figure", "value"], form)


def _bought(config: Path | None) -> Sequence[tuple[str, OwnedHardware]]:
    tiers = load_settings(config).tiers
    found = [
        (one.asset or one.candidate_name, one.hardware)
        for one in tiers.engines or (tiers.local,)
        if isinstance(one.hardware, OwnedHardware)
    ]
    if not found:
        raise NotFound("the config has no hardware that was bought (tiers.local.hardware); give --purchase-usd")
    return found


def _figures(name: str, hardware: OwnedHardware, rent_usd_per_hour: Decimal) -> dict[str, Any]:
    cost, years = hourly_cost(hardware), payback_years(hardware, rent_usd_per_hour)
    verdict = Verdict.NEVER if years is None else Verdict.YES if years <= hardware.years else Verdict.TOO_LATE
    return {
        "asset": name,
        **{f"{line}_usd_per_hour": usd for line, usd in cost.lines()},
        "usd_per_hour": cost.total_usd,
        "rent_usd_per_hour": rent_usd_per_hour,
        "years_in_service": hardware.years,
        "payback_years": years,
        "payback_months": years * _MONTHS if years is not None else None,
        "verdict": verdict.value,
    }
