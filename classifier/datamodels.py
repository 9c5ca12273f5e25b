"""The nouns of the learner. Frozen, without behaviour beyond derived ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestFeatures:
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


@dataclass(frozen=True, slots=True)
class Score:
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
