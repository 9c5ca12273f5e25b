"""The serving form of a trained model: plain numbers, and the bytes they travel in. Pure; no numpy, no sklearn.

The bytes are one line of JSON (everything small), then the vocabulary, then one row of 32-bit lanes per word. A row is
read as one big integer, so that the weights of all tiers are added by a single integer addition per word: exact, and
the same whatever the order of the words. Training rounds what goes into rows, and what is in the leaves of trees, to
multiples of a power of two: a row is two cache lines then, and nothing is lost between the two forms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SERVING_FORMAT = 4
LANE_BITS = 32
LANE_BIAS = 1 << 31
FIXED_LANES = 3  # 1 (counts words), idf squared, idf; then a lane per tier (weight), source (excess), subject (weight)
MOST_WORDS = 2_100  # a scored text of bounded length has no more, so that its sums fit their lanes
IDF_STEP = 2.0**-5
EXCESS_STEP = 2.0**-14
FINEST_WEIGHT_STEP = 2.0**-13
LEAST_SHARE = 1e-6  # of P(source), as far as logarithms of it are taken
SUBJECT_STEP = 2.0**-11
MOST_SUBJECT_WEIGHT = 15.0
LEAVES_PER_TREE = 8  # one byte of the bit vector per tree
LEAF_BITS = 12  # of a leaf's value


class ServingFormatError(ValueError):
    """The bytes are not a serving form this code can read."""


@dataclass(frozen=True, slots=True)
class Split:
    """A node: rows with `number > threshold` go right and lose the leaves of `left_leaves` (a bit each)."""

    number: int
    threshold: float
    tree: int
    left_leaves: int


@dataclass(frozen=True, slots=True)
class ServingModel:
    """All learned numbers. `D` numbers (`DENSE_NAMES`), `S` sources, `T` tiers, 3 views (linear, trees, experts)."""

    version: str
    feature_version: int
    tiers: tuple[str, ...]
    sources: tuple[str, ...]
    source_models: tuple[Mapping[str, str], ...]
    mean: tuple[float, ...]  # D
    scale: tuple[float, ...]  # D
    words_mean: tuple[float, ...]  # S
    words_scale: tuple[float, ...]  # S
    gate: tuple[tuple[float, ...], ...]  # S x (D + S); empty with one source
    gate_intercept: tuple[float, ...]  # S
    linear_shared: tuple[tuple[float, ...], ...]  # T x D
    linear_by_source: tuple[tuple[tuple[float, ...], ...], ...]  # S x T x D
    linear_source_offset: tuple[tuple[float, ...], ...]  # S x T
    linear_by_subject: tuple[tuple[float, ...], ...]  # T x T, on log-odds of quality by subject; T x 0 without subjects
    linear_intercept: tuple[float, ...]  # T
    weight_step: tuple[float, ...]  # T; weights of words are multiples of it
    experts: tuple[tuple[tuple[float, ...], ...], ...]  # S x T x D
    expert_intercept: tuple[tuple[float, ...], ...]  # S x T
    tree_baseline: tuple[float, ...]  # T; where all leaves have their lowest value
    tree_step: tuple[float, ...]  # T
    tree_count: tuple[int, ...]  # T
    tree_planes: tuple[tuple[int, ...], ...]  # T x LEAF_BITS: that bit of what each leaf adds, in steps
    tree_splits: tuple[tuple[float, ...], ...]  # (number, threshold, tree over all tiers, left leaves)
    low: tuple[tuple[float, ...], ...]  # T x 3
    high: tuple[tuple[float, ...], ...]  # T x 3
    slopes: tuple[tuple[tuple[float, ...], ...], ...]  # S x T x 3
    offsets: tuple[tuple[float, ...], ...]  # S x T
    centre: tuple[tuple[float, ...], ...]  # S x D
    inverse_spread: tuple[tuple[float, ...], ...]  # S x D
    rare_idf: float
    unknown_excess: tuple[float, ...]  # S
    novelty_from: tuple[tuple[float, ...], ...]  # S x 5
    novelty_span: tuple[tuple[float, ...], ...]  # S x 5
    subject_numbers: tuple[tuple[float, ...], ...]  # subjects x D
    subject_intercept: tuple[float, ...]  # subjects
    subject_quality: tuple[tuple[float, ...], ...]  # T x subjects
    base_rate: tuple[float, ...]  # T
    gate_floor: float
    clip: float

    @property
    def lane_steps(self) -> tuple[float, ...]:
        """What 1 means in each lane of a word's row."""
        weights = (step * IDF_STEP for step in self.weight_step)
        excess = (EXCESS_STEP for _ in self.sources)
        return (1.0, IDF_STEP**2, IDF_STEP, *weights, *excess, *(SUBJECT_STEP for _ in self.subject_intercept))


def pack(lanes: Sequence[float], steps: Sequence[float]) -> int:
    """Multiples of `steps` as one signed big integer."""
    return sum(round(x / step) << (LANE_BITS * i) for i, (x, step) in enumerate(zip(lanes, steps, strict=True)))


def to_bytes(model: ServingModel, rows: Mapping[str, Sequence[float]]) -> bytes:
    """Serialise; `rows` gives each word's lanes. The same model gives the same bytes.

    Frequent words come first (their idf is low): read in that order they lie side by side in memory, and
    what nearly every prompt looks up stays in the cache.
    """
    vocabulary = sorted(rows, key=lambda word: (rows[word][2], word))
    steps = model.lane_steps
    width = LANE_BITS // 8 * (len(steps) + 1)
    table = b"".join(pack(rows[word], steps).to_bytes(width, "little", signed=True) for word in vocabulary)
    names = "\n".join(vocabulary).encode("utf-8")
    head = {"format": SERVING_FORMAT, "words": len(vocabulary), "name_bytes": len(names), "model": asdict(model)}
    return json.dumps(head, separators=(",", ":"), sort_keys=True).encode() + b"\n" + names + table


def from_bytes(data: bytes) -> tuple[ServingModel, dict[bytes, int]]:
    """The model and its words' packed rows. Raises `ServingFormatError` on anything else than what `to_bytes` wrote."""
    try:
        end = data.index(b"\n")
        head = json.loads(data[:end])
        if head["format"] != SERVING_FORMAT:
            raise ServingFormatError(f"serving form {head['format']} is not {SERVING_FORMAT}; train again")
        model = ServingModel(**{name: _frozen(value) for name, value in head["model"].items()})
        names_end = end + 1 + head["name_bytes"]
        vocabulary = data[end + 1 : names_end].split(b"\n") if head["words"] else []
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ServingFormatError):
            raise
        raise ServingFormatError(f"not a serving form: {error}") from error
    width = LANE_BITS // 8 * (len(model.lane_steps) + 1)
    if len(vocabulary) != head["words"] or len(data) - names_end != width * len(vocabulary):
        raise ServingFormatError("the table of words is cut or has rows of another width")
    rows = range(names_end, len(data), width)
    packed = [int.from_bytes(data[at : at + width], "little", signed=True) for at in rows]
    return model, dict(zip(vocabulary, packed, strict=True))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
