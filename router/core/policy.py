"""The decision: a total, deterministic function over one frozen snapshot.

    choose c among the eligible, above the quality floor, minimising
        J_c = m_c + lambda_B * cash_c + lambda_L * late_c + nu * (p_max - p_c)

m is the marginal price: expected cash of an API (with its chance of a retry), energy plus congestion price of a local
engine. Fully loaded cost never enters: deciding on it makes an idle GPU look dear, and so idler still.
"""

from __future__ import annotations

from collections.abc import Sequence

from classifier.datamodels import Score
from router.core.decision import Alternative, Candidate, Decision, PolicyConfig
from router.core.exploration import Draw, draw_tier
from router.core.replay import hash_inputs, moment_bytes
from router.core.replicas import NEAR_RATIO, choose_engine
from router.core.request import RequestFacts
from router.core.snapshot import Snapshot
from router.core.vocabulary import NANO_PER_USD, TIER_ORDER, Flag, Locality, Reason, Reject, Tier
from router.core.weighing import Option, objective, weigh

_SPILL = {
    Reject.SATURATED_TTFT: Reason.SPILL_TTFT,
    Reject.SATURATED_TPOT: Reason.SPILL_TPOT,
    Reject.SATURATED_PREFILL_BURST: Reason.SPILL_PREFILL_BURST,
    Reject.SATURATED_KV: Reason.SPILL_KV,
    Reject.SATURATED_SEQS: Reason.SPILL_SEQS,
}
_EPSILON = 1e-12


def decide(
    facts: RequestFacts,
    score: Score,
    candidates: Sequence[Candidate],
    snapshot: Snapshot,
    cfg: PolicyConfig,
) -> Decision:
    """Choose among `candidates`. No clock, no I/O, no dice: the same inputs give the same bytes.

    The result ranks the chosen candidate and those to fall back to; when nothing can answer it says whether waiting
    for the local engine may help.
    """
    ordered = sorted(candidates, key=lambda c: (TIER_ORDER[c.tier], c.name))
    options = [weigh(c, facts, score, snapshot, cfg) for c in ordered]
    floor, flags = _floor(facts, cfg)
    pace = max((budget.pace for budget in snapshot.budgets), default=0.0)
    eligible = [o for o in options if not o.reasons and o.saturated is None]
    ranked = _rank(eligible, floor, pace, cfg, facts.session, several_engines=len(snapshot.engines) > 1)
    if cfg.premium_capped:
        ranked, extra = _premium_last(ranked, facts)
        flags += extra
    wanted_local = _wanted_but_full(options, eligible, ranked, floor, pace, cfg)
    queue_for_s = 0.0
    if wanted_local is not None and (not ranked or cfg.on_saturation != "spill"):
        ranked, queue_for_s, extra = _on_saturation(wanted_local, ranked, snapshot, cfg)
        flags += extra
    usual, drawn = ranked[0] if ranked else None, None
    if facts.exploration_draw is not None and usual is not None and queue_for_s <= 0.0:
        drawn = _draw(facts.exploration_draw, ranked, facts, snapshot, cfg)
        ranked = _with_drawn_first(drawn, ranked, pace, cfg)
    best = ranked[0] if ranked else None
    moment = moment_bytes(facts, score, snapshot, cfg)
    flags += _flags_of(best, facts, snapshot)
    if score.calibrated and score.novelty_ratio > 0.0:
        flags.append(Flag.SCORE_SHRUNK)
    return Decision(
        ranked=tuple(o.candidate for o in ranked),
        alternatives=tuple(_alternative(o, best) for o in options),
        reason=_reason(best, usual, options, wanted_local, facts) if best is not None else None,
        reserve_nanousd=best.reserve_nanousd if best is not None else 0,
        score=score,
        inputs_hash=hash_inputs(candidates, snapshot, moment),
        policy_version=cfg.policy_version,
        flags=tuple(dict.fromkeys(flags)),
        queue_for_s=queue_for_s,
        blocked_by_saturation=wanted_local is not None and not ranked,
        exploration_probability=drawn.probability[drawn.taken] if drawn is not None else 1.0,
        action_probability=drawn.probability if drawn is not None and len(drawn.probability) > 1 else {},
        moment=moment,
    )


def _floor(facts: RequestFacts, cfg: PolicyConfig) -> tuple[float, list[Flag]]:
    """The share of the best eligible p that is asked for. Without a calibration sample the target serves as floor."""
    asked = [f for f in (facts.quality_floor_ratio, cfg.quality_floor_ratio) if f is not None]
    if asked:
        return max(asked), []
    if cfg.nu_usd is None:
        return cfg.quality_target_ratio, [Flag.QUALITY_TARGET_AS_FLOOR]
    return 0.0, []


def _rank(
    eligible: list[Option], floor: float, pace: float, cfg: PolicyConfig, session: str | None, *, several_engines: bool
) -> list[Option]:
    """Best first. The rest is ranked as if those before it had gone: a fallback is the next decision, not the next row.

    Sets objectives and QUALITY_BELOW_FLOOR from the first round, the one that chooses.
    """
    ranked: list[Option] = []
    remaining = list(eligible)
    while remaining:
        p_max = max(o.p for o in remaining)
        passing = [o for o in remaining if o.p >= floor * p_max - _EPSILON]
        for option in remaining:
            if ranked:
                break
            if option in passing:
                option.objective_usd = objective(option, option.marginal_usd, p_max, pace, cfg)
            else:
                option.reasons = (Reject.QUALITY_BELOW_FLOOR,)
        best = min(passing, key=lambda o: (objective(o, o.marginal_usd, p_max, pace, cfg), o.order))
        if several_engines and best.candidate.tier is Tier.LOCAL:
            near_usd = objective(best, best.marginal_usd, p_max, pace, cfg) + NEAR_RATIO * best.marginal_usd + _EPSILON
            near = [o for o in passing if objective(o, o.marginal_usd, p_max, pace, cfg) <= near_usd]
            best = _among_engines(near, session)
        ranked.append(best)
        remaining.remove(best)
    return ranked


def _among_engines(near: list[Option], session: str | None) -> Option:
    """Of those that are as good as the best, which is a local engine: the one with most room, or the session's own."""
    engines = {o.candidate.name: o for o in near if o.candidate.tier is Tier.LOCAL}
    best = engines[choose_engine([(name, o.u) for name, o in engines.items()], session)]
    best.kept_for_session = any(o.u < best.u for o in engines.values())
    return best


def _premium_last(ranked: list[Option], facts: RequestFacts) -> tuple[list[Option], list[Flag]]:
    """Premium behind all others, if the choice was free; what the caller asked for by name or floor is theirs."""
    asked = facts.pinned_model is not None or facts.pinned_tier is not None or facts.quality_floor_ratio is not None
    others = [o for o in ranked if o.candidate.tier is not Tier.PREMIUM]
    if asked or not others or ranked[0] is others[0]:
        return ranked, []
    best = others[0]
    best.reasons = ()
    if best.objective_usd is None:  # it was below the floor that premium had set
        best.objective_usd = best.marginal_usd
    return [*others, *(o for o in ranked if o.candidate.tier is Tier.PREMIUM)], [Flag.PREMIUM_CAPPED]


def _wanted_but_full(
    options: list[Option],
    eligible: list[Option],
    ranked: list[Option],
    floor: float,
    pace: float,
    cfg: PolicyConfig,
) -> Option | None:
    """The local engine that would have been chosen had it been empty, if there is one; the least full of several.

    There is none where another engine was chosen, or one with the same model still has room. An engine whose readings
    are stale counts as full too, but is waited for only where nothing else may answer.
    """
    if ranked and ranked[0].candidate.tier is Tier.LOCAL:
        return None
    full = [o for o in options if o.saturated is not None and not o.reasons]
    if not ranked:
        full += [o for o in options if o.reasons == (Reject.METRICS_STALE,)]
    if not full:
        return None
    served = {o.candidate.model for o in eligible if o.candidate.tier is Tier.LOCAL and o.objective_usd is not None}
    wanted: list[Option] = []
    for option in full:
        p_max = max([o.p for o in eligible] + [option.p])
        if option.candidate.model in served or option.p < floor * p_max - _EPSILON:
            continue
        if ranked:
            mine = objective(option, option.uncongested_usd, p_max, pace, cfg) - cfg.lambda_late_usd * max(
                0.0, option.u - 1.0
            )
            if mine > objective(ranked[0], ranked[0].marginal_usd, p_max, pace, cfg) + _EPSILON:
                continue
        wanted.append(option)
    return min(wanted, key=lambda o: (bool(o.reasons), o.u, o.order), default=None)


def _on_saturation(
    wanted: Option, ranked: list[Option], snapshot: Snapshot, cfg: PolicyConfig
) -> tuple[list[Option], float, list[Flag]]:
    """What to do when the engine we want is full and spilling is not possible or not wished.

    An idle engine always admits: waiting for an empty engine to get emptier would be waiting for ever.
    """
    engine = snapshot.engines[wanted.candidate.name]
    known = not wanted.reasons
    if known and engine.inflight.n == 0 and not (engine.engine is not None and engine.engine.running_requests):
        wanted.saturated = None
        wanted.objective_usd = wanted.marginal_usd
        return [wanted, *ranked], 0.0, [Flag.SLO_UNREACHABLE]
    if cfg.on_saturation == "reject":
        return [], 0.0, []
    return ranked, engine.slo.ttft_s, []


def _draw(draw: float, ranked: list[Option], facts: RequestFacts, snapshot: Snapshot, cfg: PolicyConfig) -> Draw:
    """Throw the dice over the tiers that may answer besides the chosen one, each by its best candidate.

    All of them are eligible. What keeps a tier out: a pin, a floor that somebody asked for (the target, where it only
    stands in for one, does not), and an expected extra cost beyond what exploring may still cost today.
    """
    usual = ranked[0]
    tier = usual.candidate.tier
    pinned = facts.pinned_model is not None or facts.pinned_tier is not None
    floor_asked = facts.quality_floor_ratio is not None or cfg.quality_floor_ratio is not None
    left = snapshot.exploration_left_nanousd
    others: list[str] = []
    for option in () if pinned else ranked[1:]:
        extra_nanousd = (option.marginal_usd - usual.marginal_usd) * NANO_PER_USD
        below = floor_asked and Reject.QUALITY_BELOW_FLOOR in option.reasons
        affordable = left is None or extra_nanousd <= 0.0 or extra_nanousd <= left
        name = option.candidate.tier.value
        if option.candidate.tier is not tier and name not in others and affordable and not below:
            others.append(name)
    return draw_tier(draw, cfg.exploration_ratio, tier.value, others)


def _with_drawn_first(drawn: Draw, ranked: list[Option], pace: float, cfg: PolicyConfig) -> list[Option]:
    first = next(o for o in ranked if o.candidate.tier.value == drawn.taken)
    if first is not ranked[0]:
        first.reasons = ()
        first.objective_usd = objective(first, first.marginal_usd, max(o.p for o in ranked), pace, cfg)
    return [first, *(o for o in ranked if o is not first)]


def _reason(
    best: Option, usual: Option | None, options: list[Option], wanted_local: Option | None, facts: RequestFacts
) -> Reason:
    if best is not usual:
        return Reason.EXPLORE
    if facts.pinned_model is not None or facts.pinned_tier is not None:
        return Reason.PINNED_BY_CLIENT
    tier = best.candidate.tier
    if tier is Tier.LOCAL:
        if facts.locality is Locality.LOCAL_ONLY:
            return Reason.LOCAL_ONLY_POLICY
        if best.kept_for_session:
            return Reason.STICKY_SESSION_CACHE
        return Reason.LOCAL_IDLE_FREE if best.marginal_usd <= 0.0 else Reason.LOCAL_CHEAPER_MARGINAL
    if wanted_local is not None and wanted_local.saturated is not None:
        return _SPILL[wanted_local.saturated]
    rivals = [o for o in options if o is not best and o.objective_usd is not None]
    priced_out = [o for o in rivals if o.candidate.tier is Tier.LOCAL and o.marginal_usd > o.uncongested_usd]
    if any(_beats_uncongested(o, best) for o in priced_out):
        return Reason.SPILL_CONGESTION_PRICE
    below = [o for o in options if Reject.QUALITY_BELOW_FLOOR in o.reasons]
    if tier is Tier.CHEAP:
        return Reason.CHEAP_API_CHEAPEST if rivals or below else Reason.ONLY_ELIGIBLE
    cheaper = [o for o in (*rivals, *below) if o.marginal_usd < best.marginal_usd]
    if cheaper:
        return Reason.PREMIUM_QUALITY_FLOOR
    return Reason.PREMIUM_API_CHEAPEST if rivals or below else Reason.ONLY_ELIGIBLE


def _beats_uncongested(local: Option, best: Option) -> bool:
    if local.objective_usd is None or best.objective_usd is None:
        return False
    return local.objective_usd - (local.marginal_usd - local.uncongested_usd) <= best.objective_usd + _EPSILON


def _flags_of(best: Option | None, facts: RequestFacts, snapshot: Snapshot) -> list[Flag]:
    flags: list[Flag] = []
    if facts.estimate.source == "default":
        flags.append(Flag.ESTIMATE_DEFAULT)
    if best is None:
        return flags
    if best.candidate.name in snapshot.cache_unknown:
        flags.append(Flag.CACHE_UNKNOWN)
    row = snapshot.prices.get(best.candidate.name)
    if row is not None:
        flags += row.flags
        if len(row.tiers) > 1 and facts.estimate.input_tokens >= row.tiers[1].from_input_tokens:
            flags.append(Flag.TIER_CLIFF)
    engine = snapshot.engines.get(best.candidate.name)
    if engine is not None:
        if not engine.coefficients.calibrated:
            flags.append(Flag.COEFFS_UNCALIBRATED)
        flags += [Flag(w) for w in engine.warnings if w in Flag.__members__]
        asset = snapshot.assets.get(best.candidate.name)
        if asset is None or asset.usd_per_gpu_s is None:
            flags.append(Flag.UNPRICED_ASSET)
    return flags


def _alternative(option: Option, best: Option | None) -> Alternative:
    reasons = option.reasons
    if not reasons and option.saturated is not None:
        reasons = (option.saturated,)
    elif not reasons and option is not best:
        reasons = (Reject.DOMINATED,)
    return Alternative(
        name=option.candidate.name,
        tier=option.candidate.tier,
        reasons=reasons,
        expected_cost_usd=option.standard_usd,
        marginal_cost_usd=option.marginal_usd if option.standard_usd is not None else None,
        standard_cost_usd=option.standard_usd,
        reserve_nanousd=option.reserve_nanousd,
        p_adequate=option.p,
        objective_usd=option.objective_usd,
        tightness=option.fit.u if option.fit is not None else None,
        ttft_s=option.fit.ttft_s if option.fit is not None else None,
        tpot_s=option.fit.tpot_s if option.fit is not None else None,
        work_gpu_s=option.work_gpu_s,
    )
