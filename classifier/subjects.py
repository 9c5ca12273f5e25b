"""What a request is about, and how well each tier does there: one number per tier for the trees.

Labels may name a domain (mathematics, law, …), and how much a better model gains differs more between domains than with
anything that can be counted. P(subject | words) is naive Bayes whose evidence is weighed by a logistic regression; its
mean of the quality that each tier showed in each subject is what the trees see. The frequent domains are subjects; rows
of any other are counted to the subject whose words theirs resemble most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression

from classifier.novelty import SourceWords
from classifier.serving import MOST_SUBJECT_WEIGHT, SUBJECT_STEP

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_SUBJECTS = 20
MIN_SUBJECTS = 3
MIN_ROWS = 100
SUBJECT_C = 0.3
SMOOTHING_ROWS = 10.0


class Subjects(BaseEstimator):  # type: ignore[misc]
    """Expected quality by subject. Learned values end in `_`; with too few domains there are no subjects."""

    def fit_expected(self, bag: Any, domains: Sequence[str], groups: Ints, outcomes: Floats, weights: Floats) -> Floats:
        """Fit on TF-IDF rows, of which only presence is used; "" is an unknown domain.

        Returns, rows x tiers, what `expected` would say of these rows had those of their own group not been counted.
        """
        frequent = sorted(Counter(d for d in domains if d).items(), key=lambda item: (-item[1], item[0]))
        self.names_ = [name for name, rows in frequent if rows >= MIN_ROWS][:MAX_SUBJECTS]
        if len(self.names_) < MIN_SUBJECTS:
            self.names_ = []
            self.word_weights_ = np.zeros((0, bag.shape[1]), dtype=np.int16)
            self.intercept_, self.quality_ = np.zeros(0), np.zeros((0, outcomes.shape[1]))
            return np.zeros((len(domains), 0))
        subjects = self._subject_of_rows(bag, np.asarray(domains, dtype=object))
        p = _softmax(self._fit_words(bag, subjects, groups))
        seen = ~np.isnan(outcomes)
        mass = weights * seen
        total = mass.sum(axis=0)
        base = (mass * np.where(seen, outcomes, 0.0)).sum(axis=0) / np.maximum(total, 1e-9)
        good = p.T @ (mass * np.where(seen, outcomes, 0.0))
        self.quality_ = (good + SMOOTHING_ROWS * base) / (p.T @ mass + SMOOTHING_ROWS)
        out: Floats = p @ self.quality_
        return out

    def expected(self, bag: Any) -> Floats:
        """Rows x tiers: quality of each tier in the subjects that the words speak of; rows x 0 without subjects."""
        if not self.names_:
            return np.zeros((bag.shape[0], 0))
        present = (bag > 0).astype(np.float64)
        known = np.maximum(np.asarray(present.sum(axis=1)).ravel(), 1.0)
        on_words = np.asarray(present @ (self.word_weights_.T * SUBJECT_STEP))
        out: Floats = _softmax(on_words / np.sqrt(known)[:, None] + self.intercept_) @ self.quality_
        return out

    def _subject_of_rows(self, bag: Any, domains: NDArray[np.object_]) -> Ints:
        """Number of each row's subject, -1 where its domain is not known."""
        number = {name: i for i, name in enumerate(self.names_)}
        subjects = np.array([number.get(d, -1) for d in domains], dtype=np.int64)
        named = np.flatnonzero(subjects >= 0)
        words = SourceWords(source_count=len(self.names_)).fit(bag[named], subjects[named])
        for other in sorted({d for d in domains if d and d not in number}):
            rows = np.flatnonzero(domains == other)
            subjects[rows] = int(np.argmax(words.evidence(bag[rows]).mean(axis=0)))
        return subjects

    def _fit_words(self, bag: Any, subjects: Ints, groups: Ints) -> Floats:
        """Weights of words; returns each row's log-odds, made without those of its group."""
        named = np.flatnonzero(subjects >= 0)
        words = SourceWords(source_count=len(self.names_))
        without_own = words.fit_evidence(bag[named], subjects[named], groups[named])
        evidence = words.evidence(bag)
        evidence[named] = without_own
        mean, scale = evidence[named].mean(axis=0), np.maximum(evidence[named].std(axis=0), 1e-9)
        evidence = (evidence - mean) / scale
        head = LogisticRegression(C=SUBJECT_C, max_iter=200, tol=1e-3).fit(evidence[named], subjects[named])
        on_words = np.clip((head.coef_ / scale) @ words.excess_, -MOST_SUBJECT_WEIGHT, MOST_SUBJECT_WEIGHT)
        self.word_weights_ = np.round(on_words / SUBJECT_STEP).astype(np.int16)
        self.intercept_ = head.intercept_ - (head.coef_ / scale) @ mean
        log_odds: Floats = head.decision_function(evidence)
        return log_odds


def _softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Floats = odds / odds.sum(axis=1, keepdims=True)
    return out
