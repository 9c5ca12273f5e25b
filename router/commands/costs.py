"""`report costs`: what was spent, by day, tenant, tier and model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from router.commands.books import books_of, usd
from router.commands.output import Format, write_json, write_rows
from router.commands.ranges import Range
from router.stores.queries import CostReport, costs

COLUMNS = ("day", "tenant", "tier", "model", "requests", "attempts", "cost_nanousd")


def run(config: Path | None, form: Format, days: Range) -> None:
    """Print the costs of `days`. Raises `Unavailable` without a database."""
    with books_of(config) as (_, engine):
        found = costs(engine, days.from_utc, days.to_utc)
    if form is Format.JSON:
        write_json(found.as_dict())
    elif form is Format.CSV:
        write_rows([asdict(row) for row in found.rows], COLUMNS, form)
    else:
        _write_table(found)


def _write_table(found: CostReport) -> None:
    columns = (*COLUMNS[:-1], "cost_usd")
    rows = [asdict(row) | {"cost_usd": usd(row.cost_nanousd)} for row in found.rows]
    totals = found.totals
    total = {"day": "total", "requests": totals.requests, "attempts": totals.attempts}
    write_rows([*rows, total | {"cost_usd": usd(totals.cost_nanousd)}], columns, Format.TABLE)
    if totals.open_reservations:
        print(f"{totals.open_reservations} requests are still open and not counted.")  # noqa: T201 - the command's output
