"""May this candidate answer at all? One question, all reasons against as values. Knows no scores and no rivals."""

from __future__ import annotations

from dataclasses import replace

from local_llm.datamodels import LocalSnapshot, ProcessState
from local_llm.derating import SEVERE_RATIO, slowdown_ratio
from router.core.decision import Candidate, PolicyConfig
from router.core.health import is_open
from router.core.request import RequestFacts
from router.core.snapshot import Snapshot
from router.core.vocabulary import Locality, Reject, Tier


def why_not(
    candidate: Candidate,
    facts: RequestFacts,
    snapshot: Snapshot,
    cfg: PolicyConfig,
    *,
    input_tokens: int,
    reserve_nanousd: int,
) -> tuple[Reject, ...]:
    """Every hard reason against `candidate`, empty if it may answer.

    `input_tokens` are counted by this candidate's own tokenizer; `reserve_nanousd` is what the call may cost at most.
    How full a local engine is does not belong here: that is a matter of degree (see `policy`).
    """
    if candidate.unavailable is not None:
        return (candidate.unavailable,)
    against: list[Reject] = []
    if not is_allowed(candidate, facts):
        against.append(Reject.NOT_ALLOWED)
    if facts.locality is Locality.LOCAL_ONLY and candidate.tier is not Tier.LOCAL:
        against.append(Reject.RESIDENCY)
    if not fits_context(candidate, facts, input_tokens, cfg.context_margin_ratio):
        against.append(Reject.CONTEXT_TOO_LONG)
    if lacks_capability(candidate, facts):
        against.append(Reject.CAPABILITY_MISSING)
    health = snapshot.health.get(candidate.name)
    if health is not None and is_open(health, snapshot.now_s):
        against.append(Reject.BREAKER_OPEN)
    if candidate.tier is Tier.LOCAL:
        against += engine_problems(snapshot.engines.get(candidate.name), snapshot.now_s)
    else:
        against += _money_problems(candidate, facts, snapshot, cfg, reserve_nanousd)
    return tuple(against)


def is_allowed(candidate: Candidate, facts: RequestFacts) -> bool:
    """Is it, or is it of, what the caller pinned by name, if anything?"""
    if facts.pinned_model is not None:
        return facts.pinned_model in (candidate.name, candidate.model)
    return facts.pinned_tier is None or candidate.tier is facts.pinned_tier


def fits_context(candidate: Candidate, facts: RequestFacts, input_tokens: int, margin_ratio: float) -> bool:
    """Does prompt plus answer fit the window? The answer is what the client allows, else what its class shows."""
    wanted = facts.max_output_tokens
    if candidate.max_output_tokens is not None and wanted is not None and wanted > candidate.max_output_tokens:
        return False
    output = (
        wanted if wanted is not None else min(facts.estimate.output_mean_tokens, candidate.context_window_tokens // 2)
    )
    return input_tokens * (1.0 + margin_ratio) + output <= candidate.context_window_tokens


def lacks_capability(candidate: Candidate, facts: RequestFacts) -> bool:
    """Does the request need something that the candidate does not take: tools, images, `response_format`?"""
    return (
        (facts.needs_tools and not candidate.supports_tools)
        or (facts.needs_images and not candidate.supports_images)
        or (facts.needs_json and not candidate.supports_json)
    )


def engine_problems(engine: LocalSnapshot | None, now_s: float) -> list[Reject]:
    """Reasons against a local engine other than fullness. What is not known counts as full, never as idle."""
    if engine is None or engine.state is not ProcessState.READY:
        return [Reject.UNHEALTHY]
    against: list[Reject] = []
    if _readings_missing(engine, now_s):
        against.append(Reject.METRICS_STALE)
    if engine.engine is not None and engine.engine.asleep:
        against.append(Reject.UNHEALTHY)
    if slowdown_ratio(engine.gpus) >= SEVERE_RATIO:
        against.append(Reject.GPU_THROTTLED)
    cap = engine.max_gpu_utilization_ratio
    if cap is not None:
        seen = [gpu.utilization_ratio for gpu in engine.gpus]
        stale = engine.gpus_taken_at_s is None or now_s - engine.gpus_taken_at_s > engine.stale_after_s
        if not seen or stale or any(ratio is None for ratio in seen):
            against.append(Reject.METRICS_STALE)
        elif any(ratio is not None and ratio > cap for ratio in seen):
            against.append(Reject.GPU_SHARED_CAP)
    return list(dict.fromkeys(against))


def as_if_awake(snapshot: Snapshot, name: str) -> Snapshot:
    """The same world with the engine `name`, which is asleep and empty, awake: what would be decided then?"""
    asleep = snapshot.engines[name]
    reading = replace(asleep.engine, asleep=False) if asleep.engine is not None else None
    awake = replace(asleep, state=ProcessState.READY, problem=None, engine=reading)
    return replace(snapshot, engines={**snapshot.engines, name: awake})


def _readings_missing(engine: LocalSnapshot, now_s: float) -> bool:
    if not engine.metrics_required:
        return False
    reading = engine.engine
    if reading is None or now_s - reading.taken_at_s > engine.stale_after_s:
        return True
    return any(getattr(reading, name) is None for name in engine.metrics_required)


def _money_problems(
    candidate: Candidate, facts: RequestFacts, snapshot: Snapshot, cfg: PolicyConfig, reserve_nanousd: int
) -> list[Reject]:
    price = snapshot.prices.get(candidate.name)
    if price is None:
        return [Reject.PRICE_UNKNOWN]
    against: list[Reject] = []
    if price.valid_until_utc is not None and snapshot.now_utc >= price.valid_until_utc:
        against.append(Reject.PRICE_STALE)
    caps = [cap for cap in (facts.max_nanousd, cfg.max_nanousd_per_request) if cap is not None]
    if caps and reserve_nanousd > min(caps):
        against.append(Reject.OVER_REQUEST_CAP)
    for budget in snapshot.budgets:
        left = budget.left_nanousd
        if left <= 0 or reserve_nanousd > left:
            against.append(Reject.BUDGET_EXHAUSTED)
            break
    return against
