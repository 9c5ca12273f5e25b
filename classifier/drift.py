"""Has the world moved away from what the model was trained on? Pure.

Three signs: the distribution of scores against that of training (population stability index), calibration on fresh
labels, and the mean novelty. Above the usual alarm values a retrain is suggested, with the reason.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

PSI_ALARM = 0.25
ECE_ALARM = 0.08
NOVELTY_ALARM = 0.15
PREMIUM_JUMP_ALARM = 0.2
MIN_SCORES = 200
MIN_LABELS = 200


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Readings (`None` where there is too little to say) and what is alarming about them.

    `signs` names each of `alarms`, in their order: scores, calibration, novelty.
    """

    psi: float | None
    ece: float | None
    novelty_ratio: float | None
    alarms: tuple[str, ...]
    signs: tuple[str, ...] = ()

    @property
    def retrain(self) -> bool:
        """Whether a retrain is suggested."""
        return bool(self.alarms)


def stability_index(quantiles: Sequence[float], scores: Sequence[float]) -> float:
    """Population stability index of `scores` against the inner quantiles of the training scores."""
    bins = len(quantiles) + 1
    counts = [0] * bins
    for score in scores:
        counts[bisect_right(quantiles, score)] += 1
    expected = 1.0 / bins
    total = len(scores) + 0.5 * bins
    shares = [(n + 0.5) / total for n in counts]
    return sum((share - expected) * log(share / expected) for share in shares)


def calibration_error(pairs: Sequence[tuple[float, float]], bins: int = 10) -> float:
    """Calibration error of (p, quality) pairs beyond what chance alone would show."""
    ordered = sorted(pairs)
    error = noise = 0.0
    for b in range(bins):
        part = ordered[b * len(ordered) // bins : (b + 1) * len(ordered) // bins]
        if part:
            mean_p = sum(p for p, _ in part) / len(part)
            error += abs(mean_p - sum(q for _, q in part) / len(part)) * len(part) / len(ordered)
            noise += 0.8 * (mean_p * (1.0 - mean_p) / len(part)) ** 0.5 * len(part) / len(ordered)
    return max(0.0, error - noise)


def drift(
    *,
    training_quantiles: Sequence[float],
    scores: Sequence[float],
    novelty: Sequence[float],
    labelled: Sequence[tuple[float, float]],
) -> DriftReport:
    """Readings over recent requests: `scores` are complexity ratios, `labelled` pairs of (p of the answer, quality)."""
    enough = len(scores) >= MIN_SCORES
    psi = stability_index(training_quantiles, scores) if enough and training_quantiles else None
    mean_novelty = sum(novelty) / len(novelty) if enough and novelty else None
    ece = calibration_error(labelled) if len(labelled) >= MIN_LABELS else None
    alarms = {}
    if psi is not None and psi > PSI_ALARM:
        alarms["scores"] = f"scores have shifted (stability index {psi:.2f} > {PSI_ALARM}); retrain on recent labels"
    if ece is not None and ece > ECE_ALARM:
        alarms["calibration"] = (
            f"probabilities are off by {ece:.2f} on fresh labels (> {ECE_ALARM}); retrain on recent labels"
        )
    if mean_novelty is not None and mean_novelty > NOVELTY_ALARM:
        alarms["novelty"] = (
            f"requests are unlike the training data (novelty {mean_novelty:.2f} > {NOVELTY_ALARM}); label, retrain"
        )
    return DriftReport(psi, ece, mean_novelty, tuple(alarms.values()), tuple(alarms))


def premium_jump(*, usual_share: float, recent_premium: int, recent: int) -> bool:
    """Whether the premium share of recent traffic has jumped: steered prompts, or a new kind of traffic."""
    return recent >= MIN_SCORES and recent_premium / recent > usual_share + PREMIUM_JUMP_ALARM
