"""Work units are exact, additive per token and independent of the neighbours."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients
from local_llm.workunits import work_gpu_ns, work_gpu_s

HOUR = EngineCoefficients(name="hour", t0_s=0.0, c_seq_s=190e-6, c_kv_s=0.0, c_prefill_s=35e-6)
RATE_USD_PER_GPU_NS = Decimal("2.50") / 3600 / 1_000_000_000

coefficients = st.sampled_from(sorted(PRESETS.values(), key=lambda row: row.name))
tokens = st.integers(min_value=0, max_value=200_000)


def usd(work_ns: int) -> Decimal:
    return (work_ns * RATE_USD_PER_GPU_NS).quantize(Decimal("1e-9"), rounding=ROUND_HALF_EVEN)


def test_a_request_of_1000_and_300_tokens_costs_63889_nanodollars() -> None:
    assert usd(work_gpu_ns(HOUR, prompt_tokens=1000, output_tokens=300)) == Decimal("0.000063889")


def test_a_cached_and_aborted_request_pays_for_what_was_done() -> None:
    work = work_gpu_ns(HOUR, prompt_tokens=2000, cached_tokens=1500, output_tokens=120)
    assert usd(work) == Decimal("0.000027986")


def test_a_request_that_never_left_the_queue_costs_nothing() -> None:
    assert work_gpu_ns(HOUR, prompt_tokens=0, output_tokens=0) == 0


def test_an_hour_of_work_adds_up_to_what_the_books_absorb() -> None:
    r1 = usd(work_gpu_ns(HOUR, prompt_tokens=1000, output_tokens=300))
    r2 = usd(work_gpu_ns(HOUR, prompt_tokens=2000, cached_tokens=1500, output_tokens=120))
    absorbed = 20_000 * r1 + 1_000 * r2
    assert absorbed == Decimal("1.305766000")
    assert Decimal("2.5") - absorbed == Decimal("1.194234000")
    assert 40_000 * r1 == Decimal("2.555560000")


def test_the_kv_term_follows_its_closed_form() -> None:
    row = EngineCoefficients(name="kv", t0_s=0.01, c_seq_s=0.0, c_kv_s=1e-7, c_prefill_s=0.0, c_att_s=2e-10)
    # attention: half 2e-10 * (1000^2 - 200^2) = 96 us; weights: 100 * 0.01/100; KV: 1e-7 * 100 * (1000 + 50)
    work = work_gpu_ns(row, prompt_tokens=1000, cached_tokens=200, output_tokens=100)
    assert work == 96_000 + 10_000_000 + 10_500_000


@given(coefficients, tokens, tokens, tokens)
def test_the_integer_is_the_float_rounded(row: EngineCoefficients, prompt: int, cached: int, out: int) -> None:
    exact = work_gpu_ns(row, prompt_tokens=prompt, cached_tokens=cached, output_tokens=out)
    estimate = work_gpu_s(row, prompt_tokens=prompt, cached_tokens=cached, output_tokens=out)
    assert isinstance(exact, int)
    assert exact == pytest.approx(estimate * 1e9, rel=1e-9, abs=1.0)


@given(coefficients, tokens, tokens, tokens, tokens)
def test_more_output_never_costs_less(row: EngineCoefficients, prompt: int, cached: int, out: int, more: int) -> None:
    less = work_gpu_ns(row, prompt_tokens=prompt, cached_tokens=cached, output_tokens=out)
    assert 0 <= less <= work_gpu_ns(row, prompt_tokens=prompt, cached_tokens=cached, output_tokens=out + more)


@given(coefficients, tokens, tokens, tokens, tokens)
def test_more_uncached_prompt_never_costs_less(
    row: EngineCoefficients, prompt: int, cached: int, out: int, more: int
) -> None:
    less = work_gpu_ns(row, prompt_tokens=prompt, cached_tokens=min(prompt, cached), output_tokens=out)
    assert less <= work_gpu_ns(row, prompt_tokens=prompt + more, cached_tokens=min(prompt, cached), output_tokens=out)


@given(coefficients, tokens, tokens, tokens)
def test_a_cache_hit_never_makes_a_request_dearer(row: EngineCoefficients, prompt: int, cached: int, out: int) -> None:
    hit = work_gpu_ns(row, prompt_tokens=prompt, cached_tokens=cached, output_tokens=out)
    assert hit <= work_gpu_ns(row, prompt_tokens=prompt, output_tokens=out)


@given(coefficients, st.integers(), st.integers(), st.integers(max_value=1000))
def test_absurd_token_counts_are_clamped(row: EngineCoefficients, prompt: int, cached: int, out: int) -> None:
    assert work_gpu_ns(row, prompt_tokens=prompt, cached_tokens=cached, output_tokens=out) >= 0
    everything_cached = work_gpu_ns(row, prompt_tokens=10, cached_tokens=99, output_tokens=0)
    assert everything_cached == 0
