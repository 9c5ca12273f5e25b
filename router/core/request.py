"""What a request is to the decision: facts and token counts, nothing of its text. Frozen nouns."""

from __future__ import annotations

from router.core.nouns import Noun
from router.core.vocabulary import Flag, Locality, Tier


class TokenEstimate(Noun, frozen=True):
    """Tokens before the call. `source` says what the output figure rests on; mean decides, p90 reserves."""

    input_tokens: int
    output_mean_tokens: int
    output_p90_tokens: int
    source: str  # class_mean | max_tokens | hint | default
    input_estimated: bool = True


class TokenUsage(Noun, frozen=True):
    """Tokens of a call. `input_tokens` includes cached ones, `output_tokens` includes reasoning, whoever reports."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    flags: tuple[Flag, ...] = ()


class RequestFacts(Noun, frozen=True):
    """What the decision needs to know of a request, and nothing of its text.

    `quality_floor_ratio` is the hard per-request floor; `deadline_s` is a duration from `received_at_s`.
    `exploration_draw` is a uniform number from [0, 1) where the policy explores: chance is an input like any other.
    """

    request_id: str
    tenant: str
    estimate: TokenEstimate
    received_at_s: float
    deadline_s: float
    request_class: str = "chat"
    needs_tools: bool = False
    needs_images: bool = False
    needs_json: bool = False
    stream: bool = False
    max_output_tokens: int | None = None
    n: int = 1
    pinned_model: str | None = None
    pinned_tier: Tier | None = None
    locality: Locality = Locality.ANY
    quality_floor_ratio: float | None = None
    max_nanousd: int | None = None
    session: str | None = None
    exploration_draw: float | None = None
