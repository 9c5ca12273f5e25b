"""Load that others send to the same engine, learnt from its own counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineLimits, InflightState, Others, SloTargets
from local_llm.inflight import Inflight
from local_llm.tightness import tightness
from local_llm.unseen import UnseenLoad


def looked(looks: int, *, running: int, waiting: int, own_n: int, **more: float) -> UnseenLoad:
    unseen = UnseenLoad()
    for second in range(looks):
        unseen.observe(float(second), running=running, waiting=waiting, own_n=own_n, **more)
    return unseen


def test_alone_on_an_engine_the_factor_is_one() -> None:
    unseen = looked(30, running=8, waiting=2, own_n=10)
    assert unseen.factor == 1.0
    assert unseen.others == Others()


def test_three_equal_routers_make_a_factor_of_three() -> None:
    assert looked(30, running=12, waiting=0, own_n=4).factor == pytest.approx(3.0)


def test_too_little_evidence_says_nothing() -> None:
    assert looked(4, running=50, waiting=0, own_n=4).factor == 1.0
    assert looked(6, running=50, waiting=0, own_n=4).factor > 1.0


def test_the_factor_forgets_within_minutes() -> None:
    unseen = looked(60, running=12, waiting=0, own_n=4)
    for second in range(60, 300):
        unseen.observe(float(second), running=4, waiting=0, own_n=4)
    assert unseen.factor < 1.1


def test_a_look_without_counts_is_no_look() -> None:
    unseen = looked(30, running=12, waiting=0, own_n=4)
    before = unseen.factor, unseen.others
    unseen.observe(31.0, running=None, waiting=7, own_n=4)
    unseen.observe(32.0, running=7, waiting=None, own_n=4)
    assert (unseen.factor, unseen.others) == before


def test_load_by_others_is_seen_even_while_we_send_nothing() -> None:
    unseen = looked(3, running=20, waiting=500, own_n=0, kv_tokens_used=99_000.0)
    assert unseen.factor == 1.0
    assert unseen.others == Others(n=520, streaming=20, context_tokens=99_000, waiting_prompt_tokens=500_000)


def test_a_request_of_ours_on_its_way_out_is_nobody_elses() -> None:
    unseen = UnseenLoad()
    for second, running in enumerate((4, 6, 4, 5)):
        unseen.observe(float(second), running=running, waiting=0, own_n=4)
    assert unseen.others == Others()


def test_an_engine_full_of_others_requests_is_tight_for_our_first() -> None:
    inflight = Inflight(PRESETS["h100-8b-fp16"], SloTargets())
    limits = EngineLimits(max_num_seqs=256, kv_tokens=100_000)

    def u(state: InflightState) -> float:
        return tightness(
            state, inflight.coefficients, limits, inflight.slo, prompt_tokens=100, expected_output_tokens=50, now_s=9.0
        ).u

    assert u(inflight.state(9.0)) < 0.3
    inflight.others = looked(3, running=20, waiting=500, own_n=0, kv_tokens_used=99_000.0).others
    assert u(inflight.state(9.0)) > 1.0


@given(st.lists(st.tuples(st.floats(-5, 100), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))))
def test_whatever_is_seen_the_figures_stay_sane(looks: list[tuple[float, int, int, int]]) -> None:
    unseen, now_s = UnseenLoad(), 0.0
    for passed_s, running, waiting, own_n in looks:
        now_s += passed_s
        unseen.observe(now_s, running=running, waiting=waiting, own_n=own_n)
        assert unseen.factor >= 1.0
        assert unseen.others.n >= unseen.others.streaming >= 0
        assert unseen.others.context_tokens >= 0
