"""A decision as people and programs read it; the same for the route, the command and the debug header."""

from __future__ import annotations

from typing import Any

from router.api.answer_headers import alternatives_shown
from router.core.decision import Alternative, Candidate, Decision
from router.core.vocabulary import Reject
from router.flow import Described

# What passes: fullness, trouble, a budget's window. The price of an answer stays what it is.
_PASSING = frozenset(
    {
        Reject.SATURATED_TTFT,
        Reject.SATURATED_TPOT,
        Reject.SATURATED_PREFILL_BURST,
        Reject.SATURATED_KV,
        Reject.SATURATED_SEQS,
        Reject.UNHEALTHY,
        Reject.BREAKER_OPEN,
        Reject.METRICS_STALE,
        Reject.GPU_THROTTLED,
        Reject.GPU_SHARED_CAP,
        Reject.BUDGET_EXHAUSTED,
        Reject.BUDGET_PACED,
    }
)


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


def _quoted(decision: Decision) -> Alternative | None:
    """The alternative whose price is told: the chosen one; where none can answer now, the first that could later."""
    if decision.chosen is not None:
        return decision.alternative(decision.chosen.name)
    passing = (alt for alt in decision.alternatives if alt.reasons and _PASSING.issuperset(alt.reasons))
    return next((alt for alt in passing if alt.expected_cost_usd is not None), None)


def _state(decision: Decision) -> str:
    """What the request would meet now: ready | queued | saturated | no_route."""
    if decision.chosen is not None:
        return "ready"
    if decision.queue_for_s > 0.0:
        return "queued"
    return "saturated" if decision.blocked_by_saturation else "no_route"


def estimated(seen: Described, decision: Decision) -> dict[str, Any]:
    """The money of a decision: what the answer will probably cost, what is reserved for it, what others would cost.

    Where nobody can answer at this moment `state` says so, and the figures are those of `estimated_for`.
    """
    estimate, quoted = seen.facts.estimate, _quoted(decision)
    return {
        "request_id": seen.facts.request_id,
        "chosen": _named(decision.chosen) if decision.chosen is not None else None,
        "state": _state(decision),
        "estimated_for": quoted.name if quoted is not None else None,
        "queue_for_s": decision.queue_for_s,
        "reason": decision.reason.value if decision.reason is not None else None,
        "input_tokens": estimate.input_tokens,
        "input_estimated": estimate.input_estimated,
        "output_tokens": estimate.output_mean_tokens,
        "output_tokens_p90": estimate.output_p90_tokens,
        "output_source": estimate.source,
        "expected_cost_usd": quoted.expected_cost_usd if quoted is not None else None,
        "reserve_nanousd": quoted.reserve_nanousd if quoted is not None else None,
        "flags": [flag.value for flag in decision.flags],
        "alternatives": alternatives_shown(decision.alternatives),
    }
