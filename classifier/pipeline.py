"""The trained estimator: P(adequate) per tier. The only place where the order of columns is set.

Three views of a request, each with one head per tier, averaged in log-odds and calibrated on predictions made out of
fold:

- *linear*: logistic regression on the presence of words (TF-IDF) and on the numbers of `textstats`, whose slopes may
  differ by source;
- *trees*: gradient boosting on the numbers, for thresholds and interactions;
- *experts*: one small logistic regression per source on the numbers, in the source's own scale.

A source is where labels come from (a data set, an application). It is not known when a request is served: a gate
gives P(source | words, numbers), and the answer is the mixture over sources. Where it is known which models stand
behind the tiers, the mixture is limited to sources that were labelled with those models.

The linear and the tree view learn mostly from the largest sources. How far a source believes them rather than its own
expert grows with its rows (`trust`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold

from classifier.datamodels import RequestFeatures
from classifier.novelty import DISTANCES, Neighbourhood
from classifier.progress import Progress, unheard
from classifier.textstats import dense, words
from classifier.views import VIEWS, BaseViews, constant_log_odds, foreign, limited, mixture, soft_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TRUST_ROWS = 2_500.0  # a source with so many rows among far more of others believes the common views half
OFFSET_PENALTY = 1.0
COMMON_PULL = 20.0  # of the slopes all sources share towards an even average
SOURCE_PULL = 100.0  # of a large source's own slopes towards the common ones
LEAST_OWN_TRUST = 0.5  # what a source must believe of the common views to weigh them by itself


def design(requests: Sequence[RequestFeatures]) -> tuple[list[list[str]], Floats]:
    """Words and numbers (rows x `DENSE_COUNT`) of requests."""
    texts = [words(r.text) for r in requests]
    numbers = [dense(r, len(w), set(w)) for r, w in zip(requests, texts, strict=True)]
    return [[w.decode("utf-8", "replace") for w in text] for text in texts], np.asarray(numbers, dtype=np.float64)


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
        expert_c: float = 0.005,
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
        domains: Sequence[str] | None = None,
        peers: Sequence[Sequence[int] | None] | None = None,
        progress: Progress = unheard,
    ) -> TierModel:
        """Fit on outcomes (rows x tiers, NaN where not observed) with weights of the same shape.

        `sources` indexes `self.sources`; `peers` names for each source those labelled with the same models; `domains`
        says what rows are about, "" where that is not known; rows of one group are never on both sides of a fold. Keeps
        `out_of_fold_p_` (rows x tiers), each predicted by a model and a combiner that have not seen the row.
        """
        progress(f"reading {len(requests)} prompts", 0.0)
        texts, numbers = design(requests)
        mass = np.ones_like(outcomes) if weights is None else np.asarray(weights, dtype=np.float64)
        about = [""] * len(numbers) if domains is None else list(domains)
        folds = self._folds(groups)
        views = np.zeros((len(numbers), len(self.sources), len(self.tiers), VIEWS))
        gate = np.zeros((len(numbers), len(self.sources)))
        far, nearest = np.zeros((len(numbers), DISTANCES - 1)), np.zeros(len(numbers), dtype=np.int64)
        unknown_excess = np.zeros(len(numbers))
        for number, (train, test) in enumerate(folds, start=1):
            progress(f"fitting, part {number} of {len(folds) + 1}: {len(train)} rows", number / (len(folds) + 2))
            own, topics = [texts[i] for i in train], [about[i] for i in train]
            base = self._base().fit(
                own, numbers[train], outcomes[train], sources[train], mass[train], groups[train], topics
            )
            held_out = [texts[i] for i in test]
            views[test], gate[test] = base.logits(held_out, numbers[test])
            around = Neighbourhood(source_count=len(self.sources)).fit(base.scaled(numbers[train]), sources[train])
            nearest[test] = np.argmax(gate[test], axis=1)
            far[test] = self._distances(base, around, held_out, numbers[test], nearest[test])
            unknown_excess[test] = base.source_words_.unknown_excess_[nearest[test]]
        self.low_, self.high_ = np.quantile(views, 0.005, axis=(0, 1)), np.quantile(views, 0.995, axis=(0, 1))
        self.out_of_fold_p_ = np.zeros((len(numbers), len(self.tiers)))
        for train, test in folds:
            slopes, offsets = self._combine(views[train], outcomes[train], sources[train], mass[train])
            self.out_of_fold_p_[test] = self._mix(views[test], gate[test], slopes, offsets)
        count = len(folds) + 1
        progress(f"fitting, part {count} of {count}: all {len(numbers)} rows", count / (count + 1))
        self.slopes_, self.offsets_ = self._combine(views, outcomes, sources, mass)
        self.base_ = self._base().fit(texts, numbers, outcomes, sources, mass, groups, about)
        around = Neighbourhood(source_count=len(self.sources)).fit(self.base_.scaled(numbers), sources)
        elsewhere, nearest_known = self._elsewhere(gate, sources, peers)
        # The more words a source has shown, the more one it never used tells: all rows have shown more than a fold's.
        far[:, 2] += far[:, 0] * (unknown_excess - self.base_.source_words_.unknown_excess_[nearest])
        self.neighbourhood_ = around.set_limits(far, nearest, elsewhere, nearest_known)
        self.out_of_fold_novelty_ = self.neighbourhood_.novelty(np.column_stack([far, 0.0 * elsewhere]), nearest)
        self.base_rate_ = np.array([_rate(outcomes[:, t], mass[:, t]) for t in range(len(self.tiers))])
        return self

    def predict_proba(self, requests: Sequence[RequestFeatures], *, allowed: Sequence[int] | None = None) -> Floats:
        """P(adequate), rows x tiers, before any shrinking; `allowed` limits the mixture to these sources."""
        texts, numbers = design(requests)
        views, gate = self.base_.logits(texts, numbers)
        return self._mix(views, gate, self.slopes_, self.offsets_, allowed)

    def novelty(self, requests: Sequence[RequestFeatures], *, allowed: Sequence[int] | None = None) -> Floats:
        """Distance from the training data (of the sources `allowed`), 0..1, per row."""
        texts, numbers = design(requests)
        base = self.base_
        gate = base.source_probabilities(base.vectorizer_.transform(texts), base.scaled(numbers))
        nearest = np.argmax(limited(gate, allowed), axis=1)
        far = self._distances(base, self.neighbourhood_, texts, numbers, nearest)
        return self.neighbourhood_.novelty(np.column_stack([far, foreign(gate, allowed)]), nearest)

    def _elsewhere(
        self, gate: Floats, sources: Ints, peers: Sequence[Sequence[int] | None] | None
    ) -> tuple[Floats, Ints]:
        """How much each row is like sources of other models, and which source of its own models it most resembles."""
        elsewhere, nearest = np.zeros(len(gate)), np.argmax(gate, axis=1)
        for s, allowed in enumerate(peers or ()):
            rows = np.flatnonzero(sources == s)
            elsewhere[rows] = foreign(gate[rows], allowed)
            nearest[rows] = np.argmax(limited(gate[rows], allowed), axis=1)
        return elsewhere, nearest

    def _distances(
        self, base: BaseViews, around: Neighbourhood, texts: list[list[str]], numbers: Floats, nearest: Ints
    ) -> Floats:
        distinct = np.array([len(set(t)) for t in texts], dtype=np.float64)
        by_words = base.source_words_.distances(
            base.vectorizer_.transform(texts), base.vectorizer_.idf_, distinct, nearest
        )
        return np.hstack([by_words, around.distances(base.scaled(numbers), nearest)])

    def _folds(self, groups: Ints) -> list[tuple[Ints, Ints]]:
        count = min(self.fold_count, len(np.unique(groups)))
        splitter = GroupKFold(n_splits=count, shuffle=True, random_state=self.seed)
        return list(splitter.split(np.zeros(len(groups)), groups=groups))

    def _combine(self, views: Floats, outcomes: Floats, sources: Ints, weights: Floats) -> tuple[Floats, Floats]:
        """Slopes (sources x tiers x views) and offsets (sources x tiers)."""
        tiers, count = len(self.tiers), len(self.sources)
        slopes, offsets = np.full((count, tiers, VIEWS), 1.0 / VIEWS), np.zeros((count, tiers))
        own = views[np.arange(len(views)), sources]
        for t in range(tiers):
            rows, labels, mass = soft_rows(outcomes[:, t], weights[:, t])
            if constant_log_odds(labels, mass) is not None:
                continue
            z = np.clip(own[rows, t], self.low_[t], self.high_[t])
            even = np.full(VIEWS, 1.0 / VIEWS)
            common = _fit_combiner(z, sources[rows], labels, mass, count, around=even, pull=COMMON_PULL)
            share = trust(np.bincount(sources[~np.isnan(outcomes[:, t])], minlength=count))
            slopes[:, t] = blended(common, share)
            for s in np.flatnonzero((share > LEAST_OWN_TRUST) & (share < 1.0)):
                own_rows = sources[rows] == s
                at = z[own_rows], np.zeros(own_rows.sum(), dtype=np.int64), labels[own_rows], mass[own_rows]
                slopes[s, t] = _fit_combiner(*at, 1, around=slopes[s, t], pull=SOURCE_PULL)
            mixed = np.einsum("nv,nv->n", z, slopes[sources[rows], t])
            offsets[:, t] = _fit_offsets(mixed, sources[rows], labels, mass, count)
        return slopes, offsets

    def _mix(
        self, views: Floats, gate: Floats, slopes: Floats, offsets: Floats, allowed: Sequence[int] | None = None
    ) -> Floats:
        z = np.einsum("nstv,stv->nst", np.clip(views, self.low_, self.high_), slopes) + offsets[None]
        mixed: Floats = np.einsum("ns,nst->nt", mixture(gate, allowed), expit(z))
        return mixed


def trust(rows: Ints) -> Floats:
    """How far each source believes the views that all share, 0..1, by its number of rows; a lone source believes all.

    1 - (1 - n^2 / (n^2 + `TRUST_ROWS`^2)) (1 - n / N): what others' labels say is noise to a source with few of its
    own, but only as far as there are others.
    """
    total = max(float(rows.sum()), 1.0)
    squared = rows.astype(np.float64) ** 2
    out: Floats = 1.0 - (1.0 - squared / (squared + TRUST_ROWS**2)) * (1.0 - rows / total)
    return out


def blended(common: Floats, share: Floats) -> Floats:
    """Slopes of the views by source: the common ones as far as `share` says, the source's own expert for the rest."""
    alone = np.array([0.0] * (VIEWS - 1) + [1.0])
    out: Floats = share[:, None] * common[None] + (1.0 - share[:, None]) * alone[None]
    return out


def _rate(outcome: Floats, weights: Floats) -> float:
    seen = ~np.isnan(outcome)
    return float((outcome[seen] @ weights[seen] + 0.5) / (weights[seen].sum() + 1.0))


def _fit_offsets(z: Floats, sources: Ints, labels: Ints, mass: Floats, source_count: int) -> Floats:
    """What is added to each source's log-odds so that its mean is right; drawn to 0 where rows are few."""

    def loss(offsets: Floats) -> tuple[float, Floats]:
        logit = z + offsets[sources]
        value = float(mass @ (np.logaddexp(0.0, logit) - labels * logit))
        slope = np.bincount(sources, mass * (expit(logit) - labels), source_count)
        return value + 0.5 * OFFSET_PENALTY * float(offsets @ offsets), slope + OFFSET_PENALTY * offsets

    found: Floats = minimize(loss, np.zeros(source_count), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found


def _fit_combiner(
    z: Floats, sources: Ints, labels: Ints, mass: Floats, source_count: int, *, around: Floats, pull: float
) -> Floats:
    """Slopes of the views, with an offset per source, by logistic loss; drawn to `around` where rows are few."""

    def loss(parameters: Floats) -> tuple[float, Floats]:
        change, offsets = parameters[:VIEWS], parameters[VIEWS:]
        logit = z @ (around + change) + offsets[sources]
        value = float(mass @ (np.logaddexp(0.0, logit) - labels * logit))
        slope = mass * (expit(logit) - labels)
        gradient = np.concatenate([z.T @ slope, np.bincount(sources, slope, source_count)]) + parameters * penalty
        return value + 0.5 * float(penalty @ parameters**2), gradient

    penalty = np.concatenate([np.full(VIEWS, pull), np.full(source_count, 5.0)])
    found = minimize(loss, np.zeros(VIEWS + source_count), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    slopes: Floats = around + found.x[:VIEWS]
    return slopes
