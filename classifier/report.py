"""The evaluation report for people: markdown and plots. Knows the report's keys and nothing of how they came to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifier import metrics

if TYPE_CHECKING:
    from classifier.calibrate import TokenPrices
    from classifier.evaluate import Evaluated


ROWS_PER_POINT = 40  # of the reliability plot
_PARTIAL = (
    "From a log that shows only some answers: quality is doubly robust, calibration weighs what was judged by how "
    "rarely it is seen. There is no oracle, since nobody knows the best answer to a single request.\n"
)


def _number(value: Any, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _range(interval: Sequence[float]) -> str:
    return f"[{_number(interval[0])}, {_number(interval[1])}]"


def _two_tier_row(name: str, part: Mapping[str, Any] | None) -> str | None:
    if part is None:
        return None
    if "apgr" not in part:
        return f"| {name} | {part['rows']} | {part['note']} | | | | | | |"
    low, high = part["apgr_interval"]
    base = part["baselines"]
    figures = (part["cpt50"], part["cpt80"], base["length_only"], base["heuristic"], base["random"], base["oracle"])
    interval = f"{_number(part['apgr'])} [{_number(low)}, {_number(high)}]"
    return f"| {name} | {part['rows']} | {interval} | " + " | ".join(map(_number, figures)) + " |"


def _parts(found: Mapping[str, Any], whole: str, part: str) -> dict[str, Any]:
    """A figure of all rows and of each source; of a lone source it would be the same twice."""
    sources = found["sources"] if len(found["sources"]) > 1 else {}
    return {"all": found[whole], **{name: figures[part] for name, figures in sources.items()}}


def _two_tier_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "| | rows | APGR [95 %] | CPT50 | CPT80 | length only | heuristic | random | oracle |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    named = _parts(found, "pooled", "two_tier")
    named |= {name: figures["two_tier"] for name, figures in found["domains"].items()}
    return lines + [row for row in (_two_tier_row(n, p) for n, p in named.items()) if row is not None]


def _cost_table(found: Mapping[str, Any]) -> list[str]:
    lines = ["| | router | cost at 95 % | at 98 % | at 100 % | AIQ |", "|---|---|---|---|---|--:|"]
    named = _parts(found, "cost", "cost")
    if not any(named.values()):
        return ["Not shown: it takes two tiers with a price, and 30 rows that judge them all."]
    for name, part in named.items():
        for router in ("routed", "static", "oracle") if part is not None else ():
            figures = part[router]
            if figures is None:
                continue
            cells = []
            for key in ("cost_at_95%", "cost_at_98%", "cost_at_100%"):
                interval = part["routed_interval"][key] if router == "routed" else None
                shown = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
                cells.append(_number(figures[key]) + shown)
            lines.append(f"| {name} | {router} | {' | '.join(cells)} | {_number(figures['aiq'])} |")
    return lines


def _prices_line(found: Mapping[str, Any]) -> list[str]:
    prices = {t: p for t, p in found["prices_usd_per_mtok"].items() if t in found["tiers"]}
    if not prices:
        return ["No tier has a price."]
    return ["\nUSD per million tokens, in/out: " + ", ".join(f"{t} {p[0]:g}/{p[1]:g}" for t, p in prices.items()) + "."]


def _calibration_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "| | tier | rows | ECE [95 %] | if perfectly calibrated | Brier [95 %] | Brier of the mean |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    named = _parts(found, "calibration", "calibration")
    for name, tiers in named.items():
        for tier, c in tiers.items():
            figures = (
                f"{_number(c['ece'])} {_range(c['ece_interval'])}",
                _number(c["ece_if_perfect"]),
                f"{_number(c['brier'])} {_range(c['brier_interval'])}",
                _number(c["brier_of_mean"]),
            )
            lines.append(f"| {name} | {tier} | {c['rows']} | " + " | ".join(figures) + " |")
    return lines


def _traffic_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "\n## Mean quality over all traffic\n",
        "From a log that shows only some answers: as seen, by inverse propensity, and doubly robust, which counts.\n",
        "| tier | as seen | inverse propensity | doubly robust [95 %] |",
        "|---|--:|--:|---|",
    ]
    for tier, known in found["tier_quality"].items():
        dr = known["dr"]
        shown = f"{_number(dr['value'])} {_range(dr['interval'])}"
        lines.append(f"| {tier} | {_number(known['naive']['value'])} | {_number(known['ips']['value'])} | {shown} |")
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a page."""
    dials = []
    for d in found["quality_dials"]:
        kept, cost = _number(d["kept_on_other_half_ratio"]), _number(d["cost_on_other_half_ratio"])
        certified = "yes" if d["certified"] else "no"
        dials.append(
            f"| {d['target_ratio']:.0%} | {d['nu_usd']:.3g} | {certified} | {kept} | {cost} | {d['statement']} |"
        )
    chance = found["no_better_than_chance"]
    parts = [
        "# Evaluation",
        *(f"- {line}" for line in found.get("notes", [])),
        f"\n{found['rows']} rows; tiers {', '.join(found['tiers'])}.",
        f"Mean novelty {_number(found['novelty_mean_ratio'])}.",
        "\n## Two tiers\n",
        *([_PARTIAL] if found.get("partial") else []),
        *_two_tier_table(found),
        "\nNo better than chance (interval reaches .5): " + (", ".join(chance) if chance else "nowhere") + ".",
        "\n## Cost as a share of always the best tier\n",
        *_cost_table(found),
        *_prices_line(found),
        "\n## Calibration\n",
        *_calibration_table(found),
    ]
    if found.get("tier_quality"):
        parts += _traffic_table(found)
    if dials:
        parts += [
            "\n## Quality targets\n",
            "| target | nu ($) | certified | kept (other half) | cost | |",
            "|--:|--:|---|--:|--:|---|",
            *dials,
        ]
    return "\n".join(parts) + "\n"


def plots(data: Evaluated, prices: Mapping[str, TokenPrices], folder: Path) -> list[Path]:
    """`cost_quality.png` and `reliability.png`; what cannot be drawn for lack of rows is left out."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if (figure := _cost_figure(Figure, data, prices)) is not None:
        figure.savefig(folder / "cost_quality.png", dpi=110, metadata={"Software": None})
        written.append(folder / "cost_quality.png")
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    _draw_reliability(figure.subplots(), data)
    figure.savefig(folder / "reliability.png", dpi=110, metadata={"Software": None})
    return [*written, folder / "reliability.png"]


def _draw_reliability(axes: Any, data: Evaluated) -> None:
    """Share adequate against what was predicted, with 95 % intervals; fewer bins where there are few rows."""
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="perfect")
    for t, tier in enumerate(data.tiers):
        seen = ~np.isnan(data.judged[:, t])
        if seen.sum() < 2 * metrics.ECE_BINS:
            continue
        bins = int(min(metrics.ECE_BINS, max(4, seen.sum() // ROWS_PER_POINT)))
        weight = data.weight[seen, t] if data.weight is not None else None
        predicted, observed, error = metrics.reliability(data.p[seen, t], data.judged[seen, t], bins, weight=weight)
        span = np.stack([np.minimum(1.96 * error, observed), np.minimum(1.96 * error, 1.0 - observed)])
        axes.errorbar(predicted, observed, span.clip(0.0), marker="o", capsize=2, elinewidth=0.8, label=tier)
    axes.set(xlabel="P(adequate), predicted", ylabel="share adequate", title="Reliability, bins of equal mass, 95 %")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend()


def _cost_figure(figure_type: Any, data: Evaluated, prices: Mapping[str, TokenPrices]) -> Any:
    from classifier.evaluate import costs

    columns = [i for i, t in enumerate(data.tiers) if t in prices]
    rows = np.flatnonzero(~np.isnan(data.outcomes[:, columns]).any(axis=1))
    if len(rows) < metrics.ECE_BINS or len(columns) < 2:
        return None
    p, quality = data.p[rows][:, columns], data.outcomes[rows][:, columns]
    expected, actual = costs(data, rows, prices)
    per_k = 1_000.0
    figure = figure_type(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()

    def line(name: str, curve: metrics.Curve, style: str) -> None:
        axes.plot(curve.cost * per_k, curve.quality, style, label=name)

    line("this model", metrics.routed_curve(p, expected, actual, quality), "-")
    if not data.partial:
        line("oracle", metrics.routed_curve(quality, actual, actual, quality), ":")
    line("static hull (random mix)", metrics.upper_hull(metrics.single_tiers(actual, quality)), "--")
    for name, score in (("heuristic", data.heuristic[rows]), ("length only", data.length[rows])):
        line(f"{name}, {data.tiers[columns[0]]} or {data.tiers[columns[-1]]}", _by_score(score, actual, quality), "-.")
    dearest = max(cost for cost, _ in metrics.single_tiers(actual, quality))
    for tier, (cost, q) in zip((data.tiers[i] for i in columns), metrics.single_tiers(actual, quality), strict=True):
        axes.plot([cost * per_k], [q], "k^")
        right = cost > 0.7 * dearest
        place: dict[str, Any] = {"xytext": (-4, 8) if right else (6, -12), "ha": "right" if right else "left"}
        axes.annotate(f"always {tier}", (cost * per_k, q), textcoords="offset points", **place)
    shown = "mean quality, doubly robust" if data.partial else "mean quality"
    axes.set(xlabel="USD per 1,000 requests", ylabel=shown, title="Quality against cost")
    axes.legend(fontsize="small")
    return figure


def _by_score(score: Any, cost: Any, quality: Any) -> metrics.Curve:
    """First tier below a threshold of the score, last tier above it, for all thresholds."""
    order = np.argsort(score, kind="stable")
    share = np.linspace(0, len(order), 101).astype(int)
    sent = [(order[:n], order[n:]) for n in share]
    points = [
        (
            float((cost[a, 0].sum() + cost[b, -1].sum()) / len(order)),
            float((quality[a, 0].sum() + quality[b, -1].sum()) / len(order)),
        )
        for a, b in sent
    ]
    return metrics.upper_hull(points)
