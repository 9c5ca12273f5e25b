"""`report focus`: the books as FOCUS 1.2 rows, for tools that know cloud bills.

An hour of the hardware is a Purchase (billed: its invoice); what its work absorbed is Usage of that commitment with
status Used, what stayed idle is Usage with status Unused. So for every period the effective cost of Used and Unused is
the billed cost of the Purchase. Only closed periods are exported; an API's attempts are Usage by hour.
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
from router.core.datamodels import NANO_PER_USD
from router.core.periods import HOUR_US, Period
from router.stores.reports import ApiHour, Hours, PostedGroup, api_hours, hours
from router.stores.rows import from_us

COLUMNS = (
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "BillingCurrency", "BillingAccountId",
    "BillingPeriodStart", "BillingPeriodEnd", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodStart", "ChargePeriodEnd", "CapacityReservationId", "CapacityReservationStatus",
    "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "ConsumedQuantity", "ConsumedUnit", "InvoiceIssuerName", "ProviderName", "PublisherName", "ResourceId",
    "ServiceCategory", "ServiceName", "SkuId", "SubAccountId",
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
        "BillingAccountId": "own-hardware",
        "CapacityReservationId": period.asset,
        "CommitmentDiscountCategory": "Spend",
        "CommitmentDiscountId": period.asset,
        "CommitmentDiscountType": period.rate_version.partition("-")[0],
        "ResourceId": period.asset,
        "InvoiceIssuerName": "own-hardware",
        "ProviderName": "own-hardware",
        "PublisherName": "own-hardware",
        "ServiceName": "Local inference",
    }
    yield (
        hardware
        | _money(billed=period.invoice_nanousd, effective=0)
        | {
            "ChargeCategory": "Purchase",
            "ChargeDescription": f"{period.asset}, on for {period.on_us / 1e6:.0f} s",
            "ConsumedQuantity": None,
            "SkuId": period.rate_version,
        }
    )
    status = {"CapacityReservationStatus": "Used", "CommitmentDiscountStatus": "Used"}
    for group in groups:
        usage = hardware | status | {"SubAccountId": group.tenant, "SkuId": group.model}
        parts = (("", group.amount_nanousd - group.adjusts_nanousd), ("Correction", group.adjusts_nanousd))
        for charge_class, amount in parts:
            if amount or not charge_class:
                what = "late charges of closed periods" if charge_class else f"{group.requests} requests"
                yield (
                    usage
                    | _money(billed=0, effective=amount)
                    | {
                        "ChargeClass": charge_class or None,
                        "ChargeDescription": f"{group.model}, {what}",
                        "ConsumedQuantity": None if charge_class else Decimal(group.work_gpu_ns) / NANO_PER_USD,
                        "ConsumedUnit": None if charge_class else "GPU-Seconds",
                    }
                )
    status = {"CapacityReservationStatus": "Unused", "CommitmentDiscountStatus": "Unused"}
    idle = period.unabsorbed_nanousd
    what = "idle" if idle >= 0 else "over-absorption variance"
    yield (
        hardware
        | status
        | _money(billed=0, effective=idle)
        | {
            "ChargeDescription": f"{period.asset}, {what}",
            "SkuId": period.rate_version,
        }
    )


def api_rows(calls: Iterable[ApiHour]) -> Iterator[dict[str, Any]]:
    """One row an hour, tenant and model."""
    for call in calls:
        yield (
            _row(call.hour_us, call.hour_us + HOUR_US)
            | _money(billed=call.amount_nanousd, effective=call.amount_nanousd)
            | {
                "BillingAccountId": call.provider,
                "ChargeDescription": f"{call.model}, {call.attempts} calls",
                "ConsumedQuantity": Decimal(call.tokens),
                "ConsumedUnit": "Tokens",
                "InvoiceIssuerName": call.provider,
                "ProviderName": call.provider,
                "PublisherName": call.provider,
                "ResourceId": call.model,
                "ServiceName": "LLM API",
                "SkuId": call.model,
                "SubAccountId": call.tenant,
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
