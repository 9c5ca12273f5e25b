"""From which load on hardware of one's own beats an API, and how that moves. Pure; no decision sees it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum

_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN)
_SECONDS_PER_HOUR = Decimal(3600)
_TOKENS_PER_MTOK = Decimal(1_000_000)


class Verdict(StrEnum):
    """Whether hardware of one's own can pay for itself."""

    YES = "yes"
    ABOVE_SLO = "above_slo"  # only at a load at which the promised latency does not hold
    NEVER = "never"  # the engine is saturated before, or the API costs nothing more
    NO = "no"  # of one load: not there, though at another


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The load at which an hour of the engine costs as much as its requests would cost at the API.

    `requests_per_hour` and what follows from it are `None` where no load is enough (the API saves nothing).
    """

    usd_per_request: Decimal
    requests_per_hour: Decimal | None
    requests_per_s: Decimal | None
    share_of_slo_capacity: Decimal | None
    verdict: Verdict


def break_even(
    *,
    usd_per_hour: Decimal,
    input_tokens: int,
    output_tokens: int,
    api_input_usd_per_mtok: Decimal,
    api_output_usd_per_mtok: Decimal,
    slo_capacity_rps: Decimal,
    saturation_rps: Decimal,
    marginal_usd_per_request: Decimal = Decimal(0),
) -> BreakEven:
    """N* = C_h / (api price - cash marginal cost) requests an hour; its share of what the engine can do decides.

    `slo_capacity_rps` is the load the engine carries while its latency promise holds, `saturation_rps` the most it
    completes at all. Compare with an API model of the same quality, else the figure says nothing. Raises `ValueError`
    for negative figures or a capacity of 0.
    """
    figures = (usd_per_hour, api_input_usd_per_mtok, api_output_usd_per_mtok, marginal_usd_per_request)
    if input_tokens < 0 or output_tokens < 0 or any(figure < 0 for figure in figures):
        raise ValueError("costs, prices and tokens must not be negative")
    if not 0 < slo_capacity_rps <= saturation_rps:
        raise ValueError(f"capacities must satisfy 0 < slo {slo_capacity_rps} <= saturation {saturation_rps}")
    token_usd = _CONTEXT.add(
        _CONTEXT.multiply(api_input_usd_per_mtok, Decimal(input_tokens)),
        _CONTEXT.multiply(api_output_usd_per_mtok, Decimal(output_tokens)),
    )
    return break_even_at(
        _CONTEXT.divide(token_usd, _TOKENS_PER_MTOK),
        usd_per_hour=usd_per_hour,
        slo_capacity_rps=slo_capacity_rps,
        saturation_rps=saturation_rps,
        marginal_usd_per_request=marginal_usd_per_request,
    )


def break_even_at(
    usd_per_request: Decimal,
    *,
    usd_per_hour: Decimal,
    slo_capacity_rps: Decimal,
    saturation_rps: Decimal,
    marginal_usd_per_request: Decimal = Decimal(0),
) -> BreakEven:
    """`break_even` where the API's price of a usual request is known: `usd_per_request`."""
    saved_usd = usd_per_request - marginal_usd_per_request
    if saved_usd <= 0:
        return BreakEven(usd_per_request, None, None, None, Verdict.NEVER)
    per_hour = _CONTEXT.divide(usd_per_hour, saved_usd)
    per_s = _CONTEXT.divide(per_hour, _SECONDS_PER_HOUR)
    if per_s > saturation_rps:
        verdict = Verdict.NEVER
    else:
        verdict = Verdict.ABOVE_SLO if per_s > slo_capacity_rps else Verdict.YES
    return BreakEven(usd_per_request, per_hour, per_s, _CONTEXT.divide(per_s, slo_capacity_rps), verdict)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How the answer moves with one figure: its factor (or share), the figure itself, and what follows."""

    what: str  # usd_per_hour | api_price | utilization
    factor: Decimal
    usd: Decimal
    requests_per_s: Decimal | None
    share_of_slo_capacity: Decimal | None
    verdict: Verdict


_RATE_FACTORS = tuple(map(Decimal, ("0.5", "0.75", "1", "1.25", "1.5", "2")))
_PRICE_FACTORS = tuple(map(Decimal, ("0.25", "0.5", "1", "2", "4")))
_UTILIZATIONS = tuple(map(Decimal, ("0.05", "0.1", "0.25", "0.5", "0.75", "1")))


def sensitivity(
    usd_per_request: Decimal,
    *,
    usd_per_hour: Decimal,
    slo_capacity_rps: Decimal,
    saturation_rps: Decimal,
    marginal_usd_per_request: Decimal = Decimal(0),
) -> tuple[Sensitivity, ...]:
    """The break-even load at other hourly rates and API prices, and what a request costs at shares of the capacity.

    For `utilization` the figure is the local cost of a request at that share of the capacity, and the verdict says
    whether it is below the API's price there (yes), at a higher load only (no), or at none that can be had (never).
    """
    rows = []
    for what, factors in (("usd_per_hour", _RATE_FACTORS), ("api_price", _PRICE_FACTORS)):
        for factor in factors:
            hourly = usd_per_hour * factor if what == "usd_per_hour" else usd_per_hour
            price = usd_per_request * factor if what == "api_price" else usd_per_request
            found = break_even_at(
                price,
                usd_per_hour=hourly,
                slo_capacity_rps=slo_capacity_rps,
                saturation_rps=saturation_rps,
                marginal_usd_per_request=marginal_usd_per_request,
            )
            shown = hourly if what == "usd_per_hour" else price
            rows.append(
                Sensitivity(what, factor, shown, found.requests_per_s, found.share_of_slo_capacity, found.verdict)
            )
    there = break_even_at(
        usd_per_request,
        usd_per_hour=usd_per_hour,
        slo_capacity_rps=slo_capacity_rps,
        saturation_rps=saturation_rps,
        marginal_usd_per_request=marginal_usd_per_request,
    )
    otherwise = Verdict.NEVER if there.verdict is Verdict.NEVER else Verdict.NO
    for share in _UTILIZATIONS:
        rps = share * slo_capacity_rps
        cost = _CONTEXT.divide(usd_per_hour, rps * _SECONDS_PER_HOUR) + marginal_usd_per_request
        verdict = Verdict.YES if cost < usd_per_request else otherwise
        rows.append(Sensitivity("utilization", share, cost, rps, share, verdict))
    return tuple(rows)
