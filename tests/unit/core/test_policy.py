"""The decision as a table: change one thing, read one line; and the laws it must never break."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from local_llm.datamodels import EngineReading, ProcessState
from router.core.decision import PolicyConfig
from router.core.health import begin_probe
from router.core.policy import decide
from router.core.request import TokenEstimate
from router.core.snapshot import ProviderHealth
from router.core.vocabulary import CircuitState, Flag, Locality, Reason, Reject, Tier
from router.core.weighing import congestion_usd_per_gpu_s
from tests.fakes import (
    ALL,
    BIG,
    CHEAP,
    EASY,
    FULL,
    HARD,
    LOCAL,
    MIDDLE,
    NOON,
    PRICES,
    budget,
    engine,
    facts,
    names,
    price,
    reasons_of,
    snapshot,
)

CFG = PolicyConfig()
TRAINED = PolicyConfig(nu_usd=0.01)


# --- each input flips the choice alone -----------------------------------------------------------------------------


def test_an_easy_prompt_on_an_idle_engine_stays_at_home():
    d = decide(facts(), EASY, ALL, snapshot(), CFG)
    assert names(d.ranked) == [LOCAL.name, CHEAP.name, BIG.name]
    assert d.reason is Reason.LOCAL_IDLE_FREE
    assert d.reserve_nanousd == 0


def test_the_score_alone_moves_a_hard_prompt_to_premium():
    d = decide(facts(), HARD, ALL, snapshot(), CFG)
    assert d.chosen == BIG
    assert d.reason is Reason.PREMIUM_QUALITY_FLOOR
    assert reasons_of(d)[LOCAL.name] == ["QUALITY_BELOW_FLOOR"]


def test_the_score_alone_moves_a_middling_prompt_to_cheap():
    d = decide(facts(), MIDDLE, ALL, snapshot(), CFG)
    assert d.chosen == CHEAP
    assert d.reason is Reason.CHEAP_API_CHEAPEST


def test_the_token_estimate_alone_moves_a_long_prompt_off_a_small_window():
    d = decide(facts(estimate=TokenEstimate(9000, 100, 300, "class_mean")), EASY, ALL, snapshot(), CFG)
    assert d.chosen == CHEAP
    assert reasons_of(d)[LOCAL.name] == ["CONTEXT_TOO_LONG"]


def test_a_long_answer_asked_for_counts_against_the_window():
    d = decide(facts(max_output_tokens=8100), EASY, ALL, snapshot(), CFG)
    assert reasons_of(d)[LOCAL.name] == ["CONTEXT_TOO_LONG"]


def test_the_cost_cap_alone_moves_a_hard_prompt_down_a_tier():
    free = decide(facts(), HARD, ALL, snapshot(), CFG)
    capped = decide(facts(max_nanousd=1_000_000), HARD, ALL, snapshot(), CFG)
    assert free.chosen == BIG
    assert capped.chosen == CHEAP
    assert "OVER_REQUEST_CAP" in reasons_of(capped)[BIG.name]


def test_the_price_alone_moves_a_prompt_between_equal_apis():
    twin = replace(CHEAP, name="openai/twin")
    both = {**PRICES, twin.name: price("twin", "0.20", "1.00")}
    dearer = decide(facts(), MIDDLE, (CHEAP, twin), snapshot(prices=both), CFG)
    cheaper = decide(
        facts(), MIDDLE, (CHEAP, twin), snapshot(prices={**both, twin.name: price("t", "0.01", "0.05")}), CFG
    )
    assert (dearer.chosen, cheaper.chosen) == (CHEAP, twin)


def test_a_full_engine_alone_spills_to_the_cheap_tier_and_says_which_limit():
    d = decide(facts(), EASY, ALL, snapshot(engines={LOCAL.name: engine(inflight=FULL)}), CFG)
    assert d.chosen == CHEAP
    assert d.reason in {Reason.SPILL_KV, Reason.SPILL_TPOT, Reason.SPILL_SEQS}
    assert reasons_of(d)[LOCAL.name][0].startswith("SATURATED_")


def test_the_budget_alone_keeps_a_hard_prompt_at_home():
    d = decide(facts(), HARD, ALL, snapshot(budgets=(budget(0.0),)), CFG)
    assert d.chosen == LOCAL
    assert reasons_of(d)[BIG.name] == ["BUDGET_EXHAUSTED"]
    assert d.reserve_nanousd == 0


def test_a_budget_with_room_for_cheap_only_leaves_premium_out():
    d = decide(facts(), HARD, ALL, snapshot(budgets=(budget(0.001),)), CFG)
    assert d.chosen == CHEAP


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"state": ProcessState.DOWN}, "UNHEALTHY"),
        ({"state": ProcessState.DEGRADED}, "UNHEALTHY"),
        ({"state": ProcessState.STARTING}, "UNHEALTHY"),
        ({"metrics_required": ("running_requests",)}, "METRICS_STALE"),
        (
            {
                "metrics_required": ("running_requests",),
                "engine": EngineReading(0, 0, 0.0, taken_at_s=990.0),
            },
            "METRICS_STALE",
        ),
        (
            {
                "metrics_required": ("kv_cache_usage_ratio",),
                "engine": EngineReading(0, 0, None, taken_at_s=1000.0),
            },
            "METRICS_STALE",
        ),
        ({"engine": EngineReading(0, 0, 0.0, taken_at_s=1000.0, asleep=True)}, "UNHEALTHY"),
        ({"max_gpu_utilization_ratio": 0.5}, "METRICS_STALE"),
    ],
)
def test_what_is_not_known_of_the_engine_counts_as_full(change: dict[str, object], expected: str):
    d = decide(facts(), EASY, ALL, snapshot(engines={LOCAL.name: engine(**change)}), CFG)
    assert d.chosen == CHEAP
    assert reasons_of(d)[LOCAL.name] == [expected]


def test_a_dead_cheap_tier_is_passed_over():
    health = {CHEAP.name: ProviderHealth(CircuitState.OPEN, 3, open_until_at_s=1010.0)}
    d = decide(facts(), MIDDLE, ALL, snapshot(health=health), CFG)
    assert d.chosen == BIG
    assert reasons_of(d)[CHEAP.name] == ["BREAKER_OPEN"]


def test_a_half_open_circuit_lets_one_probe_through():
    cooled = ProviderHealth(CircuitState.OPEN, 3, open_until_at_s=999.0)
    probing = begin_probe(cooled, 1000.0)
    assert decide(facts(), MIDDLE, ALL, snapshot(health={CHEAP.name: cooled}), CFG).chosen == CHEAP
    assert decide(facts(), MIDDLE, ALL, snapshot(health={CHEAP.name: probing}), CFG).chosen == BIG


@pytest.mark.parametrize(
    ("need", "able"),
    [("needs_tools", "supports_tools"), ("needs_images", "supports_images"), ("needs_json", "supports_json")],
)
def test_a_capability_that_is_missing_rules_a_candidate_out(need: str, able: str):
    unable = tuple(replace(c, **{able: c.tier is Tier.PREMIUM}) for c in ALL)
    d = decide(facts(**{need: True}), EASY, unable, snapshot(), CFG)
    assert d.chosen is not None
    assert d.chosen.tier is Tier.PREMIUM
    assert reasons_of(d)[CHEAP.name] == ["CAPABILITY_MISSING"]


# --- dials ---------------------------------------------------------------------------------------------------------


def test_an_explicit_floor_replaces_the_target_in_both_directions():
    relaxed = decide(facts(quality_floor_ratio=0.0), HARD, ALL, snapshot(), CFG)
    strict = decide(facts(quality_floor_ratio=1.0), EASY, ALL, snapshot(), CFG)
    assert relaxed.chosen == LOCAL
    assert strict.chosen == BIG
    assert Flag.QUALITY_TARGET_AS_FLOOR not in relaxed.flags
    assert Flag.QUALITY_TARGET_AS_FLOOR in decide(facts(), EASY, ALL, snapshot(), CFG).flags


def test_with_a_trained_scorer_quality_is_traded_at_nu_dollars_per_unit():
    assert decide(facts(), HARD, ALL, snapshot(), replace(TRAINED, nu_usd=0.0001)).chosen == LOCAL
    assert decide(facts(), HARD, ALL, snapshot(), replace(TRAINED, nu_usd=1.0)).chosen == BIG


def test_a_floor_holds_whatever_nu_says():
    d = decide(facts(quality_floor_ratio=0.99), HARD, ALL, snapshot(), replace(TRAINED, nu_usd=0.0))
    assert d.chosen == BIG


@pytest.mark.parametrize("cfg", [replace(TRAINED, nu_usd=1.0), PolicyConfig()])
def test_where_premium_has_had_its_share_the_next_best_answers_and_it_is_said(cfg):
    free, capped = (decide(facts(), HARD, ALL, snapshot(), replace(cfg, premium_capped=on)) for on in (False, True))
    assert (free.chosen, capped.chosen) == (BIG, CHEAP)
    assert (Flag.PREMIUM_CAPPED in free.flags, Flag.PREMIUM_CAPPED in capped.flags) == (False, True)
    assert capped.ranked[-1] == BIG, "it is still there to fall back to"
    assert capped.alternative(CHEAP.name).reasons == ()
    assert capped.reserve_nanousd == capped.alternative(CHEAP.name).reserve_nanousd


@pytest.mark.parametrize("asked", [{"pinned_tier": Tier.PREMIUM}, {"quality_floor_ratio": 0.99}])
def test_what_was_asked_for_is_not_capped(asked):
    d = decide(facts(**asked), HARD, ALL, snapshot(), replace(TRAINED, nu_usd=1.0, premium_capped=True))
    assert d.chosen == BIG
    assert Flag.PREMIUM_CAPPED not in d.flags


def test_where_only_premium_can_answer_the_cap_does_not_refuse():
    assert decide(facts(), HARD, (BIG,), snapshot(), replace(TRAINED, premium_capped=True)).chosen == BIG


def test_pace_makes_cash_dearer():
    cfg = replace(TRAINED, nu_usd=0.012)
    slow = budget(9.0, pace=20.0)
    assert decide(facts(), HARD, ALL, snapshot(), cfg).chosen == BIG
    assert decide(facts(), HARD, ALL, snapshot(budgets=(slow,)), cfg).chosen != BIG


def test_a_model_named_by_the_client_is_the_only_one_tried():
    d = decide(facts(pinned_model=BIG.name), EASY, ALL, snapshot(), CFG)
    assert names(d.ranked) == [BIG.name]
    assert d.reason is Reason.PINNED_BY_CLIENT


def test_a_fallback_is_the_next_decision_not_the_next_row():
    d = decide(facts(), EASY, ALL, snapshot(engines={LOCAL.name: engine(state=ProcessState.DOWN)}), CFG)
    assert names(d.ranked) == [CHEAP.name, BIG.name]


def test_a_tier_without_a_key_is_unconfigured_and_named_so():
    keyless = replace(BIG, unavailable=Reject.UNCONFIGURED, unavailable_detail="OPENAI_API_KEY is not set")
    d = decide(facts(), HARD, (LOCAL, CHEAP, keyless), snapshot(), CFG)
    assert d.chosen == CHEAP
    assert reasons_of(d)[BIG.name] == ["UNCONFIGURED"]


# --- saturation ----------------------------------------------------------------------------------------------------

LONG = TokenEstimate(7000, 500, 900, "class_mean")


def busy(**changes: object) -> dict[str, object]:
    return {"engines": {LOCAL.name: engine(inflight=FULL, **changes)}}


def test_local_only_traffic_waits_for_a_busy_engine():
    d = decide(facts(locality=Locality.LOCAL_ONLY), EASY, ALL, snapshot(**busy()), CFG)
    assert d.ranked == ()
    assert d.queue_for_s == 1.0
    assert d.blocked_by_saturation


def test_an_idle_engine_always_admits_where_nothing_else_may_answer():
    tight = replace(engine().slo, ttft_s=0.001)
    world = snapshot(engines={LOCAL.name: engine(slo=tight)})
    d = decide(facts(locality=Locality.LOCAL_ONLY, estimate=LONG), EASY, ALL, world, CFG)
    assert d.chosen == LOCAL
    assert Flag.SLO_UNREACHABLE in d.flags
    assert d.reason is Reason.LOCAL_ONLY_POLICY


def test_stale_readings_make_local_only_traffic_wait_even_when_nothing_is_in_flight():
    world = snapshot(engines={LOCAL.name: engine(metrics_required=("running_requests",))})
    d = decide(facts(locality=Locality.LOCAL_ONLY), EASY, ALL, world, CFG)
    assert (d.ranked, d.queue_for_s, d.blocked_by_saturation) == ((), 1.0, True)


def test_on_saturation_queue_waits_and_keeps_the_spill_in_hand():
    d = decide(facts(), EASY, ALL, snapshot(**busy()), replace(CFG, on_saturation="queue"))
    assert d.queue_for_s == 1.0
    assert d.chosen == CHEAP


def test_on_saturation_reject_spends_no_cash():
    d = decide(facts(), EASY, ALL, snapshot(**busy()), replace(CFG, on_saturation="reject"))
    assert d.ranked == ()
    assert d.blocked_by_saturation
    assert d.queue_for_s == 0.0


def test_a_hard_prompt_does_not_wait_for_an_engine_it_would_not_use():
    d = decide(facts(), HARD, ALL, snapshot(**busy()), replace(CFG, on_saturation="queue"))
    assert d.queue_for_s == 0.0
    assert d.chosen == BIG
    assert d.reason is Reason.PREMIUM_QUALITY_FLOOR


def test_an_engine_that_does_not_tell_what_it_cached_is_flagged_where_it_is_chosen():
    world = snapshot(cache_unknown=frozenset({LOCAL.name}))
    assert Flag.CACHE_UNKNOWN in decide(facts(), EASY, ALL, world, CFG).flags
    assert Flag.CACHE_UNKNOWN not in decide(facts(), HARD, ALL, world, CFG).flags


def test_the_energy_of_an_owned_card_is_the_marginal_price_of_an_idle_engine():
    owned = replace(snapshot().assets[LOCAL.name], energy_usd_per_gpu_s=Decimal("0.00002925"))
    d = decide(facts(), EASY, ALL, snapshot(assets={LOCAL.name: owned}), CFG)
    local = d.alternative(LOCAL.name)
    assert local.marginal_cost_usd == pytest.approx(local.work_gpu_s * 0.00002925)
    assert d.reason is Reason.LOCAL_CHEAPER_MARGINAL
    assert decide(facts(), EASY, ALL, snapshot(), CFG).reason is Reason.LOCAL_IDLE_FREE


def test_a_tight_engine_keeps_its_room_for_requests_worth_more():
    nearly = replace(FULL, n=120, streaming=120, context_tokens=100_000.0, reserved_tokens=340_000.0)
    world = snapshot(
        engines={LOCAL.name: engine(inflight=nearly, limits=replace(engine().limits, kv_tokens=362_000))},
        density_quantiles={LOCAL.name: (0.001, 0.01, 0.1, 1.0)},
    )
    d = decide(facts(), EASY, ALL, world, CFG)
    assert d.alternative(LOCAL.name).tightness == pytest.approx(0.99, abs=0.02)
    assert d.chosen == CHEAP
    assert d.reason is Reason.SPILL_CONGESTION_PRICE


@pytest.mark.parametrize(("u", "expected"), [(0.0, 0.0), (0.9, 0.0), (0.95, 5.0), (1.0, 10.0), (2.0, 10.0)])
def test_the_congestion_price_is_a_quantile_of_what_others_would_pay(u: float, expected: float):
    assert congestion_usd_per_gpu_s(u, (2.0, 5.0, 10.0), 0.9) == pytest.approx(expected)


def test_any_change_of_input_changes_the_hash():
    base = decide(facts(), EASY, ALL, snapshot(), CFG).inputs_hash
    others = [
        decide(facts(tenant="x"), EASY, ALL, snapshot(), CFG),
        decide(facts(), HARD, ALL, snapshot(), CFG),
        decide(facts(), EASY, ALL[:2], snapshot(), CFG),
        decide(facts(), EASY, ALL, snapshot(now_s=1001.0), CFG),
        decide(facts(), EASY, ALL, snapshot(cache_unknown=frozenset({LOCAL.name})), CFG),
        decide(facts(), EASY, ALL, snapshot(), replace(CFG, quality_target_ratio=0.9)),
        decide(facts(), EASY, ALL, snapshot(prices={**PRICES, BIG.name: price("big", "2", "10.01")}), CFG),
    ]
    assert len({base, *(d.inputs_hash for d in others)}) == len(others) + 1


def test_a_price_row_out_of_its_time_is_not_used():
    old = {**PRICES, BIG.name: replace(PRICES[BIG.name], valid_until_utc=NOON)}
    d = decide(facts(), HARD, ALL, snapshot(prices=old), CFG)
    assert reasons_of(d)[BIG.name] == [Reject.PRICE_STALE.value]


def test_costs_shown_are_those_of_the_price_row():
    d = decide(facts(), HARD, ALL, snapshot(), CFG)
    big = d.alternative(BIG.name)
    assert big.expected_cost_usd == pytest.approx(float(Decimal(2) * 200 / 10**6 + Decimal(10) * 100 / 10**6))
    assert big.reserve_nanousd == 3_400_000
