"""`estimate`: what a request, a day and a month of it cost."""

from __future__ import annotations

import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from router.commands.output import Format, plain_decimal, write_json, write_rows
from router.commands.price_book import book_of, since
from router.core.pricing import DAYS_PER_MONTH, Forecast
from router.core.request import TokenUsage
from router.estimates import Estimate, Quote, estimate
from router.settings import load_settings

_CHOICE_COLUMNS = ("model", "tier", "basis", "usd_per_request", "usd_per_day", "usd_per_month", "unavailable", "flags")


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
    settings = load_settings(config, serving=False)
    usage = TokenUsage(input_tokens, output_tokens, cached_input_tokens)
    found = estimate(settings, book_of(settings), model, usage, at_utc, processing)
    a_day = Decimal(str(requests_per_day)) if requests_per_day is not None else Decimal(1)
    head: dict[str, Any] = {
        "model": model,
        "at_utc": at_utc.isoformat(timespec="seconds"),
        "processing": processing,
        "input_tokens": input_tokens,
        "cached_input_tokens": cached_input_tokens,
        "output_tokens": output_tokens,
    }
    if found.sole is not None:
        _write_sole(form, head | _of_quote(found.sole, a_day))
    else:
        _write_range(form, head, found, a_day)


def _of_quote(quote: Quote, a_day: Decimal) -> dict[str, Any]:
    parts, row = quote.parts, quote.row
    return {
        "basis": quote.basis,
        "tier": quote.tier.value if quote.tier is not None else None,
        "answered_by": quote.model,
        "input_usd": parts.input_usd if parts is not None else None,
        "cached_input_usd": parts.cached_input_usd if parts is not None else None,
        "output_usd": parts.output_usd if parts is not None else None,
        "fee_usd": parts.request_usd if parts is not None else None,
        "work_gpu_s": quote.work_gpu_s,
        "usd_per_request": quote.usd,
        "requests_per_day": a_day,
        **_per_time(quote.usd, a_day),
        "days_per_month": DAYS_PER_MONTH,
        "price_source": row.source if row is not None else quote.price_version,
        "price_from_utc": since(row) if row is not None else None,
        "unavailable": quote.unavailable,
        "flags": [flag.value for flag in quote.flags],
    }


def _per_time(usd: Decimal, a_day: Decimal) -> dict[str, Decimal]:
    costs = Forecast(usd, a_day)
    return {"usd_per_day": costs.per_day_usd, "usd_per_month": costs.per_month_usd}


def _write_sole(form: Format, result: dict[str, Any]) -> None:
    if form is Format.JSON:
        write_json(result)
    elif form is Format.CSV:
        write_rows([result | {"flags": " ".join(result["flags"])}], list(result), form)
    else:
        shown = {name: value for name, value in result.items() if value not in ([], None)}
        write_rows([{"figure": name, "value": value} for name, value in shown.items()], ["figure", "value"], form)


def _write_range(form: Format, head: dict[str, Any], found: Estimate, a_day: Decimal) -> None:
    low, high = found.usd_range
    choices: list[dict[str, Any]] = [
        {
            "model": quote.model,
            "tier": quote.tier.value if quote.tier is not None else None,
            "basis": quote.basis,
            "usd_per_request": quote.usd,
            **_per_time(quote.usd, a_day),
            "unavailable": quote.unavailable,
            "flags": [flag.value for flag in quote.flags],
        }
        for quote in found.quotes
    ]
    if form is Format.JSON:
        lowest = {f"{name}_min": usd for name, usd in ({"usd_per_request": low} | _per_time(low, a_day)).items()}
        highest = {f"{name}_max": usd for name, usd in ({"usd_per_request": high} | _per_time(high, a_day)).items()}
        days = {"requests_per_day": a_day, "days_per_month": DAYS_PER_MONTH}
        write_json(head | lowest | highest | days | {"depends_on": found.depends_on, "choices": choices})
        return
    write_rows([choice | {"flags": " ".join(choice["flags"])} for choice in choices], _CHOICE_COLUMNS, form)
    if form is Format.TABLE:
        sys.stdout.write(
            f"{found.model}: {plain_decimal(low)} to {plain_decimal(high)} USD per request. "
            f"It depends on {found.depends_on}.\n"
        )
