"""Our own price rows: dated, checked, found by model and host. Pure; files are read elsewhere.

Shape of the input, a mapping of `host/model` (or `model`, for any host) to one row or a list of rows:

    openai/gpt-4o:
      - {effective_from: 2024-05-13, input_usd_per_mtok: 5, output_usd_per_mtok: 15}
      - effective_from: 2024-10-02
        input_usd_per_mtok: 2.50
        cached_input_usd_per_mtok: 1.25
        output_usd_per_mtok: 10
        tiers: [{from_input_tokens: 200001, input_usd_per_mtok: 5, output_usd_per_mtok: 20}]

A row is in force from `effective_from` (00:00 UTC; without one, since always) until the next row or `effective_until`.
A price is per million tokens; `request_usd` is a fee per call; `processing` is standard, batch, flex or priority.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any

from router.core.snapshot import PriceTier

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Start of a row that has no date."""

PROCESSING = ("standard", "batch", "flex", "priority")

# The dearest chat model ever listed costs 600, the cheapest 0.005; a price a million times off falls outside.
MAX_USD_PER_MTOK = Decimal(2000)
MIN_USD_PER_MTOK = Decimal("0.001")
MIN_CACHE_USD_PER_MTOK = Decimal("0.00001")
MAX_REQUEST_USD = Decimal(10)

_PRICES = ("input_usd_per_mtok", "output_usd_per_mtok", "cached_input_usd_per_mtok", "cache_write_usd_per_mtok")
_TIER_KEYS = frozenset({"from_input_tokens", *_PRICES})
_ROW_KEYS = frozenset({"effective_from", "effective_until", "processing", "request_usd", "tiers", "source", *_PRICES})

Problem = tuple[int | None, str, str]
"""(line if known, path, what is wrong and the cure), as `ConfigError` takes it."""


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """One row of ours. `name` is as written; in force in [from_utc, until_utc)."""

    name: str
    from_utc: datetime
    until_utc: datetime | None
    processing: str
    tiers: tuple[PriceTier, ...]
    request_usd: Decimal
    source: str


class DatedPrices:
    """Rows by model name; later rows win."""

    def __init__(self, rows: Iterable[DatedPrice] = ()) -> None:
        self._by_name: dict[str, list[DatedPrice]] = {}
        self._bare: dict[str, set[str]] = {}
        for row in rows:
            self._by_name.setdefault(canonical(row.name), []).append(row)
        for name, of_name in self._by_name.items():
            of_name.sort(key=lambda row: row.from_utc)
            if "/" in name:
                self._bare.setdefault(name.split("/", 1)[1], set()).add(name)

    def rows(self) -> list[DatedPrice]:
        """All rows, by name and date."""
        return [row for name in sorted(self._by_name) for row in self._by_name[name]]

    def of(self, model: str, provider: str | None) -> Sequence[DatedPrice]:
        """Rows of `model` at `provider`, ascending: by full name, else by bare name, else by the only host known."""
        name = canonical(model)
        host = canonical(provider) if provider else None
        names = [f"{host}/{name}", name] if host else [name]
        if host and name.startswith(f"{host}/"):
            names.insert(0, name)
        head, slash, tail = name.partition("/")
        if slash and (host is None or head == host):
            names.append(tail)
        for candidate in names:
            if candidate in self._by_name:
                return self._by_name[candidate]
        hosts = self._bare.get(name, set())
        if host is None and len(hosts) == 1:
            return self._by_name[next(iter(hosts))]
        return ()


def canonical(name: str) -> str:
    """One spelling per model: `Claude-Sonnet-5.5` and `claude-sonnet-5-5` are the same."""
    return name.strip().lower().replace(".", "-")


def in_force(rows: Sequence[DatedPrice], at_utc: datetime, processing: str) -> DatedPrice | None:
    """The last of the ascending `rows` to have begun, for one kind of processing; `None` before it and after its end.

    A row ends the one before it for good: where a temporary price ends, nothing of ours is in force.
    """
    for row in reversed(rows):
        if row.processing == processing and row.from_utc <= at_utc:
            return row if row.until_utc is None or at_utc < row.until_utc else None
    return None


def around(instants: Iterable[datetime], at_utc: datetime) -> tuple[datetime, datetime | None]:
    """(the last instant that has come, the next one)."""
    past = [instant for instant in instants if instant <= at_utc]
    future = [instant for instant in instants if instant > at_utc]
    return max(past, default=EPOCH), min(future, default=None)


def parse_dated_prices(raw: Mapping[Any, Any], source: str) -> tuple[list[DatedPrice], list[Problem]]:
    """All rows that are sound, and every problem of those that are not."""
    rows: list[DatedPrice] = []
    problems: list[Problem] = []
    for name, value in raw.items():
        path = f"prices.{name}"
        entries = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not name.strip() or not entries:
            problems.append((None, path, "expected a model name and one price row or a list of them"))
            continue
        own = [row for i, entry in enumerate(entries) if (row := _row(name, entry, i, path, source, problems))]
        starts = [(row.processing, row.from_utc) for row in own]
        if len(set(starts)) < len(starts):
            problems.append((None, path, "two rows start on the same date; give each its own effective_from"))
        rows += own
    return rows, problems


def _row(name: str, entry: Any, index: int, path: str, source: str, problems: list[Problem]) -> DatedPrice | None:
    path = f"{path}[{index}]"
    if not isinstance(entry, Mapping):
        problems.append((None, path, f"expected a mapping with input_usd_per_mtok and output_usd_per_mtok: {entry!r}"))
        return None
    found: list[Problem] = []
    _unknown_keys(entry, _ROW_KEYS, path, found)
    from_utc = _instant(entry.get("effective_from"), f"{path}.effective_from", found) or EPOCH
    until_utc = _instant(entry.get("effective_until"), f"{path}.effective_until", found)
    if until_utc is not None and until_utc <= from_utc:
        found.append((None, f"{path}.effective_until", f"must be later than effective_from ({from_utc.date()})"))
    processing = entry.get("processing", "standard")
    if processing not in PROCESSING:
        found.append((None, f"{path}.processing", f"must be one of {', '.join(PROCESSING)}: {processing!r}"))
    fee = _amount(entry, "request_usd", path, found, Decimal(0), MAX_REQUEST_USD, "USD per call") or Decimal(0)
    tiers = _tiers(entry, path, found)
    problems += found
    if found:
        return None
    return DatedPrice(name, from_utc, until_utc, processing, tiers, fee, str(entry.get("source") or source))


def _tiers(entry: Mapping[str, Any], path: str, problems: list[Problem]) -> tuple[PriceTier, ...]:
    further = entry.get("tiers") or []
    if not isinstance(further, list) or not all(isinstance(tier, Mapping) for tier in further):
        problems.append((None, f"{path}.tiers", "expected a list of tiers, each with from_input_tokens and its prices"))
        return ()
    tiers = [_tier(entry, 0, path, problems)]
    for index, tier in enumerate(further):
        at = f"{path}.tiers[{index}]"
        _unknown_keys(tier, _TIER_KEYS, at, problems)
        start = tier.get("from_input_tokens")
        if not isinstance(start, int) or isinstance(start, bool) or start <= tiers[-1].from_input_tokens:
            problems.append(
                (None, f"{at}.from_input_tokens", f"must be a whole number and ascend from tier to tier: {start!r}")
            )
            return ()
        tiers.append(_tier(tier, start, at, problems))
    return tuple(tiers)


def _tier(entry: Mapping[str, Any], start: int, path: str, problems: list[Problem]) -> PriceTier:
    values: dict[str, Decimal | None] = {}
    for key in _PRICES:
        cache = key.startswith("cache")
        low = MIN_CACHE_USD_PER_MTOK if cache else MIN_USD_PER_MTOK
        values[key] = _amount(entry, key, path, problems, low, MAX_USD_PER_MTOK, "USD per million tokens")
        if not cache and entry.get(key) is None:
            problems.append(
                (None, f"{path}.{key}", "is missing; an unknown price is never 0, write 0 for a free model")
            )
    return PriceTier(
        from_input_tokens=start,
        input_usd_per_mtok=values["input_usd_per_mtok"] or Decimal(0),
        output_usd_per_mtok=values["output_usd_per_mtok"] or Decimal(0),
        cached_input_usd_per_mtok=values["cached_input_usd_per_mtok"],
        cache_write_usd_per_mtok=values["cache_write_usd_per_mtok"],
    )


def _amount(
    entry: Mapping[str, Any], key: str, path: str, problems: list[Problem], low: Decimal, high: Decimal, unit: str
) -> Decimal | None:
    """A number that is 0 or within [low, high]; `None` where it is absent or wrong."""
    value = entry.get(key)
    if value is None:
        return None
    at = f"{path}.{key}"
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        problems.append((None, at, f"must be a number in {unit}: {value!r}"))
        return None
    try:
        # a float is taken as it was typed: 0.1 means a tenth
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        problems.append((None, at, f"must be a finite number, not negative, in {unit}: {value}"))
        return None
    if amount != 0 and not low <= amount <= high:
        problems.append((None, at, f"{value} is absurd for {unit} (sane: 0, or {low} to {high}); check the unit"))
        return None
    return amount


def _instant(value: Any, path: str, problems: list[Problem]) -> datetime | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, date):
            return datetime.combine(value, time(), tzinfo=UTC)
    except ValueError:
        pass
    problems.append((None, path, f"must be a date such as 2026-12-01: {value!r}"))
    return None


def _unknown_keys(entry: Mapping[str, Any], known: frozenset[str], path: str, problems: list[Problem]) -> None:
    listed = ", ".join(sorted(known))
    problems.extend((None, f"{path}.{key}", f"unknown key; known are {listed}") for key in entry if key not in known)


def describe_tiers(tiers: Sequence[PriceTier]) -> str:
    """Prices for people: `0.1/0.5 (cached 0.01, from 272001: 0.2/0.75)`, USD per million tokens."""
    first, *further = tiers
    notes = [] if first.cached_input_usd_per_mtok is None else [f"cached {plain(first.cached_input_usd_per_mtok)}"]
    notes += [f"from {t.from_input_tokens}: {_pair(t)}" for t in further]
    return _pair(first) + (f" ({', '.join(notes)})" if notes else "")


def plain(value: Decimal) -> str:
    """A decimal without an exponent and without idle zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _pair(tier: PriceTier) -> str:
    return f"{plain(tier.input_usd_per_mtok)}/{plain(tier.output_usd_per_mtok)}"


def fingerprint_source(row: DatedPrice) -> str:
    """What a price version is taken over: every field that can change a cost."""
    return repr([getattr(row, field.name) for field in fields(row) if field.name != "source"])
