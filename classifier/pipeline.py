"""The trained estimator: P(adequate) per tier. The only place where the order of columns is set.

Three views of a request, each with one head per tier, averaged in log-odds and calibrated on predictions made out of
fold:

- *linear*: logistic regression on the presence of words (TF-IDF) and on the numbers of `textstats`, whose slopes may
  differ by source;
- *trees*: gradient boosting on the numbers, for thresholds and interactions;
- *experts*: one small logistic regression per source on the numbers, in the source's own scale.

A source is where labels come from (a data set, an application). It is not known when a request is served: a gate
gives P(source | numbers), and the answer is the mixture over sources. Where it is known which models stand behind the
tiers, the mixture is limited to sources that were labelled with those models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from classifier.datamodels import RequestFeatures
from classifier.novelty import DISTANCES, Neighbourhood
from classifier.textstats import dense, words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DENSE_CLIP = 5.0
GATE_SCALE = 0.15  # how strongly slopes may differ by source, relative to words of weight 1
SHARED_SCALE = 0.1
EXPERT_SCALE_FLOOR = 0.05
GATE_FLOOR = 0.02  # sources less likely than this are left out of the mixture
MIN_ROWS_PER_HEAD = 20
VIEWS = 3  # linear, trees, experts: the order of the combiner's slopes


def design(requests: Sequence[RequestFeatures]) -> tuple[list[list[str]], Floats]:
    """Words and numbers (rows x `DENSE_COUNT`) of requests."""
    texts = [words(r.text) for r in requests]
    numbers = [dense(r, len(w), set(w)) for r, w in zip(requests, texts, strict=True)]
    return texts, np.asarray(numbers, dtype=np.float64)


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
        expert_c: float = 0.02,
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
        self, texts: list[list[str]], numbers: Floats, outcomes: Floats, sources: Ints, weights: Floats
    ) -> BaseViews:
        """Fit on `outcomes` (rows x tiers, 0..1, NaN where not observed) with `weights` of the same shape."""
        self.mean_ = numbers.mean(axis=0)
        spread = numbers.std(axis=0)
        self.scale_ = np.where(spread < 1e-9, 1.0, spread)
        scaled = self.scaled(numbers)
        self.vectorizer_ = TfidfVectorizer(
            analyzer=same, binary=True, min_df=_min_documents(len(texts)), max_features=60_000, dtype=np.float64
        )
        try:
            bag = self.vectorizer_.fit_transform(texts)
        except ValueError:  # no word at all: the numbers alone must do
            self.vectorizer_ = TfidfVectorizer(analyzer=same, binary=True, dtype=np.float64).fit([["empty"]])
            bag = self.vectorizer_.transform(texts)
        self.gate_ = self._fit_gate(scaled, sources)
        columns = self._linear_columns(bag, scaled, mixture(self.source_probabilities(scaled), None))
        tiers = outcomes.shape[1]
        self.linear_ = [self._linear_head(columns, outcomes[:, t], weights[:, t]) for t in range(tiers)]
        self.trees_ = [self._tree_head(numbers, outcomes[:, t], weights[:, t]) for t in range(tiers)]
        self._fit_experts(scaled, outcomes, sources, weights)
        return self

    def scaled(self, numbers: Floats) -> Floats:
        """Standardised and clipped, so that no single number can run away."""
        out: Floats = np.clip((numbers - self.mean_) / self.scale_, -DENSE_CLIP, DENSE_CLIP)
        return out

    def source_probabilities(self, scaled: Floats) -> Floats:
        """P(source | numbers), rows x sources; sources never seen in fitting get 0."""
        out = np.zeros((len(scaled), self.source_count))
        if isinstance(self.gate_, int):
            out[:, self.gate_] = 1.0
        else:
            out[:, self.gate_.classes_] = self.gate_.predict_proba(scaled)
        return out

    def logits(self, texts: list[list[str]], numbers: Floats) -> tuple[Floats, Floats]:
        """Views as (rows, sources, tiers, views) and P(source), (rows, sources)."""
        scaled = self.scaled(numbers)
        gate = self.source_probabilities(scaled)
        columns = self._linear_columns(self.vectorizer_.transform(texts), scaled, mixture(gate, None))
        tiers = len(self.linear_)
        out = np.zeros((len(numbers), self.source_count, tiers, VIEWS))
        for t in range(tiers):
            out[:, :, t, 0] = _decide(self.linear_[t], columns)[:, None]
            out[:, :, t, 1] = _decide(self.trees_[t], numbers)[:, None]
            out[:, :, t, 2] = scaled @ self.expert_coef_[:, t].T + self.expert_intercept_[:, t]
        return out, gate

    def _linear_columns(self, bag: Any, scaled: Floats, gate: Floats) -> Any:
        blocks = [scaled * SHARED_SCALE, *(scaled * gate[:, [s]] * GATE_SCALE for s in range(self.source_count)), gate]
        return sp.hstack([bag, sp.csr_matrix(np.hstack(blocks))]).tocsr()

    def _fit_gate(self, scaled: Floats, sources: Ints) -> Any:
        present = np.unique(sources)
        if len(present) == 1:
            return int(present[0])
        return LogisticRegression(C=1.0, max_iter=300).fit(scaled, sources)

    def _linear_head(self, columns: Any, outcome: Floats, weights: Floats) -> Any:
        rows, labels, mass = soft_rows(outcome, weights)
        constant = _constant(labels, mass)
        if constant is not None:
            return constant
        return LogisticRegression(C=self.linear_c, max_iter=300, tol=1e-4).fit(columns[rows], labels, mass)

    def _tree_head(self, numbers: Floats, outcome: Floats, weights: Floats) -> Any:
        rows, labels, mass = soft_rows(outcome, weights)
        constant = _constant(labels, mass)
        if constant is not None or len(rows) < 2 * MIN_ROWS_PER_HEAD:
            return constant if constant is not None else _constant(labels, mass, force=True)
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
        constant = _constant(labels, mass)
        if constant is not None:
            return np.zeros(scaled.shape[1]), constant
        mean, spread = scaled.mean(axis=0), scaled.std(axis=0)
        inverse = np.where(spread < 1e-9, 0.0, 1.0 / np.maximum(spread, EXPERT_SCALE_FLOOR))
        head = LogisticRegression(C=self.expert_c, max_iter=300).fit((scaled[rows] - mean) * inverse, labels, mass)
        coef = head.coef_[0] * inverse
        return coef, float(head.intercept_[0] - coef @ mean)


class TierModel(BaseEstimator):  # type: ignore[misc]
    """The whole model: views, limits, combiner, novelty. Learned values end in `_`."""

    def __init__(
        self,
        *,
        tiers: Sequence[str] = ("local", "cheap", "premium"),
        sources: Sequence[str] = ("all",),
        fold_count: int = 5,
        tree_count: int = 160,
        linear_c: float = 0.3,
        expert_c: float = 0.02,
        seed: int = 0,
    ) -> None:
        self.tiers = tiers
        self.sources = sources
        self.fold_count = fold_count
        self.tree_count = tree_count
        self.linear_c = linear_c
        self.expert_c = expert_c
        self.seed = seed

    def _base(self) -> BaseViews:
        return BaseViews(
            source_count=len(self.sources),
            linear_c=self.linear_c,
            expert_c=self.expert_c,
            tree_count=self.tree_count,
            seed=self.seed,
        )

    def fit(
        self,
        requests: Sequence[RequestFeatures],
        outcomes: Floats,
        *,
        sources: Ints,
        groups: Ints,
        weights: Floats | None = None,
    ) -> TierModel:
        """Fit on outcomes (rows x tiers, NaN where not observed) with weights of the same shape.

        `sources` indexes `self.sources`; rows of one group are never on both sides of a fold. Keeps
        `out_of_fold_p_` (rows x tiers), each predicted by a model and a combiner that have not seen the row.
        """
        texts, numbers = design(requests)
        mass = np.ones_like(outcomes) if weights is None else np.asarray(weights, dtype=np.float64)
        folds = self._folds(groups)
        views = np.zeros((len(numbers), len(self.sources), len(self.tiers), VIEWS))
        gate = np.zeros((len(numbers), len(self.sources)))
        far, nearest = np.zeros((len(numbers), DISTANCES)), np.zeros(len(numbers), dtype=np.int64)
        for train, test in folds:
            base = self._base().fit(
                [texts[i] for i in train], numbers[train], outcomes[train], sources[train], mass[train]
            )
            held_out = [texts[i] for i in test]
            views[test], gate[test] = base.logits(held_out, numbers[test])
            around = self._neighbourhood(base, [texts[i] for i in train], numbers[train], sources[train])
            far[test], nearest[test] = self._distances(base, around, held_out, numbers[test])
        self.low_, self.high_ = np.quantile(views, 0.005, axis=(0, 1)), np.quantile(views, 0.995, axis=(0, 1))
        self.out_of_fold_p_ = np.zeros((len(numbers), len(self.tiers)))
        for train, test in folds:
            slopes, offsets = self._combine(views[train], outcomes[train], sources[train], mass[train])
            self.out_of_fold_p_[test] = self._mix(views[test], gate[test], slopes, offsets)
        self.slopes_, self.offsets_ = self._combine(views, outcomes, sources, mass)
        self.base_ = self._base().fit(texts, numbers, outcomes, sources, mass)
        self.neighbourhood_ = self._neighbourhood(self.base_, texts, numbers, sources).set_limits(far, nearest)
        self.out_of_fold_novelty_ = self.neighbourhood_.novelty(far, nearest)
        self.base_rate_ = np.array([_rate(outcomes[:, t], mass[:, t]) for t in range(len(self.tiers))])
        return self

    def predict_proba(self, requests: Sequence[RequestFeatures], *, allowed: Sequence[int] | None = None) -> Floats:
        """P(adequate), rows x tiers, before any shrinking; `allowed` limits the mixture to these sources."""
        texts, numbers = design(requests)
        views, gate = self.base_.logits(texts, numbers)
        return self._mix(views, gate, self.slopes_, self.offsets_, allowed)

    def novelty(self, requests: Sequence[RequestFeatures]) -> Floats:
        """Distance from the training data, 0..1, per row."""
        texts, numbers = design(requests)
        return self.neighbourhood_.novelty(*self._distances(self.base_, self.neighbourhood_, texts, numbers))

    def _neighbourhood(self, base: BaseViews, texts: list[list[str]], numbers: Floats, sources: Ints) -> Neighbourhood:
        around = Neighbourhood(source_count=len(self.sources))
        return around.fit(base.vectorizer_.transform(texts), base.scaled(numbers), sources)

    def _distances(
        self, base: BaseViews, around: Neighbourhood, texts: list[list[str]], numbers: Floats
    ) -> tuple[Floats, Ints]:
        scaled = base.scaled(numbers)
        distinct = np.array([len(set(t)) for t in texts], dtype=np.float64)
        bag, gate = base.vectorizer_.transform(texts), base.source_probabilities(scaled)
        return around.measure(bag, base.vectorizer_.idf_, distinct, scaled, gate)

    def _folds(self, groups: Ints) -> list[tuple[Ints, Ints]]:
        count = min(self.fold_count, len(np.unique(groups)))
        splitter = GroupKFold(n_splits=count, shuffle=True, random_state=self.seed)
        return list(splitter.split(np.zeros(len(groups)), groups=groups))

    def _combine(self, views: Floats, outcomes: Floats, sources: Ints, weights: Floats) -> tuple[Floats, Floats]:
        tiers = len(self.tiers)
        slopes, offsets = np.full((tiers, VIEWS), 1.0 / VIEWS), np.zeros((len(self.sources), tiers))
        own = views[np.arange(len(views)), sources]
        for t in range(tiers):
            rows, labels, mass = soft_rows(outcomes[:, t], weights[:, t])
            if _constant(labels, mass) is None:
                z = np.clip(own[rows, t], self.low_[t], self.high_[t])
                slopes[t], offsets[:, t] = _fit_combiner(z, sources[rows], labels, mass, len(self.sources))
        return slopes, offsets

    def _mix(
        self, views: Floats, gate: Floats, slopes: Floats, offsets: Floats, allowed: Sequence[int] | None = None
    ) -> Floats:
        z = np.einsum("nstv,tv->nst", np.clip(views, self.low_, self.high_), slopes) + offsets[None]
        mixed: Floats = np.einsum("ns,nst->nt", mixture(gate, allowed), expit(z))
        return mixed


def mixture(gate: Floats, allowed: Sequence[int] | None) -> Floats:
    """P(source) limited to `allowed`, without sources below `GATE_FLOOR`, summing to 1."""
    share = gate
    if allowed is not None:
        mask = np.zeros(gate.shape[1])
        mask[list(allowed)] = 1.0
        share = gate * mask + 1e-12 * mask
        share = share / share.sum(axis=1, keepdims=True)
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
    return 1 if rows <= 50 else (2 if rows <= 5_000 else 3)


def _constant(labels: Ints, mass: Floats, *, force: bool = False) -> float | None:
    """Log-odds of the smoothed rate where there is too little to fit a head on, else `None`."""
    if not force and len(labels) >= MIN_ROWS_PER_HEAD and 0 < labels.sum() < len(labels):
        return None
    good = float(mass[labels == 1].sum())
    return float(np.log((good + 1.0) / (float(mass.sum()) - good + 1.0)))


def _rate(outcome: Floats, weights: Floats) -> float:
    seen = ~np.isnan(outcome)
    return float((outcome[seen] @ weights[seen] + 0.5) / (weights[seen].sum() + 1.0))


def _decide(head: Any, columns: Any) -> Floats:
    if isinstance(head, float):
        return np.full(columns.shape[0], head)
    return np.asarray(head.decision_function(columns), dtype=np.float64)


def _fit_combiner(z: Floats, sources: Ints, labels: Ints, mass: Floats, source_count: int) -> tuple[Floats, Floats]:
    """Slopes of the views and an offset per source, by logistic loss; drawn to an even average where rows are few."""
    even = np.full(VIEWS, 1.0 / VIEWS)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        change, offsets = parameters[:VIEWS], parameters[VIEWS:]
        logit = z @ (even + change) + offsets[sources]
        value = float(mass @ (np.logaddexp(0.0, logit) - labels * logit))
        slope = mass * (expit(logit) - labels)
        gradient = np.concatenate([z.T @ slope, np.bincount(sources, slope, source_count)]) + parameters * penalty
        return value + 0.5 * float(penalty @ parameters**2), gradient

    penalty = np.concatenate([np.full(VIEWS, 20.0), np.full(source_count, 5.0)])
    found = minimize(loss, np.zeros(VIEWS + source_count), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return even + found.x[:VIEWS], found.x[VIEWS:]
