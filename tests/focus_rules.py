"""The column rules of FOCUS 1.2 (Cost and Usage) that concern our rows, as published at focus.finops.org."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation

MANDATORY = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost",
    "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName",
    "PublisherName", "ServiceCategory", "ServiceName",
}  # fmt: skip
RECOMMENDED = {"ChargeFrequency", "ServiceSubcategory"}
NEVER_NULL = (MANDATORY | RECOMMENDED) - {"BillingAccountName", "ChargeClass", "PricingQuantity", "PricingUnit"}
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "CommitmentDiscountCategory": {"", "Spend", "Usage"},
    "CommitmentDiscountStatus": {"", "Used", "Unused"},
    "CapacityReservationStatus": {"", "Used", "Unused"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
}
DECIMALS = {
    "BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "PricingQuantity", "ConsumedQuantity",
    "CommitmentDiscountQuantity",
}  # fmt: skip
# 1.2 lets a value stand where its companion stands, and nowhere else
TOGETHER = (
    ("PricingQuantity", "PricingUnit"),
    ("ConsumedQuantity", "ConsumedUnit"),
    ("CommitmentDiscountQuantity", "CommitmentDiscountUnit"),
    ("CommitmentDiscountId", "CommitmentDiscountCategory"),
    ("CommitmentDiscountId", "CommitmentDiscountType"),
    ("ResourceId", "ResourceType"),
    ("SubAccountId", "SubAccountName"),
)
_NUMBER = re.compile(r"-?\d+(\.\d+)?([Ee][+-]?\d+)?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def violations(row: Mapping[str, str]) -> Iterator[str]:
    """What in a row (as read from CSV: no value is "") is against the rules."""
    yield from (f"{name} is missing" for name in (MANDATORY | RECOMMENDED) - row.keys())
    yield from (f"{name} is null" for name in NEVER_NULL if not row.get(name))
    yield from (f"{name} is {row[name]!r}" for name, values in ALLOWED.items() if row[name] not in values)
    yield from (f"{name} is no number" for name in DECIMALS if row[name] and not _NUMBER.fullmatch(row[name]))
    for name in ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"):
        if not _MOMENT.fullmatch(row[name]):
            yield f"{name} is {row[name]!r}"
    if row["ChargePeriodStart"] >= row["ChargePeriodEnd"] or row["BillingPeriodStart"] >= row["BillingPeriodEnd"]:
        yield "a period ends before it begins"
    if not re.fullmatch(r"[A-Z]{3}", row["BillingCurrency"]):
        yield "BillingCurrency is no ISO 4217 code"
    for one, other in TOGETHER:
        if bool(row[one]) != bool(row[other]):
            yield f"{one} and {other} do not stand together"
    yield from _by_category(row)
    yield from _of_commitments(row)


def _positive(text: str) -> bool:
    try:
        return Decimal(text) > 0
    except InvalidOperation:
        return False


def _by_category(row: Mapping[str, str]) -> Iterator[str]:
    category, plain = row["ChargeCategory"], row["ChargeClass"] != "Correction"
    if category == "Purchase" and row["ChargeFrequency"] == "Usage-Based":
        yield "a purchase is not usage-based"
    if category in ("Usage", "Purchase") and plain:
        for name in ("PricingQuantity", "PricingUnit", "PricingCategory", "SkuId"):
            if not row[name]:
                yield f"{name} is null on plain {category}"
    used = category == "Usage" and row["CommitmentDiscountStatus"] != "Unused"
    if used and plain and not _positive(row["ConsumedQuantity"]):
        yield "plain usage without a positive ConsumedQuantity"
    if not used and row["ConsumedQuantity"]:
        yield "ConsumedQuantity on what is no usage"


def _of_commitments(row: Mapping[str, str]) -> Iterator[str]:
    category, plain = row["ChargeCategory"], row["ChargeClass"] != "Correction"
    for name in ("CommitmentDiscount", "CapacityReservation"):
        known, status = row[f"{name}Id"], row[f"{name}Status"]
        if bool(status) != bool(known and category == "Usage"):
            yield f"{name}Status is {status!r} on {category}"
    if not row["CommitmentDiscountId"]:
        yield from (f"{n} without a commitment" for n in row if n.startswith("CommitmentDiscount") and row[n])
        return
    if plain and not _positive(row["CommitmentDiscountQuantity"]):
        yield "CommitmentDiscountQuantity is not positive"
    if category == "Purchase" and Decimal(row["EffectiveCost"]) != 0:
        yield "EffectiveCost of a purchase for later use is not 0"
    if (category == "Usage") != (row["PricingCategory"] == "Committed"):
        yield f"PricingCategory is {row['PricingCategory']!r} on {category} of a commitment"
