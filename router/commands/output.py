"""Results to stdout: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, TextIO


class Format(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def write_json(value: Any, stream: TextIO | None = None) -> None:
    """`value` as indented JSON; decimals as plain numbers, never in exponent form."""
    out = stream or sys.stdout
    out.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def write_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: Format, stream: TextIO | None = None
) -> None:
    """`rows` as a table or as CSV with a header line."""
    out = stream or sys.stdout
    if form is Format.CSV:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    else:
        _table(rows, columns, out)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Into a file or a pipe nothing is folded or coloured: it may be read by a program after all.
    terminal = out.isatty()
    console = Console(file=out, width=None if terminal else 1_000, highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numeric = bool(rows) and all(isinstance(row.get(column), int | float | Decimal | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    if terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines() if line.strip()))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain_decimal(value)
    text = str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def plain_decimal(value: Decimal) -> str:
    """`value` without an exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        # 17 digits hold every figure we print, and a JSON number is what every reader expects.
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
