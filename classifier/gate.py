"""May a model replace the one in force? Only if it is better on labels it was not fitted on, beyond noise."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from classifier import registry
from classifier.datamodels import LabelledExample, RequestFeatures, Score
from classifier.dataset import stem_hash
from classifier.labels import ONE_SIDED
from classifier.offpolicy import inverse_weights
from classifier.progress import Progress, unheard
from classifier.scorer import TrainedScorer

MIN_ROWS = 50
DRAWS = 1_000
_P_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """A labelled request; `p` is the candidate's prediction made out of fold, or `None` for rows it has never seen."""

    features: RequestFeatures
    models: Mapping[str, str]
    outcomes: Mapping[str, float]
    weights: Mapping[str, float]
    stem: bytes
    p: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says. `gain` is the fall in log loss per judged answer, with its 95 % interval."""

    passed: bool
    reason: str
    rows: int
    gain: float = 0.0
    gain_low: float = 0.0
    gain_high: float = 0.0


class Scores(Protocol):
    """Anything that scores features: a trained scorer or the heuristic."""

    version: str

    def score(self, features: RequestFeatures) -> Score:
        """P(adequate) per tier."""
        ...


def held_out_rows(folder: Path) -> list[HeldOutRow]:
    """What `train` kept for the gate; empty where it kept nothing. Raises `registry.ModelRefused` on tampering."""
    manifest = registry.read_manifest(folder)
    if registry.HELD_OUT not in manifest.files:
        return []
    if registry.sha256_of(folder / registry.HELD_OUT) != manifest.files[registry.HELD_OUT]:
        raise registry.ModelRefused(f"{folder.name}: {registry.HELD_OUT} was changed after training")
    try:
        with gzip.open(folder / registry.HELD_OUT, "rt", encoding="utf-8") as file:
            return [_held_out_row(json.loads(line)) for line in file]
    except (EOFError, gzip.BadGzipFile, ValueError, LookupError, TypeError, RecursionError) as error:
        raise registry.ModelRefused(f"{folder.name}: {registry.HELD_OUT} is not one of ours: {error!r}") from error


def _held_out_row(raw: Mapping[str, Any]) -> HeldOutRow:
    features = msgspec.convert(raw["features"], RequestFeatures)
    weights = {tier: float(raw["weights"][tier]) for tier in raw["outcomes"]}
    return HeldOutRow(features, raw["models"], raw["outcomes"], weights, bytes.fromhex(raw["stem"]), raw["p"])


def fresh_rows(examples: Sequence[LabelledExample], seen: frozenset[bytes]) -> list[HeldOutRow]:
    """Rows of a labels file that a model with these stems was not fitted on, weighed as in training.

    Rows known by retries alone are left out: such labels only ever say no, and a model that says no would win by them.
    """
    tiers = sorted({tier for e in examples for tier in e.outcomes})
    weights = inverse_weights(examples, tiers)
    return [
        HeldOutRow(
            e.features, e.models, e.outcomes, {t: float(w[tiers.index(t)]) for t in e.outcomes}, stem_hash(e), None
        )
        for e, w in zip(examples, weights, strict=True)
        if stem_hash(e) not in seen and e.label_source != ONE_SIDED
    ]


def log_loss(p: float, quality: float) -> float:
    """Loss of saying p where the quality was 0..1."""
    p = min(max(p, _P_FLOOR), 1.0 - _P_FLOOR)
    return -(quality * log(p) + (1.0 - quality) * log(1.0 - p))


def judge(
    candidate: TrainedScorer,
    current: TrainedScorer | Scores,
    rows: Sequence[HeldOutRow],
    *,
    seen_by_current: frozenset[bytes],
    current_p: Mapping[bytes, Mapping[str, float]],
    seed: int = 0,
    progress: Progress = unheard,
) -> Verdict:
    """Compare by log loss on the same judged answers, with a paired bootstrap over requests.

    Rows the current model was fitted on count only with its own out-of-fold prediction (`current_p`, by stem).
    """
    gains, masses, strange = [], [], 0
    for number, row in enumerate(rows):
        if number % 500 == 0:
            progress(f"comparing on {len(rows)} prompts", number / len(rows))
        known = current_p.get(row.stem)
        if known is None and row.stem in seen_by_current:
            continue
        theirs = _served(current, row, known)
        ours = _served(candidate, row, row.p)
        judged = [t for t in row.outcomes if t in ours and t in theirs]
        if judged:
            gains.append(
                sum(
                    row.weights[t] * (log_loss(theirs[t], row.outcomes[t]) - log_loss(ours[t], row.outcomes[t]))
                    for t in judged
                )
            )
            masses.append(sum(row.weights[t] for t in judged))
        else:
            strange += 1
    if strange > len(gains):
        return Verdict(
            False,
            f"{strange} of {len(rows)} held-out rows judge no tier that both models know (the candidate: "
            f"{', '.join(candidate.model.tiers)}): nothing can be compared",
            len(gains),
        )
    if len(gains) < MIN_ROWS:
        return Verdict(
            False,
            f"{len(gains)} held-out rows that neither model was fitted on; at least {MIN_ROWS} are needed: "
            "give fresh ones with --labels",
            len(gains),
        )
    gain, mass = np.array(gains), np.array(masses)
    rng = np.random.default_rng(seed)
    draws = [gain[i].sum() / mass[i].sum() for i in (rng.integers(0, len(gain), len(gain)) for _ in range(DRAWS))]
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    mean = float(gain.sum() / mass.sum())
    passed = low > 0.0
    shown = f"log loss falls by {mean:+.4f} [{low:+.4f}, {high:+.4f}] per judged answer on {len(gain)} held-out rows"
    reason = f"better: {shown}" if passed else f"not better beyond noise: {shown}"
    return Verdict(passed, reason, len(gain), mean, low, high)


def _served(scorer: TrainedScorer | Scores, row: HeldOutRow, known: Mapping[str, float] | None) -> Mapping[str, float]:
    """What `scorer` says of a row; of one it was fitted on what it said out of fold (`known`), drawn to the prior by as
    much as it would be when it serves: a model that takes all for novel is no better than the prior."""
    if not isinstance(scorer, TrainedScorer):
        return scorer.score(row.features).p_adequate
    bound = scorer.bind(row.models)
    return bound.score(row.features).p_adequate if known is None else bound.as_served(row.features, known)
