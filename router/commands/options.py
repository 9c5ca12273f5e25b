"""Options that many commands share."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from router.commands.output import Format
from router.commands.ranges import Range

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", exists=True, dir_okay=False, help="Config file; default ./router.yaml, else the shipped one."
    ),
]
FromOption = Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day (UTC), such as 2026-11-01.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written.")]
ToOption = Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day (UTC), included.")]


def days_of(start: str | None, end: str | None) -> Range:
    """The days that `--from` and `--to` name. Raises `BadParameter`."""
    first, last = _day(start, "--from"), _day(end, "--to")
    if first is not None and last is not None and last < first:
        raise typer.BadParameter(f"--to {end} is before --from {start}")
    return Range(first, last)


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r} is no day; write 2026-12-01") from error
