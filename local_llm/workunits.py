"""Work content of a request: GPU-seconds at practical capacity (time-driven activity-based costing). Pure.

    g = c_pf*(prompt - cached) + half c_att*(prompt^2 - cached^2) + out*(c_seq + t0/B*) + c_kv*out*(prompt + out/2)

The first two terms are the prefill (compute), the third is the sequence's share of every step it took part in, the
last is the reading of its KV cache. It depends on nobody else in the batch, so that a bill never depends on
neighbours. Work per token is constant, hence a request aborted after k tokens costs what k tokens cost.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import NamedTuple

from local_llm.datamodels import EngineCoefficients

_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_NS_PER_S = Decimal(1_000_000_000)
_HALF = Decimal("0.5")


class _PerToken(NamedTuple):
    """Coefficients in exact decimal nanoseconds."""

    prefill: Decimal
    half_attention: Decimal
    decode: Decimal
    kv: Decimal


@lru_cache(maxsize=64)
def _per_token_ns(coefficients: EngineCoefficients) -> _PerToken:
    def exact_ns(seconds: float) -> Decimal:
        return _EXACT.multiply(Decimal(repr(seconds)), _NS_PER_S)

    shared_read = _EXACT.divide(exact_ns(coefficients.t0_s), Decimal(repr(coefficients.practical_batch)))
    return _PerToken(
        prefill=exact_ns(coefficients.c_prefill_s),
        half_attention=_EXACT.multiply(exact_ns(coefficients.c_att_s), _HALF),
        decode=_EXACT.add(exact_ns(coefficients.c_seq_s), shared_read),
        kv=exact_ns(coefficients.c_kv_s),
    )


def _clamped(prompt_tokens: int, cached_tokens: int, output_tokens: int) -> tuple[int, int, int]:
    prompt = max(0, prompt_tokens)
    return prompt, min(max(0, cached_tokens), prompt), max(0, output_tokens)


def work_gpu_s(
    coefficients: EngineCoefficients, *, prompt_tokens: int, cached_tokens: int = 0, output_tokens: int
) -> float:
    """GPU-seconds of a request, for comparing and deciding.

    `prompt_tokens` includes `cached_tokens`; more cached tokens than prompt count as all of it, negative counts as 0.
    Monotone in the uncached prompt and in the output.
    """
    prompt, cached, out = _clamped(prompt_tokens, cached_tokens, output_tokens)
    return (
        coefficients.c_prefill_s * (prompt - cached)
        + 0.5 * coefficients.c_att_s * (prompt * prompt - cached * cached)
        + out * (coefficients.c_seq_s + coefficients.t0_s / coefficients.practical_batch)
        + coefficients.c_kv_s * out * (prompt + 0.5 * out)
    )


def work_gpu_ns(
    coefficients: EngineCoefficients, *, prompt_tokens: int, cached_tokens: int = 0, output_tokens: int
) -> int:
    """GPU-nanoseconds of a request, for booking: computed in exact decimals and rounded once, half to even.

    Takes the same arguments as `work_gpu_s`. The coefficients count as the decimal numbers they are written as, so
    the same figures give the same bill on every machine.
    """
    prompt, cached, out = _clamped(prompt_tokens, cached_tokens, output_tokens)
    per_token = _per_token_ns(coefficients)
    total = _EXACT.multiply(per_token.prefill, Decimal(prompt - cached))
    total = _EXACT.add(total, _EXACT.multiply(per_token.half_attention, Decimal(prompt * prompt - cached * cached)))
    total = _EXACT.add(total, _EXACT.multiply(per_token.decode, Decimal(out)))
    kv_token_steps = _EXACT.multiply(Decimal(out * (2 * prompt + out)), _HALF)
    total = _EXACT.add(total, _EXACT.multiply(per_token.kv, kv_token_steps))
    return int(total.to_integral_value(rounding=ROUND_HALF_EVEN))
