"""How unlike the training data is a request? Five distances from the source it most resembles.

Words: the share that is unknown, how rare they are, and how much likelier they are elsewhere than in that source.
Numbers: standard deviations from the source's mean. Where it is known which models stand behind the tiers: how much it
is like sources of other models, on which these were never judged. Each is held against what held-out training rows of
the same source show; the largest excess is the novelty, 0..1. What a source's words say also tells sources apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from classifier.serving import EXCESS_STEP

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DISTANCES = 5
# Nearer than this share of held-out training rows is not novel at all: share of unknown words, rarity, likelier
# elsewhere, numbers, like sources of other models. The third and the last tell foreign sources best; the others are
# there for what is like no source at all, and would cost more rank among ordinary rows than they find.
QUANTILES = (0.999, 0.999, 0.985, 0.999, 0.98)
LEAST_EDGE = (0.0, 0.0, 0.0, 0.0, 1.0)
SPAN = 0.03  # and wholly novel so much further on, in distances from the median to that quantile
SPAN_FLOOR = (0.02, 0.02, 0.02, 0.02, 0.05)
SPREAD_FLOOR = 0.25
SMOOTHING_WORDS = 500.0  # a source is believed to use words as all do until it has shown so many
MIN_ROWS_PER_SOURCE = 50
MAX_OWN_ROWS = 3  # of a group in one source, as far as their words are not counted


class SourceWords(BaseEstimator):  # type: ignore[misc]
    """How much likelier each word of a vocabulary is in each source than everywhere (log ratios)."""

    def __init__(self, *, source_count: int = 1) -> None:
        self.source_count = source_count

    def fit(self, bag: Any, sources: Ints) -> SourceWords:
        """Fit on TF-IDF rows, of which only presence is used."""
        self._fit_counts((bag > 0).astype(np.float64), sources)
        return self

    def fit_evidence(self, bag: Any, sources: Ints, groups: Ints) -> Floats:
        """Fit; returns what `evidence` would say of these rows had those of their own group not been counted.

        A row's own words would betray its source, and the same question's in another source would betray that one.
        """
        present = (bag > 0).astype(np.float64)
        counts, share = self._fit_counts(present, sources)
        _, group = np.unique(groups, return_inverse=True)
        own = np.zeros((int(group.max(initial=0)) + 1, self.source_count), dtype=np.int64)
        np.add.at(own, (group, sources), 1)
        found = np.asarray(present @ self.excess_.T)
        for s in range(self.source_count):
            counted = np.minimum(own[group, s], MAX_OWN_ROWS)
            for n in np.unique(counted[counted > 0]).tolist():
                rows = np.flatnonzero(counted == n)
                found[rows, s] = np.asarray(
                    present[rows] @ _excess(np.maximum(counts[s] - n, 0.0), share, counts[s].sum())
                )
        return _by_root(found, present)

    def _fit_counts(self, present: Any, sources: Ints) -> tuple[Floats, Floats]:
        """How often each word was seen in each source, and its share of all words."""
        everywhere = np.asarray(present.sum(axis=0)).ravel()
        share = (everywhere + 0.5) / (everywhere.sum() + 0.5 * len(everywhere))
        counts = np.zeros((self.source_count, present.shape[1]))
        self.excess_ = np.zeros_like(counts)
        self.unknown_excess_ = np.zeros(self.source_count)
        for s in np.unique(sources):
            counts[s] = np.asarray(present[np.flatnonzero(sources == s)].sum(axis=0)).ravel()
            self.excess_[s] = _excess(counts[s], share, counts[s].sum())
            self.unknown_excess_[s] = np.log(SMOOTHING_WORDS / (counts[s].sum() + SMOOTHING_WORDS))
        return counts, share

    def evidence(self, bag: Any) -> Floats:
        """Rows x sources: summed log ratios of known words over the root of their number, as in naive Bayes."""
        present = (bag > 0).astype(np.float64)
        return _by_root(np.asarray(present @ self.excess_.T), present)

    def distances(self, bag: Any, idf: Floats, distinct: Floats, nearest: Ints) -> Floats:
        """Rows x 3: share of unknown words, mean rarity, how much likelier the words are elsewhere than in `nearest`.

        `distinct` counts distinct words, unknown ones included.
        """
        present = (bag > 0).astype(np.float64)
        known = np.asarray(present.sum(axis=1)).ravel()
        count = np.maximum(distinct, 1.0)
        unknown = np.where(distinct > 0, distinct - known, 1.0)
        excess = np.asarray(present @ self.excess_.T)[np.arange(len(nearest)), nearest]
        rarity = np.asarray(present @ idf).ravel() + (idf.max() + 1.0) * (distinct - known)
        columns = [unknown, rarity, -(excess + self.unknown_excess_[nearest] * unknown)]
        out: Floats = np.stack(columns, axis=1) / count[:, None]
        return out


class Neighbourhood(BaseEstimator):  # type: ignore[misc]
    """Where the numbers of each source lie, and how far from a source its own rows usually are."""

    def __init__(self, *, source_count: int = 1) -> None:
        self.source_count = source_count

    def fit(self, scaled: Floats, sources: Ints) -> Neighbourhood:
        """Fit on scaled numbers."""
        self.centre_ = np.zeros((self.source_count, scaled.shape[1]))
        self.inverse_spread_ = np.ones_like(self.centre_)
        for s in np.unique(sources):
            own = scaled[sources == s]
            self.centre_[s] = own.mean(axis=0)
            self.inverse_spread_[s] = 1.0 / np.maximum(own.std(axis=0), SPREAD_FLOOR)
        return self

    def distances(self, scaled: Floats, nearest: Ints) -> Floats:
        """Rows x 1: root mean square of standard deviations from the source `nearest`."""
        z = (scaled - self.centre_[nearest]) * self.inverse_spread_[nearest]
        out: Floats = np.sqrt((z**2).mean(axis=1))[:, None]
        return out

    def set_limits(self, measured: Floats, nearest: Ints, foreign: Floats, nearest_known: Ints) -> Neighbourhood:
        """Learn per source what is usual, from distances of held-out rows; `foreign`, the last, and `nearest_known` are
        those with the models behind the row's labels known."""
        self.from_ = np.zeros((self.source_count, DISTANCES))
        self.span_ = np.ones((self.source_count, DISTANCES))
        for s in range(self.source_count):
            columns = [*_near(measured, nearest, s).T, _near(foreign, nearest_known, s)]
            middle = np.array([np.quantile(column, 0.5) for column in columns])
            edge = np.array([np.quantile(column, q) for column, q in zip(columns, QUANTILES, strict=True)])
            edge = np.maximum(edge, LEAST_EDGE)
            self.from_[s], self.span_[s] = edge, np.maximum(SPAN * (edge - middle), SPAN_FLOOR)
        return self

    def novelty(self, measured: Floats, nearest: Ints) -> Floats:
        """0 where all is usual, 1 where something is far beyond it."""
        far: Floats = np.clip((measured - self.from_[nearest]) / self.span_[nearest], 0.0, 1.0).max(axis=1)
        return far


def _near(measured: Floats, nearest: Ints, source: int) -> Floats:
    """Rows nearest to `source`, all where those are few."""
    own = nearest == source
    return measured[own] if own.sum() >= MIN_ROWS_PER_SOURCE else measured


def _excess(seen: Floats, share: Floats, total: float) -> Floats:
    """Log ratios of words seen so often among `total`, against their `share` of all, as the serving form has them."""
    ratio = np.log((seen + SMOOTHING_WORDS * share) / (total + SMOOTHING_WORDS)) - np.log(share)
    out: Floats = np.round(ratio / EXCESS_STEP) * EXCESS_STEP
    return out


def _by_root(found: Floats, present: Any) -> Floats:
    known = np.asarray(present.sum(axis=1)).ravel()
    out: Floats = found / np.sqrt(np.maximum(known, 1.0))[:, None]
    return out
