"""`report break-even` from the user's own traffic: what the local tier really displaces, and whether that pays.

The alternative of a local answer is the API that its own decision would have taken instead: eligible, above the same
quality floor, cheapest. Without local answers yet, the requests that the cheap tier answered stand in for them, their
work modelled with the configured coefficients. Several engines are one tier: their hours and capacities are added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine

from local_llm.workunits import work_gpu_ns
from router.commands.books import books_of
from router.commands.output import Format, write_json, write_rows
from router.commands.ranges import Range
from router.core.break_even import BreakEven, break_even_at, sensitivity
from router.core.hardware import OwnedHardware, energy_usd_per_gpu_s
from router.core.pricing import cost_nanousd
from router.core.replay import World
from router.core.request import TokenUsage
from router.core.snapshot import PriceRow
from router.core.vocabulary import NANO_PER_USD, Tier
from router.errors import NotFound
from router.hardware_terms import asset_terms
from router.settings_types import LocalSettings
from router.stores.reports import Answered, answered_by, count_answered, world_body

_SAMPLE = 5_000
_NS = Decimal(1_000_000_000)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Usual requests as the books have them. `displaced` counts by tier and API model that they (would) save."""

    basis: str
    requests: int
    requests_per_hour: Decimal
    without_alternative: int
    input_tokens: Decimal
    output_tokens: Decimal
    work_gpu_s: Decimal
    usd_per_request: Decimal
    displaced: Mapping[tuple[str, str], int]


def run(config: Path | None, form: Format, days: Range, *, usd_per_hour: Decimal | None = None) -> None:
    """Print the verdict. Raises `NotFound` where there is no traffic or no hourly cost to judge by."""
    with books_of(config) as (settings, engine):
        engines = settings.tiers.engines or (settings.tiers.local,)
        costs = [terms.usd_per_hour for one in engines if (terms := asset_terms(one)) is not None]
        if usd_per_hour is None and not costs:
            raise NotFound("nothing says what the hardware costs: set tiers.local.hardware, or give --usd-per-hour")
        traffic = _traffic(engine, engines, days.from_utc, days.to_utc)
    capacity = sum(Decimal(str(one.practical_capacity_ratio)) for one in engines)
    figures = {
        "usd_per_hour": usd_per_hour if usd_per_hour is not None else sum(costs, Decimal(0)),
        "slo_capacity_rps": capacity / traffic.work_gpu_s,
        "saturation_rps": len(engines) / traffic.work_gpu_s,
        "marginal_usd_per_request": _mean(_energy_usd_per_gpu_s(one) for one in engines) * traffic.work_gpu_s,
    }
    found = break_even_at(traffic.usd_per_request, **figures)
    _write(form, days, traffic, figures, found)


def _energy_usd_per_gpu_s(engine: LocalSettings) -> Decimal:
    hardware = engine.hardware
    return energy_usd_per_gpu_s(hardware) if isinstance(hardware, OwnedHardware) else Decimal(0)


def _mean(values: Iterable[Decimal]) -> Decimal:
    found = list(values)
    return sum(found, Decimal(0)) / len(found)


def _traffic(
    engine: Engine, engines: Sequence[LocalSettings], from_utc: datetime | None, to_utc: datetime | None
) -> Traffic:
    worlds: dict[str | None, World | None] = {None: None}
    for tier, basis in ((Tier.LOCAL, "local answers"), (Tier.CHEAP, "cheap answers, work modelled")):
        sample = answered_by(engine, tier, from_utc, to_utc, most=_SAMPLE)
        if not sample:
            continue
        for answer in sample:
            if answer.world_hash not in worlds:
                body = world_body(engine, answer.world_hash or "")
                worlds[answer.world_hash] = msgspec.json.decode(body, type=World) if body is not None else None
        found = [_alternative(answer, worlds[answer.world_hash], tier) for answer in sample]
        priced = [(answer, saved) for answer, saved in zip(sample, found, strict=True) if saved is not None]
        if not priced:
            continue
        count, first, last = count_answered(engine, tier, from_utc, to_utc)
        span_h = (
            Decimal((last - first).total_seconds()) / 3600 if first is not None and last is not None else Decimal(0)
        )
        return _summary(basis, priced, engines, len(sample), Decimal(count) / max(Decimal(1), span_h))
    raise NotFound("no answered request in the books names an API with a price; give the figures, see --help")


@dataclass(frozen=True, slots=True)
class _Saved:
    """What would have answered instead."""

    tier: str
    row: PriceRow


def _alternative(answer: Answered, world: World | None, tier: Tier) -> _Saved | None:
    """What would have answered instead; `None` where nothing with a price could have."""
    if world is None:
        return None
    if tier is not Tier.LOCAL:
        row = world.prices.get(answer.candidate)
        return _Saved(tier.value, row) if row is not None else None
    alternatives = msgspec.json.decode(answer.decision)["alternatives"] if answer.decision else []
    eligible = [a for a in alternatives if a["tier"] != Tier.LOCAL.value and a.get("objective_usd") is not None]
    best = min(eligible, key=lambda a: (a["objective_usd"], a["name"]), default=None)
    row = world.prices.get(best["name"]) if best is not None else None
    return _Saved(best["tier"], row) if best is not None and row is not None else None


def _summary(
    basis: str,
    priced: Sequence[tuple[Answered, _Saved]],
    engines: Sequence[LocalSettings],
    seen: int,
    per_hour: Decimal,
) -> Traffic:
    count = len(priced)
    cost_nano = sum(cost_nanousd(saved.row, TokenUsage(a.input_tokens, a.output_tokens)) for a, saved in priced)
    work_ns = sum(a.work_gpu_ns or _modelled_gpu_ns(a, engines) for a, _ in priced)
    return Traffic(
        basis=basis,
        requests=seen,
        requests_per_hour=per_hour,
        without_alternative=seen - count,
        input_tokens=Decimal(sum(a.input_tokens for a, _ in priced)) / count,
        output_tokens=Decimal(sum(a.output_tokens for a, _ in priced)) / count,
        work_gpu_s=max(Decimal(1), Decimal(work_ns)) / _NS / count,
        usd_per_request=Decimal(cost_nano) / NANO_PER_USD / count,
        displaced=dict(Counter((saved.tier, saved.row.model) for _, saved in priced).most_common()),
    )


def _modelled_gpu_ns(answer: Answered, engines: Sequence[LocalSettings]) -> int:
    """On an engine taken at random."""
    each = (
        work_gpu_ns(one.coefficients, prompt_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
        for one in engines
    )
    return sum(each) // len(engines)


def _by_tier(displaced: Mapping[tuple[str, str], int]) -> dict[str, int]:
    tiers: Counter[str] = Counter()
    for (tier, _), count in displaced.items():
        tiers[tier] += count
    return dict(tiers.most_common())


def _write(form: Format, days: Range, traffic: Traffic, figures: Mapping[str, Decimal], found: BreakEven) -> None:
    moved = sensitivity(traffic.usd_per_request, **figures)
    enough = found.requests_per_hour is not None and traffic.requests_per_hour >= found.requests_per_hour
    answer: dict[str, Any] = {
        "usd_per_request": found.usd_per_request,
        "requests_per_hour": found.requests_per_hour,
        "requests_per_s": found.requests_per_s,
        "share_of_slo_capacity": found.share_of_slo_capacity,
        "verdict": found.verdict.value,
        "displaces": {model: count for (_, model), count in traffic.displaced.items()},
        "displaces_tiers": _by_tier(traffic.displaced),
        "basis": traffic.basis,
        "observed_requests": traffic.requests,
        "observed_requests_per_hour": traffic.requests_per_hour,
        "observed_load_is_enough": enough,
        "without_alternative": traffic.without_alternative,
        "mean_input_tokens": traffic.input_tokens,
        "mean_output_tokens": traffic.output_tokens,
        "mean_work_gpu_s": traffic.work_gpu_s,
        **figures,
    }
    rows = [asdict(row) | {"verdict": row.verdict.value} for row in moved]
    if form is Format.JSON:
        write_json({**days.as_dict(), **answer, "sensitivity": rows})
        return
    columns = ("what", "factor", "usd", "requests_per_s", "share_of_slo_capacity", "verdict")
    if form is Format.CSV:
        write_rows(rows, columns, form)
        return
    answer["displaces"] = ", ".join(
        f"{model} of tier {tier} ({count})" for (tier, model), count in traffic.displaced.items()
    )
    del answer["displaces_tiers"]
    shown = [{"figure": name, "value": _rounded(value)} for name, value in answer.items()]
    write_rows(shown, ("figure", "value"), form)
    write_rows([{key: _rounded(value) for key, value in row.items()} for row in rows], columns, form)


def _rounded(value: Any) -> Any:
    return round(value, 10) if isinstance(value, Decimal) else value
