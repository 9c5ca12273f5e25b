"""Several engines in one decision: how they share the load, when a session stays, and what happens without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.datamodels import Score
from local_llm.datamodels import InflightState, LocalSnapshot, ProcessState
from router.core.attempts import Attempt, AttemptResult
from router.core.decision import Candidate, Decision, PolicyConfig
from router.core.densities import REFRESH_EVERY, DensityWindow
from router.core.fallback import attempts
from router.core.policy import decide
from router.core.replay import moment_bytes, restore, world_bytes
from router.core.replicas import NEAR_RATIO, STAY_WITHIN_U, choose_engine
from router.core.request import RequestFacts
from router.core.snapshot import AssetRate, Snapshot
from router.core.virtual_models import resolve
from router.core.vocabulary import Flag, Locality, Outcome, Reason, Tier
from tests.fakes import BIG, CHEAP, EASY, FULL, HARD, engine, facts, names, reasons_of, snapshot

CFG = PolicyConfig()
ONE = Candidate("local/gpu0", Tier.LOCAL, "vllm", "llama", 8192)
TWO = replace(ONE, name="local/gpu1")
THREE = replace(ONE, name="local/gpu2")
HOUSE = (ONE, TWO, CHEAP, BIG)
RATE = Decimal("0.000817")


def busy(streams: int, **changes: Any) -> LocalSnapshot:
    """An engine with so many streams of 500 tokens in it."""
    context = 500.0 * streams
    state = InflightState(
        n=streams, streaming=streams, context_tokens=context, reserved_tokens=context, bucket_at_s=1000.0,
        taken_at_s=1000.0,
    )  # fmt: skip
    return engine(inflight=state, **changes)


def house(*engines: LocalSnapshot, energy: tuple[str, ...] = (), **changes: Any) -> Snapshot:
    """local/gpu0, local/gpu1, ... in these states; `energy` in usd per GPU-second."""
    held = {f"local/gpu{number}": one for number, one in enumerate(engines)}
    rates = energy or ("0",) * len(engines)
    assets = {
        name: AssetRate(name, RATE, energy_usd_per_gpu_s=Decimal(rate)) for name, rate in zip(held, rates, strict=True)
    }
    return snapshot(**({"engines": held, "assets": assets} | changes))


def went_to(seen: Snapshot, request: RequestFacts | None = None, **cfg: Any) -> str:
    chosen = decide(request or facts(), EASY, HOUSE, seen, replace(CFG, **cfg)).chosen
    assert chosen is not None
    return chosen.name


# --- which of them --------------------------------------------------------------------------------------------------


def test_the_one_with_most_room_answers_and_of_idle_ones_always_the_same() -> None:
    assert went_to(house(engine(), engine())) == "local/gpu0"
    assert went_to(house(busy(1), engine())) == "local/gpu1"
    assert went_to(house(busy(3), busy(40))) == "local/gpu0"


def test_requests_that_come_at_once_are_shared_out_evenly() -> None:
    held = [0, 0]
    for _ in range(40):
        held[int(went_to(house(busy(held[0]), busy(held[1])))[-1])] += 1
    assert held == [20, 20]


def test_a_dead_engine_leaves_its_share_to_the_other_before_anything_leaves_the_house() -> None:
    seen = house(engine(state=ProcessState.DOWN), busy(20))
    d = decide(facts(), EASY, HOUSE, seen, CFG)
    assert names(d.ranked) == ["local/gpu1", CHEAP.name, BIG.name]
    assert reasons_of(d)["local/gpu0"] == ["UNHEALTHY"]
    only = decide(facts(locality=Locality.LOCAL_ONLY), HARD, HOUSE, seen, CFG)
    assert (names(only.ranked), only.reason) == (["local/gpu1"], Reason.LOCAL_ONLY_POLICY)


def test_the_other_engine_is_fallen_back_to_before_an_api() -> None:
    assert names(decide(facts(), EASY, HOUSE, house(engine(), engine()), CFG).ranked) == [
        "local/gpu0",
        "local/gpu1",
        CHEAP.name,
        BIG.name,
    ]


def test_a_model_of_its_own_name_is_any_engine_that_serves_it_and_a_name_is_one() -> None:
    seen = house(busy(1), engine())
    for asked, wanted in (("llama", ["local/gpu1", "local/gpu0"]), ("local/gpu0", ["local/gpu0"])):
        pinned = resolve(asked, HOUSE).pinned
        d = decide(facts(pinned_model=pinned), HARD, HOUSE, seen, CFG)
        assert (names(d.ranked), d.reason) == (wanted, Reason.PINNED_BY_CLIENT)


def test_engines_of_other_models_are_weighed_by_what_their_models_can_do() -> None:
    small = replace(TWO, wire_model="small")
    score = Score(0.3, {"local": 0.94, "local/small": 0.4, "cheap": 0.93, "premium": 0.95}, 0.0, "test", 1)
    d = decide(facts(), score, (ONE, small, CHEAP, BIG), house(busy(200), engine()), replace(CFG, nu_usd=0.01))
    assert d.chosen == ONE
    assert d.alternative("local/gpu1").p_adequate == 0.4


# --- full ---------------------------------------------------------------------------------------------------------


def test_one_full_engine_is_no_reason_to_spill_to_wait_or_to_reject() -> None:
    for how in ("spill", "queue", "reject"):
        d = decide(facts(), EASY, HOUSE, house(engine(inflight=FULL), busy(3)), replace(CFG, on_saturation=how))
        assert d.chosen is not None and d.chosen.name == "local/gpu1"
        assert (d.reason, d.queue_for_s) == (Reason.LOCAL_IDLE_FREE, 0.0)


def test_when_all_are_full_it_spills_for_the_reason_of_the_least_full_one() -> None:
    held = replace(FULL, n=10, streaming=10, context_tokens=5000.0)
    many = replace(held, n=1000, reserved_tokens=5000.0)
    for held_tokens, reason in ((399_900.0, Reason.SPILL_KV), (4_000_000.0, Reason.SPILL_SEQS)):
        kv = engine(inflight=replace(held, reserved_tokens=held_tokens))
        d = decide(facts(), EASY, HOUSE, house(kv, engine(inflight=many)), CFG)
        assert (d.chosen, d.reason) == (CHEAP, reason)
    waits = decide(facts(locality=Locality.LOCAL_ONLY), EASY, HOUSE, house(engine(inflight=FULL), busy(300)), CFG)
    assert waits.queue_for_s == 1.0


def test_while_one_engine_has_room_a_spill_is_a_matter_of_its_price() -> None:
    nearly = replace(FULL, n=100, streaming=100, reserved_tokens=379_000.0, context_tokens=50_000.0)
    seen = house(engine(inflight=FULL), engine(inflight=nearly), density_quantiles={"local/gpu1": (0.1, 0.2)})
    d = decide(facts(), EASY, HOUSE, seen, replace(CFG, on_saturation="queue"))
    assert (d.chosen, d.reason, d.queue_for_s) == (CHEAP, Reason.SPILL_CONGESTION_PRICE, 0.0)


def test_a_model_whose_engines_are_full_is_waited_for_though_another_model_has_room() -> None:
    small = replace(TWO, wire_model="small")
    score = Score(0.3, {"local": 0.94, "local/small": 0.4, "cheap": 0.93, "premium": 0.95}, 0.0, "test", 1)
    seen, cfg = house(engine(inflight=FULL), engine()), replace(CFG, nu_usd=0.01, on_saturation="queue")
    assert decide(facts(), score, (ONE, small, CHEAP, BIG), seen, cfg).queue_for_s == 1.0


def test_an_idle_engine_admits_what_can_not_be_promised_though_another_is_busy() -> None:
    slow = replace(engine().slo, ttft_s=0.001)
    d = decide(facts(locality=Locality.LOCAL_ONLY), EASY, HOUSE, house(busy(5, slo=slow), engine(slo=slow)), CFG)
    assert (names(d.ranked), Flag.SLO_UNREACHABLE in d.flags) == (["local/gpu1"], True)


def test_an_engine_that_cannot_be_read_is_waited_for_only_if_the_other_is_no_better() -> None:
    blind = engine(metrics_required=("running_requests",))
    d = decide(facts(locality=Locality.LOCAL_ONLY), EASY, HOUSE, house(blind, engine(inflight=FULL)), CFG)
    assert (d.ranked, d.queue_for_s > 0.0) == ((), True)
    assert decide(facts(), EASY, HOUSE, house(blind, busy(4)), CFG).chosen == TWO


# --- money ----------------------------------------------------------------------------------------------------------


def test_the_dearer_engine_waits_until_the_cheaper_one_is_congested() -> None:
    energy = ("0.0001", "0.0002")
    assert went_to(house(busy(100), engine(), energy=energy)) == "local/gpu0"
    densities = dict.fromkeys(("local/gpu0", "local/gpu1"), (0.001, 0.01))
    tight = replace(FULL, n=100, streaming=100, reserved_tokens=375_000.0, context_tokens=50_000.0)
    seen = house(engine(inflight=tight), engine(), energy=energy, density_quantiles=densities)
    assert decide(facts(), EASY, HOUSE, seen, CFG).alternative("local/gpu0").tightness < 1.0  # type: ignore[operator]
    assert went_to(seen) == "local/gpu1"


def test_engines_that_cost_nearly_the_same_share_the_load() -> None:
    assert went_to(house(busy(5), engine(), energy=("0.0001", "0.000109"))) == "local/gpu1"
    assert went_to(house(busy(5), engine(), energy=("0.0001", "0.000111"))) == "local/gpu0"


def test_a_gpu_second_of_each_engine_is_worth_what_its_own_work_saves() -> None:
    slow = engine(coefficients=replace(engine().coefficients, c_prefill_s=350e-6))
    windows = {name: DensityWindow(name) for name in ("local/gpu0", "local/gpu1")}
    d = decide(facts(), EASY, HOUSE, house(engine(), slow), CFG)
    for _ in range(REFRESH_EVERY):
        for window in windows.values():
            window.note(d)
    work = {name: d.alternative(name).work_gpu_s or 0.0 for name in windows}
    assert work["local/gpu1"] > 2 * work["local/gpu0"]
    cash = d.alternative(CHEAP.name).expected_cost_usd or 0.0
    for name, window in windows.items():
        assert window.quantiles[0] == pytest.approx(cash / work[name])


# --- sessions -------------------------------------------------------------------------------------------------------


def of_session(home: str) -> RequestFacts:
    """A request of a session that belongs to `home`."""
    both = [("local/gpu0", 0.0), ("local/gpu1", 0.0)]
    return next(facts(session=f"s{n}") for n in range(99) if choose_engine(both, f"s{n}") == home)


def test_a_session_stays_with_its_engine_and_the_reason_says_so_where_it_matters() -> None:
    request = of_session("local/gpu1")
    d = decide(request, EASY, HOUSE, house(engine(), busy(10)), CFG)
    assert (d.chosen, d.reason) == (TWO, Reason.STICKY_SESSION_CACHE)
    d = decide(request, EASY, HOUSE, house(busy(10), engine()), CFG)
    assert (d.chosen, d.reason) == (TWO, Reason.LOCAL_IDLE_FREE)


def test_a_session_leaves_an_engine_that_is_much_fuller_and_comes_back() -> None:
    request = of_session("local/gpu1")
    assert went_to(house(busy(3), busy(160)), request) == "local/gpu0"
    assert went_to(house(busy(3), engine(state=ProcessState.DOWN)), request) == "local/gpu0"
    assert went_to(house(busy(3), busy(4)), request) == "local/gpu1"


TIGHT = st.floats(0.0, 1.0, allow_nan=False)
ENGINES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), TIGHT, min_size=1, max_size=6)
SESSION = st.one_of(st.none(), st.text(max_size=8))


@settings(deadline=None)
@given(engines=ENGINES, session=SESSION, seed=st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_and_is_never_much_tighter(
    engines: dict[str, float], session: str | None, seed: Any
) -> None:
    pairs = list(engines.items())
    chosen = choose_engine(pairs, session)
    seed.shuffle(pairs)
    assert choose_engine(pairs, session) == chosen
    allowed = 0.0 if session is None else STAY_WITHIN_U
    assert engines[chosen] <= min(engines.values()) + allowed


@settings(deadline=None)
@given(count=st.integers(2, 6), session=st.text(max_size=8), gone=st.integers(0, 5))
def test_a_session_moves_only_if_its_own_engine_goes(count: int, session: str, gone: int) -> None:
    engines = [(f"gpu{n}", 0.1) for n in range(count)]
    home = choose_engine(engines, session)
    left = [pair for pair in engines if pair[0] != f"gpu{gone}"]
    assert home == f"gpu{gone}" or choose_engine(left, session) == home


def test_sessions_are_spread_over_the_engines() -> None:
    engines = [(f"local/gpu{n}", 0.1) for n in range(4)]
    counts = Counter(choose_engine(engines, f"user-{n}") for n in range(4000))
    assert all(900 < count < 1100 for count in counts.values()), counts
    assert len(counts) == 4


# --- laws of the decision ---------------------------------------------------------------------------------------------

STREAMS = st.integers(0, 300)
STATES = st.sampled_from([ProcessState.READY, ProcessState.READY, ProcessState.DOWN, ProcessState.STARTING])
SEEN = st.lists(st.builds(lambda n, state: busy(n, state=state), STREAMS, STATES), min_size=3, max_size=3)


@settings(deadline=None)
@given(
    engines=SEEN,
    energy=st.tuples(*[st.sampled_from(["0", "0.0001", "0.000105", "0.001"])] * 3),
    session=SESSION,
    how=st.sampled_from(["spill", "queue", "reject"]),
    score=st.sampled_from([EASY, HARD]),
    order=st.permutations([ONE, TWO, THREE, CHEAP, BIG]),
)
def test_whatever_the_engines_do_the_decision_keeps_its_laws(
    engines: list[LocalSnapshot], energy: tuple[str, ...], session: str | None, how: str, score: Score, order: Any
) -> None:
    density = dict.fromkeys(("local/gpu0", "local/gpu1", "local/gpu2"), (0.0001, 0.001, 0.01))
    seen = house(*engines, energy=energy, density_quantiles=density)
    cfg = replace(CFG, on_saturation=how)
    request = facts(session=session)
    candidates = (ONE, TWO, THREE, CHEAP, BIG)
    d = decide(request, score, candidates, seen, cfg)
    again = decide(request, score, tuple(order), seen, cfg)
    assert (again.ranked, again.reason, again.alternatives) == (d.ranked, d.reason, d.alternatives)
    _choice_is_lawful(d, engines)
    world, moment = world_bytes(candidates, seen), moment_bytes(request, score, seen, cfg)
    replayed = decide(*restore(world, moment))
    assert (replayed.ranked, replayed.inputs_hash) == (d.ranked, d.inputs_hash)


def _choice_is_lawful(d: Decision, engines: list[LocalSnapshot]) -> None:
    weighed = {a.name: a for a in d.alternatives if a.objective_usd is not None}
    if d.chosen is None:
        return
    chosen, least = weighed[d.chosen.name], min(a.objective_usd or 0.0 for a in weighed.values())
    slack = NEAR_RATIO * min((a.marginal_cost_usd or 0.0) for a in weighed.values() if a.objective_usd == least)
    assert (chosen.objective_usd or 0.0) <= least + slack + 1e-9
    if d.chosen.tier is Tier.LOCAL:
        assert engines[int(d.chosen.name[-1])].state is ProcessState.READY
    elif d.reason is not None and d.reason.value.startswith("SPILL_") and d.reason is not Reason.SPILL_CONGESTION_PRICE:
        assert not any(a.tier is Tier.LOCAL for a in weighed.values())


# --- the plan of attempts ---------------------------------------------------------------------------------------------


def tried(ranked: tuple[Candidate, ...], outcome: Outcome = Outcome.UNAVAILABLE) -> list[str]:
    """Who is asked while everybody fails."""
    seen = house(*[engine()] * 4)
    everybody = decide(facts(), EASY, HOUSE, seen, CFG)
    plan: Generator[Attempt, AttemptResult, None] = attempts(
        replace(everybody, ranked=ranked), now_s=0.0, deadline_at_s=100.0
    )
    asked = [next(plan)]
    try:
        while True:
            asked.append(plan.send(AttemptResult(outcome, 0.1)))
    except StopIteration:
        return [attempt.candidate.name for attempt in asked]


FOUR = replace(ONE, name="local/gpu3")


def test_after_two_engines_of_ours_a_request_leaves_the_house_if_it_may() -> None:
    assert tried((ONE, TWO, THREE, FOUR, CHEAP)) == ["local/gpu0", "local/gpu1", CHEAP.name, CHEAP.name]
    assert tried((ONE, TWO, CHEAP)) == ["local/gpu0", "local/gpu1", CHEAP.name, CHEAP.name]


def test_what_must_stay_at_home_is_tried_on_all_engines() -> None:
    assert tried((ONE, TWO, THREE, FOUR), Outcome.TIMEOUT) == [c.name for c in (ONE, TWO, THREE, FOUR)]


def test_engines_behind_the_last_api_are_still_tried() -> None:
    assert tried((ONE, CHEAP, TWO, THREE), Outcome.TIMEOUT) == [c.name for c in (ONE, CHEAP, TWO, THREE)]


def test_a_session_stays_up_to_a_quarter_and_no_further() -> None:
    session = next(f"s{i}" for i in range(100) if choose_engine([("a", 0.0), ("b", 0.0)], f"s{i}") == "b")
    assert choose_engine([("a", 0.0), ("b", STAY_WITHIN_U)], session) == "b"
    assert choose_engine([("a", 0.0), ("b", STAY_WITHIN_U + 1e-9)], session) == "a"
