"""The model card: what a model was trained on, how good it is out of fold, and where it is no better than chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.datamodels import LabelledExample, ModelManifest
from classifier.evaluate import DEFAULT_PRICES, collect, report, usable
from classifier.offpolicy import NoOverlap
from classifier.report import markdown, plots

Floats = NDArray[np.float64]
DRAWS = 200


def write_card(
    folder: Path, manifest: ModelManifest, examples: Sequence[LabelledExample], p: Floats, novelty: Floats
) -> None:
    """`card.md` and plots in a model's folder, from predictions made out of fold."""
    known, notes = usable(examples)
    kept = {id(e) for e in known}
    rows = [i for i, e in enumerate(examples) if id(e) in kept]
    try:
        data = collect(known, manifest.tiers, p[rows], novelty[rows])
    except NoOverlap as error:
        (folder / "card.md").write_text(_head(manifest) + f"\nNot evaluated: {error}.\n", encoding="utf-8")
        return
    found: dict[str, Any] = report(data, draws=DRAWS) | {"notes": notes}
    plots(data, DEFAULT_PRICES, folder)
    text = _head(manifest) + "\n" + markdown(found).replace("# Evaluation", "# Out-of-fold evaluation", 1)
    (folder / "card.md").write_text(text, encoding="utf-8")


def _head(manifest: ModelManifest) -> str:
    data = manifest.data
    sources = data["source_counts"]
    counts = ", ".join(f"{name} {rows}" for name, rows in sources.items()) if isinstance(sources, dict) else ""
    lines = [
        f"# Model {manifest.version}",
        "",
        f"- What it says: P(adequate) per tier ({', '.join(manifest.tiers)}), complexity, novelty. English mostly.",
        f"- Labels: {data['rows_kept']} rows of {data['rows_read']} read, sha256 {str(data['sha256'])[:16]}: {counts}.",
        f"- Merged: {data['rows_duplicate']} repetitions, {data['rows_contradictory']} contradictions.",
        f"- Left out: {data['rows_invalid']} invalid rows.",
        f"- Form: words and {manifest.trained_with['tree_count']} trees a tier, averaged and calibrated.",
        f"- Made with scikit-learn {manifest.sklearn_version}, feature version {manifest.feature_version}.",
        "- Limits: it knows prompts like its labels. Prompts unlike them are drawn to the prior (see novelty).",
        "- Out of domain no light model ranks prompts much better than their length: retrain on your own logs.",
        "- Figures: every row predicted by a model that has seen neither it nor its stem or conversation.",
        "- Plots: `cost_quality.png`, `reliability.png`.",
    ]
    return "\n".join(lines) + "\n"
