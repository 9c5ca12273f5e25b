"""What one attempt costs, as it is booked. Pure; knows no period and no loaded cost.

An API's attempt costs its usage at the price row in force. A local attempt costs a_r = rho * g_r: its standard work
content in GPU-seconds times the asset's standard rate at practical capacity (time-driven activity-based costing; fixed
overhead on normal capacity, IAS 2.13). Neither depends on who else was served.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal

from local_llm.datamodels import EngineCoefficients
from local_llm.workunits import work_gpu_ns
from router.core.attempts import Charge
from router.core.pricing import cost_nanousd, divide_half_even, sane_usage
from router.core.request import TokenUsage
from router.core.snapshot import AssetRate, PriceRow
from router.core.vocabulary import Flag

NANO_PER_CENT = 10_000_000
_SECONDS_PER_HOUR = 3600
_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN)
# A rate such as 2.50/3600 has no end, so a product that should be exactly half a nano-dollar comes out a hair off it.
# Real products are ratios with small denominators and never this close to a half without being one.
_SNAP = Decimal("1e-15")
_ONE = Decimal(1)


def api_charge(row: PriceRow, usage: TokenUsage) -> Charge:
    """The charge of an API attempt: `usage` at `row`, with TIER_CLIFF where a dearer tier applied."""
    usage = sane_usage(usage)
    flags = _usage_flags(usage)
    if len(row.tiers) > 1 and usage.input_tokens >= row.tiers[1].from_input_tokens:
        flags = (*flags, Flag.TIER_CLIFF)
    return Charge(
        amount_nanousd=cost_nanousd(row, usage),
        price_version=row.version,
        flags=_merged(flags, row.flags),
    )


def local_charge(asset: AssetRate, coefficients: EngineCoefficients, usage: TokenUsage) -> Charge:
    """The charge of a local attempt: a_r = rho * g_r, half-even to the nano-dollar.

    `usage` is what the engine has done: the whole prompt once its prefill ran, the tokens emitted so far, zeros where
    it was aborted in the queue. Without a priced asset the amount is 0, flagged UNPRICED_ASSET; the work still counts.
    """
    usage = sane_usage(usage)
    work_ns = work_gpu_ns(
        coefficients,
        prompt_tokens=usage.input_tokens,
        cached_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens,
    )
    flags = _usage_flags(usage)
    if not coefficients.calibrated:
        flags = (*flags, Flag.COEFFS_UNCALIBRATED)
    price_version = f"{asset.version}/{coefficients.name}"
    if asset.usd_per_gpu_s is None:
        flags = (*flags, Flag.UNPRICED_ASSET)
        return Charge(0, price_version, work_ns, flags)
    amount = work_cost_nanousd(asset.usd_per_gpu_s, work_ns)
    return Charge(amount, price_version, work_ns, flags, asset.asset)


def work_cost_nanousd(usd_per_gpu_s: Decimal, work_gpu_ns: int) -> int:
    """Rate times work, half-even to the nano-dollar (a dollar per second is a nano-dollar per nanosecond)."""
    product = _CONTEXT.multiply(usd_per_gpu_s, Decimal(work_gpu_ns))
    snapped = product.quantize(_SNAP, context=_CONTEXT)
    return int(snapped.quantize(_ONE, context=_CONTEXT))


def standard_rate(usd_per_hour: Decimal, practical_capacity_ratio: Decimal) -> Decimal:
    """rho = usd_per_hour / (3600 * kappa_p), USD per GPU-second; kappa_p in (0, 1] is the sellable share of an hour."""
    if not usd_per_hour.is_finite() or usd_per_hour < 0:
        raise ValueError(f"usd_per_hour must be a finite number, not negative: {usd_per_hour}")
    if not 0 < practical_capacity_ratio <= 1:
        raise ValueError(f"practical_capacity_ratio must be in (0, 1]: {practical_capacity_ratio}")
    return _CONTEXT.divide(usd_per_hour, _CONTEXT.multiply(Decimal(_SECONDS_PER_HOUR), practical_capacity_ratio))


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights` so that the parts add up to it exactly (largest remainder).

    Ties go to the earlier part. `total` may be negative (a variance); weights are not, and not all 0.
    """
    if any(weight < 0 for weight in weights):
        raise ValueError("weights must not be negative")
    whole = sum(weights)
    if whole == 0:
        raise ValueError("nothing to apportion by: all weights are 0")
    return largest_remainder([divmod(total * weight, whole) for weight in weights], total)


def rounded_to(unit: int, parts: Sequence[int]) -> list[int]:
    """`parts` in whole `unit`s (e.g. cents from nano-dollars), adding up to their sum rounded half-even to the unit."""
    return largest_remainder([divmod(part, unit) for part in parts], divide_half_even(sum(parts), unit))


def largest_remainder(floors_and_rests: Sequence[tuple[int, int]], total: int) -> list[int]:
    """The floors, raised by 1 where the rest is largest until they add up to `total`; ties go to the earlier part."""
    result = [floor for floor, _ in floors_and_rests]
    # between 0 and the number of parts: the floors never exceed the exact sum, and each is less than 1 below its part
    missing = total - sum(result)
    by_rest = sorted(range(len(result)), key=lambda index: (-floors_and_rests[index][1], index))
    for index in by_rest[:missing]:
        result[index] += 1
    return result


def _usage_flags(usage: TokenUsage) -> tuple[Flag, ...]:
    if usage.estimated:
        return _merged(usage.flags, (Flag.USAGE_ESTIMATED,))
    return usage.flags


def _merged(first: tuple[Flag, ...], second: tuple[Flag, ...]) -> tuple[Flag, ...]:
    return (*first, *(flag for flag in second if flag not in first))
