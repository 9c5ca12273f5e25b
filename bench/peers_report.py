"""From the windows of a run with peers to one line a contestant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from bench.report import Window, aligned, of, replaced

GATEWAY = "gateway"
BEGIN = "<!-- peers: written by python -m bench --peers --document -->"
END = "<!-- end of peers -->"
Figures = Mapping[str, float]

# key, heading, digits
COLUMNS = (
    ("requests_per_s", "req/s", 0),
    ("cpu_ms", "CPU ms", 3),
    ("added_p50_ms", "added p50", 2),
    ("added_p99_ms", "added p99", 2),
    ("cold_start_s", "start s", 2),
    ("pss_mb", "PSS MB", 0),
    ("rate_ratio", "ours/its", 2),
    ("cpu_ratio", "its/our CPU", 2),
)


def peer_figures(
    windows: Sequence[Window], cold_start_s: Mapping[str, Sequence[float]], pss_mb: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Medians over the rounds for each contestant but the direct call; ratios are taken within a round.

    `rate_ratio`: requests/s of our gateway over the contestant's at 16 in flight; `cpu_ratio`: the contestant's CPU per
    request over our gateway's, the same question asked in a way that others on the machine disturb less.
    """
    direct = of(windows, "one_in_flight", "direct")
    ours = of(windows, "sixteen_in_flight", GATEWAY)
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(window["contestant"] for window in windows):
        if name == "direct":
            continue
        single, busy = of(windows, "one_in_flight", name), of(windows, "sixteen_in_flight", name)
        added = {
            quantile: _middle(
                (w["latency_us"][quantile] - direct[n]["latency_us"]["p50"]) / 1e3 for n, w in single.items()
            )
            for quantile in ("p50", "p99")
        }
        out[name] = {
            "requests_per_s": _middle(w["requests_per_s"] for w in busy.values()),
            "cpu_ms": _middle(w["cpu_us_per_request"] / 1e3 for w in busy.values()),
            "added_p50_ms": added["p50"],
            "added_p99_ms": added["p99"],
            "cold_start_s": _middle(cold_start_s[name]),
            "pss_mb": pss_mb[name],
            "rate_ratio": _middle(ours[n]["requests_per_s"] / w["requests_per_s"] for n, w in busy.items()),
            "cpu_ratio": _middle(w["cpu_us_per_request"] / ours[n]["cpu_us_per_request"] for n, w in busy.items()),
        }
    return out


def _middle(values: Iterable[float]) -> float:
    return median(list(values))


def peers_table(figures: Mapping[str, Figures], accepted: Mapping[str, float], versions: Mapping[str, str]) -> str:
    """One line a contestant, the gateway first; where there is an accepted ratio, whether `ours/its` holds it."""
    rows = [["", *(heading for _, heading, _ in COLUMNS), "accepted", ""]]
    for name in sorted(figures, key=lambda name: (name != GATEWAY, figures[name]["cpu_ms"])):
        cells = [f"{figures[name][key]:,.{digits}f}" for key, _, digits in COLUMNS]
        least = accepted.get(name)
        held = ("", "")
        if least is not None:
            held = (f">= {least:g}", "kept" if figures[name]["rate_ratio"] >= least else "MISSED")
        rows.append([f"{name} {versions.get(name, '')}".strip(), *cells, *held])
    return aligned(rows)


def peers_block(heading: str, result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Heading, table, who is missing and why, and what must be known to read it.

    `result` has `figures` by contestant, `versions` and `accepted_ratio` by peer, `not_measured` with reasons.
    """
    table = peers_table(result["figures"], result["accepted_ratio"], result["versions"])
    lines = [heading, "", "```text", table, "```"]
    for name, reason in result["not_measured"].items():
        lines += ["", f"Not measured: {name} ({' '.join(reason.split())[:300]})."]
    for note in notes:
        lines += ["", note]
    return "\n".join(lines)


def document_peers(page: str, block: str) -> str:
    """`page` with what stands between the two marks replaced. Raises ValueError where the marks are missing."""
    return replaced(page, BEGIN, END, block)
