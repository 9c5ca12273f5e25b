"""`report break-even` with given figures."""

from __future__ import annotations

from decimal import Decimal

from router.commands.output import Format, write_json, write_rows
from router.core.books import break_even


def run(
    form: Format,
    *,
    usd_per_hour: Decimal,
    input_tokens: int,
    output_tokens: int,
    api_input_usd_per_mtok: Decimal,
    api_output_usd_per_mtok: Decimal,
    slo_capacity_rps: Decimal,
    saturation_rps: Decimal,
) -> None:
    """Print the break-even load. Raises `ValueError` for capacities that cannot be (see `core.books`)."""
    result = break_even(
        usd_per_hour=usd_per_hour,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        api_input_usd_per_mtok=api_input_usd_per_mtok,
        api_output_usd_per_mtok=api_output_usd_per_mtok,
        slo_capacity_rps=slo_capacity_rps,
        saturation_rps=saturation_rps,
    )
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
