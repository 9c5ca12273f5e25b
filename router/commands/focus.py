"""`report focus`: the books as FOCUS 1.2 rows, for tools that know cloud bills.

An hour of the hardware is a Purchase (billed: its invoice); what its work absorbed is Usage of that commitment with
status Used, what stayed idle is Usage with status Unused. So for every period the effective cost of Used and Unused is
the billed cost of the Purchase. What is no plain use (late charges of closed hours, hours in which more was absorbed
than invoiced) has the class Correction. Only closed periods are exported; an API's attempts are Usage by hour.

Columns, allowed values and when a value must or must not be there follow the columns of the published specification,
version 1.2 (focus.finops.org).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from router.commands.books import books_of
from router.commands.output import Format, write_json, write_rows
from router.commands.ranges import Range
from router.core.periods import HOUR_US, Period
from router.core.vocabulary import NANO_PER_USD
from router.stores.reports import ApiHour, Hours, PostedGroup, api_hours, hours
from router.stores.rows import from_us

COLUMNS = (
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "BillingCurrency", "BillingAccountId",
    "BillingAccountName", "BillingPeriodStart", "BillingPeriodEnd", "ChargeCategory", "ChargeClass",
    "ChargeDescription", "ChargeFrequency", "ChargePeriodStart", "ChargePeriodEnd", "CapacityReservationId",
    "CapacityReservationStatus", "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType", "CommitmentDiscountUnit",
    "ConsumedQuantity", "ConsumedUnit", "InvoiceIssuerName", "PricingCategory", "PricingQuantity", "PricingUnit",
    "ProviderName", "PublisherName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName",
    "ServiceSubcategory", "SkuId", "SubAccountId", "SubAccountName",
)  # fmt: skip


def run(config: Path | None, form: Format, days: Range, *, now_utc: datetime | None = None) -> None:
    """Print the rows of `days`. Raises `Unavailable` without a database."""
    with books_of(config) as (_, engine):
        found = hours(engine, now_utc or datetime.now(UTC), days.from_utc, days.to_utc)
        calls = api_hours(engine, days.from_utc, days.to_utc)
    rows = [*hardware_rows(found), *api_rows(calls)]
    if form is Format.JSON:
        write_json({"rows": rows})
    else:
        write_rows(rows, COLUMNS if form is Format.CSV else _SHOWN, form)


_OWN = "own-hardware"
_CORRECTION = {"ChargeClass": "Correction"}
_SHOWN = (
    "ChargePeriodStart", "ChargeCategory", "ChargeClass", "CapacityReservationStatus", "ResourceId", "SubAccountId",
    "BilledCost", "EffectiveCost",
)  # fmt: skip


def hardware_rows(found: Hours) -> Iterator[dict[str, Any]]:
    """Purchase, Used and Unused of every closed period."""
    used: dict[tuple[str, int], list[PostedGroup]] = {}
    for group in found.groups:
        used.setdefault((group.asset, group.period_us), []).append(group)
    for period in found.periods:
        if period.closed:
            yield from _period_rows(period, used.get((period.asset, period.start_us), []))


def _period_rows(period: Period, groups: Iterable[PostedGroup]) -> Iterator[dict[str, Any]]:
    hardware = _row(period.start_us, period.end_us) | {
        "BillingAccountId": _OWN,
        "BillingAccountName": _OWN,
        "CapacityReservationId": period.asset,
        "CommitmentDiscountCategory": "Spend",
        "CommitmentDiscountId": period.asset,
        "CommitmentDiscountName": period.asset,
        "CommitmentDiscountType": period.rate_version.partition("-")[0],
        "InvoiceIssuerName": _OWN,
        "ProviderName": _OWN,
        "PublisherName": _OWN,
        "ResourceId": period.asset,
        "ResourceName": period.asset,
        "ResourceType": "GPU server",
        "ServiceName": "Local inference",
        "SkuId": period.rate_version,
    }
    if period.invoice_nanousd:
        yield (
            hardware
            | _money(billed=period.invoice_nanousd, effective=0)
            | _spend(period.invoice_nanousd)
            | {
                "ChargeCategory": "Purchase",
                "ChargeDescription": f"{period.asset}, on for {period.on_us / 1e6:.0f} s",
                "ChargeFrequency": "Recurring",
                "PricingCategory": "Standard",
                "PricingQuantity": Decimal(period.on_us) / HOUR_US,
                "PricingUnit": "Hours",
            }
        )
    for group in groups:
        yield from _used_rows(hardware, group)
    idle = period.unabsorbed_nanousd
    if idle:
        status = {"CapacityReservationStatus": "Unused", "CommitmentDiscountStatus": "Unused"}
        what = "idle" if idle > 0 else "over-absorption variance"
        yield (
            hardware
            | status
            | _money(billed=0, effective=idle)
            | (_spend(idle) | _priced_by_spend(idle) if idle > 0 else _CORRECTION)
            | {"ChargeDescription": f"{period.asset}, {what}", "PricingCategory": "Committed"}
        )


def _used_rows(hardware: dict[str, Any], group: PostedGroup) -> Iterator[dict[str, Any]]:
    """What one tenant's use of one model has absorbed; late charges of closed periods stand apart."""
    used = hardware | {
        "CapacityReservationStatus": "Used",
        "CommitmentDiscountStatus": "Used",
        "PricingCategory": "Committed",
        "SkuId": group.model,
        "SubAccountId": group.tenant,
        "SubAccountName": group.tenant,
    }
    plain, late = group.amount_nanousd - group.adjusts_nanousd, group.adjusts_nanousd
    if plain > 0 and group.work_gpu_ns > 0:
        consumed = {"ConsumedQuantity": Decimal(group.work_gpu_ns) / NANO_PER_USD, "ConsumedUnit": "GPU-Seconds"}
        figures = _spend(plain) | _priced_by_spend(plain) | consumed
        yield (
            used
            | _money(billed=0, effective=plain)
            | figures
            | {"ChargeDescription": f"{group.model}, {group.requests} requests"}
        )
    elif plain:  # a request that turned out cheaper than what was noted of it in the hour before
        yield (
            used
            | _money(billed=0, effective=plain)
            | _CORRECTION
            | {"ChargeDescription": f"{group.model}, less than noted before"}
        )
    if late:
        yield (
            used
            | _money(billed=0, effective=late)
            | _CORRECTION
            | {"ChargeDescription": f"{group.model}, late charges of closed periods"}
        )


def _spend(nanousd: int) -> dict[str, Any]:
    """The part of what was bought that a row is about."""
    return {"CommitmentDiscountQuantity": Decimal(nanousd) / NANO_PER_USD, "CommitmentDiscountUnit": "USD"}


def _priced_by_spend(nanousd: int) -> dict[str, Any]:
    return {"PricingQuantity": Decimal(nanousd) / NANO_PER_USD, "PricingUnit": "USD"}


def api_rows(calls: Iterable[ApiHour]) -> Iterator[dict[str, Any]]:
    """One row an hour, tenant and model."""
    for call in calls:
        if not call.tokens and not call.amount_nanousd:  # nothing was used: no charge
            continue
        # what was lost in a crash is booked at its reserve, and nobody knows its tokens
        quantity, unit = (Decimal(call.tokens), "Tokens") if call.tokens else (Decimal(call.attempts), "Requests")
        yield (
            _row(call.hour_us, call.hour_us + HOUR_US)
            | _money(billed=call.amount_nanousd, effective=call.amount_nanousd)
            | {
                "BillingAccountId": call.provider,
                "BillingAccountName": call.provider,
                "ChargeDescription": f"{call.model}, {call.attempts} calls",
                "ConsumedQuantity": quantity,
                "ConsumedUnit": unit,
                "InvoiceIssuerName": call.provider,
                "PricingCategory": "Standard",
                "PricingQuantity": quantity,
                "PricingUnit": unit,
                "ProviderName": call.provider,
                "PublisherName": call.provider,
                "ResourceId": call.model,
                "ResourceName": call.model,
                "ResourceType": "Model",
                "ServiceName": "LLM API",
                "SkuId": call.model,
                "SubAccountId": call.tenant,
                "SubAccountName": call.tenant,
            }
        )


def _row(start_us: int, end_us: int) -> dict[str, Any]:
    month = from_us(start_us).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    return dict.fromkeys(COLUMNS) | {
        "BillingCurrency": "USD",
        "BillingPeriodStart": _iso(month),
        "BillingPeriodEnd": _iso(following),
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _iso(from_us(start_us)),
        "ChargePeriodEnd": _iso(from_us(end_us)),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
    }


def _money(*, billed: int, effective: int) -> dict[str, Decimal]:
    """Exact; list and contracted cost are what is billed or, for usage of what was bought, what it is worth."""
    shown = Decimal(billed or effective) / NANO_PER_USD
    return {
        "BilledCost": Decimal(billed) / NANO_PER_USD,
        "EffectiveCost": Decimal(effective) / NANO_PER_USD,
        "ListCost": shown,
        "ContractedCost": shown,
    }


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
