"""`report tokens`: tokens week by week."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from router.commands.books import bar, books_of, usd
from router.commands.output import Format, write_json, write_rows
from router.commands.ranges import Range
from router.stores.reports import TokenWeek, token_weeks

COLUMNS = (
    "week", "tier", "model", "requests", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens",
    "cost_nanousd", "change_ratio",
)  # fmt: skip


def run(config: Path | None, form: Format, days: Range) -> None:
    """Print the tokens of `days` by week (from Monday, UTC), tier and model."""
    with books_of(config) as (_, engine):
        found = token_weeks(engine, days.from_utc, days.to_utc)
    rows = with_change(found)
    if form is Format.JSON:
        write_json({"rows": rows, "weeks": _by_week(found)})
    elif form is Format.CSV:
        write_rows(rows, COLUMNS, form)
    else:
        largest = max((week.input_tokens + week.output_tokens for week in found), default=0)
        for row in rows:
            row["cost_usd"] = usd(row["cost_nanousd"])
            row["bar"] = bar(row["input_tokens"] + row["output_tokens"], largest)
        columns = (*COLUMNS[:-2], "cost_usd", "change_ratio", *(("bar",) if sys.stdout.isatty() else ()))
        write_rows(rows, columns, form)


def with_change(found: tuple[TokenWeek, ...]) -> list[dict[str, Any]]:
    """Rows with `change_ratio`: tokens against the week before of the same model, 0.1 for a tenth more."""
    total = {(week.week, week.tier, week.model): week.input_tokens + week.output_tokens for week in found}
    weeks = sorted({week.week for week in found})
    before = dict(zip(weeks[1:], weeks, strict=False))
    rows = []
    for week in found:
        earlier = total.get((before.get(week.week, ""), week.tier, week.model))
        now = total[week.week, week.tier, week.model]
        rows.append(asdict(week) | {"change_ratio": round(now / earlier - 1, 4) if earlier else None})
    return rows


def _by_week(found: tuple[TokenWeek, ...]) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for week in found:
        entry = sums.setdefault(week.week, {"week": week.week})
        for name in ("requests", "input_tokens", "output_tokens", "cost_nanousd"):
            entry[name] = entry.get(name, 0) + getattr(week, name)
    return list(sums.values())
