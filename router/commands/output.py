"""Results to stdout: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, TextIO

_KEPT_CHARS = 10
_BETWEEN_CHARS = 3


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
    widths = _widths(rows, columns, console.width)
    if widths is None:
        _blocks(rows, columns, out)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if _is_numeric(rows, column) else "left"
        table.add_column(column.replace("_", " "), justify=justify, overflow="fold", width=width)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    if terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines() if line.strip()))


def _blocks(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], out: TextIO) -> None:
    """For a terminal that is too narrow for the table: a block a row, a line a column that says something."""
    indent = max(map(len, columns))
    for row in rows:
        said = ((column.replace("_", " "), _cell(row.get(column))) for column in columns)
        out.write("\n" + "".join(f"{name:<{indent}}   {text}\n" for name, text in said if text))


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return bool(rows) and all(isinstance(row.get(column), int | float | Decimal | None) for row in rows)


def _widths(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], room: int) -> list[int] | None:
    """Characters of each column, what is left over going to those that need least more. `None`: there is no room.

    Figures and days are kept together, since one that goes on in the next line is misread; sentences may be folded.
    """
    widest = {column: max((len(_cell(row.get(column))) for row in rows), default=0) for column in columns}
    given = {
        column: max(*map(len, column.split("_")), 0, cells if _is_numeric(rows, column) else min(cells, _KEPT_CHARS))
        for column, cells in widest.items()
    }
    spare = room - sum(given.values()) - _BETWEEN_CHARS * len(columns)
    if spare < 0:
        return None
    lacking = {column: max(0, max(cells, len(column)) - given[column]) for column, cells in widest.items()}
    for column in sorted(lacking, key=lambda name: lacking[name]):
        more = min(lacking[column], spare)
        given[column] += more
        spare -= more
    return list(given.values())


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
