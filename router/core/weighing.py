"""What speaks for one candidate: its quality, its price now, how full it is. Pure; `policy` compares.

The marginal price is what the decision goes by: expected cash of an API (with its chance of a retry), energy plus
congestion price of a local engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from classifier.datamodels import Score
from local_llm.datamodels import Binding, LocalSnapshot, Tightness
from local_llm.tightness import tightness
from local_llm.workunits import work_gpu_s
from router.core.decision import Candidate, PolicyConfig
from router.core.eligibility import why_not
from router.core.lengths import output_variance
from router.core.pricing import estimate_nanousd
from router.core.request import RequestFacts
from router.core.snapshot import Snapshot
from router.core.vocabulary import NANO_PER_USD, TIER_ORDER, Reject, Tier

_SATURATED = {
    Binding.TTFT: Reject.SATURATED_TTFT,
    Binding.TPOT: Reject.SATURATED_TPOT,
    Binding.PREFILL_BURST: Reject.SATURATED_PREFILL_BURST,
    Binding.KV: Reject.SATURATED_KV,
    Binding.SEQS: Reject.SATURATED_SEQS,
}


@dataclass(slots=True, eq=False)
class Option:
    """A candidate while it is being weighed; the parts that the decision fills in are mutable on purpose.

    `reasons` are hard ones, `saturated` is set when its engine is full. `marginal_usd` is the price now and
    `uncongested_usd` what it would be on an empty engine; `kept_for_session` says that another engine had more room.
    """

    candidate: Candidate
    p: float
    reasons: tuple[Reject, ...] = ()
    saturated: Reject | None = None
    cash_usd: float = 0.0
    marginal_usd: float = 0.0
    uncongested_usd: float = 0.0
    standard_usd: float | None = None
    reserve_nanousd: int = 0
    fit: Tightness | None = None
    work_gpu_s: float | None = None
    objective_usd: float | None = None
    kept_for_session: bool = False

    @property
    def u(self) -> float:
        """Tightness of a local engine for this request; 0 for an API."""
        return self.fit.u if self.fit is not None else 0.0

    @property
    def order(self) -> tuple[int, str]:
        """What breaks a tie: the cheaper tier, then the name."""
        return TIER_ORDER[self.candidate.tier], self.candidate.name


def weigh(candidate: Candidate, facts: RequestFacts, score: Score, snapshot: Snapshot, cfg: PolicyConfig) -> Option:
    """Reasons against `candidate`, its prices in USD and, for a local engine, how tight it is for this request."""
    option = Option(candidate, score.p(candidate.tier.value, candidate.model))
    estimate = facts.estimate
    input_tokens = max(1, round(estimate.input_tokens * snapshot.input_token_ratio.get(candidate.name, 1.0)))
    if candidate.tier is not Tier.LOCAL:
        _price_api(option, facts, snapshot, input_tokens)
    option.reasons = why_not(
        candidate, facts, snapshot, cfg, input_tokens=input_tokens, reserve_nanousd=option.reserve_nanousd
    )
    if candidate.tier is Tier.LOCAL and candidate.name in snapshot.engines:
        _price_local(option, facts, snapshot, snapshot.engines[candidate.name], cfg, input_tokens)
    return option


def _price_api(option: Option, facts: RequestFacts, snapshot: Snapshot, input_tokens: int) -> None:
    name = option.candidate.name
    row = snapshot.prices.get(name)
    if row is None:
        return
    estimate = facts.estimate
    mean_usd = estimate_nanousd(row, input_tokens, estimate.output_mean_tokens * facts.n) / NANO_PER_USD
    health = snapshot.health.get(name)
    retries = health.failure_ratio if health is not None else 0.0
    option.cash_usd = mean_usd * (1.0 + retries)
    option.marginal_usd = option.uncongested_usd = option.cash_usd
    option.standard_usd = mean_usd
    option.reserve_nanousd = estimate_nanousd(row, input_tokens, estimate.output_p90_tokens * facts.n)


def _price_local(
    option: Option,
    facts: RequestFacts,
    snapshot: Snapshot,
    engine: LocalSnapshot,
    cfg: PolicyConfig,
    input_tokens: int,
) -> None:
    name = option.candidate.name
    output_tokens = facts.estimate.output_mean_tokens * facts.n
    option.fit = fit = tightness(
        engine.inflight,
        engine.coefficients,
        engine.limits,
        engine.slo,
        prompt_tokens=input_tokens,
        expected_output_tokens=output_tokens,
        output_variance=output_variance(facts.estimate, facts.n),
        now_s=snapshot.now_s,
        f_ttft=cfg.f_ttft,
        f_tpot=cfg.f_tpot,
        f_bucket=cfg.f_bucket,
        f_kv=cfg.f_kv,
    )
    if fit.u > 1.0:
        option.saturated = _SATURATED[fit.binding]
    asset = snapshot.assets.get(name)
    priced = asset.coefficients if asset is not None and asset.coefficients is not None else engine.coefficients
    work = work_gpu_s(priced, prompt_tokens=input_tokens, cached_tokens=0, output_tokens=output_tokens)
    option.work_gpu_s = work
    energy_usd = work * float(asset.energy_usd_per_gpu_s) if asset is not None else 0.0
    rate = asset.usd_per_gpu_s if asset is not None else None
    option.standard_usd = work * float(rate) if rate is not None else 0.0
    option.uncongested_usd = energy_usd
    price = congestion_usd_per_gpu_s(fit.u, snapshot.density_quantiles.get(name, ()), cfg.congestion_from_u)
    option.marginal_usd = energy_usd + price * work


def congestion_usd_per_gpu_s(u: float, density_quantiles: Sequence[float], from_u: float) -> float:
    """mu(u): 0 up to `from_u`, then the (u - from_u)/(1 - from_u) quantile of recent value densities.

    Static on purpose: a price with dynamics of its own decays between bursts and lost to this one.
    """
    if u <= from_u or not density_quantiles:
        return 0.0
    position = min(1.0, (u - from_u) / (1.0 - from_u)) * (len(density_quantiles) - 1)
    low = int(position)
    high = min(low + 1, len(density_quantiles) - 1)
    share = position - low
    return density_quantiles[low] * (1.0 - share) + density_quantiles[high] * share


def objective(option: Option, marginal_usd: float, p_max: float, pace: float, cfg: PolicyConfig) -> float:
    """J in USD at a marginal price: `p_max` is the best quality to be had, `pace` the budget's multiplier on cash."""
    late_usd = cfg.lambda_late_usd * max(0.0, option.u - 1.0) if cfg.lambda_late_usd else 0.0
    lack = (cfg.nu_usd or 0.0) * (p_max - option.p)
    return marginal_usd + pace * option.cash_usd + late_usd + lack
