"""`report periods`: the hours of the local tier's hardware, what its work absorbed and what stayed idle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from router.commands.books import books_of, usd
from router.commands.output import Format, write_json, write_rows
from router.commands.ranges import Range
from router.core.energy import EnergyUse, together
from router.core.periods import Period, fully_loaded, loading_factor
from router.stores.reports import Hours, PostedGroup, hours
from router.stores.rows import from_us

_COLUMNS = (
    "asset", "start", "end", "state", "on_s", "requests", "work_gpu_s", "invoice_nanousd", "absorbed_nanousd",
    "unabsorbed_nanousd", "late_nanousd", "energy_kwh", "energy_basis", "loading_factor",
)  # fmt: skip
_MONEY = ("invoice", "absorbed", "unabsorbed", "late")


@dataclass(slots=True)
class _Line:
    """One row of the report, summed."""

    asset: str
    start_us: int
    end_us: int
    closed: bool = True
    on_us: int = 0
    requests: int = 0
    work_gpu_ns: int = 0
    invoice_nanousd: int = 0
    absorbed_nanousd: int = 0
    late_nanousd: int = 0
    energy: EnergyUse | None = None
    lines: dict[str, int] = field(default_factory=dict)

    def add(self, period: Period, groups: Iterable[PostedGroup]) -> None:
        self.end_us = max(self.end_us, period.end_us)
        self.closed = self.closed and period.closed
        self.on_us += period.on_us
        self.work_gpu_ns += period.work_gpu_ns
        self.invoice_nanousd += period.invoice_nanousd
        self.absorbed_nanousd += period.absorbed_nanousd
        self.energy = together(self.energy, period.energy)
        for group in groups:
            self.requests += group.requests
            self.late_nanousd += group.adjusts_nanousd
        for name, amount in period.invoice_lines().items():
            self.lines[name] = self.lines.get(name, 0) + amount

    def row(self) -> dict[str, Any]:
        return {
            "asset": self.asset,
            "start": _iso(self.start_us),
            "end": _iso(self.end_us),
            "state": "closed" if self.closed else "open",
            "on_s": Decimal(self.on_us) / 1_000_000,
            "requests": self.requests,
            "work_gpu_s": Decimal(self.work_gpu_ns) / 1_000_000_000,
            "invoice_nanousd": self.invoice_nanousd,
            "absorbed_nanousd": self.absorbed_nanousd,
            "unabsorbed_nanousd": self.invoice_nanousd - self.absorbed_nanousd,
            "late_nanousd": self.late_nanousd,
            "energy_kwh": round(self.energy.kwh, 9) if self.energy is not None else None,
            "energy_basis": self.energy.basis.value if self.energy is not None else None,
            "loading_factor": loading_factor(self.invoice_nanousd, self.absorbed_nanousd) if self.closed else None,
        }


def run(config: Path | None, form: Format, days: Range, *, by: str = "hour", now_utc: datetime | None = None) -> None:
    """Print `days` by "hour" or "day". Raises `Unavailable` without a database."""
    with books_of(config) as (_, engine):
        found = hours(engine, now_utc or datetime.now(UTC), days.from_utc, days.to_utc)
    lines = _lines(found, by)
    loaded = loaded_costs(found)
    if form is Format.JSON:
        rows = [line.row() | {"invoice_lines_nanousd": line.lines} for line in lines]
        write_json({"rows": rows, "totals": _totals(lines), "fully_loaded": loaded})
    elif form is Format.CSV:
        write_rows([line.row() for line in lines], _COLUMNS, form)
    else:
        _write_table(lines, loaded)


def _lines(found: Hours, by: str) -> list[_Line]:
    used: dict[tuple[str, int], list[PostedGroup]] = {}
    for group in found.groups:
        used.setdefault((group.asset, group.period_us), []).append(group)
    lines: dict[tuple[int, str], _Line] = {}
    for period in found.periods:
        start_us = period.start_us
        if by == "day":
            start_us -= start_us % 86_400_000_000
        line = lines.setdefault((start_us, period.asset), _Line(period.asset, start_us, period.end_us))
        line.add(period, used.get((period.asset, period.start_us), ()))
    return list(lines.values())


def _totals(lines: Iterable[_Line]) -> dict[str, int]:
    rows = [line.row() for line in lines]
    return {f"{name}_nanousd": sum(row[f"{name}_nanousd"] for row in rows) for name in _MONEY}


def loaded_costs(found: Hours) -> list[dict[str, Any]]:
    """What the closed periods really cost each tenant and model, adding up to their invoices exactly.

    The invoice of a period is shared in proportion to what was absorbed; where nothing was, nobody can carry it: it
    stands in a row of its own, without a tenant.
    """
    groups: dict[tuple[str, int], list[PostedGroup]] = {}
    for group in found.groups:
        groups.setdefault((group.asset, group.period_us), []).append(group)
    sums: dict[tuple[str | None, str | None], list[int]] = {}

    def add(tenant: str | None, model: str | None, standard: int, loaded: int) -> None:
        entry = sums.setdefault((tenant, model), [0, 0])
        entry[0] += standard
        entry[1] += loaded

    for period in found.periods:
        if not period.closed:
            continue
        used = groups.get((period.asset, period.start_us), [])
        shares = fully_loaded(period.invoice_nanousd, [group.amount_nanousd for group in used])
        if shares is None:
            add(None, None, period.absorbed_nanousd, period.invoice_nanousd)
            continue
        for group, share in zip(used, shares, strict=True):
            add(group.tenant, group.model, group.amount_nanousd, share)
    return [
        {"tenant": tenant, "model": model, "standard_nanousd": standard, "fully_loaded_nanousd": loaded}
        for (tenant, model), (standard, loaded) in sorted(sums.items(), key=lambda item: -item[1][1])
    ]


def _write_table(lines: list[_Line], loaded: list[dict[str, Any]]) -> None:
    rows = [line.row() for line in lines]
    energy = ("energy_kwh", "energy_basis") if any(row["energy_basis"] for row in rows) else ()
    columns = (*_COLUMNS[:7], *(f"{name}_usd" for name in _MONEY), *energy, "loading_factor")
    total: dict[str, Any] = {"asset": "total"} | _totals(lines)
    for row in (*rows, total):
        row |= {f"{name}_usd": usd(row[f"{name}_nanousd"]) for name in _MONEY}
        if isinstance(row.get("loading_factor"), Decimal):
            row["loading_factor"] = round(row["loading_factor"], 4)
    write_rows([*rows, total], columns, Format.TABLE)
    if loaded:
        shown = [
            {
                "tenant": row["tenant"] or "(nobody: idle)",
                "model": row["model"],
                "standard_usd": usd(row["standard_nanousd"]),
                "fully_loaded_usd": usd(row["fully_loaded_nanousd"]),
            }
            for row in loaded
        ]
        write_rows(shown, ("tenant", "model", "standard_usd", "fully_loaded_usd"), Format.TABLE)


def _iso(at_us: int) -> str:
    return from_us(at_us).strftime("%Y-%m-%dT%H:%M:%SZ")
