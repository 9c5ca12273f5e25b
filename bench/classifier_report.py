"""The measured figures as a page: the tables that `docs/classifier.md` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _cell(figure: list[float] | None, digits: int = 3) -> str:
    if figure is None or figure[0] != figure[0]:
        return "-"
    mean, spread, low, high = figure
    text = f"{mean:.{digits}f}"
    if spread > 0.0:
        text += f" ± {spread:.{digits}f}"
    return text + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low == low else "")


def _mean(figure: list[float] | None) -> str:
    return "-" if figure is None or figure[0] != figure[0] else f"{figure[0]:.3f}"


def _ranking(title: str, parts: Mapping[str, Any]) -> list[str]:
    novel = any("novelty" in p for p in parts.values())
    lines = [
        f"\n## {title}\n",
        "APGR; mean ± standard deviation over splits or draws [95 % interval over prompts].\n",
        "| | models known | not known | length only | heuristic | random | oracle | CPT50 / CPT80 |"
        + (" mean novelty / over .1 |" if novel else ""),
        "|---|---|---|---|---|---|---|---|" + ("---|" if novel else ""),
    ]
    for name, part in parts.items():
        free = " | ".join(_mean(part[k]) for k in ("length", "heuristic", "random", "oracle"))
        line = f"| {name} | {_cell(part['known'])} | {_mean(part['unknown'])} | {free} "
        line += f"| {_mean(part['cpt50'])} / {_mean(part['cpt80'])} |"
        if novel:
            line += f" {_mean(part.get('novelty'))} / {_mean(part.get('novelty over .1'))} |"
        lines.append(line)
    return lines


def _three_tiers(figures: Mapping[str, Any]) -> list[str]:
    lines = ["\n## Three tiers\n", "Cost as a share of always-premium cost.\n"]
    lines += ["| | at 95 % of its quality | at 98 % | at 100 % |", "|---|---|---|---|"]
    for kind, name in (
        ("known", "models known"),
        ("unknown", "not known"),
        ("static", "static hull"),
        ("oracle", "oracle"),
    ):
        lines.append(f"| {name} | " + " | ".join(_cell(figures[f"{kind} {s}"]) for s in ("95%", "98%", "100%")) + " |")
    return lines


def _calibration(parts: Mapping[str, Any]) -> list[str]:
    lines = [
        "\n## Calibration\n",
        "Excess: expected calibration error beyond that of a perfectly calibrated model of the same predictions.\n",
        "| source / tier | ECE, models known | excess | ECE, not known | excess | Brier |",
        "|---|---|---|---|---|---|",
    ]
    keys = ("known ece", "known excess", "unknown ece", "unknown excess", "brier")
    return lines + [f"| {name} | " + " | ".join(_mean(part[k]) for k in keys) + " |" for name, part in parts.items()]


def markdown(found: Mapping[str, Any]) -> str:
    """Everything measured as tables; parts that were not measured are left out."""
    lines = [f"# The classifier, measured on {found['rows']} rows, {found['splits']} splits"]
    titles = {
        "ranking": "Two tiers, one model for all sources",
        "few_labels": "Few labels",
        "left_out": "A source left out of training",
        "own_models": "A model for each source alone",
    }
    for key, title in titles.items():
        if key in found:
            lines += _ranking(title, found[key])
    if "three_tiers" in found:
        lines += _three_tiers(found["three_tiers"])
    if "calibration" in found:
        lines += _calibration(found["calibration"])
    if "latency" in found:
        lines += ["\n## CPU time of features and score, every prompt distinct\n", "| | |", "|---|--:|"]
        lines += [f"| {name} | {value:.1f} |" for name, value in found["latency"].items()]
    return "\n".join(lines) + "\n"
