"""The packaged price list: rows of genai-prices as our nouns. The only file that imports genai_prices; no network.

The list knows dated and future prices, hours of the day, tiers by input tokens, and other kinds of processing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING

from router.core.dated_prices import around
from router.core.snapshot import PriceRow, PriceTier
from router.core.vocabulary import Flag

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import (
        ConditionalPrice,
        ModelInfo,
        ModelPrice,
        PriceVariant,
        Provider,
        StartDateConstraint,
        TieredPrices,
        TimeOfDateConstraint,
    )

# How litellm and others spell the hosts that the price list knows by another name.
_HOST_ALIASES = {
    "azure_ai": "azure",
    "bedrock": "aws",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "meta_llama": "meta",
    "mistralai": "mistral",
    "moonshot": "moonshotai",
    "together_ai": "together",
    "vertex_ai": "google",
    "xai": "x-ai",
}
# Batch is a kind of processing; asking for it as a service tier would silently give the full price.
_CONTEXT = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


class PriceUnknown(LookupError):
    """No price for `model`. The text names the model and the cure."""

    def __init__(self, model: str, why: str) -> None:
        self.model = model
        super().__init__(
            f"no price for model {model!r}: {why}; give it one with a `price:` override in its tier "
            f"(input_usd_per_mtok, output_usd_per_mtok)"
        )


def package_version() -> str:
    return version("genai-prices")


def _snapshot() -> DataSnapshot:
    # imported on first need: a tenth of a second that `--help` should not pay
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _find(model: str, provider: str | None) -> tuple[Provider, ModelInfo]:
    """The list's entry for `model`. A host is taken from `provider` or the name's head, never guessed for a path."""
    snapshot = _snapshot()
    hosts = {host.id: host for host in snapshot.providers}
    head, slash, tail = model.partition("/")
    named = provider if provider is not None else head if slash else None
    if named is None:
        try:
            return snapshot.find_provider_model(model, None, None, None)
        except LookupError:
            raise PriceUnknown(model, _known_hosts(model, snapshot)) from None
    host = hosts.get(_HOST_ALIASES.get(named.lower(), named.lower()))
    if host is None:
        why = _known_hosts(model, snapshot) if provider is None else f"the price list has no host {named!r}"
        raise PriceUnknown(model, why)
    at_host = [tail] if provider is None else [model, tail] if slash and head.lower() == named.lower() else [model]
    for name in at_host:
        if (found := host.find_model(name, all_providers=snapshot.providers)) is not None:
            return host, found
    raise PriceUnknown(model, f"the price list of host {host.id!r} does not have it")


def _known_hosts(model: str, snapshot: DataSnapshot) -> str:
    known = [host.id for host in snapshot.providers if any(entry.is_match(model) for entry in host.models)]
    known.sort(key=lambda name: (name.startswith("huggingface"), name))
    if known:
        return f"its price depends on the host, name it, e.g. {known[0]}/{model} (known: {', '.join(known[:6])})"
    return "no price list has it"


def listed_context_window_tokens(model: str) -> int | None:
    """The context window the list knows for `model`; `None` where it knows none, or not the model."""
    try:
        _, entry = _find(model, None)
    except PriceUnknown:
        return None
    return entry.context_window


def listed_row(model: str, provider: str | None, at_utc: datetime, processing: str) -> tuple[PriceRow, list[datetime]]:
    """The list's row in force at `at_utc`, and the instants around it at which another one may be.

    Raises `PriceUnknown`.
    """
    host, entry = _find(model, provider)
    context = _CONTEXT.get(processing)
    variants = _variants(host, entry, context)
    if context is not None and not any(_active(variant, at_utc) for variant in variants):
        raise PriceUnknown(model, f"{host.id}/{entry.id} has no {processing} price at {at_utc:%Y-%m-%d}")
    price = entry.get_prices(at_utc, context)
    conditions: list[ConditionalPrice | PriceVariant] = [*_conditions(entry), *variants]
    constraints = [condition.constraint for condition in conditions if condition.constraint is not None]
    instants = [instant for constraint in constraints for instant in _instants(constraint, at_utc)]
    since, until = around(instants, at_utc)
    peak, hours = _time_of_day(entry, at_utc)
    dates = [start for c in constraints if (start := _start(c)) is not None and start <= at_utc]
    name = f"{host.id}/{entry.id}"
    dated = f"@{max(dates):%Y-%m-%d}" if dates else ""
    kind = "" if processing == "standard" else f"+{processing}"
    row = PriceRow(
        model=entry.id,
        provider=host.id,
        tiers=_tiers(model, price),
        effective_from_utc=since,
        valid_until_utc=until,
        source=f"genai-prices {package_version()}: {name}",
        version=f"genai-prices-{package_version()}/{name}{dated}{hours}{kind}",
        flags=(Flag.PEAK_HOURS,) if peak else (),
        request_usd=_flat(price.requests_kcount) / 1000,
    )
    return row, instants


def _conditions(entry: ModelInfo) -> Sequence[ConditionalPrice]:
    return entry.prices if isinstance(entry.prices, list) else ()


def _variants(host: Provider, entry: ModelInfo, context: Mapping[str, str] | None) -> list[PriceVariant]:
    # a model that a host only borrows from its maker has the maker's standard price there, and no other
    if context is None or not any(own is entry for own in host.models):
        return []
    return [v for v in entry.price_variants or () if all(context.get(key) == value for key, value in v.when.items())]


def _active(condition: PriceVariant | ConditionalPrice, at_utc: datetime) -> bool:
    return condition.constraint is None or condition.constraint.active(at_utc)


def _time_of_day(entry: ModelInfo, at_utc: datetime) -> tuple[bool, str]:
    """(whether a dearer hour is on, the label of the hours in force)."""
    from genai_prices.types import TimeOfDateConstraint

    active = [c for c in _conditions(entry) if _active(c, at_utc)]
    if not active or not isinstance(hours := active[-1].constraint, TimeOfDateConstraint):
        return False, ""
    all_day = [c for c in active if not isinstance(c.constraint, TimeOfDateConstraint)] or [_conditions(entry)[0]]
    dearer = _flat(active[-1].prices.input_mtok) > _flat(all_day[-1].prices.input_mtok)
    return dearer, f"@{hours.start_time:%H:%M}-{hours.end_time:%H:%M}Z"


def _start(constraint: StartDateConstraint | TimeOfDateConstraint) -> datetime | None:
    day = getattr(constraint, "start_date", None)
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)


def _instants(constraint: StartDateConstraint | TimeOfDateConstraint, at_utc: datetime) -> list[datetime]:
    """Every instant near `at_utc` at which the constraint turns on or off."""
    if (start := _start(constraint)) is not None:
        return [start]
    days = [(at_utc + timedelta(days=offset)).date() for offset in (-1, 0, 1)]
    hours = [getattr(constraint, name) for name in ("start_time", "end_time")]
    return [
        datetime.combine(day, hour if hour.tzinfo is not None else hour.replace(tzinfo=UTC)).astimezone(UTC)
        for day in days
        for hour in hours
    ]


def _tiers(model: str, price: ModelPrice) -> tuple[PriceTier, ...]:
    """The list's per-field tiers as one ascending table. Its tier starts *above* `start` tokens."""
    given, out = price.input_mtok, price.output_mtok
    if given is None or out is None:
        raise PriceUnknown(model, "it is not sold by input and output tokens")
    fields = (given, out, price.cache_read_mtok, price.cache_write_mtok)
    starts = {0} | {tier.start + 1 for field in fields for tier in getattr(field, "tiers", ())}
    return tuple(
        PriceTier(
            from_input_tokens=start,
            input_usd_per_mtok=_at(given, start),
            output_usd_per_mtok=_at(out, start),
            cached_input_usd_per_mtok=None if price.cache_read_mtok is None else _at(price.cache_read_mtok, start),
            cache_write_usd_per_mtok=None if price.cache_write_mtok is None else _at(price.cache_write_mtok, start),
        )
        for start in sorted(starts)
    )


def _at(value: Decimal | TieredPrices, input_tokens: int) -> Decimal:
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return reached[-1] if reached else value.base


def _flat(value: Decimal | TieredPrices | None) -> Decimal:
    return Decimal(0) if value is None else _at(value, 0)
