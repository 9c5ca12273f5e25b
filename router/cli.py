"""The command line. Commands import what they need when they run, so that `--help` is quick.

Exit codes: 0 done, 1 the thing itself failed, 2 wrong use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from router import __version__
from router.commands import learning
from router.commands.options import ConfigOption, FromOption, ToOption, days_of
from router.commands.output import Format
from router.errors import BadRequest, ConfigError, RouterError

app = typer.Typer(
    name="hybrid-llm-router",
    help="One OpenAI-compatible endpoint over a local, a cheap and a premium LLM tier.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
report = typer.Typer(help="The books.", no_args_is_help=True, rich_markup_mode=None)
prices = typer.Typer(help="The price book.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(report, name="report")
app.add_typer(prices, name="prices")


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class By(StrEnum):
    """Length of a row."""

    HOUR = "hour"
    DAY = "day"


class Processing(StrEnum):
    """Kinds of processing that a price may be for."""

    STANDARD = "standard"
    BATCH = "batch"
    FLEX = "flex"
    PRIORITY = "priority"


FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written.")]


_MOST = 10**12


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"{text!r} is no number") from None
    if not value.is_finite() or value < 0:
        raise typer.BadParameter(f"{text!r} is no finite number of 0 or more")
    if value > _MOST or 0 < value * _MOST < 1:
        raise typer.BadParameter(f"{text!r} is absurd; say 0, or from 1e-12 to 1e12")
    return value


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
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Config file to check.")],
) -> None:
    """Say every mistake of a config at once, with line and cure."""
    from router.commands import check_config

    check_config.run(file)


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


@report.command("costs")
def report_costs(
    start: FromOption = None, end: ToOption = None, config: ConfigOption = None, form: FormatOption = Format.TABLE
) -> None:
    """What was spent, by day, tenant, tier and model."""
    from router.commands import costs

    costs.run(config, form, days_of(start, end))


@report.command("periods")
def report_periods(
    start: FromOption = None,
    end: ToOption = None,
    by: Annotated[By, typer.Option(help="Length of a row.")] = By.HOUR,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Hours of the local tier's hardware: invoice, what the work absorbed, what stayed idle, fully loaded cost."""
    from router.commands import hours

    hours.run(config, form, days_of(start, end), by=by.value)


@report.command("savings")
def report_savings(
    start: FromOption = None,
    end: ToOption = None,
    baseline: Annotated[
        str | None, typer.Option(help="Model to compare with; default the first premium model of each moment.")
    ] = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """What was saved against sending everything to the premium model, step by step."""
    from router.commands import savings

    savings.run(config, form, days_of(start, end), baseline=baseline)


@report.command("tokens")
def report_tokens(
    start: FromOption = None, end: ToOption = None, config: ConfigOption = None, form: FormatOption = Format.TABLE
) -> None:
    """Tokens week by week, by tier and model."""
    from router.commands import tokens

    tokens.run(config, form, days_of(start, end))


@report.command("focus")
def report_focus(
    start: FromOption = None, end: ToOption = None, config: ConfigOption = None, form: FormatOption = Format.CSV
) -> None:
    """The books as FOCUS 1.2 rows: API usage, the hardware's purchases, what of them was used and unused."""
    from router.commands import focus

    focus.run(config, form, days_of(start, end))


def _figure(text: str) -> Any:
    return typer.Option(parser=_decimal, metavar="NUMBER", help=text)


@report.command("break-even")
def report_break_even(
    usd_per_hour: Annotated[
        Decimal | None, _figure("What an hour of the hardware costs in USD; alone: with your own traffic.")
    ] = None,
    input_tokens: Annotated[int | None, typer.Option(min=0, help="Input tokens of a usual request.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=0, help="Output tokens of a usual request.")] = None,
    api_input_usd_per_mtok: Annotated[
        Decimal | None, _figure("Input price of the API it would replace, USD per million tokens.")
    ] = None,
    api_output_usd_per_mtok: Annotated[
        Decimal | None, _figure("Output price of the API it would replace, USD per million tokens.")
    ] = None,
    slo_capacity_rps: Annotated[Decimal | None, _figure("Requests a second it carries within its promises.")] = None,
    saturation_rps: Annotated[Decimal | None, _figure("Requests a second it completes at most.")] = None,
    start: FromOption = None,
    end: ToOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """From which load on your own hardware beats an API: with your own traffic, or with given figures (all seven)."""
    figures = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "api_input_usd_per_mtok": api_input_usd_per_mtok,
        "api_output_usd_per_mtok": api_output_usd_per_mtok,
        "slo_capacity_rps": slo_capacity_rps,
        "saturation_rps": saturation_rps,
    }
    if all(value is None for value in figures.values()):
        from router.commands import break_even_traffic

        break_even_traffic.run(config, form, days_of(start, end), usd_per_hour=usd_per_hour)
        return
    from router.commands import break_even

    missing = [name for name, value in ({"usd_per_hour": usd_per_hour} | figures).items() if value is None]
    if missing:
        raise typer.BadParameter(f"also needs {', '.join('--' + name.replace('_', '-') for name in missing)}")
    if start is not None or end is not None:
        raise typer.BadParameter("--from and --to are for your own traffic, not for given figures")
    if not 0 < (slo_capacity_rps or 0) <= (saturation_rps or 0):
        raise typer.BadParameter("needs 0 < --slo-capacity-rps <= --saturation-rps")
    break_even.run(form, usd_per_hour=usd_per_hour, **figures)  # type: ignore[arg-type]


@app.command()
def simulate(
    trace: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens."),
    ] = None,
    from_log: Annotated[
        bool, typer.Option("--from-log", help="What this gateway has served, out of its books.")
    ] = False,
    workloads: Annotated[
        str | None, typer.Option(help="A set of workloads: six (Azure's kinds and bursts) or shapes (other kinds).")
    ] = None,
    azure: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of Azure's CSV files, for the six; default: drawn."),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Play only so many requests of each workload.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The GPU that is simulated; default: the config's, else h100-8b-fp16.")
    ] = None,
    start_coefficients: Annotated[
        str | None,
        typer.Option(help="What the product believes of the GPU at the start; default: the config's, else the truth."),
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: product, product_fixed, nvml80, waiting0, llmd, always_local, always_api, count64."
        ),
    ] = "product,nvml80,waiting0,llmd,always_local",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    scale: Annotated[float | None, typer.Option(min=0, help="Play it so many times as fast.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Play it at so many requests a second in the mean.")] = None,
    burst_cv: Annotated[
        float | None, typer.Option(min=0, help="Draw arrivals anew, in bursts of this coefficient of variation.")
    ] = None,
    max_batched_tokens: Annotated[
        int | None, typer.Option(min=16, help="Token budget of an engine step; default: as this gateway starts it.")
    ] = None,
    self_calibration: Annotated[
        bool, typer.Option("--self-calibration/--no-self-calibration", help="Learn coefficients while serving.")
    ] = True,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Also draw the rows into this SVG file.")] = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """What if: the decision of this gateway over a simulated GPU, beside common rules of thumb."""
    from router.commands import simulate as command

    if (trace is not None) + from_log + (workloads is not None) != 1:
        raise typer.BadParameter("give either --trace or --from-log, or a set of --workloads")
    if azure is not None and workloads != "six":
        raise typer.BadParameter("--azure is what --workloads six is made of")
    if workloads is not None and (rate is not None or burst_cv is not None):
        raise typer.BadParameter("--rate and --burst-cv are for one trace; scale all workloads with --scale")
    if scale is not None and rate is not None:
        raise typer.BadParameter("give --scale or --rate, not both")
    for option, value in (("--scale", scale), ("--rate", rate), ("--burst-cv", burst_cv)):
        if value == 0:
            raise typer.BadParameter(f"{option} must be more than 0")
    command.run(
        config,
        form,
        command.Options(
            trace=trace,
            workloads=workloads,
            azure=azure,
            requests=requests,
            gpu=gpu,
            start_coefficients=start_coefficients,
            policies=tuple(name.strip() for name in policies.split(",") if name.strip()),
            seed=seed,
            scale=scale,
            rate_rps=rate,
            burst_cv=burst_cv,
            max_batched_tokens=max_batched_tokens,
            self_calibration=self_calibration,
            plot=plot,
        ),
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
    """Gaps, clashes and changes to come of the configured models' prices."""
    from router.commands import price_book

    if not price_book.check(config, form):
        raise typer.Exit(1)


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
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing is wrong, but the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    else:
        return
    sys.exit(1)
