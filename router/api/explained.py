"""A decision as people and programs read it; the same for the route, the command and the debug header."""

from __future__ import annotations

from typing import Any

from router.api.answer_headers import alternatives_shown
from router.core.decision import Candidate, Decision
from router.flow import Described


def _named(candidate: Candidate) -> dict[str, str]:
    return {"tier": candidate.tier.value, "model": candidate.wire_model, "name": candidate.name}


def explained(seen: Described, decision: Decision) -> dict[str, Any]:
    """What was chosen, why, and every alternative with what speaks for and against it."""
    score, estimate = seen.score, seen.facts.estimate
    return {
        "request_id": seen.facts.request_id,
        "chosen": _named(decision.chosen) if decision.chosen is not None else None,
        "reason": decision.reason.value if decision.reason is not None else None,
        "fallbacks": [_named(candidate) for candidate in decision.ranked[1:]],
        "flags": [flag.value for flag in decision.flags],
        "queue_for_s": decision.queue_for_s,
        "blocked_by_saturation": decision.blocked_by_saturation,
        "score": {
            "model_version": score.model_version,
            "complexity_ratio": score.complexity_ratio,
            "novelty_ratio": score.novelty_ratio,
            "p_adequate": dict(score.p_adequate),
            "calibrated": score.calibrated,
        },
        "quality": {
            "target_ratio": seen.cfg.quality_target_ratio,
            "floor_ratio": seen.facts.quality_floor_ratio or seen.cfg.quality_floor_ratio,
            "nu_usd": seen.cfg.nu_usd,
        },
        "tokens": {
            "input": estimate.input_tokens,
            "input_estimated": estimate.input_estimated,
            "output_mean": estimate.output_mean_tokens,
            "output_p90": estimate.output_p90_tokens,
            "output_source": estimate.source,
        },
        "alternatives": alternatives_shown(decision.alternatives),
        "inputs_hash": decision.inputs_hash,
        "policy_version": decision.policy_version,
    }


def estimated(seen: Described, decision: Decision) -> dict[str, Any]:
    """The money of a decision: what the answer will probably cost, what is reserved for it, what others would cost."""
    estimate = seen.facts.estimate
    chosen = decision.alternative(decision.chosen.name) if decision.chosen is not None else None
    return {
        "request_id": seen.facts.request_id,
        "chosen": _named(decision.chosen) if decision.chosen is not None else None,
        "reason": decision.reason.value if decision.reason is not None else None,
        "input_tokens": estimate.input_tokens,
        "input_estimated": estimate.input_estimated,
        "output_tokens": estimate.output_mean_tokens,
        "output_tokens_p90": estimate.output_p90_tokens,
        "output_source": estimate.source,
        "expected_cost_usd": chosen.expected_cost_usd if chosen is not None else None,
        "reserve_nanousd": chosen.reserve_nanousd if chosen is not None else None,
        "flags": [flag.value for flag in decision.flags],
        "alternatives": alternatives_shown(decision.alternatives),
    }
