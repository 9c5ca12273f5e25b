"""From raw windows to figures, from figures to one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Window = Mapping[str, Any]  # one report of `phases.measure`, with round, phase and contestant
FOREIGN_LOAD_TO_DISTRUST_RATIO = 0.1
QUIET_ROUNDS_NEEDED = 3
DOCUMENT_BEGIN, DOCUMENT_END = "<!-- figures: written by python -m bench --document -->", "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `budget` is the worst value we accept of the gateway; `higher_is_better` for rates."""

    key: str
    label: str
    budget: float | None
    digits: int = 2
    higher_is_better: bool = False

    def holds(self, value: float) -> bool | None:
        """Whether `value` keeps the budget; `None` without one."""
        if self.budget is None:
            return None
        return value >= self.budget if self.higher_is_better else value <= self.budget


FIGURES = (
    Figure("added_p50_ms", "added latency p50, 1 in flight, ms", 0.5, 3),
    Figure("added_p95_ms", "added latency p95, 1 in flight, ms", None, 3),
    Figure("added_p99_ms", "added latency p99, 1 in flight, ms", 1.0, 3),
    Figure("cpu_2k_ms", "CPU per request, 2 KB prompt, ms", 0.45, 3),
    Figure("cpu_32k_ms", "CPU per request, 32 KB prompt, ms", 0.60, 3),
    Figure("requests_per_s", "requests/s, 16 in flight", 2200, 0, higher_is_better=True),
    Figure("passthrough_ratio", "  the same over the pass-through's", None, 2, higher_is_better=True),
    Figure("slow_requests_per_s", "requests/s, 64 in flight, 50 ms upstream", 1000, 0, higher_is_better=True),
    Figure("added_first_delta_ms", "stream: added time to first delta, ms", 2.0, 3),
    Figure("transit_p50_ms", "16 paced streams: delta under way p50, ms", 0.12, 3),
    Figure("deltas_per_read", "16 paced streams: deltas per read (1: none held)", 1.05, 2),
    Figure("cpu_us_per_chunk", "16 unpaced streams: CPU per delta, us", 5.0, 2),
    Figure("cold_start_s", "cold start to first answer, s", 1.5, 2),
    Figure("pss_mb", "memory (PSS) after the run, MB", 120, 0),
)


def of(windows: Iterable[Window], phase: str, contestant: str) -> dict[int, Window]:
    """The windows of one phase and contestant by their round."""
    return {w["round"]: w for w in windows if w["phase"] == phase and w["contestant"] == contestant}


def quiet_windows(windows: Sequence[Window]) -> list[Window]:
    """Windows of rounds that nobody disturbed; a phase with fewer than QUIET_ROUNDS_NEEDED of them keeps all."""
    disturbed: dict[str, set[int]] = {}
    rounds: dict[str, set[int]] = {}
    for window in windows:
        rounds.setdefault(window["phase"], set()).add(window["round"])
        if window["foreign_ratio"] > FOREIGN_LOAD_TO_DISTRUST_RATIO:
            disturbed.setdefault(window["phase"], set()).add(window["round"])
    left_out = {
        phase: numbers
        for phase, numbers in disturbed.items()
        if len(rounds[phase]) - len(numbers) >= QUIET_ROUNDS_NEEDED
    }
    return [window for window in windows if window["round"] not in left_out.get(window["phase"], ())]


def _middle(values: Iterable[float]) -> float:
    return median(list(values))


def figures_of(contestant: str, windows: Sequence[Window]) -> dict[str, float]:
    """Medians over the rounds. What is *added* is taken against the direct call's p50 of the same round."""
    out: dict[str, float] = {}
    direct = of(windows, "one_in_flight", "direct")
    single = of(windows, "one_in_flight", contestant)
    for quantile in ("p50", "p95", "p99"):
        out[f"added_{quantile}_ms"] = _middle(
            (window["latency_us"][quantile] - direct[number]["latency_us"]["p50"]) / 1e3
            for number, window in single.items()
        )
    busy = of(windows, "sixteen_in_flight", contestant)
    out["requests_per_s"] = _middle(w["requests_per_s"] for w in busy.values())
    out["slow_requests_per_s"] = _middle(w["requests_per_s"] for w in of(windows, "slow_upstream", contestant).values())
    first_direct = of(windows, "stream_one", "direct")
    out["added_first_delta_ms"] = _middle(
        (w["first_delta_us"]["p50"] - first_direct[number]["first_delta_us"]["p50"]) / 1e3
        for number, w in of(windows, "stream_one", contestant).items()
    )
    paced = of(windows, "stream_paced", contestant).values()
    out["transit_p50_ms"] = _middle(w["transit_us"]["p50"] / 1e3 for w in paced)
    out["deltas_per_read"] = _middle(w["transit_us"]["n"] / w["reads_with_deltas"] for w in paced)
    if contestant == "direct":
        return out
    long_prompts = of(windows, "sixteen_in_flight_32k", contestant).values()
    unpaced = of(windows, "stream_unpaced", contestant).values()
    out["cpu_2k_ms"] = _middle(w["cpu_us_per_request"] / 1e3 for w in busy.values())
    out["cpu_32k_ms"] = _middle(w["cpu_us_per_request"] / 1e3 for w in long_prompts)
    out["cpu_us_per_chunk"] = _middle(w["cpu_us_per_chunk"] for w in unpaced)
    peer = of(windows, "sixteen_in_flight", "pass-through")
    out["passthrough_ratio"] = _middle(
        w["requests_per_s"] / peer[number]["requests_per_s"] for number, w in busy.items()
    )
    return out


def foreign_load(windows: Sequence[Window]) -> float:
    """Median share of the contestants' core that others used in `windows`."""
    return _middle(w["foreign_ratio"] for w in windows)


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """One line a figure, one column a contestant, and the gateway's budget with the verdict."""
    names = list(figures)
    rows = [["", *names, "budget", ""]]
    for figure in FIGURES:
        row = [figure.label]
        for name in names:
            value = figures[name].get(figure.key)
            row.append("-" if value is None else f"{value:,.{figure.digits}f}")
        gateway = figures.get("gateway", {}).get(figure.key)
        verdict = figure.holds(gateway) if gateway is not None else None
        sign = ">=" if figure.higher_is_better else "<="
        row.append("" if figure.budget is None else f"{sign} {figure.budget:,g}")
        row.append("" if verdict is None else "kept" if verdict else "MISSED")
        rows.append(row)
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right, a rule below the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def replaced(page: str, begin: str, end: str, text: str) -> str:
    """`page` with what stands between two marks replaced. Raises ValueError where the marks are missing."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page has no marks {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def document(page: str, heading: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    """`page` with the figures between its two marks replaced. Raises ValueError where the marks are missing."""
    return replaced(page, DOCUMENT_BEGIN, DOCUMENT_END, f"{heading}\n\n```text\n{table(figures)}\n```")
