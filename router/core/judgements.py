"""What somebody other than the caller has said about an answer: a judge model, an exact check. Pure nouns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

# Tenants under which the calls of learning are booked: they are nobody's request, but they cost money.
OVERHEAD_TENANT_PREFIX = "router:"
SHADOW_TENANT = "router:shadow"
JUDGE_TENANT = "router:judge"
OVERHEAD_TENANTS = (SHADOW_TENANT, JUDGE_TENANT)


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """How good (0..1) the answer of `tier` to a request was; no text of either is kept.

    `provenance` is one of `classifier.labels.PROVENANCE_WEIGHT`, `judge` names who judged (a model, a check).
    `action_probability` is the probability, under the policy that chose, that an answer of this tier would be seen for
    this request once it was selected: by being taken, or as the shadow of another. `label_probability` is that of the
    request being selected at all. The two are kept apart.
    """

    request_id: str
    tier: str
    model: str
    quality_ratio: float
    provenance: str
    judge: str
    action_probability: float
    label_probability: float
    output_tokens: int | None
    judged_at_utc: datetime


def seen_probability(action_probability: float, other_tiers: int, shadow_ratio: float = 1.0) -> float:
    """P(this tier's answer is seen | the request is looked at).

    It was taken, or else it was drawn evenly from the `other_tiers` that were not, where there was a shadow run.
    """
    return action_probability + (1.0 - action_probability) * shadow_ratio / max(1, other_tiers)
