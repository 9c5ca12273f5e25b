"""The three views of a request and the gate that says where a request seems to come from, fitted on one set of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from classifier.novelty import SourceWords
from classifier.serving import (
    FINEST_WEIGHT_STEP,
    IDF_STEP,
    LANE_BITS,
    LEAF_BITS,
    LEAST_SHARE,
    MOST_WORDS,
)
from classifier.subjects import Subjects
from classifier.textstats import DENSE_NAMES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DENSE_CLIP = 5.0
GATE_C = 0.2
GATE_SCALE = 0.15  # how strongly slopes may differ by source, relative to words of weight 1
SHARED_SCALE = 0.1
EXPERT_SCALE_FLOOR = 0.05
LENGTH = DENSE_NAMES.index("log_chars")
LENGTH_EMPHASIS = 4.0  # length is shrunk least: alone of all numbers it means the same in every source
GATE_FLOOR = 0.02  # sources less likely than this are left out of the mixture
MIN_ROWS_PER_HEAD = 20
VIEWS = 3  # linear, trees, experts: the order of the combiner's slopes


def same(tokens: list[str]) -> list[str]:
    """Identity: the vectorizer is given words, not text."""
    return tokens


class BaseViews(BaseEstimator):  # type: ignore[misc]
    """The three views, fitted on one set of rows. `logits` gives them as (rows, sources, tiers, views)."""

    def __init__(
        self,
        *,
        source_count: int = 1,
        linear_c: float = 0.3,
        expert_c: float = 0.005,
        tree_count: int = 160,
        leaf_count: int = 8,
        learning_rate: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.source_count = source_count
        self.linear_c = linear_c
        self.expert_c = expert_c
        self.tree_count = tree_count
        self.leaf_count = leaf_count
        self.learning_rate = learning_rate
        self.seed = seed

    def fit(
        self,
        texts: list[list[str]],
        numbers: Floats,
        outcomes: Floats,
        sources: Ints,
        weights: Floats,
        groups: Ints | None = None,
        domains: Sequence[str] = (),
    ) -> BaseViews:
        """Fit on `outcomes` (rows x tiers, 0..1, NaN where not observed) with `weights` of the same shape.

        Rows of one group are the same question. `domains` names each row's, "" where it is not known.
        """
        self.mean_ = numbers.mean(axis=0)
        spread = numbers.std(axis=0)
        self.scale_ = np.where(spread < 1e-9, 1.0, spread)
        scaled = self.scaled(numbers)
        self.vectorizer_ = TfidfVectorizer(
            analyzer=same, binary=True, min_df=_min_documents(len(texts)), max_features=60_000, dtype=np.float64
        )
        try:
            self.vectorizer_.fit(texts)
        except ValueError:  # no word at all: the numbers alone must do
            self.vectorizer_ = TfidfVectorizer(analyzer=same, binary=True, dtype=np.float64).fit([["empty"]])
        self.vectorizer_.idf_ = on_grid(self.vectorizer_.idf_, IDF_STEP)
        bag = self.vectorizer_.transform(texts)
        # As plain numbers: numpy's own are stored one array each, which takes longer than the trees.
        self.vectorizer_.vocabulary_ = {word: int(at) for word, at in self.vectorizer_.vocabulary_.items()}
        groups = np.arange(len(texts)) if groups is None else groups
        self.source_words_ = SourceWords(source_count=self.source_count)
        by_words = self.source_words_.fit_evidence(bag, sources, groups)
        self.words_mean_ = by_words.mean(axis=0)
        self.words_scale_ = np.maximum(by_words.std(axis=0), 1e-9)
        self.gate_ = self._fit_gate(self._gate_columns(scaled, by_words), sources)
        gate = self._source_probabilities(self._gate_columns(scaled, by_words))
        self.subjects_ = Subjects()
        about = domains or [""] * len(texts)
        by_subject = self.subjects_.fit_expected(bag, scaled, about, groups, outcomes, weights)
        tiers = outcomes.shape[1]
        columns = self._linear_columns(bag, scaled, mixture(gate, None), by_subject)
        self.linear_ = [self._linear_head(columns, outcomes[:, t], weights[:, t]) for t in range(tiers)]
        self.weight_steps_ = [round_weights(head, self.vectorizer_.idf_) for head in self.linear_]
        with_subjects = np.hstack([numbers, by_subject])
        self.trees_ = [self._tree_head(with_subjects, outcomes[:, t], weights[:, t]) for t in range(tiers)]
        self.leaf_steps_ = [round_leaves(head) for head in self.trees_]
        self._fit_experts(scaled, outcomes, sources, weights)
        return self

    def scaled(self, numbers: Floats) -> Floats:
        """Standardised and clipped, so that no single number can run away."""
        out: Floats = np.clip((numbers - self.mean_) / self.scale_, -DENSE_CLIP, DENSE_CLIP)
        return out

    def _gate_columns(self, scaled: Floats, by_words: Floats) -> Floats:
        standard = np.clip((by_words - self.words_mean_) / self.words_scale_, -DENSE_CLIP, DENSE_CLIP)
        return np.hstack([scaled, standard])

    def source_probabilities(self, bag: Any, scaled: Floats) -> Floats:
        """P(source | words, numbers), rows x sources; sources never seen in fitting get 0."""
        return self._source_probabilities(self._gate_columns(scaled, self.source_words_.evidence(bag)))

    def _source_probabilities(self, columns: Floats) -> Floats:
        out = np.zeros((len(columns), self.source_count))
        if isinstance(self.gate_, int):
            out[:, self.gate_] = 1.0
        else:
            out[:, self.gate_.classes_] = self.gate_.predict_proba(columns)
        return out

    def logits(self, texts: list[list[str]], numbers: Floats) -> tuple[Floats, Floats]:
        """Views as (rows, sources, tiers, views) and P(source), (rows, sources)."""
        scaled, bag = self.scaled(numbers), self.vectorizer_.transform(texts)
        gate = self.source_probabilities(bag, scaled)
        by_subject = self.subjects_.expected(bag, scaled)
        columns = self._linear_columns(bag, scaled, mixture(gate, None), by_subject)
        with_subjects = np.hstack([numbers, by_subject])
        tiers = len(self.linear_)
        out = np.zeros((len(numbers), self.source_count, tiers, VIEWS))
        for t in range(tiers):
            out[:, :, t, 0] = _decide(self.linear_[t], columns)[:, None]
            out[:, :, t, 1] = _decide(self.trees_[t], with_subjects)[:, None]
            out[:, :, t, 2] = scaled @ self.expert_coef_[:, t].T + self.expert_intercept_[:, t]
        return out, gate

    def _linear_columns(self, bag: Any, scaled: Floats, gate: Floats, by_subject: Floats) -> Any:
        # Each block is thinned out by itself: all of them dense at once would take gigabytes on large logs.
        by_source = [sp.csr_matrix(scaled * gate[:, [s]] * GATE_SCALE) for s in range(self.source_count)]
        shared = sp.csr_matrix(scaled * SHARED_SCALE)
        subjects = sp.csr_matrix(self.subjects_.standardised(by_subject))
        return sp.hstack([bag, shared, *by_source, sp.csr_matrix(gate), subjects]).tocsr()

    def _fit_gate(self, columns: Floats, sources: Ints) -> Any:
        present = np.unique(sources)
        if len(present) == 1:
            return int(present[0])
        return LogisticRegression(C=GATE_C, max_iter=500).fit(columns, sources)

    def _linear_head(self, columns: Any, outcome: Floats, weights: Floats) -> Any:
        rows, labels, mass = soft_rows(outcome, weights)
        constant = constant_log_odds(labels, mass)
        if constant is not None:
            return constant
        return LogisticRegression(C=self.linear_c, max_iter=300, tol=1e-4).fit(columns[rows], labels, mass)

    def _tree_head(self, numbers: Floats, outcome: Floats, weights: Floats) -> Any:
        rows, labels, mass = soft_rows(outcome, weights)
        constant = constant_log_odds(labels, mass)
        if constant is not None or len(rows) < 2 * MIN_ROWS_PER_HEAD:
            return constant if constant is not None else constant_log_odds(labels, mass, force=True)
        return HistGradientBoostingClassifier(
            max_iter=int(np.clip(len(rows) // 10, 20, self.tree_count)),
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.leaf_count,
            min_samples_leaf=int(np.clip(len(rows) // 40, 10, 40)),
            l2_regularization=5.0,
            max_features=0.3,
            early_stopping=False,
            random_state=self.seed,
        ).fit(numbers[rows], labels, mass)

    def _fit_experts(self, scaled: Floats, outcomes: Floats, sources: Ints, weights: Floats) -> None:
        tiers = outcomes.shape[1]
        self.expert_coef_ = np.zeros((self.source_count, tiers, scaled.shape[1]))
        self.expert_intercept_ = np.zeros((self.source_count, tiers))
        for t in range(tiers):
            for s in range(self.source_count):
                own = (sources == s) & ~np.isnan(outcomes[:, t])
                if own.sum() < MIN_ROWS_PER_HEAD:
                    own = ~np.isnan(outcomes[:, t])
                coef, intercept = self._expert(scaled[own], outcomes[own, t], weights[own, t])
                self.expert_coef_[s, t], self.expert_intercept_[s, t] = coef, intercept

    def _expert(self, scaled: Floats, outcome: Floats, weights: Floats) -> tuple[Floats, float]:
        rows, labels, mass = soft_rows(outcome, weights)
        constant = constant_log_odds(labels, mass)
        if constant is not None:
            return np.zeros(scaled.shape[1]), constant
        mean, spread = scaled.mean(axis=0), scaled.std(axis=0)
        inverse = np.where(spread < 1e-9, 0.0, 1.0 / np.maximum(spread, EXPERT_SCALE_FLOOR))
        inverse[LENGTH] *= LENGTH_EMPHASIS
        head = LogisticRegression(C=self.expert_c, max_iter=300).fit((scaled[rows] - mean) * inverse, labels, mass)
        coef = head.coef_[0] * inverse
        return coef, float(head.intercept_[0] - coef @ mean)


def on_grid(values: Floats, step: float) -> Floats:
    """The nearest multiples of `step`. With powers of two, products and sums of such numbers are exact."""
    out: Floats = np.round(values / step) * step
    return out


def round_weights(head: Any, idf: Floats) -> float:
    """Round a linear head's weights of words in place to steps so fine that any text's sum just fits a lane of the
    serving form; returns the step."""
    if isinstance(head, float):
        return FINEST_WEIGHT_STEP
    on_words = head.coef_[0, : len(idf)]
    terms = np.sort(on_words * idf)
    worst = max(terms[-MOST_WORDS:].clip(0.0).sum(), -terms[:MOST_WORDS].clip(None, 0.0).sum(), 1e-9)
    coarse = 2.0 ** np.ceil(np.log2(worst / (2.0 ** (LANE_BITS - 2) * IDF_STEP)))
    step = max(FINEST_WEIGHT_STEP, float(coarse))
    on_words[:] = on_grid(on_words, step)
    return step


def round_leaves(head: Any) -> float:
    """Round the values in the trees of a head in place to steps of which the largest takes `LEAF_BITS`; the step."""
    if isinstance(head, float):
        return 1.0
    values = [predictor.nodes["value"] for (predictor,) in head._predictors]
    span = max(v.max() for v in values) - min(v.min() for v in values)
    step = float(2.0 ** np.ceil(np.log2(max(span, 1e-9) / (2.0**LEAF_BITS - 2.0))))
    for v in values:
        v[:] = on_grid(v, step)
    return step


def limited(gate: Floats, allowed: Sequence[int] | None) -> Floats:
    """P(source) given that it is one of `allowed`, even where all of those are all but impossible."""
    if allowed is None:
        return gate
    mask = np.zeros(gate.shape[1])
    mask[list(allowed)] = 1.0
    share = gate * mask + 1e-12 * mask
    out: Floats = share / share.sum(axis=1, keepdims=True)
    return out


def foreign(gate: Floats, allowed: Sequence[int] | None) -> Floats:
    """How much a request is like sources of other models: minus the logarithm of P(`allowed`), per row."""
    ours = np.ones(len(gate)) if allowed is None else gate[:, list(allowed)].sum(axis=1)
    out: Floats = -np.log(np.maximum(ours, LEAST_SHARE))
    return out


def mixture(gate: Floats, allowed: Sequence[int] | None) -> Floats:
    """P(source) limited to `allowed`, without sources below `GATE_FLOOR`, summing to 1."""
    share = limited(gate, allowed)
    share = np.where(share < GATE_FLOOR, 0.0, share)
    out: Floats = share / share.sum(axis=1, keepdims=True)
    return out


def soft_rows(outcome: Floats, weights: Floats) -> tuple[Ints, Ints, Floats]:
    """Rows, 0/1 labels and weights of an outcome in 0..1: a half-good answer counts half for each."""
    seen = np.flatnonzero(~np.isnan(outcome))
    quality, mass = outcome[seen], weights[seen]
    good, bad = quality > 0.0, quality < 1.0
    rows = np.concatenate([seen[good], seen[bad]])
    labels = np.concatenate([np.ones(good.sum(), dtype=np.int64), np.zeros(bad.sum(), dtype=np.int64)])
    return rows, labels, np.concatenate([(mass * quality)[good], (mass * (1.0 - quality))[bad]])


def _min_documents(rows: int) -> int:
    """In how many texts a word must stand to count; rare words cost memory at serving and gain nothing."""
    return 1 if rows <= 50 else (2 if rows <= 5_000 else 4)


def constant_log_odds(labels: Ints, mass: Floats, *, force: bool = False) -> float | None:
    """Log-odds of the smoothed rate where there is too little to fit a head on, else `None`."""
    if not force and len(labels) >= MIN_ROWS_PER_HEAD and 0 < labels.sum() < len(labels):
        return None
    good = float(mass[labels == 1].sum())
    return float(np.log((good + 1.0) / (float(mass.sum()) - good + 1.0)))


def _decide(head: Any, columns: Any) -> Floats:
    if isinstance(head, float):
        return np.full(columns.shape[0], head)
    return np.asarray(head.decision_function(columns), dtype=np.float64)
