"""The nouns of the learner. Frozen, without behaviour beyond derived ratios.

What every request makes is a struct, made in C at a tenth of a frozen dataclass's price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec


class RequestFeatures(msgspec.Struct, frozen=True):
    """What the scorer may see of a request; counted once, before anything is decided.

    `text` is what is scored (bounded in length), never what is logged. `text_chars` is its length before it was
    bounded, `context_chars` the length of everything else in the prompt: system text, earlier turns, tool results.
    """

    text: str
    input_tokens: int
    input_tokens_estimated: bool
    turns: int
    code_block_count: int
    question_count: int
    non_ascii_ratio: float
    has_tools: bool
    has_images: bool
    wants_json: bool
    max_output_tokens: int | None
    feature_version: int
    text_chars: int = 0
    context_chars: int = 0


class Score(msgspec.Struct, frozen=True):
    """How likely each tier's answer is adequate.

    `p_adequate` is keyed by tier name; a key `tier/model` overrides its tier for that model.
    `complexity_ratio` is 1 - P(local adequate). `novelty_ratio` is 0 near the training data, 1 far from it.
    `calibrated` says whether the numbers carry a calibration sample (a trained model) or are a prior (the heuristic).
    """

    complexity_ratio: float
    p_adequate: Mapping[str, float]
    novelty_ratio: float
    model_version: str
    feature_version: int
    calibrated: bool = False

    def p(self, tier: str, model: str) -> float:
        """P(adequate) of `model` in `tier`: the model's own number if there is one, else its tier's, else 0."""
        own = self.p_adequate.get(f"{tier}/{model}")
        return own if own is not None else self.p_adequate.get(tier, 0.0)


@dataclass(frozen=True, slots=True)
class LoggedOutcome:
    """One judgement of one answer: who said how good (0..1) the answer of `tier` was.

    `provenance` is one of a small closed set (`labels.PROVENANCE_WEIGHT`); `judge` names the key or model that judged,
    so that no single one can outvote the rest.
    """

    request_id: str
    tier: str
    quality_ratio: float
    provenance: str
    judge: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """One request with what is known of each tier's answer.

    `outcomes` holds quality 0..1 of tiers whose answer was judged. `observation_probability` is the probability, under
    the policy that wrote the log, that this tier's outcome would be observed for this request: P(action) times
    P(label | action), or that of a shadow run. `None` where the log does not say (fully labelled data: 1 for all).
    `selection_probability` is that of such a request being in the file at all; `None` where the log does not say.
    Rows of the same `stem` or `conversation` must not be split.
    """

    request_id: str
    source: str
    features: RequestFeatures
    outcomes: Mapping[str, float]
    domain: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    output_tokens: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    received_at_utc: datetime | None = None
    label_source: str = ""
    taken_tier: str | None = None
    observation_probability: Mapping[str, float] | None = None
    conversation: str = ""
    stem: str = ""
    selection_probability: float | None = None


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What was read, and what was wrong with it."""

    rows_read: int
    rows_kept: int
    rows_invalid: int
    rows_duplicate: int
    rows_contradictory: int
    groups: int
    outcome_counts: Mapping[str, int]
    outcome_means: Mapping[str, float]
    source_counts: Mapping[str, int]
    first_at_utc: str | None
    last_at_utc: str | None
    sha256: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """The passport of a model folder.

    `files` maps file name to sha256; `golden_scores` are those of `golden.GOLDEN_TEXTS`.
    """

    format: int
    version: str
    created_at_utc: str
    feature_version: int
    sklearn_version: str
    tiers: tuple[str, ...]
    sources: tuple[str, ...]
    data: Mapping[str, object]
    metrics: Mapping[str, object]
    files: Mapping[str, str]
    golden_scores: tuple[Mapping[str, float], ...]
    score_quantiles: Mapping[str, tuple[float, ...]]
    trained_with: Mapping[str, object]
