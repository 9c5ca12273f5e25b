"""Cost before the call: what given tokens would cost on a named model, a tier, or wherever `auto` may send them.

An API answers at its price row. A local engine answers at its standard cost: the work of those tokens, from its
coefficients, times the standard rate of its hardware. `auto` has no price: it has a range, and what it depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from router.core.charges import local_charge
from router.core.pricing import CostParts, cost_parts
from router.core.request import TokenUsage
from router.core.snapshot import PriceRow
from router.core.virtual_models import VIRTUAL_MODELS
from router.core.vocabulary import NANO_PER_USD, Flag, Locality, Tier
from router.errors import BadRequest, NotFound
from router.hardware_terms import asset_rate
from router.prices import PriceBook, PriceUnknown
from router.settings_types import ApiModel, LocalSettings, Settings, to_nearest_nanousd

DEPENDS_ON = (
    "the prompt (what quality it needs, where it may go), how full the local engine is, health and budgets; "
    "ask for one prompt with `explain --prompt`, or send `messages`"
)
_BY_TIER = "which model of the tier is up and cheapest for the prompt; ask for one of them by name"
_BY_ENGINE = "which of the engines has most room; ask for one of them by name"


@dataclass(frozen=True, slots=True)
class Quote:
    """What one model costs. `parts` is set for an API, `work_gpu_s` for a local engine; `unavailable` says why not now.

    `tier` is `None` for a model that is not configured and only known to the price book.
    """

    model: str
    tier: Tier | None
    usd: Decimal
    price_version: str
    flags: tuple[Flag, ...]
    row: PriceRow | None = None
    parts: CostParts | None = None
    work_gpu_s: Decimal | None = None
    unavailable: str | None = None

    @property
    def basis(self) -> str:
        """`price` of a row, or `standard cost` of the engine's work."""
        return "price" if self.parts is not None else "standard cost"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Every model that may be meant. With several it depends on `depends_on`, and `usd_range` is what is known."""

    model: str
    quotes: tuple[Quote, ...]
    depends_on: str | None = None

    @property
    def sole(self) -> Quote | None:
        """The one model that is meant, if it is one."""
        return self.quotes[0] if self.depends_on is None else None

    @property
    def usd_range(self) -> tuple[Decimal, Decimal]:
        """Lowest and highest among those that can answer; among all where none can."""
        able = [quote.usd for quote in self.quotes if quote.unavailable is None]
        figures = able or [quote.usd for quote in self.quotes]
        return min(figures), max(figures)


def estimate(
    settings: Settings, book: PriceBook, model: str, usage: TokenUsage, at_utc: datetime, processing: str = "standard"
) -> Estimate:
    """What `usage` costs on `model`: a virtual name, a tier, a configured model, or any that the price book knows.

    Raises `NotFound` for a tier without a model, `BadRequest` (price_unknown) for a model without a price.
    """
    tiers = settings.tiers
    target = VIRTUAL_MODELS.get(model)
    if target is not None and target.locality is not Locality.LOCAL_ONLY:
        quotes = tuple(_all(settings, book, usage, at_utc, processing))
        return Estimate(model, quotes, DEPENDS_ON if len(quotes) > 1 else None)
    whole_tier = target is not None or model == Tier.LOCAL.value
    ours = [engine for engine in tiers.engines if whole_tier or model in (engine.model, engine.candidate_name)]
    if whole_tier or ours:
        if not ours:
            raise NotFound("there is no local tier: set tiers.local.engine", code="model_not_found", param="model")
        return _on_engines(model, ours, usage)
    if model in (Tier.CHEAP.value, Tier.PREMIUM.value):
        found = tuple(_of_api(m, tier, book, usage, at_utc, processing) for tier, m in tiers.api_models())
        quotes = tuple(quote for quote in found if quote.tier == model)
        if not quotes:
            raise NotFound(f"no model is configured in tiers.{model}", code="model_not_found", param="model")
        return Estimate(model, quotes, _BY_TIER if len(quotes) > 1 else None)
    return Estimate(model, (_named(settings, book, model, usage, at_utc, processing),))


def estimate_shown(found: Estimate, usage: TokenUsage) -> dict[str, Any]:
    """`found` as the HTTP route tells it."""
    asked = {"model": found.model, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    if found.sole is not None:
        return asked | _quoted(found.sole)
    low, high = found.usd_range
    return asked | {
        "expected_cost_usd": None,
        "min_cost_usd": float(low),
        "min_cost_nanousd": to_nearest_nanousd(low),
        "max_cost_usd": float(high),
        "max_cost_nanousd": to_nearest_nanousd(high),
        "depends_on": found.depends_on,
        "choices": [{"model": quote.model, **_quoted(quote)} for quote in found.quotes],
    }


def _quoted(quote: Quote) -> dict[str, Any]:
    return {
        "tier": quote.tier.value if quote.tier is not None else None,
        "expected_cost_usd": float(quote.usd),
        "expected_cost_nanousd": to_nearest_nanousd(quote.usd),
        "basis": quote.basis,
        "price_version": quote.price_version,
        "unavailable": quote.unavailable,
        "flags": [flag.value for flag in quote.flags],
    }


def _all(settings: Settings, book: PriceBook, usage: TokenUsage, at_utc: datetime, processing: str) -> Iterator[Quote]:
    for engine in settings.tiers.engines:
        yield _local(engine, usage)
    for tier, model in settings.tiers.api_models():
        yield _of_api(model, tier, book, usage, at_utc, processing)


def _on_engines(model: str, engines: Sequence[LocalSettings], usage: TokenUsage) -> Estimate:
    """Of engines that cost the same, one speaks for all."""
    quotes = tuple(_local(engine, usage) for engine in engines)
    if len({(quote.usd, quote.price_version, quote.unavailable) for quote in quotes}) == 1:
        return Estimate(model, (replace(quotes[0], model=engines[0].model),))
    return Estimate(model, quotes, _BY_ENGINE)


def _local(local: LocalSettings, usage: TokenUsage) -> Quote:
    charge = local_charge(asset_rate(local), local.coefficients, usage)
    return Quote(
        model=local.candidate_name,
        tier=Tier.LOCAL,
        usd=Decimal(charge.amount_nanousd) / NANO_PER_USD,
        price_version=charge.price_version,
        flags=charge.flags,
        work_gpu_s=Decimal(charge.work_gpu_ns or 0) / NANO_PER_USD,
        unavailable=local.unavailable,
    )


def _named(
    settings: Settings, book: PriceBook, name: str, usage: TokenUsage, at_utc: datetime, processing: str
) -> Quote:
    named: Mapping[str, tuple[Tier, ApiModel]] = {
        key: (tier, model) for tier, model in settings.tiers.api_models() for key in (model.wire_model, model.name)
    }
    if name in named:
        tier, model = named[name]
        return _of_api(model, tier, book, usage, at_utc, processing)
    return _priced(name, None, _row(book, name, at_utc, processing), usage)


def _of_api(
    model: ApiModel, tier: Tier, book: PriceBook, usage: TokenUsage, at_utc: datetime, processing: str
) -> Quote:
    row = _row(book, model.price_key, at_utc, processing)
    return _priced(model.name, tier, row, usage, unavailable=model.unavailable)


def _priced(model: str, tier: Tier | None, row: PriceRow, usage: TokenUsage, unavailable: str | None = None) -> Quote:
    parts = cost_parts(row, usage)
    return Quote(model, tier, parts.total_usd, row.version, row.flags, row, parts, unavailable=unavailable)


def _row(book: PriceBook, key: str, at_utc: datetime, processing: str) -> PriceRow:
    try:
        return book.row(key, at_utc, processing=processing)
    except PriceUnknown as unknown:
        raise BadRequest(str(unknown), code="price_unknown", param="model") from unknown
