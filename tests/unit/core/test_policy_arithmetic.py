"""The decision held against its own formula, worked out anew: what each candidate costs, who may answer, who wins."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.datamodels import Score
from local_llm.datamodels import EngineReading, InflightState, LocalSnapshot
from router.core.decision import PolicyConfig
from router.core.policy import decide
from router.core.request import RequestFacts, TokenEstimate
from router.core.snapshot import AssetRate, BudgetState, PriceTier, ProviderHealth, Snapshot
from router.core.vocabulary import Flag, Locality, Reject, Tier
from tests.fakes import (
    ALL,
    BIG,
    CHEAP,
    EASY,
    FULL,
    H100,
    HARD,
    LOCAL,
    PRICES,
    budget,
    engine,
    facts,
    price,
    snapshot,
)

APIS = (CHEAP, BIG)
CFG = PolicyConfig()

ratio = st.floats(0.0, 1.0)
scores = st.builds(
    lambda a, b, c: Score(1 - a, {"local": a, "cheap": b, "premium": c}, 0.0, "t", 1), ratio, ratio, ratio
)
estimates = st.builds(
    lambda i, o, more: TokenEstimate(i, o, o + more, "class_mean"),
    st.integers(1, 9_000),
    st.integers(0, 2_000),
    st.integers(0, 2_000),
)
requests = st.builds(
    lambda e, n, floor, cap: facts(estimate=e, n=n, quality_floor_ratio=floor, max_nanousd=cap),
    estimates,
    st.integers(1, 4),
    st.none() | ratio,
    st.none() | st.integers(0, 50_000_000),
)
configs = st.builds(
    lambda floor, nu, late, cap: PolicyConfig(
        quality_floor_ratio=floor, nu_usd=nu, lambda_late_usd=late, max_nanousd_per_request=cap
    ),
    st.none() | ratio,
    st.none() | st.floats(0, 0.1),
    st.sampled_from([0.0, 0.01]),
    st.none() | st.integers(0, 50_000_000),
)
paced = st.builds(lambda left, pace: budget(left, pace=pace), st.floats(0, 0.05), st.floats(0, 10))
worlds = st.builds(
    lambda n, energy, failing, budgets, quantiles: snapshot(
        engines={LOCAL.name: engine(inflight=InflightState(n=n, streaming=n, context_tokens=500.0 * n))},
        assets={LOCAL.name: AssetRate("gpu", Decimal("0.000817"), energy_usd_per_gpu_s=energy)},
        health={api.name: ProviderHealth(failure_ratio=f) for api, f in zip(APIS, failing, strict=True)},
        budgets=tuple(budgets),
        density_quantiles={LOCAL.name: tuple(sorted(quantiles))},
    ),
    st.integers(0, 255),
    st.decimals(0, "0.01", places=6),
    st.tuples(ratio, ratio),
    st.lists(paced, max_size=2),
    st.lists(st.floats(0, 0.01), max_size=4),
)


def api_usd(name: str, input_tokens: int, output_tokens: int) -> float:
    """What the flat price rows of these tests ask."""
    row = PRICES[name].tiers[0]
    return float(row.input_usd_per_mtok * input_tokens + row.output_usd_per_mtok * output_tokens) / 1e6


def local_work_s(prompt: int, output: int) -> float:
    """The work content of a request on the H100 of these tests."""
    decode = output * (H100.c_seq_s + H100.t0_s / H100.practical_batch) + H100.c_kv_s * output * (prompt + output / 2)
    return H100.c_prefill_s * prompt + H100.c_att_s * prompt**2 / 2 + decode


def congestion(u: float, quantiles: tuple[float, ...]) -> float:
    """The quantile of what others would pay, by how far the engine is beyond nine tenths."""
    if u <= 0.9 or not quantiles:
        return 0.0
    place = min(1.0, (u - 0.9) / 0.1) * (len(quantiles) - 1)
    below = min(int(place), len(quantiles) - 1)
    above = min(below + 1, len(quantiles) - 1)
    return quantiles[below] + (place - below) * (quantiles[above] - quantiles[below])


def marginal_usd(name: str, request: RequestFacts, world: Snapshot, u: float | None) -> tuple[float, float]:
    """(the price now, the part of it that is cash)."""
    prompt, output = request.estimate.input_tokens, request.estimate.output_mean_tokens * request.n
    if name == LOCAL.name:
        price_now = float(world.assets[name].energy_usd_per_gpu_s) + congestion(u or 0.0, world.density_quantiles[name])
        return local_work_s(prompt, output) * price_now, 0.0
    cash = api_usd(name, prompt, output) * (1.0 + world.health[name].failure_ratio)
    return cash, cash


@given(requests, scores, worlds, configs)
def test_every_objective_is_the_sum_of_its_four_terms(
    request: RequestFacts, score: Score, world: Snapshot, cfg: PolicyConfig
) -> None:
    d = decide(request, score, ALL, world, cfg)
    weighed = [a for a in d.alternatives if a.objective_usd is not None]
    # those below the floor were eligible too, and may hold the best quality only if they do not: so the best is here
    p_max = max((a.p_adequate or 0.0 for a in weighed), default=0.0)
    pace = max((b.pace for b in world.budgets), default=0.0)
    for a in weighed:
        marginal, cash = marginal_usd(a.name, request, world, a.tightness)
        late = cfg.lambda_late_usd * max(0.0, (a.tightness or 0.0) - 1.0)
        lack = (cfg.nu_usd or 0.0) * (p_max - (a.p_adequate or 0.0))
        # money is counted in whole nano-dollars
        assert a.marginal_cost_usd == pytest.approx(marginal, rel=1e-6, abs=2e-9)
        assert a.objective_usd == pytest.approx(marginal + pace * cash + late + lack, rel=1e-6, abs=2.2e-8)


@given(requests, scores, worlds, configs)
def test_what_is_reserved_is_the_p90_of_all_answers_and_within_every_bound(
    request: RequestFacts, score: Score, world: Snapshot, cfg: PolicyConfig
) -> None:
    d = decide(request, score, ALL, world, cfg)
    for api in APIS:
        a = d.alternative(api.name)
        most = api_usd(api.name, request.estimate.input_tokens, request.estimate.output_p90_tokens * request.n) * 1e9
        assert a.reserve_nanousd == pytest.approx(most, abs=1)
        caps = [cap for cap in (request.max_nanousd, cfg.max_nanousd_per_request) if cap is not None]
        assert (Reject.OVER_REQUEST_CAP in a.reasons) == any(a.reserve_nanousd > cap for cap in caps)
        short = any(b.left_nanousd <= 0 or a.reserve_nanousd > b.left_nanousd for b in world.budgets)
        assert (Reject.BUDGET_EXHAUSTED in a.reasons) == short


@given(requests, scores, worlds, configs, ratio, ratio)
def test_raising_the_quality_floor_never_picks_a_lower_quality(
    request: RequestFacts, score: Score, world: Snapshot, cfg: PolicyConfig, one: float, other: float
) -> None:
    def quality(floor: float) -> float | None:
        d = decide(replace(request, quality_floor_ratio=floor), score, ALL, world, cfg)
        return d.alternative(d.chosen.name).p_adequate if d.chosen is not None else None

    low, high = quality(min(one, other)), quality(max(one, other))
    assert (low is None) == (high is None), "one always passes the floor"
    if low is not None and high is not None:
        assert high >= low


@given(requests, scores, worlds, configs)
def test_whoever_is_chosen_has_the_share_of_quality_that_either_floor_asks_for(
    request: RequestFacts, score: Score, world: Snapshot, cfg: PolicyConfig
) -> None:
    d = decide(request, score, ALL, world, cfg)
    if d.chosen is None or Flag.SLO_UNREACHABLE in d.flags:
        return
    asked = [f for f in (request.quality_floor_ratio, cfg.quality_floor_ratio) if f is not None]
    floor = max(asked, default=cfg.quality_target_ratio if cfg.nu_usd is None else 0.0)
    barred = {reason for reason in Reject if reason not in (Reject.QUALITY_BELOW_FLOOR, Reject.DOMINATED)}
    best = max(a.p_adequate or 0.0 for a in d.alternatives if not barred & set(a.reasons))
    assert (d.alternative(d.chosen.name).p_adequate or 0.0) >= floor * best - 1e-9


@given(requests, scores, worlds, configs, st.sampled_from(APIS), ratio)
def test_an_api_that_fails_more_often_is_never_preferred_for_it(
    request: RequestFacts, score: Score, world: Snapshot, cfg: PolicyConfig, api: object, more: float
) -> None:
    name = api.name  # type: ignore[attr-defined]
    before = decide(request, score, ALL, world, cfg)
    now = world.health[name].failure_ratio
    worse = {**world.health, name: ProviderHealth(failure_ratio=now + (1.0 - now) * more)}
    after = decide(request, score, ALL, replace(world, health=worse), cfg)
    if before.chosen is None or before.chosen.name != name:
        assert after.chosen is None or after.chosen.name != name


READING = {"running_requests": 0, "waiting_requests": 0, "kv_cache_usage_ratio": 0.1}


def looked_at(inflight: InflightState, age_s: float, **told: object) -> LocalSnapshot:
    """An engine whose three readings are asked for; `told` replaces what an idle one tells."""
    return engine(
        inflight=inflight,
        metrics_required=tuple(READING),
        engine=EngineReading(**{**READING, **told}, taken_at_s=1000.0 - age_s),  # type: ignore[arg-type]
    )


@given(requests, scores, worlds, configs, st.sampled_from([*READING, "age"]), st.booleans())
def test_an_engine_that_tells_less_is_never_given_more(
    request: RequestFacts, score: Score, world: Snapshot, cfg: PolicyConfig, hidden: str, at_home: bool
) -> None:
    request = replace(request, locality=Locality.LOCAL_ONLY if at_home else Locality.ANY)
    inflight = world.engines[LOCAL.name].inflight
    known = looked_at(inflight, 0.0)
    unknown = looked_at(inflight, 60.0) if hidden == "age" else looked_at(inflight, 0.0, **{hidden: None})
    full, less = (decide(request, score, ALL, replace(world, engines={LOCAL.name: e}), cfg) for e in (known, unknown))
    assert LOCAL not in less.ranked
    assert Reject.METRICS_STALE in less.alternative(LOCAL.name).reasons
    assert less.queue_for_s > 0.0 or not at_home or Reject.CONTEXT_TOO_LONG in full.alternative(LOCAL.name).reasons


# --- at the edge ---------------------------------------------------------------------------------------------------


def test_a_cap_that_is_just_reached_is_kept() -> None:
    reserve = decide(facts(), HARD, ALL, snapshot(), CFG).reserve_nanousd
    for asked, configured in ((reserve, None), (None, reserve), (reserve, reserve)):
        cfg = replace(CFG, max_nanousd_per_request=configured)
        assert decide(facts(max_nanousd=asked), HARD, ALL, snapshot(), cfg).chosen == BIG
    # of two caps the lower one counts, whoever has set it
    for asked, configured in ((reserve - 1, reserve), (reserve, reserve - 1)):
        cfg = replace(CFG, max_nanousd_per_request=configured)
        assert decide(facts(max_nanousd=asked), HARD, ALL, snapshot(), cfg).chosen != BIG


def test_a_prompt_that_just_fits_its_window_fits_and_the_margin_is_taken_off() -> None:
    exact = facts(estimate=TokenEstimate(8_000, 192, 192, "class_mean"))
    for margin, fits in ((0.0, True), (0.001, False)):
        d = decide(exact, EASY, ALL, snapshot(), replace(CFG, context_margin_ratio=margin))
        assert (Reject.CONTEXT_TOO_LONG in d.alternative(LOCAL.name).reasons) is not fits
    longer = facts(estimate=TokenEstimate(8_001, 192, 192, "class_mean"))
    assert Reject.CONTEXT_TOO_LONG in decide(longer, EASY, ALL, snapshot(), CFG).alternative(LOCAL.name).reasons


def test_the_last_seat_of_an_engine_is_given() -> None:
    limits = replace(engine().limits, max_num_seqs=4)
    for n, chosen in ((3, LOCAL), (4, CHEAP)):
        world = snapshot(engines={LOCAL.name: engine(inflight=InflightState(n=n, taken_at_s=1000.0), limits=limits)})
        assert decide(facts(), EASY, ALL, world, CFG).chosen == chosen


def test_a_card_as_busy_as_its_cap_may_answer_and_of_two_budgets_the_dearer_pace_counts() -> None:
    world = snapshot(
        budgets=(budget(5.0, pace=0.5), BudgetState("month", 10**12, 0, 0, budget(1.0).window_ends_at_utc))
    )
    d = decide(facts(), HARD, ALL, world, replace(CFG, nu_usd=1.0))
    big = d.alternative(BIG.name)
    assert big.objective_usd == pytest.approx(1.5 * (big.marginal_cost_usd or 0.0))


@pytest.mark.parametrize(("input_tokens", "cliff"), [(99_999, False), (100_000, True), (100_001, True)])
def test_the_price_of_long_prompts_is_told_from_its_first_token_on(input_tokens: int, cliff: bool) -> None:
    row = replace(
        price("big", "2", "10"),
        tiers=tuple(
            PriceTier(start, Decimal(i), Decimal(o)) for start, i, o in ((0, 2, 10), (100_000, 4, 15), (300_000, 8, 30))
        ),
    )
    world = snapshot(prices={BIG.name: row})
    d = decide(facts(estimate=TokenEstimate(input_tokens, 100, 300, "class_mean")), HARD, (BIG,), world, CFG)
    assert (Flag.TIER_CLIFF in d.flags) is cliff
    assert d.alternative(BIG.name).reserve_nanousd == input_tokens * (4 if cliff else 2) * 1000 + 300 * (
        15_000 if cliff else 10_000
    )


# --- full engines --------------------------------------------------------------------------------------------------

LONG = TokenEstimate(7000, 500, 900, "class_mean")


def test_an_engine_that_others_fill_is_not_idle() -> None:
    tight = replace(engine().slo, ttft_s=0.001)
    reading = EngineReading(3, 0, 0.5, taken_at_s=1000.0)
    world = snapshot(engines={LOCAL.name: engine(slo=tight, engine=reading)})
    d = decide(facts(locality=Locality.LOCAL_ONLY, estimate=LONG), EASY, ALL, world, CFG)
    assert (d.ranked, d.queue_for_s, Flag.SLO_UNREACHABLE in d.flags) == ((), 0.001, False)


def test_whether_a_full_engine_is_waited_for_goes_by_its_price_when_it_has_room() -> None:
    world = snapshot(
        engines={LOCAL.name: engine(inflight=FULL)}, density_quantiles={LOCAL.name: (1.0, 1.0)}
    )  # while it is full, a GPU-second is worth a dollar
    d = decide(facts(), EASY, ALL, world, replace(CFG, on_saturation="queue"))
    assert d.queue_for_s == engine().slo.ttft_s


def test_an_engine_known_to_be_full_is_waited_for_before_one_that_tells_nothing() -> None:
    silent, known = replace(LOCAL, name="local/a"), replace(LOCAL, name="local/b")
    world = snapshot(
        engines={
            silent.name: engine(metrics_required=("running_requests",)),
            known.name: engine(slo=replace(engine().slo, ttft_s=0.001)),
        },
        assets={},
    )
    d = decide(facts(locality=Locality.LOCAL_ONLY, estimate=LONG), EASY, (silent, known), world, CFG)
    assert (d.chosen, Flag.SLO_UNREACHABLE in d.flags) == (known, True)


@pytest.mark.parametrize(("short_nanousd", "drawn"), [(0, True), (1, False)])
def test_exploring_costs_no_more_than_is_left_for_it(short_nanousd: int, drawn: bool) -> None:
    cfg = PolicyConfig(nu_usd=0.0, exploration_ratio=1.0)
    usual = decide(facts(), EASY, (LOCAL, CHEAP), snapshot(), cfg)
    assert usual.chosen == LOCAL
    extra = round((usual.alternative(CHEAP.name).marginal_cost_usd or 0.0) * 1e9)
    look = snapshot(exploration_left_nanousd=extra - short_nanousd)
    d = decide(facts(exploration_draw=0.5), EASY, (LOCAL, CHEAP), look, cfg)
    assert (d.chosen is not None and d.chosen.tier is Tier.CHEAP) is drawn
