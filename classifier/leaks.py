"""Does a label stand in the prompt? Single words, pairs of words and numbers that all but decide an outcome.

Labels leak when a prompt was written down after its outcome was known: a grade beside it, an identifier that counts
only what failed, the answer itself. Such a model looks excellent and is worthless. What is looked for is presence that
decides: of the prompts with a word (nearly) all have the same outcome, which for prompts of their sources is far beyond
chance. The chance of k good ones among n is bounded by exp(-n KL(k/n || b)), b the mean base rate of the sources they
come from (Hoeffding 1963, which holds for unequal rates too), and all words tried share the level `LEVEL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.feature_extraction.text import CountVectorizer

from classifier.datamodels import LabelledExample
from classifier.offpolicy import matrices
from classifier.textstats import DENSE_NAMES, dense, words

Floats = NDArray[np.float64]

MAX_ROWS = 20_000
MIN_ROWS = 40
MIN_SUPPORT = 15  # prompts with different stems that hold a word; fewer prove nothing
DECIDED = 0.98
LEAST_SHIFT = 0.25  # beyond the base rate: where nearly all answers are good, words cannot tell
LEVEL = 0.001
DECIDING_AUC = 0.97
NEAR_COPY_SHARE = 0.1
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Leak:
    """A word, pair of words or number of a prompt that (nearly) decides the outcome of `tier`.

    `quality_ratio` is the share of adequate answers where it is there (of a number: its area under the ROC curve), in
    `rows` prompts of different stems; `usual_ratio` that of prompts of the same sources.
    """

    tier: str
    what: str
    rows: int
    quality_ratio: float
    usual_ratio: float

    def __str__(self) -> str:
        if self.what in DENSE_NAMES:
            return f"tier {self.tier!r}: the number {self.what!r} alone tells good from bad ({self.rows} prompts)"
        return (
            f"tier {self.tier!r}: {self.quality_ratio:.0%} of the {self.rows} prompts with {self.what!r} have an "
            f"adequate answer, {self.usual_ratio:.0%} of others like them"
        )


def find(examples: Sequence[LabelledExample], tiers: Sequence[str], *, seed: int = 0) -> list[Leak]:
    """The leaks found, most certain first; one prompt of each stem is looked at, of at most `MAX_ROWS` stems."""
    first: dict[str, int] = {}
    for i, e in enumerate(examples):
        first.setdefault(e.stem, i)
    rows = np.array(sorted(first.values()), dtype=np.int64)
    if len(rows) < MIN_ROWS:
        return []
    if len(rows) > MAX_ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_ROWS])
    some = [examples[i] for i in rows.tolist()]
    outcomes, _ = matrices(some, tiers)
    tokens = [words(e.features.text) for e in some]
    numbers = np.array([dense(e.features, len(t), set(t)) for e, t in zip(some, tokens, strict=True)])
    sources = np.unique([e.source for e in some], return_inverse=True)[1]
    found: list[tuple[float, Leak]] = []
    names, present = _presence(tokens)
    for t, tier in enumerate(tiers):
        seen = np.flatnonzero(~np.isnan(outcomes[:, t]))
        if len(seen) < MIN_ROWS:
            continue
        good = (outcomes[seen, t] > 0.5).astype(np.float64)
        usual = _base_rates(good, sources[seen])
        if present is not None:
            found += _deciding_words(tier, names, present[seen], good, usual, tests=2 * len(names) * len(tiers))
        found += _deciding_numbers(tier, numbers[seen], good)
    return [leak for _, leak in sorted(found, key=lambda pair: -pair[0])]


def warnings(examples: Sequence[LabelledExample], tiers: Sequence[str]) -> list[str]:
    """What to tell people: the leaks found, and prompts that are all but copies of each other."""
    found = find(examples, tiers)
    told = []
    if found:
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        told.append(
            "labels may leak into the prompts, and then all figures flatter: "
            + "; ".join(str(leak) for leak in found[:SHOWN])
            + f"{more}. If users do not write that themselves, take it out of the prompts and train again"
        )
    share = near_copy_share(examples)
    if share > NEAR_COPY_SHARE:
        told.append(
            f"{share:.0%} of the prompts differ from others only in their numbers: held-out figures flatter, since a "
            "prompt's like was learnt from. Give each such family one `conversation`, so that it is not split"
        )
    return told


def near_copy_share(examples: Sequence[LabelledExample]) -> float:
    """Share of stems whose words, numbers aside, are in the same order those of another stem's; 0..1."""
    families: dict[tuple[bytes, ...], set[tuple[str, str]]] = {}
    for e in examples:
        kept = tuple(w for w in words(e.features.text) if not any(48 <= code <= 57 for code in w))
        families.setdefault(kept, set()).add((e.stem, e.conversation))
    stems = copies = 0
    for members in families.values():
        tied = {conversation for _, conversation in members if conversation}
        apart = len({stem for stem, conversation in members if not conversation}) + len(tied)
        stems += apart
        copies += apart if apart > 1 else 0
    return copies / max(1, stems)


def _terms(tokens: list[bytes]) -> list[str]:
    said = [w.decode("utf-8", "replace") for w in tokens]
    return [*said, *(f"{a} {b}" for a, b in pairwise(said))]


def _presence(tokens: list[list[bytes]]) -> tuple[NDArray[np.str_], Any]:
    counter = CountVectorizer(analyzer=_terms, binary=True, min_df=MIN_SUPPORT, dtype=np.float64)
    try:
        present = counter.fit_transform(tokens)
    except ValueError:  # no word is in so many prompts
        return np.array([]), None
    return counter.get_feature_names_out(), present


def _base_rates(good: Floats, sources: NDArray[np.int64]) -> Floats:
    """Of each row: the share of good ones in its source, drawn to the overall one where that has few rows."""
    overall, count = good.mean(), np.bincount(sources)
    rate = (np.bincount(sources, good) + 10.0 * overall) / (count + 10.0)
    out: Floats = rate[sources]
    return out


def _deciding_words(
    tier: str, names: NDArray[np.str_], present: Any, good: Floats, usual: Floats, *, tests: int
) -> list[tuple[float, Leak]]:
    """Words whose presence decides, with how certain that is; of words that come together only the surest."""
    x = present.T.tocsr()
    count = np.asarray(x.sum(axis=1)).ravel()
    rate = np.asarray(x @ good).ravel() / np.maximum(count, 1.0)
    base = np.clip(np.asarray(x @ usual).ravel() / np.maximum(count, 1.0), 1e-6, 1.0 - 1e-6)
    certain = count * _kl(rate, base)
    far = (np.minimum(rate, 1.0 - rate) <= 1.0 - DECIDED) & (np.abs(rate - base) >= LEAST_SHIFT)
    hits = np.flatnonzero(far & (count >= MIN_SUPPORT) & (certain > log(tests / LEVEL)))
    found: list[tuple[float, Leak]] = []
    told: set[int] = set()
    for i in hits[np.argsort(-certain[hits], kind="stable")].tolist():
        own = set(x.indices[x.indptr[i] : x.indptr[i + 1]].tolist())
        if len(own - told) > 0.2 * len(own):
            told |= own
            found.append((float(certain[i]), Leak(tier, str(names[i]), int(count[i]), float(rate[i]), float(base[i]))))
    return found


def _deciding_numbers(tier: str, numbers: Floats, good: Floats) -> list[tuple[float, Leak]]:
    """Numbers that rank good above bad answers all but without fault."""
    positive = int(good.sum())
    negative = len(good) - positive
    if min(positive, negative) < MIN_SUPPORT:
        return []
    found = []
    for j, name in enumerate(DENSE_NAMES):
        area = (rankdata(numbers[:, j])[good > 0.5].sum() - positive * (positive + 1) / 2) / (positive * negative)
        if max(area, 1.0 - area) >= DECIDING_AUC:
            leak = Leak(tier, name, len(good), float(area), 0.5)
            found.append((float(len(good) * log(2.0)), leak))
    return found


def _kl(k: Floats, b: Floats) -> Floats:
    """KL divergence of two coins, in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(k > 0.0, k * np.log(k / b), 0.0)
        right = np.where(k < 1.0, (1.0 - k) * np.log((1.0 - k) / (1.0 - b)), 0.0)
    out: Floats = left + right
    return out
