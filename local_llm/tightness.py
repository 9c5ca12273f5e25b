"""How tight an engine is for one more request: one number, u <= 1 fits. Pure and fast enough for every decision.

    u = max( TTFT/(f_ttft*SLO_ttft), TPOT/(f_tpot*SLO_tpot), [bucket > 0]*(bucket + w)/(f_bucket*slack),
             (reserved + P + O)/(f_kv*KV), (n + 1)/max_num_seqs )

TTFT and TPOT are predictions by the step-time model from the router's own, always fresh count of what is in the
engine; the bucket holds seconds of prefill work and protects those who are already streaming from a burst of prompts.
Everything is measured against its own promise, so the same factors hold on every GPU.
"""

from __future__ import annotations

from local_llm.datamodels import Binding, EngineCoefficients, EngineLimits, InflightState, SloTargets, Tightness
from local_llm.steptime import drain_ratio, ttft_s

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
    f_ttft: float = 0.9,
    f_tpot: float = 0.6,
    f_bucket: float = 1.0,
    f_kv: float = 0.95,
) -> Tightness:
    """Tightness of the engine for a request of P prompt and O expected output tokens at `now_s` (monotonic).

    `state.unseen_factor` multiplies all that is counted, for load by others on the same engine; the bucket in `state`
    carries it already. `state.others_*` are a floor: a factor says nothing while we have nothing in there ourselves. KV
    is left out where the engine does not tell its size. Never raises for positive targets and factors; never negative.
    """
    k = state.unseen_factor
    n = k * state.n
    streaming = k * state.streaming
    context = k * state.context_tokens
    waiting_prompt = k * state.waiting_prompt_tokens
    reserved = k * state.reserved_tokens
    if state.others_n > 0.0:
        n = max(n, state.n + state.others_n)
        streaming = max(streaming, state.streaming + state.others_streaming)
        context = max(context, state.context_tokens + state.others_context_tokens)
        waiting_prompt = max(waiting_prompt, state.waiting_prompt_tokens + state.others_waiting_prompt_tokens)
        reserved = max(
            reserved, state.reserved_tokens + state.others_context_tokens + state.others_waiting_prompt_tokens
        )
    c = coefficients

    step = c.t0_s + c.c_seq_s * streaming + c.c_kv_s * context
    ttft = ttft_s(
        c,
        decode_step_s=step,
        streaming=streaming,
        waiting_prompt_tokens=waiting_prompt,
        prompt_tokens=prompt_tokens,
        max_batched_tokens=limits.max_batched_tokens,
    )

    backlog = waiting_prompt + prompt_tokens
    next_step = c.t0_s + c.c_seq_s * (n + 1.0) + c.c_kv_s * (context + backlog + 0.5 * expected_output_tokens)
    queued_ratio = c.c_prefill_s * backlog / max(1e-3, expected_output_tokens * slo.tpot_s + slo.slack_s)
    prefill_ratio = max(queued_ratio, state.prefill_share)
    tpot = next_step / (1.0 - min(_MAX_PREFILL_RATIO, prefill_ratio))

    u = ttft / (f_ttft * slo.ttft_s)
    binding = Binding.TTFT
    ratio = tpot / (f_tpot * slo.tpot_s)
    if ratio > u:
        u, binding = ratio, Binding.TPOT
    bucket = state.bucket_s
    if bucket > 0.0:
        bucket -= drain_ratio(step, f_tpot=f_tpot, tpot_s=slo.tpot_s) * (now_s - state.bucket_at_s)
        if bucket > 0.0:
            work = k * (c.c_prefill_s * prompt_tokens + 0.5 * c.c_att_s * prompt_tokens * prompt_tokens)
            ratio = (bucket + work) / (f_bucket * slo.slack_s)
            if ratio > u:
                u, binding = ratio, Binding.PREFILL_BURST
    if limits.kv_tokens is not None:
        kv_room = f_kv * limits.kv_tokens
        ratio = (reserved + prompt_tokens + expected_output_tokens) / kv_room if kv_room > 0.0 else float("inf")
        if ratio > u:
            u, binding = ratio, Binding.KV
    ratio = (n + 1.0) / limits.max_num_seqs if limits.max_num_seqs > 0 else float("inf")
    if ratio > u:
        u, binding = ratio, Binding.SEQS
    return Tightness(u=u, binding=binding, ttft_s=ttft, tpot_s=tpot)
