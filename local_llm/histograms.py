"""How fast an engine was between two looks at its own histograms, whoever asked. Pure.

A router learns an engine's speed from its own streams. Where it has none (an external engine that serves others, or
only plain calls) the engine's sums and counts tell: the mean gap between two tokens of a stream is the mean step, the
prompt tokens read meanwhile were read in those steps, and a lone prompt's time to first token is that of its reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from local_llm.datamodels import EngineCoefficients, EngineCounters, EngineReading
from local_llm.steptime import prefill_s, step_s

_LONGEST_S = 10.0  # two looks further apart say nothing of what was in the engine between them
_ENOUGH_GAPS = 20
_ENOUGH_STREAMS = 4


@dataclass(frozen=True, slots=True)
class EngineInterval:
    """What an engine did between two looks, in the means: a step took `step_s`, with `streaming` sequences over
    `context_tokens` in all and `prompt_tokens_per_step` read beside them.

    Or, where `lone_prompt_tokens` is set, one prompt of that length came into an empty engine and had its first token
    after `step_s`.
    """

    step_s: float
    streaming: float
    context_tokens: float
    prompt_tokens_per_step: float = 0.0
    lone_prompt_tokens: int | None = None


def between(before: EngineCounters, after: EngineCounters) -> EngineInterval | None:
    """What can be said of the time between two looks; `None` where that is nothing.

    Nothing is said over a restart (a count that fell), over a long gap between the looks, or where too little came of
    it. With prompts being read, only gaps of enough streams that were there before tell of the steps.
    """
    if not 0.0 < after.reading.taken_at_s - before.reading.taken_at_s <= _LONGEST_S:
        return None
    read_tokens = _read_tokens(before, after)
    firsts = _grown(before.first_tokens, after.first_tokens)
    if read_tokens is None or firsts is None:
        return None
    found_it_empty = before.reading.running_requests == 0 and before.reading.waiting_requests == 0
    if firsts == 1 and read_tokens > 0 and found_it_empty:
        waited_s = _grown(before.first_tokens_s, after.first_tokens_s)
        return EngineInterval(waited_s, 0.0, 0.0, lone_prompt_tokens=round(read_tokens)) if waited_s else None
    return _steps_between(before, after, read_tokens)


def predicted(seen: EngineInterval, coefficients: EngineCoefficients, max_batched_tokens: int) -> tuple[float, float]:
    """What `seen.step_s` should have been by `coefficients`, and the share of that which is prefill."""
    prompt = seen.lone_prompt_tokens
    if prompt is not None:
        rest_s = coefficients.api_s + math.ceil(prompt / max_batched_tokens) * coefficients.t0_s
        work_s = prefill_s(coefficients, prompt)
    else:
        rest_s = step_s(coefficients, streaming=seen.streaming, context_tokens=seen.context_tokens)
        work_s = coefficients.c_prefill_s * seen.prompt_tokens_per_step
    total_s = rest_s + work_s
    return total_s, work_s / total_s if total_s > 0.0 else 0.0


def _steps_between(before: EngineCounters, after: EngineCounters, read_tokens: float) -> EngineInterval | None:
    gaps, gaps_s = _grown(before.token_gaps, after.token_gaps), _grown(before.token_gaps_s, after.token_gaps_s)
    running, was_running = after.reading.running_requests, before.reading.running_requests
    streaming, context = _mean(was_running, running), _mean(_held(before.reading), _held(after.reading))
    if not gaps or gaps < _ENOUGH_GAPS or not gaps_s or not streaming or context is None:
        return None
    if read_tokens == 0.0:
        return EngineInterval(gaps_s / gaps, streaming, context) if running == was_running else None
    steps = _grown(before.steps, after.steps)
    if not steps or min(was_running or 0, running or 0) < _ENOUGH_STREAMS:
        return None
    return EngineInterval(gaps_s / gaps, streaming, context, read_tokens / steps)


def _read_tokens(before: EngineCounters, after: EngineCounters) -> float | None:
    """Prompt tokens that were computed; those found in a cache cost nothing."""
    came = _grown(before.reading.prompt_tokens, after.reading.prompt_tokens)
    if came is None:
        return None
    cached = _grown(before.cached_prompt_tokens, after.cached_prompt_tokens)
    return max(0.0, came - (cached or 0.0))


def _held(reading: EngineReading) -> float | None:
    if reading.kv_cache_usage_ratio is None or reading.kv_tokens is None:
        return None
    return reading.kv_cache_usage_ratio * reading.kv_tokens


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or after < before else float(after - before)


def _mean(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else 0.5 * (before + after)
