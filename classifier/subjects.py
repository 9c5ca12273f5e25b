"""What a request is about, and how well each tier does there: one number per tier for the views.

Labels may name a domain (mathematics, law, …), and how much a better model gains differs more between domains than with
anything that can be counted. P(subject | words, numbers) is a logistic regression on what the words say of each subject
as in naive Bayes, and on the numbers of `textstats`; its mean of the quality that each tier showed in each subject is
what the linear view and the trees see. The frequent domains are subjects; rows
of any other are counted to the subject whose words theirs resemble most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
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
SHARPNESS = 1.3  # of log-odds: where a subject is likely, half a belief in others says too little
SMOOTHING_ROWS = 10.0
LEAST_RATE = 0.001  # of quality, so that it has log-odds
LEAST_SCALE = 0.01


class Subjects(BaseEstimator):  # type: ignore[misc]
    """Expected quality by subject. Learned values end in `_`; with too few domains there are no subjects."""

    def fit_expected(
        self, bag: Any, scaled: Floats, domains: Sequence[str], groups: Ints, outcomes: Floats, weights: Floats
    ) -> Floats:
        """Fit on TF-IDF rows, of which only presence is used, and scaled numbers; "" is an unknown domain.

        Returns, rows x tiers, what `expected` would say of these rows had those of their own group not been counted.
        """
        frequent = sorted(Counter(d for d in domains if d).items(), key=lambda item: (-item[1], item[0]))
        self.names_ = [name for name, rows in frequent if rows >= MIN_ROWS][:MAX_SUBJECTS]
        if len(self.names_) < MIN_SUBJECTS:
            self.names_ = []
            self.word_weights_ = np.zeros((0, bag.shape[1]), dtype=np.int16)
            self.number_weights_ = np.zeros((0, scaled.shape[1]))
            self.intercept_, self.quality_ = np.zeros(0), np.zeros((0, outcomes.shape[1]))
            self.mean_, self.scale_ = np.zeros(0), np.zeros(0)
            return np.zeros((len(domains), 0))
        subjects = self._subject_of_rows(bag, np.asarray(domains, dtype=object))
        p = _softmax(self._fit_log_odds(bag, scaled, subjects, groups))
        seen = ~np.isnan(outcomes)
        mass = weights * seen
        total = mass.sum(axis=0)
        base = (mass * np.where(seen, outcomes, 0.0)).sum(axis=0) / np.maximum(total, 1e-9)
        good = p.T @ (mass * np.where(seen, outcomes, 0.0))
        quality = (good + SMOOTHING_ROWS * base) / (p.T @ mass + SMOOTHING_ROWS)
        self.quality_ = np.clip(quality, LEAST_RATE, 1.0 - LEAST_RATE)
        out: Floats = p @ self.quality_
        self.mean_, self.scale_ = logit(out).mean(axis=0), np.maximum(logit(out).std(axis=0), LEAST_SCALE)
        return out

    def standardised(self, expected: Floats) -> Floats:
        """What `expected` gives as log-odds in standard deviations, for views that add up."""
        out: Floats = (logit(expected) - self.mean_) / self.scale_
        return out

    def expected(self, bag: Any, scaled: Floats) -> Floats:
        """Rows x tiers: quality of each tier in the subjects a request seems to be about; rows x 0 without subjects."""
        if not self.names_:
            return np.zeros((bag.shape[0], 0))
        present = (bag > 0).astype(np.float64)
        known = np.maximum(np.asarray(present.sum(axis=1)).ravel(), 1.0)
        on_words = np.asarray(present @ (self.word_weights_.T * SUBJECT_STEP))
        log_odds = on_words / np.sqrt(known)[:, None] + scaled @ self.number_weights_.T + self.intercept_
        out: Floats = _softmax(log_odds) @ self.quality_
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

    def _fit_log_odds(self, bag: Any, scaled: Floats, subjects: Ints, groups: Ints) -> Floats:
        """Weights of words and numbers; returns each row's log-odds, the words' made without those of its group."""
        named = np.flatnonzero(subjects >= 0)
        words = SourceWords(source_count=len(self.names_))
        without_own = words.fit_evidence(bag[named], subjects[named], groups[named])
        evidence = words.evidence(bag)
        evidence[named] = without_own
        mean, scale = evidence[named].mean(axis=0), np.maximum(evidence[named].std(axis=0), 1e-9)
        evidence = (evidence - mean) / scale
        columns = np.hstack([evidence, scaled])
        head = LogisticRegression(C=SUBJECT_C, max_iter=200, tol=1e-3).fit(columns[named], subjects[named])
        of_words, self.number_weights_ = np.split(SHARPNESS * head.coef_, [len(self.names_)], axis=1)
        on_words = np.clip((of_words / scale) @ words.excess_, -MOST_SUBJECT_WEIGHT, MOST_SUBJECT_WEIGHT)
        self.word_weights_ = np.round(on_words / SUBJECT_STEP).astype(np.int16)
        self.intercept_ = SHARPNESS * head.intercept_ - (of_words / scale) @ mean
        log_odds: Floats = SHARPNESS * head.decision_function(columns)
        return log_odds


def _softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Floats = odds / odds.sum(axis=1, keepdims=True)
    return out
