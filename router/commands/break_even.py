"""`report break-even` with given figures."""

from __future__ import annotations

from decimal import Decimal

from router.commands.output import Format, write_json, write_rows
from router.core.break_even import BreakEven


def show(form: Format, result: BreakEven) -> None:
    """Print the break-even load."""
    figures = {
        "usd_per_request": result.usd_per_request,
        "requests_per_hour": result.requests_per_hour,
        "requests_per_s": result.requests_per_s,
        "share_of_slo_capacity": result.share_of_slo_capacity,
        "verdict": result.verdict.value,
    }
    if form is Format.JSON:
        write_json(figures)
    elif form is Format.CSV:
        write_rows([figures], list(figures), form)
    else:
        rows = [
            {"figure": name, "value": round(value, 10) if isinstance(value, Decimal) else value}
            for name, value in figures.items()
        ]
        write_rows(rows, ["figure", "value"], form)
