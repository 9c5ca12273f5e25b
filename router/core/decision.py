"""Who may answer, under which policy, and what was chosen and why. Frozen nouns."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from classifier.datamodels import Score
from router.core.nouns import Noun
from router.core.vocabulary import Flag, Reason, Reject, Tier


class Candidate(Noun, frozen=True):
    """One model at one place that may answer. `name` is unique; `wire_model` is what its host is told.

    `unavailable` is set when it can never answer in this process (UNCONFIGURED, PRICE_UNKNOWN) with the cause in
    `unavailable_detail`, ready for people.
    """

    name: str
    tier: Tier
    provider: str
    wire_model: str
    context_window_tokens: int
    max_output_tokens: int | None = None
    supports_tools: bool = True
    supports_images: bool = False
    supports_json: bool = True
    unavailable: Reject | None = None
    unavailable_detail: str | None = None

    @property
    def model(self) -> str:
        """The model as configured: what several engines that serve it have in common."""
        return self.wire_model if self.tier is Tier.LOCAL else self.name


class PolicyConfig(Noun, frozen=True):
    """The dials of the decision; defaults are those of the shipped config.

    `nu_usd` is what a unit of missing quality costs, `None` while the scorer has no calibration sample: then the
    target serves as the floor. `premium_capped`: a free choice goes to premium only where nothing else may answer.
    """

    quality_target_ratio: float = 0.95
    quality_floor_ratio: float | None = None
    nu_usd: float | None = None
    lambda_late_usd: float = 0.0
    on_saturation: str = "spill"  # spill | queue | reject
    max_nanousd_per_request: int | None = None
    f_ttft: float = 0.9
    f_tpot: float = 0.6
    f_bucket: float = 1.0
    f_kv: float = 0.95
    congestion_from_u: float = 0.9
    context_margin_ratio: float = 0.0
    exploration_ratio: float = 0.0
    policy_version: str = "1"
    premium_capped: bool = False


class Alternative(Noun, frozen=True):
    """One candidate as the decision saw it. Costs in usd (floats: for comparing and showing, never for booking).

    Exactly one holds: `reasons` is not empty, or `objective_usd` is set (and then it was eligible; DOMINATED is added
    for those not chosen).
    """

    name: str
    tier: Tier
    reasons: tuple[Reject, ...]
    expected_cost_usd: float | None = None
    marginal_cost_usd: float | None = None
    standard_cost_usd: float | None = None
    reserve_nanousd: int = 0
    p_adequate: float | None = None
    objective_usd: float | None = None
    tightness: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    work_gpu_s: float | None = None


class Decision(Noun, frozen=True):
    """The choice and everything needed to explain and replay it.

    `ranked` is the chosen candidate and then those to fall back to, best first; empty when nothing can answer now.
    Then `queue_for_s` > 0 says that waiting for the local engine is allowed, and `blocked_by_saturation` that it is
    only fullness that stands in the way. `moment` is what `inputs_hash` was taken over (see `core.replay`).
    `exploration_probability` is the probability with which the chosen candidate was taken, 1 where nothing was left to
    chance; `action_probability` that of every tier that chance might have taken, empty where there was no chance.
    """

    ranked: tuple[Candidate, ...]
    alternatives: tuple[Alternative, ...]
    reason: Reason | None
    reserve_nanousd: int
    score: Score | None
    inputs_hash: str
    policy_version: str
    flags: tuple[Flag, ...] = ()
    queue_for_s: float = 0.0
    blocked_by_saturation: bool = False
    exploration_probability: float = 1.0
    action_probability: Mapping[str, float] = msgspec.field(default_factory=dict)
    moment: bytes = b""

    @property
    def chosen(self) -> Candidate | None:
        """The head of `ranked`."""
        return self.ranked[0] if self.ranked else None

    def alternative(self, name: str) -> Alternative:
        """The record of candidate `name`; KeyError if it was not considered."""
        for alt in self.alternatives:
            if alt.name == name:
                return alt
        raise KeyError(name)
