"""The price book: which row is in force for a model, at a host, at a moment.

Own rows come first (the user's, then the shipped ones), then the packaged price list of genai-prices. Nothing here
touches the network, and a price that is not known is never 0: it raises `PriceUnknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from router.core.dated_prices import (
    EPOCH,
    PROCESSING,
    DatedPrice,
    DatedPrices,
    Problem,
    around,
    canonical,
    describe_tiers,
    fingerprint_source,
    in_force,
    parse_dated_prices,
)
from router.core.snapshot import PriceRow, PriceTier
from router.errors import ConfigError
from router.listed_prices import PriceUnknown, listed_row, package_version

__all__ = ["PriceBook", "PriceNote", "PriceUnknown"]

_SHIPPED = Path(__file__).parent / "shipped" / "prices.yaml"
_ROWS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class PriceNote:
    """One finding of `check`: a gap (no price), a clash (sources differ), a change to come, or a remark."""

    kind: str
    model: str
    text: str


class _Loader(yaml.SafeLoader):
    """YAML whose fractions are decimals as they were typed, and whose keys are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return mapping


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> Decimal | str:
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return Decimal(text)
    except ArithmeticError:
        return text


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


class PriceBook:
    """Rows by model, host, moment and kind of processing. Immutable once loaded; a new book replaces it whole."""

    def __init__(self, overrides: DatedPrices, shipped: DatedPrices, remarks: Mapping[str, str] | None = None) -> None:
        self._overrides = overrides
        self._shipped = shipped
        self._remarks = dict(remarks or {})
        self._memo: dict[tuple[str, str | None, str], tuple[datetime, PriceRow]] = {}

    @classmethod
    def load(cls, overrides: str | Path | Mapping[str, Any] | None = None) -> PriceBook:
        """The shipped rows with the user's on top: a mapping of model to row(s), or a file with them under `prices:`.

        Raises `ConfigError` with every mistake at once.
        """
        shipped_raw, shipped_rows = _read(_SHIPPED)
        if overrides is None:
            own_raw: Mapping[str, Any] = {}
            own_rows: list[DatedPrice] = []
        elif isinstance(overrides, Mapping):
            own_raw, own_rows = {}, _parse(overrides, "override")
        else:
            own_raw, own_rows = _read(Path(overrides))
        remarks = {**(shipped_raw.get("remarks") or {}), **(own_raw.get("remarks") or {})}
        return cls(DatedPrices(own_rows), DatedPrices(shipped_rows), remarks)

    def row(
        self, model: str, at_utc: datetime, *, provider: str | None = None, processing: str = "standard"
    ) -> PriceRow:
        """The row in force at `at_utc` (aware) for `model`, written `host/model` or, where one host is meant, bare.

        `provider` names the host where the model's name does not. The row holds until its `valid_until_utc`. Raises
        `PriceUnknown`, also when the model has no price for that kind of `processing`.
        """
        if at_utc.tzinfo is None:
            raise ValueError("at_utc must be aware: a price depends on the hour")
        if processing not in PROCESSING:
            raise ValueError(f"processing must be one of {', '.join(PROCESSING)}: {processing!r}")
        at_utc = at_utc.astimezone(UTC)
        key = (model, provider, processing)
        kept = self._memo.get(key)
        if (
            kept is not None
            and kept[0] <= at_utc
            and (kept[1].valid_until_utc is None or at_utc < kept[1].valid_until_utc)
        ):
            return kept[1]
        since, row = self._resolve(model, at_utc, provider, processing)
        if len(self._memo) >= _ROWS_KEPT:
            self._memo.clear()
        self._memo[key] = (since, row)
        return row

    def check(self, models: Iterable[str], at_utc: datetime) -> list[PriceNote]:
        """Gaps and changes to come of the given `models`, clashes between the sources, and remarks on those models."""
        notes: list[PriceNote] = []
        asked = list(models)
        for model in asked:
            notes += self._check_model(model, at_utc)
        for layer, rows in (("override", self._overrides.rows()), ("shipped", self._shipped.rows())):
            for row in rows:
                notes += self._clash(layer, row)
        by_name = {canonical(model) for model in asked}
        for model, text in self._remarks.items():
            if canonical(model) in by_name or canonical(model).split("/", 1)[-1] in by_name:
                notes.append(PriceNote("remark", model, text))
        return notes

    def versions(self) -> dict[str, str]:
        """What the book is made of: package version, digests of the rows of our own."""
        return {
            "genai-prices": package_version(),
            "shipped": _digest(*map(fingerprint_source, self._shipped.rows())),
            "overrides": _digest(*map(fingerprint_source, self._overrides.rows()))
            if self._overrides.rows()
            else "none",
        }

    def _resolve(
        self, model: str, at_utc: datetime, provider: str | None, processing: str
    ) -> tuple[datetime, PriceRow]:
        """(since when it holds, the row). Bounds are those of every source, so that none is overlooked."""
        own, shipped = self._overrides.of(model, provider), self._shipped.of(model, provider)
        found, layer = in_force(own, at_utc, processing), "override"
        if found is None and in_force(own, at_utc, "standard") is not None:
            raise PriceUnknown(model, f"its override has no row with processing: {processing}")
        if found is None:
            found, layer = in_force(shipped, at_utc, processing), "shipped"
        instants = [i for row in (*own, *shipped) for i in (row.from_utc, row.until_utc) if i is not None]
        if found is not None:
            since, until = around(instants, at_utc)
            return since, _row_of_ours(found, layer, provider, until)
        listed, list_instants = listed_row(model, provider, at_utc, processing)
        since, until = around([*instants, *list_instants], at_utc)
        return since, replace(listed, effective_from_utc=since, valid_until_utc=until)

    def _check_model(self, model: str, at_utc: datetime) -> list[PriceNote]:
        try:
            row = self.row(model, at_utc)
        except PriceUnknown as unknown:
            return [PriceNote("gap", model, str(unknown))]
        notes: list[PriceNote] = []
        if all(t.input_usd_per_mtok == 0 and t.output_usd_per_mtok == 0 for t in row.tiers) and not row.request_usd:
            notes.append(PriceNote("remark", model, f"is priced at 0 by {row.source}"))
        if row.valid_until_utc is not None:
            later = self.row(model, row.valid_until_utc)
            if later.tiers != row.tiers:
                notes.append(
                    PriceNote(
                        "change",
                        model,
                        f"{describe_tiers(row.tiers)} until {row.valid_until_utc:%Y-%m-%d %H:%M} UTC, "
                        f"then {describe_tiers(later.tiers)} USD per million tokens",
                    )
                )
        return notes

    def _clash(self, layer: str, row: DatedPrice) -> list[PriceNote]:
        if row.processing != "standard":
            return []
        try:
            listed, _ = listed_row(row.name, None, max(row.from_utc, EPOCH), "standard")
        except PriceUnknown:
            return []
        if _same_base(row.tiers[0], listed.tiers[0]):
            return []
        until = "further notice" if row.until_utc is None else f"{row.until_utc:%Y-%m-%d}"
        text = (
            f"{layer} row from {row.from_utc:%Y-%m-%d}: {describe_tiers(row.tiers)} ({row.source}), but "
            f"{listed.source} has {describe_tiers(listed.tiers)}; the {layer} row holds until its next one or {until}"
        )
        return [PriceNote("clash", row.name, text)]


def _read(path: Path) -> tuple[Mapping[str, Any], list[DatedPrice]]:
    try:
        # a safe loader: only its floats differ
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except OSError as error:
        raise ConfigError([(None, "prices", f"cannot be read: {error.strerror}")], path.name) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise ConfigError([(line, "prices", f"is not YAML: {getattr(error, 'problem', error)}")], path.name) from error
    raw = {} if raw is None else raw
    if not isinstance(raw, Mapping) or not set(raw) <= {"prices", "remarks"}:
        raise ConfigError([(None, "prices", "expected the keys `prices` and, if you like, `remarks`")], path.name)
    return raw, _parse(raw.get("prices") or {}, path.name)


def _parse(raw: Any, source: str) -> list[DatedPrice]:
    problems: list[Problem]
    if not isinstance(raw, Mapping):
        problems = [(None, "prices", f"expected a mapping of model to price rows: {type(raw).__name__}")]
        raise ConfigError(problems, source)
    rows, problems = parse_dated_prices(raw, source)
    if problems:
        raise ConfigError(problems, source)
    return rows


def _row_of_ours(row: DatedPrice, layer: str, provider: str | None, until: datetime | None) -> PriceRow:
    host = provider or (row.name.split("/", 1)[0] if "/" in row.name else "")
    dated = "" if row.from_utc == EPOCH else f"@{row.from_utc:%Y-%m-%d}"
    return PriceRow(
        model=row.name,
        provider=host,
        tiers=row.tiers,
        effective_from_utc=row.from_utc,
        valid_until_utc=until,
        source=f"{layer}: {row.source}",
        version=f"{layer}/{row.name}{dated}#{_digest(fingerprint_source(row))}",
        request_usd=row.request_usd,
    )


def _same_base(ours: PriceTier, listed: PriceTier) -> bool:
    return (ours.input_usd_per_mtok, ours.output_usd_per_mtok) == (
        listed.input_usd_per_mtok,
        listed.output_usd_per_mtok,
    )


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:8]
