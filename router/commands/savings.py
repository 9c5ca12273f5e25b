"""`report savings`: what was saved against sending everything to the premium model, as a waterfall."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine

from router.commands.books import bar, books_of, usd
from router.commands.output import Format, write_json, write_rows
from router.commands.ranges import Range
from router.core.replay import World
from router.core.savings import Waterfall, of_overhead, of_request, with_hardware
from router.core.snapshot import PriceRow
from router.core.vocabulary import Outcome, Tier
from router.errors import NotFound
from router.prices import PriceBook, PriceUnknown
from router.settings import Settings
from router.stores.reports import ServedRequest, hours, served_requests, world_body

_NAMES = {
    "routing": "routing to cheaper APIs",
    "local_tier": "local tier (at standard cost)",
    "cache": "prompt caches",
    "failed_attempts": "failed attempts",
    "classifier_overhead": "classifier (shadow runs and judges; scoring itself is free)",
    "idle_gpu": "idle GPU (unabsorbed)",
    "other_periods": "work booked in periods outside this range",
}


class Baselines:
    """Prices then in force, by world; and the premium model that everything is compared with.

    That is the first premium model of the world, or the one named; where a world has none, `fallback`.
    """

    def __init__(self, engine: Engine, name: str | None, fallback: PriceRow | None) -> None:
        self._engine, self._name, self._fallback = engine, name, fallback
        self._known: dict[str | None, tuple[PriceRow | None, Mapping[str, PriceRow]]] = {None: (fallback, {})}
        self._models: dict[tuple[str | None, str], str] = {}
        self.used: set[str] = set()

    def of(self, world_hash: str | None) -> tuple[PriceRow | None, Mapping[str, PriceRow]]:
        """(premium row, every candidate's row) of a world."""
        found = self._known.get(world_hash)
        if found is None:
            assert world_hash is not None  # noqa: S101 - known from the start
            found = self._known[world_hash] = self._look_up(world_hash)
        if found[0] is not None:
            self.used.add(found[0].model)
        return found

    def model_of(self, world_hash: str | None, candidate: str) -> str:
        """The model that `candidate` of a world that was looked up serves: several engines may serve one."""
        return self._models.get((world_hash, candidate), candidate)

    def _look_up(self, world_hash: str) -> tuple[PriceRow | None, Mapping[str, PriceRow]]:
        body = world_body(self._engine, world_hash)
        if body is None:
            return self._fallback, {}
        world = msgspec.json.decode(body, type=World)
        self._models |= {(world_hash, candidate.name): candidate.model for candidate in world.candidates}
        for candidate in world.candidates:
            wanted = candidate.tier is Tier.PREMIUM if self._name is None else candidate.name == self._name
            if wanted and candidate.name in world.prices:
                return world.prices[candidate.name], world.prices
        return self._fallback, world.prices


@dataclass(slots=True)
class _Tally:
    waterfall: Waterfall = field(default_factory=Waterfall)
    local_nanousd: int = 0
    p_kept: float = 0.0
    p_premium: float = 0.0

    def add(self, request: ServedRequest, baselines: Baselines) -> None:
        self.local_nanousd += sum(a.amount_nanousd for a in request.attempts if a.tier is Tier.LOCAL)
        if request.overhead:
            self.waterfall += of_overhead(request.attempts)
            return
        premium, prices = baselines.of(request.world_hash)
        self.waterfall += of_request(request.attempts, premium, prices)
        last, p = request.attempts[-1], request.p_adequate
        if p and last.outcome is Outcome.OK and "premium" in p:
            model = baselines.model_of(request.world_hash, last.candidate)
            self.p_kept += p.get(f"{last.tier.value}/{model}", p.get(last.tier.value, 0.0))
            self.p_premium += p["premium"]


def run(
    config: Path | None, form: Format, days: Range, *, baseline: str | None = None, now_utc: datetime | None = None
) -> None:
    """Print the waterfall of requests received in `days`. Raises `NotFound` for a `baseline` that has no price."""
    now_utc = now_utc or datetime.now(UTC)
    with books_of(config) as (settings, engine):
        fallback = _fallback(settings, baseline, days.to_utc or now_utc)
        baselines = Baselines(engine, baseline, fallback)
        tally = _Tally()
        for request in served_requests(engine, days.from_utc, days.to_utc):
            tally.add(request, baselines)
        if baseline is not None and fallback is None and not baselines.used:
            raise NotFound(f"nobody knows a price of {baseline!r} to compare with", code="model_not_found")
        periods = hours(engine, now_utc, days.from_utc, days.to_utc).periods
    found = with_hardware(
        tally.waterfall,
        invoice_nanousd=sum(p.invoice_nanousd for p in periods),
        absorbed_nanousd=sum(p.absorbed_nanousd for p in periods),
        booked_local_nanousd=tally.local_nanousd,
    )
    kept = round(tally.p_kept / tally.p_premium, 4) if tally.p_premium else None
    _write(form, days, found, sorted(baselines.used), kept)


def _fallback(settings: Settings, baseline: str | None, at_utc: datetime) -> PriceRow | None:
    book = PriceBook.load(settings.price_overrides())
    configured = {model.name: model.price_key for _, model in settings.tiers.api_models()}
    name = baseline
    if name is None:
        name = next((model.name for model in settings.tiers.premium), None)
    if name is None:
        return None
    try:
        return book.row(configured.get(name, name), at_utc)
    except PriceUnknown:
        return None


def _write(form: Format, days: Range, found: Waterfall, models: list[str], kept: float | None) -> None:
    ratio = round(found.saved_nanousd / found.always_premium_nanousd, 6) if found.always_premium_nanousd else None
    if form is Format.JSON:
        write_json(
            {
                **days.as_dict(),
                "baseline_models": models,
                "requests": found.requests,
                "not_compared": found.not_compared,
                "always_premium_nanousd": found.always_premium_nanousd,
                "steps_nanousd": found.steps,
                "saved_nanousd": found.saved_nanousd,
                "saved_ratio": ratio,
                "spent_nanousd": found.spent_nanousd,
                "predicted_quality_kept_ratio": kept,
            }
        )
        return
    rows = _rows(found)
    if form is Format.CSV:
        write_rows(rows, ("step", "nanousd"), form)
        return
    largest = max((abs(row["nanousd"]) for row in rows), default=0)
    shown = [
        {"step": row["name"], "usd": usd(row["nanousd"]), "bar": bar(row["nanousd"], largest)}
        for row in rows
        if row["nanousd"] or row["step"] != "other_periods"
    ]
    write_rows(shown, ("step", "usd", "bar") if sys.stdout.isatty() else ("step", "usd"), form)
    _write_notes(found, models, ratio, kept)


def _rows(found: Waterfall) -> list[dict[str, Any]]:
    steps = [{"step": step, "name": f"- {_NAMES[step]}", "nanousd": -amount} for step, amount in found.steps.items()]
    return [
        {"step": "always_premium", "name": "always premium", "nanousd": found.always_premium_nanousd},
        *steps,
        {"step": "spent", "name": "= spent", "nanousd": found.spent_nanousd},
    ]


def _write_notes(found: Waterfall, models: list[str], ratio: float | None, kept: float | None) -> None:
    notes = [f"{found.requests} requests, compared with {', '.join(models) or 'no premium model: none has a price'}."]
    if ratio is not None:
        notes.append(f"Saved {usd(found.saved_nanousd)} USD, {ratio:.1%} of always premium.")
    if kept is not None:
        notes.append(f"Predicted quality kept: {kept:.1%} of the premium model's.")
    if found.not_compared:
        notes.append(f"{found.not_compared} requests could not be compared and count as what they cost.")
    sys.stdout.write("\n".join(notes) + "\n")
