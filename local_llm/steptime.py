"""The step-time model of a continuous-batching engine: how long a step, a prefill and a first token take. Pure.

A step lasts `t0 + c_seq*B + c_kv*S + c_prefill*P` seconds, with B decoding sequences, S tokens of context they hold
and P prompt tokens read in the step (the linear sum-of-rooflines form used by simulators of vLLM).
"""

from __future__ import annotations

from local_llm.datamodels import EngineCoefficients, SloTargets

_MIN_DRAIN_RATIO = 0.05  # a prefill bucket always drains a little, however full the decode steps are
_TILE_TOKENS = 128
_MIN_STEP_TOKENS, _MAX_STEP_TOKENS = 256, 8192


def step_s(coefficients: EngineCoefficients, *, streaming: float, context_tokens: float) -> float:
    """Seconds of one pure decode step over `streaming` sequences that hold `context_tokens` in all."""
    return coefficients.t0_s + coefficients.c_seq_s * streaming + coefficients.c_kv_s * context_tokens


def prefill_s(coefficients: EngineCoefficients, prompt_tokens: float) -> float:
    """Seconds of GPU work to read a prompt: c_prefill*P + half c_att*P^2."""
    return coefficients.c_prefill_s * prompt_tokens + 0.5 * coefficients.c_att_s * prompt_tokens * prompt_tokens


def read_s(
    coefficients: EngineCoefficients,
    prompt_tokens: float,
    squares: float,
    *,
    decode_step_s: float,
    room_tokens: float,
) -> float:
    """Seconds until prompts of `prompt_tokens` in all, whose squares sum to `squares`, have been read one by one.

    Chunks are packed: each `room_tokens` of them carry one decode step of everyone else.
    """
    per_token_s = coefficients.c_prefill_s + decode_step_s / room_tokens
    return per_token_s * prompt_tokens + 0.5 * coefficients.c_att_s * squares


def ttft_s(
    coefficients: EngineCoefficients,
    *,
    decode_step_s: float,
    streaming: float,
    waiting_prompt_tokens: float,
    prompt_tokens: int,
    max_batched_tokens: int,
) -> float:
    """Predicted seconds to the first token of a prompt dispatched now.

    Half of the step under way, then the backlog and the prompt in chunks of what a step has room for, each chunk
    carrying a decode step of everyone else: api + half(step + c_pf*min(pf, room)) + ceil((pf+P)/room)*step
    + c_pf*(pf+P) + half c_att*P^2 with room = max_batched_tokens - B.
    """
    room = max_batched_tokens - streaming
    if room < 1.0:
        room = 1.0
    backlog = waiting_prompt_tokens + prompt_tokens
    steps = -(-backlog // room)
    running_chunk = min(room, waiting_prompt_tokens)
    return (
        coefficients.api_s
        + 0.5 * (decode_step_s + coefficients.c_prefill_s * running_chunk)
        + steps * decode_step_s
        + coefficients.c_prefill_s * backlog
        + 0.5 * coefficients.c_att_s * prompt_tokens * prompt_tokens
    )


def drain_ratio(decode_step_s: float, *, f_tpot: float, tpot_s: float) -> float:
    """Share of the GPU's time that prefill may take while everyone streaming still keeps the TPOT promise."""
    drain = 1.0 - decode_step_s / (f_tpot * tpot_s)
    return max(_MIN_DRAIN_RATIO, drain)


def tokens_per_step(coefficients: EngineCoefficients, slo: SloTargets) -> int:
    """Token budget of a step (`max_num_batched_tokens`): the most that one token of every stream is worth waiting for.

    A chunk of prefill stalls every stream for as long as it takes. One that lasts no longer than the promised time per
    token puts nobody behind, however long a burst of prompts is (1152 on an H100 with an 8B model, 512 on an A100).
    """
    fitting = (slo.tpot_s - coefficients.t0_s) / coefficients.c_prefill_s if coefficients.c_prefill_s > 0.0 else 0.0
    tiles = int(min(fitting, float(_MAX_STEP_TOKENS)) // _TILE_TOKENS)
    return max(_MIN_STEP_TOKENS, tiles * _TILE_TOKENS)
