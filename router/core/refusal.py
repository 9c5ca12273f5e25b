"""Why nothing may answer, said to the caller: one decision without a candidate -> one error."""

from __future__ import annotations

from collections.abc import Sequence

from router.core.decision import Alternative, Candidate, Decision
from router.core.eligibility import fits_context, is_allowed, lacks_capability
from router.core.request import RequestFacts
from router.core.vocabulary import Locality, Reject, Tier
from router.errors import BadRequest, ContextTooLong, NoRoute, OverBudget, RouterError, Saturated

_WRONG_PLACE = frozenset({Reject.NOT_ALLOWED, Reject.RESIDENCY, Reject.UNCONFIGURED, Reject.PRICE_UNKNOWN})
_IN_WORDS = {
    Reject.UNHEALTHY: "it does not run, or has not started yet",
    Reject.BREAKER_OPEN: "it has just failed and is left alone for some seconds",
    Reject.RESIDENCY: "this request must stay at home",
    Reject.PRICE_UNKNOWN: "it has no price",
    Reject.METRICS_STALE: "how full it is cannot be told",
}
"""What a caller who knows no reason codes is told beside the code."""
_FULL = frozenset(reason for reason in Reject if reason.name.startswith("SATURATED_"))


def why_nothing(
    decision: Decision, facts: RequestFacts, candidates: Sequence[Candidate], *, retry_after_s: float
) -> RouterError:
    """The error for a decision whose `ranked` is empty. `retry_after_s` is used where waiting can help."""
    rejected = tuple((alt.name, tuple(r.value for r in alt.reasons)) for alt in decision.alternatives)
    if decision.blocked_by_saturation:
        only_local = facts.locality is Locality.LOCAL_ONLY
        return Saturated(
            f"{_what_blocks(decision)} and no other tier may answer this request; try again later.",
            rejected,
            retry_after_s=retry_after_s,
            local_only=only_local,
        )
    possible = [alt for alt in decision.alternatives if not _WRONG_PLACE & set(alt.reasons)]
    by_name = {c.name: c for c in candidates}
    if possible and all(Reject.CONTEXT_TOO_LONG in alt.reasons for alt in possible):
        return _too_long(possible, facts, candidates)
    if possible and all(Reject.CAPABILITY_MISSING in alt.reasons for alt in possible):
        return _incapable(facts, candidates)
    if any(set(alt.reasons) <= {Reject.OVER_REQUEST_CAP} for alt in possible):
        return OverBudget(
            "Every candidate may cost more than this request's cap; raise x-router-max-cost-usd or lower max_tokens.",
            code="request_cap_exceeded",
            param="x-router-max-cost-usd",
        )
    if any(set(alt.reasons) <= {Reject.BUDGET_EXHAUSTED, Reject.OVER_REQUEST_CAP} for alt in possible):
        return OverBudget("The budget of this window is exhausted; see policy.budget_usd_per_day and _per_month.")
    meant = [alt for alt in decision.alternatives if is_allowed(by_name[alt.name], facts)] or decision.alternatives
    text = "; ".join(f"{alt.name}: {_why(alt, by_name[alt.name])}" for alt in meant)
    return NoRoute(f"No tier can answer this request now ({text}).", rejected)


def _what_blocks(decision: Decision) -> str:
    """Full, or not known to be: whoever looks for load where readings are missing looks in the wrong place."""
    reasons = {reason for alt in decision.alternatives for reason in alt.reasons}
    if Reject.METRICS_STALE in reasons and not reasons & _FULL:
        return "How full the local engine is cannot be told (METRICS_STALE: its readings are missing or too old)"
    return "The local engine is full"


def _why(alt: Alternative, candidate: Candidate) -> str:
    if candidate.unavailable is not None and candidate.unavailable_detail:
        return candidate.unavailable_detail
    return ", ".join(f"{r.value} ({_IN_WORDS[r]})" if r in _IN_WORDS else r.value for r in alt.reasons)


def _too_long(possible: Sequence[Alternative], facts: RequestFacts, candidates: Sequence[Candidate]) -> ContextTooLong:
    names = {alt.name for alt in possible}
    widest = max((c for c in candidates if c.name in names), key=lambda c: c.context_window_tokens)
    asked, cure, param = f"about {facts.estimate.input_tokens} prompt tokens", "Shorten the prompt", "messages"
    if facts.max_output_tokens is not None:
        asked += f" plus max_tokens {facts.max_output_tokens}"
        cure += " or lower max_tokens"
        if facts.estimate.input_tokens <= widest.context_window_tokens // 2:  # it is not the prompt that is too long
            cure, param = "Lower max_tokens", "max_tokens"
    return ContextTooLong(
        f"This request needs {asked}; the largest context window that may answer is {widest.context_window_tokens} "
        f"tokens ({widest.name}). {cure}."
        + _could_if(facts, [c for c in candidates if fits_context(c, facts, facts.estimate.input_tokens, 0.0)]),
        param=param,
    )


def _incapable(facts: RequestFacts, candidates: Sequence[Candidate]) -> BadRequest:
    needs = [
        (facts.needs_images, "images or other media", "messages"),
        (facts.needs_tools, "tools", "tools"),
        (facts.needs_json, "response_format", "response_format"),
    ]
    wanted = [(what, param) for needed, what, param in needs if needed]
    names = ", ".join(what for what, _ in wanted)
    return BadRequest(
        f"No configured model that may answer supports {names}."
        + _could_if(facts, [c for c in candidates if not lacks_capability(c, facts)]),
        code="capability_missing",
        param=wanted[0][1],
    )


def _could_if(facts: RequestFacts, able: Sequence[Candidate]) -> str:
    """Those of `able` that only want their key, said as a cure; "" where there are none."""
    home = facts.locality is Locality.LOCAL_ONLY
    waiting = [c for c in able if c.unavailable is Reject.UNCONFIGURED and c.unavailable_detail]
    told = [
        f"{c.name}, but {c.unavailable_detail}"
        for c in waiting
        if is_allowed(c, facts) and not (home and c.tier is not Tier.LOCAL)
    ]
    return f" It could go to {'; '.join(told)}." if told else ""
