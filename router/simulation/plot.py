"""One picture of a what-if, as SVG: what each policy spends and misses, and where the product sends requests over time.

Two bars a policy tell spend and misses side by side. Below them, for one workload, the traffic over time: answered
locally, sent to the API, and promises broken. Several workloads are shown as a point each instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from local_llm.datamodels import SloTargets
from router.simulation.report import Result, pooled
from router.simulation.runner import Stay

_WIDTH = 960
_LABELS, _GAP, _ROW = 150, 60, 30
_BAR = (_WIDTH - _LABELS - _GAP - 130) / 2
_LOCAL, _API, _MISS, _INK, _GRID = "#2a9d8f", "#e9c46a", "#c1121f", "#22303c", "#dfe5ea"
_COLOURS = ("#2a9d8f", "#264653", "#e76f51", "#e9c46a", "#8d5a97", "#6c757d", "#457b9d", "#bc6c25")
_BUCKETS = 160
_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_TIME_STEPS_S = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(60.0 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3_600.0 * hours for hours in (1, 2, 3, 6, 12, 24)),
)


def svg(results: Sequence[Result], *, title: str, slo: SloTargets) -> str:
    """The picture of `results`, one workload or several; the misses are those of `slo`."""
    policies = list(dict.fromkeys(result.row.policy for result in results))
    several = len({result.workload for result in results}) > 1
    bars = _bars(pooled(results, slo), several=several, top=70)
    top = 70 + 40 + _ROW * len(policies) + 40
    if several:
        below, height = _scatter(results, policies, top=top), top + 330
    else:
        below, height = _over_time(results[0], slo, top=top), top + 290
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}">'
    )
    paper = f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, paper, _text(24, 34, title, size=16, weight="600"), *bars, *below, "</svg>\n"])


def _bars(totals: Sequence[Result], *, several: bool, top: float) -> list[str]:
    most = max([total.row.slo_miss_ratio for total in totals] + [0.01])
    right = _LABELS + _BAR + _GAP
    parts = [
        _text(_LABELS, top + 14, "API spend, % of sending everything there", colour="#5b6b79"),
        _text(right, top + 14, f"{'worst ' if several else ''}broken promises, % of requests", colour="#5b6b79"),
    ]
    for index, total in enumerate(totals):
        name, spend, misses = total.row.policy, total.row.spend_ratio, total.row.slo_miss_ratio
        y = top + 30 + _ROW * index
        parts += [
            _text(_LABELS - 12, y + 15, name, anchor="end", weight="600" if name.startswith("product") else "400"),
            _rect(_LABELS, y, _BAR, 20, _GRID),
            _rect(_LABELS, y, _BAR * min(1.0, spend), 20, _API),
            _text(_LABELS + _BAR * min(1.0, spend) + 6, y + 15, f"{100 * spend:.1f}"),
            _rect(right, y, max(1.0, _BAR * misses / most), 20, _MISS if misses > 0.0 else _LOCAL),
            _text(right + max(1.0, _BAR * misses / most) + 6, y + 15, f"{100 * misses:.2f}"),
        ]
    return parts


def _over_time(result: Result, slo: SloTargets, *, top: float) -> list[str]:
    """Requests a second of the first policy, stacked: local and kept, local and broken, API."""
    stays = result.played.stays
    height, left, wide = 180.0, 60.0, _WIDTH - 60.0 - 30.0
    span_s = max(result.played.duration_s, 1e-9)
    counts = _counts(stays, slo, span_s)
    bucket_s = span_s / _BUCKETS
    peak = max((sum(column) for column in counts), default=0) / bucket_s
    rate_step = round_step(peak / 4)
    lines = max(1, math.ceil(peak / rate_step))
    most = lines * rate_step
    parts = [
        _text(24, top, f"where {result.row.policy} sends the traffic, requests a second", weight="600"),
        *_legend((("local", _LOCAL), ("local, promise broken", _MISS), ("API", _API)), top + 22),
    ]
    base = top + 40 + height
    for tick in range(lines + 1):
        y = base - height * tick / lines
        parts += [_line(left, y, left + wide, y), _text(left - 8, y + 4, f"{rate_step * tick:g}", anchor="end")]
    column_wide = wide / _BUCKETS
    for index, column in enumerate(counts):
        y = base
        for count, colour in zip(column, (_LOCAL, _MISS, _API), strict=True):
            tall = height * count / bucket_s / most
            if count:
                y -= tall
                parts.append(_rect(left + index * column_wide, y, column_wide, tall, colour))
    time_step_s = next((step for step in _TIME_STEPS_S if step * 7 >= span_s), round_step(span_s / 7 / 86_400) * 86_400)
    for tick in range(int(span_s / time_step_s) + 1):
        x = left + wide * tick * time_step_s / span_s
        parts.append(_text(x, base + 20, clock(tick * time_step_s, time_step_s), anchor="middle", colour="#5b6b79"))
    return parts


def round_step(least: float) -> float:
    """The least of 1, 2, 2.5 and 5 times a power of ten that is at least `least`."""
    if least <= 0.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0) if power * factor >= least)


def _counts(stays: Sequence[Stay], slo: SloTargets, span_s: float) -> list[list[int]]:
    counts = [[0, 0, 0] for _ in range(_BUCKETS)]
    for stay in stays:
        bucket = min(_BUCKETS - 1, int(_BUCKETS * stay.request.at_s / span_s))
        counts[bucket][2 if not stay.admitted else 1 if stay.misses(slo) else 0] += 1
    return counts


def _scatter(results: Sequence[Result], policies: Sequence[str], *, top: float) -> list[str]:
    """A point a workload and policy: spend to the right, misses upward; down and to the left is better."""
    height, left, wide = 220.0, 60.0, _WIDTH - 60.0 - 30.0
    most = max([result.row.slo_miss_ratio for result in results] + [0.01])
    most = min(1.0, math.ceil(most * 20) / 20)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(policies)}
    base = top + 40 + height
    parts = [
        _text(24, top, "each workload: spend to the right, broken promises upward, in %", weight="600"),
        *_legend(tuple(colours.items()), top + 22),
    ]
    for tick in range(5):
        share = tick / 4
        y, x = base - height * share, left + wide * share
        parts += [
            _line(left, y, left + wide, y),
            _text(left - 8, y + 4, f"{100 * most * share:.3g}", anchor="end"),
            _text(x, base + 20, f"{100 * share:.0f}", anchor="middle"),
        ]
    for result in results:
        x = left + wide * min(1.0, result.row.spend_ratio)
        y = base - height * result.row.slo_miss_ratio / most
        told = f"{result.row.policy}, {result.workload}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colours[result.row.policy]}" fill-opacity="0.85">'
            f"<title>{escape(told)}</title></circle>"
        )
    return parts


def _legend(entries: Sequence[tuple[str, str]], y: float) -> list[str]:
    parts: list[str] = []
    x = 24.0
    for name, colour in entries:
        parts += [_rect(x, y - 11, 13, 13, colour), _text(x + 18, y, name)]
        x += 40 + 7.2 * len(name)
    return parts


def clock(seconds: float, step_s: float) -> str:
    """A time in the unit that its axis goes by."""
    size_s, unit = next(((size, unit) for size, unit in _UNITS if step_s >= size), _UNITS[-1])
    return f"{seconds / size_s:g} {unit}"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK, size: int = 13, weight: str = "400"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _rect(x: float, y: float, wide: float, high: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.2f}" height="{high:.2f}" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>'
