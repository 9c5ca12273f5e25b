"""The command line. Commands import what they need when they run, so that `--help` is quick.

Exit codes: 0 done, 1 the thing itself failed, 2 wrong use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from router import __version__
from router.commands import learning
from router.commands.options import ConfigOption, FormatOption
from router.commands.output import Format
from router.commands.report_commands import report
from router.commands.simulate_command import simulate
from router.errors import BadRequest, ConfigError, RouterError


class ReaderGone(Exception):
    """Whoever read our output has gone (`| head`)."""


class Commands(TyperGroup):
    """All commands. A pipe that closes is told by an exception of ours: typer would make a failure (1) of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual; `--help` is written here."""
        with _told_of_closed_pipes():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As usual, and written out to the end."""
        with _told_of_closed_pipes():
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()


@contextmanager
def _told_of_closed_pipes() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error


app = typer.Typer(
    name="hybrid-llm-router",
    cls=Commands,
    help="One OpenAI-compatible endpoint over a local, a cheap and a premium LLM tier.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
prices = typer.Typer(help="The price book.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(report, name="report")
app.add_typer(prices, name="prices")


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Processing(StrEnum):
    """Kinds of processing that a price may be for."""

    STANDARD = "standard"
    BATCH = "batch"
    FLEX = "flex"
    PRIORITY = "priority"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hybrid-llm-router {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; wins over the config.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; wins over the config.")] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Least important line that is logged.")] = LogLevel.INFO,
) -> None:
    """Run the gateway until it is told to stop."""
    from router.commands import gateway

    gateway.serve(config, host=host, port=port, log_level=log_level.value)


@app.command("check-config")
def check_config_file(
    file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="Config file to check; default ./router.yaml.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Say every mistake of a config at once, with line and cure."""
    from router.commands import check_config

    if file is not None and config is not None:
        raise typer.BadParameter("give the file once: `check-config FILE`")
    check_config.run(file or config)


@app.command()
def doctor(
    config: ConfigOption = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Only what the engine needs to start: driver, CUDA, memory for the model.")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Say how keys, tiers, engine, GPU, database and prices are, and which cost lever is off."""
    from router.commands.doctor import run

    if not run(config, form, gpu_only=gpu):
        raise typer.Exit(1)


@app.command("calibrate-engine")
def calibrate_engine(
    config: ConfigOption = None,
    engine: Annotated[str | None, typer.Option(help="Which of several engines, by its name in the config.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to load the engine, about.")] = 120,
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File to write the coefficients to, as a config takes them.")
    ] = None,
) -> None:
    """Measure the idle local engine and print the coefficients that fit it."""
    from router.commands import calibrate

    try:
        calibrate.run(config, engine=engine, seconds=seconds, output=output)
    except BadRequest as error:
        raise typer.BadParameter(error.message) from None


@app.command()
def explain(
    prompt: Annotated[str | None, typer.Option(help="A prompt, sent as one user message to `auto`.")] = None,
    request: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, allow_dash=True, help="A request body; - reads stdin.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print the decision for a request as JSON; nothing is called."""
    from router.commands import gateway

    if (prompt is None) == (request is None):
        raise typer.BadParameter("give either --prompt or --request")
    gateway.explain(config, prompt=prompt, request=request)


@app.command()
def estimate(
    model: Annotated[str, typer.Option(help="Model, such as openai/gpt-6-luna, or its name in the config.")],
    input_tokens: Annotated[int, typer.Option(min=0, help="Input tokens of a request, cached ones included.")],
    output_tokens: Annotated[int, typer.Option(min=0, help="Output tokens of a request.")],
    cached_input_tokens: Annotated[int, typer.Option(min=0, help="Input tokens read from a provider's cache.")] = 0,
    requests_per_day: Annotated[float | None, typer.Option(min=0, help="Requests a day.")] = None,
    users: Annotated[int | None, typer.Option(min=0, help="Users; with --calls instead of --requests-per-day.")] = None,
    calls: Annotated[float | None, typer.Option(min=0, help="Calls a user makes a day.")] = None,
    at: Annotated[str | None, typer.Option(help="Date or time (UTC) whose prices hold; default now.")] = None,
    processing: Annotated[Processing, typer.Option(help="Kind of processing.")] = Processing.STANDARD,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Cost before the call: per request, day and month."""
    from router.commands import estimate as command

    if cached_input_tokens > input_tokens:
        raise typer.BadParameter("--cached-input-tokens cannot exceed --input-tokens")
    if requests_per_day is not None and (users is not None or calls is not None):
        raise typer.BadParameter("give --requests-per-day, or --users and --calls")
    if any(figure is not None and not isfinite(figure) for figure in (requests_per_day, calls)):
        raise typer.BadParameter("--requests-per-day and --calls must be finite")
    if (users is None) != (calls is None):
        raise typer.BadParameter("--users and --calls belong together")
    command.run(
        config,
        form,
        model=model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=cached_input_tokens,
        requests_per_day=requests_per_day if users is None or calls is None else users * calls,
        at_utc=_moment(at),
        processing=processing.value,
    )


@prices.command("show")
def prices_show(
    model: Annotated[str, typer.Argument(help="Model, such as openai/gpt-6-luna.")],
    at: Annotated[str | None, typer.Option(help="Date or time (UTC); default now.")] = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """The row in force, where it comes from and since when."""
    from router.commands import price_book

    price_book.show(config, form, model=model, at_utc=_moment(at))


@prices.command("check")
def prices_check(config: ConfigOption = None, form: FormatOption = Format.TABLE) -> None:
    """Gaps and changes to come of the configured models' prices; clashes between the sources of prices."""
    from router.commands import price_book

    if not price_book.check(config, form):
        raise typer.Exit(1)


app.command()(simulate)
learning.add_to(app)


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no date; write 2026-12-01 or 2026-12-01T13:00") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    try:
        app(list(sys.argv[1:] if arguments is None else arguments))
    except ConfigError as error:
        typer.echo(str(error), err=True)
    except RouterError as error:
        typer.echo(f"error: {error.message}", err=True)
        # a name or a figure that cannot be is wrong use; a price that is missing is for the config to add
        if isinstance(error, BadRequest) and error.code != "price_unknown":
            sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except ReaderGone:
        # nothing is wrong, but the interpreter must not try to flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    else:
        return
    sys.exit(1)
