"""Laws that no decision breaks, whatever is asked in whatever world."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from classifier.datamodels import Score
from local_llm.datamodels import InflightState, ProcessState
from router.core.decision import PolicyConfig
from router.core.policy import decide
from router.core.replay import moment_bytes, restore, world_bytes
from router.core.request import TokenEstimate
from router.core.vocabulary import Flag, Locality, Tier
from tests.fakes import (
    ALL,
    BIG,
    CHEAP,
    LOCAL,
    budget,
    engine,
    facts,
    snapshot,
)

p = st.floats(0.0, 1.0)


scores = st.builds(lambda a, b, c: Score(1 - a, {"local": a, "cheap": b, "premium": c}, 0.0, "t", 1), p, p, p)


estimates = st.builds(
    lambda i, o, more: TokenEstimate(i, o, o + more, "class_mean"),
    st.integers(1, 12_000),
    st.integers(1, 2_000),
    st.integers(0, 2_000),
)


inflights = st.builds(
    lambda n, ctx, res, wait, phi: InflightState(
        n=n,
        streaming=n,
        context_tokens=ctx,
        reserved_tokens=max(ctx, res),
        waiting_prompt_tokens=wait,
        prefill_share=phi,
    ),
    st.integers(0, 300),
    st.floats(0, 400_000),
    st.floats(0, 400_000),
    st.floats(0, 50_000),
    st.floats(0, 1),
)


configs = st.builds(
    lambda target, floor, nu, sat: PolicyConfig(
        quality_target_ratio=target, quality_floor_ratio=floor, nu_usd=nu, on_saturation=sat
    ),
    p,
    st.none() | p,
    st.none() | st.floats(0, 1),
    st.sampled_from(["spill", "queue", "reject"]),
)


requests = st.builds(
    lambda e, loc, floor, cap: facts(estimate=e, locality=loc, quality_floor_ratio=floor, max_nanousd=cap),
    estimates,
    st.sampled_from(list(Locality)),
    st.none() | p,
    st.none() | st.integers(0, 100_000_000),
)


worlds = st.builds(
    lambda i, ready, quantiles, left: snapshot(
        engines={LOCAL.name: engine(inflight=i, state=ProcessState.READY if ready else ProcessState.DOWN)},
        density_quantiles={LOCAL.name: tuple(sorted(quantiles))},
        budgets=() if left is None else (budget(left),),
    ),
    inflights,
    st.booleans(),
    st.lists(st.floats(0, 1), max_size=5),
    st.none() | st.floats(0, 0.05),
)


@given(requests, scores, worlds, configs)
def test_local_only_never_yields_an_api(request, score, world, cfg):
    d = decide(replace(request, locality=Locality.LOCAL_ONLY), score, ALL, world, cfg)
    assert all(c.tier is Tier.LOCAL for c in d.ranked)


@given(requests, scores, worlds, configs)
def test_the_chosen_objective_is_no_worse_than_any_listed_one(request, score, world, cfg):
    d = decide(request, score, ALL, world, cfg)
    if d.chosen is None or Flag.SLO_UNREACHABLE in d.flags:
        return
    mine = d.alternative(d.chosen.name).objective_usd
    assert mine is not None
    assert all(mine <= a.objective_usd + 1e-12 for a in d.alternatives if a.objective_usd is not None)


@given(requests, scores, worlds, configs)
def test_every_alternative_carries_a_reason_or_an_objective(request, score, world, cfg):
    d = decide(request, score, ALL, world, cfg)
    assert len(d.alternatives) == len(ALL)
    for a in d.alternatives:
        assert a.reasons or a.objective_usd is not None
        if d.chosen is None or a.name != d.chosen.name:
            assert a.reasons


@given(requests, scores, worlds, configs)
def test_an_exhausted_budget_means_no_cash(request, score, world, cfg):
    d = decide(request, score, ALL, replace(world, budgets=(budget(0.0),)), cfg)
    assert d.reserve_nanousd == 0
    assert all(c.tier is Tier.LOCAL for c in d.ranked)


@given(requests, scores, worlds, configs, st.decimals("1.01", "50", places=2), st.sampled_from([CHEAP, BIG]))
def test_raising_an_apis_price_never_moves_a_request_to_it(request, score, world, cfg, factor, api):
    before = decide(request, score, ALL, world, cfg)
    row = world.prices[api.name]
    tiers = tuple(
        replace(t, input_usd_per_mtok=t.input_usd_per_mtok * factor, output_usd_per_mtok=t.output_usd_per_mtok * factor)
        for t in row.tiers
    )
    after = decide(
        request, score, ALL, replace(world, prices={**world.prices, api.name: replace(row, tiers=tiers)}), cfg
    )
    if before.chosen != api:
        assert after.chosen != api


@given(requests, scores, worlds, configs)
def test_an_emptier_engine_never_loses_a_request(request, score, world, cfg):
    before = decide(request, score, ALL, world, cfg)
    emptied = replace(world.engines[LOCAL.name], inflight=InflightState(taken_at_s=1000.0))
    after = decide(request, score, ALL, replace(world, engines={LOCAL.name: emptied}), cfg)
    if before.chosen == LOCAL:
        assert after.chosen == LOCAL


@given(requests, scores, worlds, configs)
def test_a_recorded_decision_replays_to_the_same_bytes(request, score, world, cfg):
    d = decide(request, score, ALL, world, cfg)
    again = decide(*restore(world_bytes(ALL, world), moment_bytes(request, score, world, cfg)))
    assert again == d
    assert again.inputs_hash == d.inputs_hash


@given(requests, scores, worlds, configs, st.permutations(ALL))
def test_the_order_of_candidates_changes_nothing_but_the_name_of_the_world(request, score, world, cfg, order):
    one, two = decide(request, score, ALL, world, cfg), decide(request, score, tuple(order), world, cfg)
    assert (one.ranked, one.reason, one.alternatives) == (two.ranked, two.reason, two.alternatives)
