"""How tight an engine is for one more request: one number, u <= 1 fits. Pure and fast enough for every decision.

    u = max( TTFT/(f_ttft*SLO_ttft), TPOT/(f_tpot*SLO_tpot), LAG/(f_bucket*slack),
             KV needed at most/(f_kv*KV), (n + 1)/max_num_seqs )

TTFT and TPOT are predictions by the step-time model from the router's own, always fresh count of what is in the
engine. LAG protects those who are already streaming from a burst of prompts: how far the slowest of them will be behind
the promised pace once all prompts have been read, of which every chunk takes longer than the token it comes with is
worth. Where no stream shows its tokens, a bucket of prefill work not yet drained stands in for it, and a share of the
time per token is set aside for prefill. Everything is measured against its own promise, so the same factors hold on
every GPU.
"""

from __future__ import annotations

import math

from local_llm.datamodels import Binding, EngineCoefficients, EngineLimits, InflightState, SloTargets, Tightness
from local_llm.kv_demand import peak_tokens
from local_llm.steptime import drain_ratio, prefill_s, ttft_s

_MAX_PREFILL_RATIO = 0.9  # beyond it, 1/(1 - share) says nothing but "too slow"


def tightness(
    state: InflightState,
    coefficients: EngineCoefficients,
    limits: EngineLimits,
    slo: SloTargets,
    *,
    prompt_tokens: int,
    expected_output_tokens: int,
    now_s: float,
    output_variance: float = 0.0,
    f_ttft: float = 0.9,
    f_tpot: float = 0.6,
    f_bucket: float = 1.0,
    f_kv: float = 0.95,
) -> Tightness:
    """Tightness of the engine for a request of P prompt and O expected output tokens at `now_s` (monotonic).

    `state.unseen_factor` multiplies all that is counted, for load by others on the same engine; the bucket in `state`
    carries it already. `state.others_*` are a floor: a factor says nothing while we have nothing in there ourselves.
    `output_variance` is that of O (tokens squared; 0 reserves O in full). KV is left out where the engine does not tell
    its size. Never raises for positive targets and factors; never negative.
    """
    c = coefficients
    n, streaming, context, waiting_prompt = _load(state)
    step = c.t0_s + c.c_seq_s * streaming + c.c_kv_s * context
    backlog = waiting_prompt + prompt_tokens
    next_step = c.t0_s + c.c_seq_s * (n + 1.0) + c.c_kv_s * (context + backlog + 0.5 * expected_output_tokens)
    queued_ratio = c.c_prefill_s * backlog / max(1e-3, expected_output_tokens * slo.tpot_s + slo.slack_s)
    tpot = next_step / (1.0 - min(_MAX_PREFILL_RATIO, max(queued_ratio, state.prefill_share)))
    room = max(1.0, limits.max_batched_tokens - streaming)
    if state.backlog_done_at_s is None:
        pace = tpot
        ttft = ttft_s(
            c,
            decode_step_s=step,
            streaming=streaming,
            waiting_prompt_tokens=waiting_prompt,
            prompt_tokens=prompt_tokens,
            max_batched_tokens=limits.max_batched_tokens,
        )
        behind_s = _bucket_s(state, c, slo, step=step, prompt_tokens=prompt_tokens, now_s=now_s, f_tpot=f_tpot)
    else:
        # Where lag is known, the time that prefill takes is held against the slack, not against the pace.
        pace = next_step
        others_prompt = waiting_prompt - state.unseen_factor * state.waiting_prompt_tokens
        own_s = -(-prompt_tokens // room) * step + prefill_s(c, prompt_tokens) + c.c_prefill_s * others_prompt
        ttft = max(state.backlog_done_at_s - now_s, c.api_s + 0.5 * step) + own_s
        behind_s = _behind_s(state, slo, burst_s=ttft - c.api_s, chunk_s=step + c.c_prefill_s * room)
    u, binding = _tightest(
        ttft / (f_ttft * slo.ttft_s),
        pace / (f_tpot * slo.tpot_s),
        behind_s / (f_bucket * slo.slack_s),
        _kv_ratio(state, prompt_tokens, expected_output_tokens, output_variance, limits.kv_tokens, f_kv),
        (n + 1.0) / limits.max_num_seqs if limits.max_num_seqs > 0 else math.inf,
    )
    return Tightness(u=u, binding=binding, ttft_s=ttft, tpot_s=tpot)


def _tightest(ttft: float, tpot: float, burst: float, kv: float, seqs: float) -> tuple[float, Binding]:
    """The greatest ratio and whose it is; the first of equals."""
    u, binding = ttft, Binding.TTFT
    if tpot > u:
        u, binding = tpot, Binding.TPOT
    if burst > u:
        u, binding = burst, Binding.PREFILL_BURST
    if kv > u:
        u, binding = kv, Binding.KV
    if seqs > u:
        u, binding = seqs, Binding.SEQS
    return u, binding


def _kv_ratio(
    state: InflightState, prompt_tokens: int, output_tokens: int, variance: float, kv_tokens: int | None, f_kv: float
) -> float:
    """0 where the engine does not tell how much it has. What others hold is a floor: how they go on is not known."""
    if kv_tokens is None:
        return 0.0
    room = f_kv * kv_tokens
    if room <= 0.0:
        return math.inf
    wanted = prompt_tokens + output_tokens
    k, others = state.unseen_factor, 0.0
    if state.others_n > 0.0:
        others = state.others_context_tokens + state.others_waiting_prompt_tokens
    unseen = max((k - 1.0) * state.reserved_tokens, others)
    needed = peak_tokens(
        state.n + 1.0,
        state.context_tokens + state.waiting_prompt_tokens + prompt_tokens,
        state.reserved_tokens + wanted,
        state.output_variance + variance,
        state.reserved_squares + wanted * wanted,
    )
    return (needed + unseen) / room


def _load(state: InflightState) -> tuple[float, float, float, float]:
    """Requests, those streaming, context, prompt tokens waiting: ours times the unseen factor, and at least ours plus
    what others were seen to have in there.
    """
    k = state.unseen_factor
    n, streaming = k * state.n, k * state.streaming
    context, waiting_prompt = k * state.context_tokens, k * state.waiting_prompt_tokens
    if state.others_n > 0.0:
        others_context, others_prompt = state.others_context_tokens, state.others_waiting_prompt_tokens
        n = max(n, state.n + state.others_n)
        streaming = max(streaming, state.streaming + state.others_streaming)
        context = max(context, state.context_tokens + others_context)
        waiting_prompt = max(waiting_prompt, state.waiting_prompt_tokens + others_prompt)
    return n, streaming, context, waiting_prompt


def _bucket_s(
    state: InflightState,
    c: EngineCoefficients,
    slo: SloTargets,
    *,
    step: float,
    prompt_tokens: int,
    now_s: float,
    f_tpot: float,
) -> float:
    """Prefill work in the bucket with this prompt's on top; 0 for an empty one, whatever the prompt."""
    if state.bucket_s <= 0.0:
        return 0.0
    drained_s = drain_ratio(step, f_tpot=f_tpot, tpot_s=slo.tpot_s) * (now_s - state.bucket_at_s)
    left_s = state.bucket_s - drained_s
    return left_s + state.unseen_factor * prefill_s(c, prompt_tokens) if left_s > 0.0 else 0.0


def _behind_s(state: InflightState, slo: SloTargets, *, burst_s: float, chunk_s: float) -> float:
    """How far the slowest stream will be behind after `burst_s` of chunks: each brings a token worth the promised TPOT.

    Those whose prompt is still waiting start with no lag and see the rest of the burst.
    """
    lag = state.lag_s
    if state.waiting_prompt_tokens > 0.0 and (lag is None or lag < 0.0):
        lag = 0.0
    if lag is None:
        return 0.0
    # a chunk that takes no longer than its token is worth puts nobody behind, one that takes no time included
    lost_ratio = 1.0 - slo.tpot_s / chunk_s if chunk_s > slo.tpot_s else 0.0
    return max(0.0, lag + burst_s * lost_ratio)
