"""What a log that shows only the answers that were given says about those that were not.

A router's log is partial: one tier answered, and the old policy chose it, so the plain mean of local outcomes is the
mean over prompts the old policy thought easy. Weighting each outcome by 1 / P(it would be observed) corrects this
(inverse propensity); adding the model's own guess and weighting only its error lowers the variance and stays right if
either the probabilities or the guess are right (doubly robust, arXiv 1103.4601). Where some prompts had no chance of
showing a tier's outcome, no weight can help: then this refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifier.datamodels import LabelledExample

Floats = NDArray[np.float64]

MAX_INVERSE_PROBABILITY = 100.0
MIN_COVERED_SHARE = 0.9
MAX_RELATIVE_ERROR = 0.35
MIN_FIFTH_ROWS = 10
UNEVEN_RATIO = 1.25
_SURE = 0.999


class NoOverlap(ValueError):
    """The log does not cover what is asked of it; the message says which tier and what to switch on."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error."""

    value: float
    standard_error: float

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Normal interval."""
        return self.value - z * self.standard_error, self.value + z * self.standard_error


def matrices(examples: Sequence[LabelledExample], tiers: Sequence[str]) -> tuple[Floats, Floats]:
    """Outcomes and P(observed), rows x tiers; NaN where not observed or not known."""
    outcomes = np.full((len(examples), len(tiers)), np.nan)
    probability = np.full_like(outcomes, np.nan)
    for i, e in enumerate(examples):
        for t, tier in enumerate(tiers):
            if tier in e.outcomes:
                outcomes[i, t] = e.outcomes[tier]
                if e.observation_probability is not None:
                    probability[i, t] = e.observation_probability.get(tier, np.nan)
    return outcomes, probability


def is_partial(example: LabelledExample) -> bool:
    """Whether the row comes from a log in which a policy decided what is seen."""
    return example.observation_probability is not None or len(example.outcomes) == 1


def check_overlap(examples: Sequence[LabelledExample], tiers: Sequence[str]) -> None:
    """Raise `NoOverlap` unless every tier's outcome had a known chance to be seen on every kind of partial row.

    The sum of 1 / P over observed rows estimates the number of all rows; where it falls short, some rows had none.
    """
    partial = [e for e in examples if is_partial(e)]
    if not partial:
        return
    outcomes, probability = matrices(partial, tiers)
    seen = ~np.isnan(outcomes)
    if np.isnan(probability[seen]).any():
        raise NoOverlap(
            "rows hold the outcome of one tier without the probability with which it was taken; log "
            "`exploration_probability`, or judge both answers in shadow runs"
        )
    if (probability[seen] >= _SURE).all() and not seen.all():
        raise NoOverlap(
            "every logged choice was certain: nothing is known of the tiers not taken. Set `policy.exploration_ratio` "
            "above 0, or switch on shadow runs, and collect labels for a while"
        )
    rows = len(partial)
    for t, tier in enumerate(tiers):
        inverse = 1.0 / probability[seen[:, t], t]
        if not len(inverse):
            raise NoOverlap(f"no outcome of tier {tier!r} was ever observed")
        error = float(np.sqrt((inverse * (inverse - 1.0)).sum()))
        covered = float(inverse.sum())
        if covered + 3.0 * error < MIN_COVERED_SHARE * rows:
            raise NoOverlap(
                f"tier {tier!r}: outcomes cover about {covered / rows:.0%} of the traffic; the rest had no chance to "
                "show it, so nothing is known of it there. Explore or shadow all kinds of requests"
            )
        if error > MAX_RELATIVE_ERROR * rows:
            raise NoOverlap(f"tier {tier!r}: too few explored outcomes to say anything ({len(inverse)} of {rows} rows)")


def inverse_weights(examples: Sequence[LabelledExample], tiers: Sequence[str]) -> Floats:
    """Training weights, rows x tiers: row weight / P(observed), capped; 1 / P is 1 where the log is complete."""
    _, probability = matrices(examples, tiers)
    inverse = np.minimum(1.0 / np.where(np.isnan(probability), 1.0, probability), MAX_INVERSE_PROBABILITY)
    weights: Floats = inverse * np.array([[e.weight] for e in examples])
    return weights


def pseudo_outcomes(examples: Sequence[LabelledExample], tiers: Sequence[str], guess: Floats) -> Floats:
    """Doubly robust outcome of every tier for every partial row; complete rows keep theirs.

    `guess` is P(adequate), rows x tiers, from a model that has not seen the row. The mean over rows of any figure that
    is linear in outcomes is unbiased; single values may lie outside 0..1.
    """
    outcomes, probability = matrices(examples, tiers)
    partial = np.array([is_partial(e) for e in examples])
    seen = ~np.isnan(outcomes)
    correction = np.where(seen, (outcomes - guess) / np.where(np.isnan(probability), 1.0, probability), 0.0)
    return np.where(partial[:, None], guess + correction, outcomes)


def pseudo_range(examples: Sequence[LabelledExample], tiers: Sequence[str]) -> tuple[float, float]:
    """Between what numbers a doubly robust outcome can lie, for guesses in 0..1: (1 - 1/P, 1/P), P the least one."""
    _, probability = matrices([e for e in examples if is_partial(e)], tiers)
    known = probability[~np.isnan(probability)]
    most = float(1.0 / known.min()) if len(known) else 1.0
    return 1.0 - most, most


def tier_quality(examples: Sequence[LabelledExample], tier: str, guess: Floats) -> dict[str, Estimate]:
    """Mean quality of a tier over all traffic: naive, inverse propensity and doubly robust, side by side.

    The latter two also weight each row by how rarely such requests are in the file (`selection_weights`).
    """
    outcomes, probability = matrices(examples, [tier])
    y, p = outcomes[:, 0], probability[:, 0]
    seen = ~np.isnan(y)
    standing = selection_weights(examples)
    weight = np.where(seen, 1.0 / np.where(np.isnan(p), 1.0, p), 0.0)
    filled = np.where(seen, y, 0.0)
    robust = guess + weight * (filled - guess)
    return {"naive": _mean(y[seen]), "ips": _ratio(standing * weight, filled), "dr": _ratio(standing, robust)}


def selection_weights(examples: Sequence[LabelledExample]) -> Floats:
    """For how many requests of the traffic each row stands, up to a factor: 1 / P(in the file), capped, of mean 1."""
    chance = np.array([e.selection_probability if e.selection_probability is not None else 1.0 for e in examples])
    weights = np.minimum(chance.max() / chance, MAX_INVERSE_PROBABILITY)
    out: Floats = weights / weights.mean()
    return out


def uneven_selection(examples: Sequence[LabelledExample], complexity: Floats) -> str | None:
    """What to tell people where hard prompts are in the file clearly more or less often than easy ones."""
    known = np.array([e.selection_probability is not None for e in examples])
    if known.sum() < 2 * MIN_FIFTH_ROWS * 5:
        return None
    chance = np.array([e.selection_probability or 1.0 for e in examples])[known]
    order = np.argsort(complexity[known], kind="stable")
    fifths = [1.0 / float((1.0 / chance[part]).mean()) for part in np.array_split(order, 5)]
    if max(fifths) <= UNEVEN_RATIO * min(fifths):
        return None
    return (
        f"about {fifths[0]:.0%} of the easiest fifth of the traffic has labels and {fifths[-1]:.0%} of the hardest "
        "(between them "
        f"{min(fifths):.0%} to {max(fifths):.0%}): figures about rows are not figures about all traffic, for which "
        "see tier_quality. Weights correct for what was asked, not for answers that were judged because they were bad"
    )


def _mean(values: Floats) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def _ratio(weight: Floats, values: Floats) -> Estimate:
    """Self-normalised mean with the delta-method error."""
    mean = float(weight @ values / weight.sum())
    error = float(np.sqrt(((weight * (values - mean)) ** 2).sum()) / weight.sum())
    return Estimate(mean, error)
