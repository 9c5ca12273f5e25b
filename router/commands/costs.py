"""`report costs`: what was spent, by day, tenant, tier and model."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from router.commands.output import Format, write_json, write_rows
from router.core.datamodels import NANO_PER_USD
from router.errors import Unavailable
from router.settings import load_settings
from router.stores.engines import read_engine
from router.stores.queries import CostReport, costs

COLUMNS = ("day", "tenant", "tier", "model", "requests", "attempts", "cost_nanousd")


def run(config: Path | None, form: Format, *, start: date | None, end: date | None) -> None:
    """Print the costs of the UTC days `start` to `end`, both included. Raises `Unavailable` without a database."""
    settings = load_settings(config)
    engine = read_engine(settings.server.database_url)
    try:
        found = costs(engine, _midnight(start), _midnight(end + timedelta(days=1)) if end is not None else None)
    except SQLAlchemyError as error:
        # The driver's own text may hold the address with its password.
        shown = settings.server.database_url_masked
        raise Unavailable(f"the books at {shown} cannot be read ({type(error).__name__}); see `doctor`") from error
    finally:
        engine.dispose()
    if form is Format.JSON:
        write_json(found.as_dict())
    elif form is Format.CSV:
        write_rows([asdict(row) for row in found.rows], COLUMNS, form)
    else:
        _write_table(found)


def _write_table(found: CostReport) -> None:
    columns = (*COLUMNS[:-1], "cost_usd")
    rows = [asdict(row) | {"cost_usd": _usd(row.cost_nanousd)} for row in found.rows]
    totals = found.totals
    total = {"day": "total", "requests": totals.requests, "attempts": totals.attempts}
    write_rows([*rows, total | {"cost_usd": _usd(totals.cost_nanousd)}], columns, Format.TABLE)
    if totals.open_reservations:
        print(f"{totals.open_reservations} requests are still open and not counted.")  # noqa: T201 - the command's output


def _usd(nanousd: int) -> str:
    return f"{Decimal(nanousd) / NANO_PER_USD:.9f}"


def _midnight(day: date | None) -> datetime | None:
    return None if day is None else datetime.combine(day, time(), UTC)
