"""The loop: what policies see and when, and what is made of the answers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from local_llm.simulated_engine import LIMITS
from router.core.decision import PolicyConfig
from router.core.snapshot import PriceRow, PriceTier
from router.simulation.arrivals import gamma_bursts, poisson
from router.simulation.capacity import slo_capacity_rps
from router.simulation.plot import clock, round_step, svg
from router.simulation.policies import RULES, CountCap, GaugePolicy, Gauges, Policy, Running, rule
from router.simulation.product import ProductConfig, ProductPolicy
from router.simulation.report import STABLE, Result, api_costs_usd, percentile, pooled, row_of, summary_table
from router.simulation.runner import Run, Stay, run
from router.simulation.traces import TraceRequest

GPU = "h100-8b-fp16"
H100, ROOM, SLO = PRESETS[GPU], LIMITS[GPU], SloTargets()
PRICE = PriceRow(
    "api", "host", (PriceTier(0, Decimal("0.1"), Decimal("0.5")),), datetime(2026, 1, 1, tzinfo=UTC), None, "test", "1"
)
MIXED = tuple(TraceRequest(0.0, prompt, output) for prompt, output in ((300, 200), (1200, 100), (2500, 20), (4000, 30)))


def product(start: EngineCoefficients = H100, limits: EngineLimits = ROOM, **changes: object) -> ProductPolicy:
    return ProductPolicy(ProductConfig(start, limits, SLO, PRICE, **changes))  # type: ignore[arg-type]


def play(
    trace: tuple[TraceRequest, ...], policy: Policy, truth: EngineCoefficients = H100, limits: EngineLimits = ROOM
) -> Run:
    return run(trace, policy, coefficients=truth, limits=limits, seed=1)


def spend_and_misses(played: Run) -> tuple[float, float]:
    row = row_of("x", played, api_costs_usd([stay.request for stay in played.stays], PRICE), SLO)
    return row.spend_ratio, row.slo_miss_ratio


class Recorder:
    """Admits everything and writes down what it is told."""

    watches_tokens = True

    def __init__(self) -> None:
        self.scrapes: list[tuple[float, Gauges]] = []
        self.elsewhere: list[TraceRequest] = []
        self.streams: list[dict[str, float]] = []

    def admit(self, request: TraceRequest, now_s: float, /) -> Running | None:
        assert now_s == request.at_s
        noted: dict[str, float] = {"tokens": 0}
        self.streams.append(noted)

        class Stream:
            def first_token(self, now_s: float, /) -> None:
                assert "first" not in noted
                noted["first"] = now_s

            def token(self, count: int, now_s: float | None, /) -> None:
                assert "first" in noted
                assert "end" not in noted
                noted["tokens"] += count

            def end(self, now_s: float, output_tokens: int, /) -> None:
                noted["end"], noted["output"] = now_s, output_tokens

        return Stream()

    def scraped(self, gauges: Gauges, now_s: float, /) -> None:
        self.scrapes.append((now_s, gauges))

    def answered_elsewhere(self, request: TraceRequest, /) -> None:
        self.elsewhere.append(request)


def test_a_lone_request_is_seen_from_dispatch_to_its_last_token() -> None:
    recorder = Recorder()
    (stay,) = play((TraceRequest(3.0, 1000, 11),), recorder).stays
    (stream,) = recorder.streams
    assert stay.admitted
    prefill_s = H100.t0_s + H100.c_prefill_s * 1000 + 0.5 * H100.c_att_s * 1000**2
    assert stay.ttft_s == pytest.approx(H100.api_s + prefill_s)
    assert stay.tpot_s == pytest.approx(H100.t0_s + H100.c_seq_s + H100.c_kv_s * 1005.5, rel=1e-3)
    assert (stream["first"], stream["end"], stream["output"]) == (stay.first_token_at_s, stay.ended_at_s, 11)
    assert not stay.misses(SLO)


def test_no_stream_shows_more_tokens_than_it_has_even_when_it_is_preempted() -> None:
    cramped = replace(ROOM, kv_tokens=8000)
    recorder = Recorder()
    played = play(poisson(MIXED, rate_rps=8.0, count=80, seed=2), recorder, limits=cramped)
    assert played.preemptions > 0
    assert len(recorder.streams) == 80
    for stream in recorder.streams:
        assert stream["tokens"] + 1 <= stream["output"]
        assert stream["tokens"] + 1 >= stream["output"] - 8 - 1 or stream["output"] < 10


def test_scrapes_come_once_a_second_and_tell_how_busy_the_last_one_was() -> None:
    recorder = Recorder()
    play(tuple(TraceRequest(0.5 * at, 100, 400) for at in range(20)), recorder)
    times = [at for at, _ in recorder.scrapes]
    assert all(later - earlier == pytest.approx(1.0) for earlier, later in itertools.pairwise(times))
    assert 0.9 < max(gauges.utilization_ratio for _, gauges in recorder.scrapes) <= 1.0
    assert any(gauges.running > 1 and gauges.kv_usage_ratio > 0 for _, gauges in recorder.scrapes)


def test_the_same_seed_gives_the_same_run() -> None:
    trace = gamma_bursts(MIXED, rate_rps=8.0, count=300, seed=3)
    once, again = play(trace, product()), play(trace, product())
    assert [(s.admitted, s.ttft_s) for s in once.stays] == [(s.admitted, s.ttft_s) for s in again.stays]


def test_an_empty_trace_and_a_request_longer_than_the_window_are_no_trouble() -> None:
    assert play((), product()).stays == []
    recorder = Recorder()
    played = play((TraceRequest(0.0, 500_000, 10), TraceRequest(60.0, 10, 10)), recorder)
    assert [stay.admitted for stay in played.stays] == [False, True]
    assert [request.prompt_tokens for request in recorder.elsewhere] == [500_000]


def test_rules_of_thumb_go_by_the_last_scrape() -> None:
    request = TraceRequest(0.0, 1, 1)

    def passes(name: str, gauges: Gauges) -> bool:
        policy = RULES[name]()
        policy.scraped(gauges, 1.0)
        return policy.admit(request, 1.5) is not None

    assert passes("nvml80", Gauges(utilization_ratio=0.79))
    assert not passes("nvml80", Gauges(utilization_ratio=0.80))
    assert passes("waiting0", Gauges(running=900))
    assert not passes("waiting0", Gauges(waiting=1))
    assert passes("llmd", Gauges(waiting=4, kv_usage_ratio=0.79))
    assert not passes("llmd", Gauges(waiting=5))
    assert not passes("llmd", Gauges(kv_usage_ratio=0.8))
    assert passes("always_local", Gauges(1000, 1000, 1.0, 1.0))
    assert not passes("always_api", Gauges())


def test_a_count_cap_counts_until_the_end() -> None:
    policy, request = CountCap(1), TraceRequest(0.0, 1, 1)
    first = policy.admit(request, 0.0)
    assert first is not None
    assert policy.admit(request, 0.0) is None
    first.end(1.0, 1)
    assert policy.admit(request, 1.0) is not None


def test_policies_are_known_by_name() -> None:
    assert isinstance(rule("count64"), CountCap)
    assert isinstance(rule("llmd"), GaugePolicy)
    assert [rule(name) for name in ("count", "count0", "count-1", "count1x", "product", "")] == [None] * 6


def test_within_capacity_the_product_keeps_nearly_everything_and_its_promises() -> None:
    spend, misses = spend_and_misses(play(poisson(MIXED, rate_rps=3.0, count=800, seed=5), product()))
    assert spend < 0.02
    assert misses == 0.0


@pytest.mark.parametrize("self_calibration", [True, False])
def test_in_bursts_the_product_keeps_its_promises_where_rules_of_thumb_do_not(self_calibration: bool) -> None:
    trace = gamma_bursts(MIXED, rate_rps=9.0, count=2000, seed=6)
    spend, misses = spend_and_misses(play(trace, product(self_calibration=self_calibration)))
    assert misses <= 0.005
    for name in ("waiting0", "llmd"):
        assert spend_and_misses(play(trace, RULES[name]()))[1] > 0.05
    nvml_spend, _ = spend_and_misses(play(trace, RULES["nvml80"]()))
    assert spend < nvml_spend - 0.1


def test_coefficients_of_a_faster_gpu_are_put_right_by_what_is_seen() -> None:
    a100 = "a100-8b-fp16"
    trace = gamma_bursts(MIXED, rate_rps=3.5, count=2000, seed=7)
    believed_h100 = {"start": H100, "limits": LIMITS[a100]}
    _, misses = spend_and_misses(play(trace, product(**believed_h100), PRESETS[a100], LIMITS[a100]))  # type: ignore[arg-type]
    stubborn = product(**believed_h100, self_calibration=False)  # type: ignore[arg-type]
    _, without = spend_and_misses(play(trace, stubborn, PRESETS[a100], LIMITS[a100]))
    assert misses <= 0.01
    assert without > 5 * max(misses, 0.005)


def test_the_economy_factors_of_the_policy_reach_the_decision() -> None:
    trace = gamma_bursts(MIXED, rate_rps=9.0, count=800, seed=8)
    careful, _ = spend_and_misses(play(trace, product(policy=PolicyConfig(f_ttft=0.3))))
    usual, _ = spend_and_misses(play(trace, product()))
    assert careful > usual + 0.02


def test_capacity_is_the_load_of_which_one_percent_miss() -> None:
    slow = replace(H100, t0_s=0.05 * 0.9)
    found = slo_capacity_rps(MIXED, coefficients=H100, limits=ROOM, slo=SLO, requests=500)
    slower = slo_capacity_rps(MIXED, coefficients=slow, limits=ROOM, slo=SLO, requests=500)
    assert 3.0 < found < 1.0 / (H100.c_prefill_s * 2000)
    assert slower < 0.7 * found


def stay(ttft_s: float, took_s: float, output_tokens: int = 11, *, admitted: bool = True) -> Stay:
    return Stay(TraceRequest(10.0, 1000, output_tokens), admitted, 10.0 + ttft_s, 10.0 + ttft_s + took_s)


def test_a_promise_is_broken_late_or_slowly_and_never_by_one_that_was_not_admitted() -> None:
    assert not stay(1.0, 1.0).misses(SLO)
    assert stay(1.01, 0.1).misses(SLO)
    assert stay(0.1, 10 * 0.05 + 0.51).misses(SLO)
    assert Stay(TraceRequest(0.0, 1, 1), admitted=True).ended_at_s == math.inf


def test_the_row_holds_shares_of_all_requests_and_of_all_cash() -> None:
    played = Run([stay(0.1, 0.1), stay(2.0, 0.1), stay(0.5, 0.1, 1001, admitted=False)], 100.0, 25.0, 3)
    costs = api_costs_usd([s.request for s in played.stays], PRICE)
    assert costs[0] == Decimal("0.0001055")
    row = row_of("x", played, costs, SLO)
    assert list(row.stable()) == list(STABLE)
    assert row.stable() == {
        "policy": "x",
        "spend_ratio": round(0.0006005 / (0.0006005 + 2 * 0.0001055), 6),
        "slo_miss_ratio": round(1 / 3, 6),
        "ttft_p95_s": 2.0,
        "local_share_ratio": round(2 / 3, 6),
        "gpu_utilization_ratio": 0.25,
    }


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([], 0.95) == 0.0
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile([float(v) for v in range(1, 101)], 0.95) == 95.0


def results(*cells: tuple[str, str]) -> list[Result]:
    played = Run([stay(0.1, 0.1), stay(2.0, 0.1), stay(0.5, 0.1, admitted=False)], 20.0, 0.5, 0)
    costs = api_costs_usd([s.request for s in played.stays], PRICE)
    return [Result(workload, row_of(policy, played, costs, SLO), played, costs) for workload, policy in cells]


def texts_of(picture: str) -> list[str]:
    drawn = ElementTree.fromstring(picture)  # noqa: S314 - our own text
    return [element.text or "" for element in drawn.iter() if element.tag.endswith(("text", "title"))]


def test_the_plot_is_well_formed_and_names_every_policy_with_its_figures() -> None:
    texts = texts_of(svg(results(("w", "a<b"), ("w", "llmd")), title='R&D "x"', slo=SLO))
    assert {"a<b", "llmd", 'R&D "x"', "33.3", "33.33"} <= set(texts)
    assert any("where a<b sends the traffic" in text for text in texts)


@pytest.mark.parametrize(
    ("least", "step"), [(0.0, 1.0), (0.3, 0.5), (1.0, 1.0), (2.1, 2.5), (33.7, 50.0), (51.0, 100.0), (1e-9, 1e-9)]
)
def test_the_lines_of_a_plot_stand_at_round_figures(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)


def test_the_time_of_a_plot_is_told_in_one_unit() -> None:
    shown = [clock(tick * 30.0, 30.0) for tick in range(6)]
    assert shown == ["0 s", "30 s", "60 s", "90 s", "120 s", "150 s"]
    assert [clock(tick * 1800.0, 1800.0) for tick in (0, 3, 6)] == ["0 min", "90 min", "180 min"]
    assert clock(7200.0, 3600.0) == "2 h"


def test_several_workloads_are_drawn_as_a_point_each() -> None:
    texts = texts_of(svg(results(("one", "p"), ("two", "p")), title="t", slo=SLO))
    assert {"p, one", "p, two"} <= set(texts)


def test_the_summary_adds_money_up_and_tells_the_worst_misses() -> None:
    found = results(("one", "p"), ("two", "p"), ("one", "q"), ("two", "q"))
    found[0] = replace(found[0], row=replace(found[0].row, slo_miss_ratio=0.5))
    totals = pooled(found, SLO)
    assert [(total.workload, total.row.policy) for total in totals] == [("all", "p"), ("all", "q")]
    assert totals[0].row.spend_usd == 2 * found[0].row.spend_usd
    assert totals[0].row.local_share_ratio == pytest.approx(2 / 3)
    table = summary_table(found, totals)
    assert (table[0]["one"], table[0]["two"]) == ("33.3 / 50.00", "33.3 / 33.33")
    assert (table[0]["all: spend %"], table[0]["worst misses %"]) == ("33.3", "50.00")
