"""`estimate`: what a request, a day and a month of it cost."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from router.commands.output import Format, write_json, write_rows
from router.commands.price_book import row_for, since
from router.core.pricing import forecast
from router.settings import load_settings


def run(
    config: Path | None,
    form: Format,
    *,
    model: str,
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int,
    requests_per_day: float | None,
    at_utc: datetime,
    processing: str,
) -> None:
    """Print the estimate. Raises `RouterError` for a model without a price."""
    row = row_for(load_settings(config), model, at_utc, processing)
    a_day = Decimal(str(requests_per_day)) if requests_per_day is not None else Decimal(1)
    costs = forecast(row, input_tokens, output_tokens, cached=cached_input_tokens, requests_per_day=a_day)
    parts = costs.per_request
    result: dict[str, Any] = {
        "model": model,
        "at_utc": at_utc.isoformat(timespec="seconds"),
        "processing": processing,
        "input_tokens": input_tokens,
        "cached_input_tokens": cached_input_tokens,
        "output_tokens": output_tokens,
        "input_usd": parts.input_usd,
        "cached_input_usd": parts.cached_input_usd,
        "output_usd": parts.output_usd,
        "fee_usd": parts.request_usd,
        "usd_per_request": costs.per_request_usd,
        "requests_per_day": a_day,
        "usd_per_day": costs.per_day_usd,
        "usd_per_month": costs.per_month_usd,
        "days_per_month": costs.days_per_month,
        "price_source": row.source,
        "price_from_utc": since(row),
        "flags": [flag.value for flag in row.flags],
    }
    if form is Format.JSON:
        write_json(result)
    elif form is Format.CSV:
        write_rows([result | {"flags": " ".join(result["flags"])}], list(result), form)
    else:
        shown = {name: value for name, value in result.items() if value not in ([], None)}
        write_rows([{"figure": name, "value": value} for name, value in shown.items()], ["figure", "value"], form)
