"""`report ...` on the command line: the books, and what hardware of one's own would cost against an API."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any

import typer

from router.commands.options import ConfigOption, FormatOption, FromOption, ToOption, days_of
from router.commands.output import Format

report = typer.Typer(help="The books.", no_args_is_help=True, rich_markup_mode=None)

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


class By(StrEnum):
    """Length of a row."""

    HOUR = "hour"
    DAY = "day"


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
    from router.core.break_even import break_even as at_which_load

    missing = [name for name, value in ({"usd_per_hour": usd_per_hour} | figures).items() if value is None]
    if missing:
        raise typer.BadParameter(f"also needs {', '.join('--' + name.replace('_', '-') for name in missing)}")
    if start is not None or end is not None:
        raise typer.BadParameter("--from and --to are for your own traffic, not for given figures")
    if not 0 < (slo_capacity_rps or 0) <= (saturation_rps or 0):
        raise typer.BadParameter("needs 0 < --slo-capacity-rps <= --saturation-rps")
    found = at_which_load(usd_per_hour=usd_per_hour, **figures)  # type: ignore[arg-type]
    break_even.show(form, found)


@report.command("payback")
def report_payback(
    rent_usd_per_hour: Annotated[Decimal, _figure("What an hour of the same hardware costs to rent, in USD.")],
    purchase_usd: Annotated[Decimal | None, _figure("Its price; default: the hardware of the config.")] = None,
    residual_usd: Annotated[Decimal, _figure("What it is sold for in the end.")] = Decimal(0),
    years: Annotated[Decimal, _figure("Years in service.")] = Decimal(4),
    discount_rate_ratio: Annotated[Decimal, _figure("Cost of capital a year, such as 0.08.")] = Decimal(0),
    availability_ratio: Annotated[Decimal, _figure("Share of the year in which it can serve.")] = Decimal(1),
    power_kw: Annotated[Decimal, _figure("Mean power in kW.")] = Decimal(0),
    pue_ratio: Annotated[Decimal, _figure("Power of the room over that of the hardware.")] = Decimal(1),
    usd_per_kwh: Annotated[Decimal, _figure("Price of a kWh in USD.")] = Decimal(0),
    colo_usd_per_hour: Annotated[Decimal, _figure("Floor space an hour, in USD.")] = Decimal(0),
    ops_usd_per_hour: Annotated[Decimal, _figure("Operations an hour, in USD.")] = Decimal(0),
    other_usd_per_hour: Annotated[Decimal, _figure("Anything else an hour, in USD.")] = Decimal(0),
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """When hardware that was bought has paid for itself against renting it: of given figures, or of the config's."""
    from router.commands import payback
    from router.core.hardware import OwnedHardware

    hardware = None
    if purchase_usd is not None:
        try:
            hardware = OwnedHardware(
                purchase_usd=purchase_usd,
                residual_usd=residual_usd,
                years=years,
                discount_rate_ratio=discount_rate_ratio,
                availability_ratio=availability_ratio,
                power_kw=power_kw,
                pue_ratio=pue_ratio,
                usd_per_kwh=usd_per_kwh,
                colo_usd_per_hour=colo_usd_per_hour,
                ops_usd_per_hour=ops_usd_per_hour,
                other_usd_per_hour=other_usd_per_hour,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    payback.run(config, form, hardware, rent_usd_per_hour=rent_usd_per_hour)
