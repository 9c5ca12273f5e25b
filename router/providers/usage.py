"""Usage objects as model hosts send them, in our words.

`TokenUsage.input_tokens` includes cached tokens and `output_tokens` includes reasoning, whoever reports. What
contradicts itself is clamped and flagged; what says nothing usable is `None`, and the caller estimates. A host that
does not say how much of the prompt it read from its cache (vLLM without `--enable-prompt-tokens-details`) is booked for
the whole prompt, flagged CACHE_UNKNOWN: not told is not zero.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from router.core.request import TokenUsage
from router.core.vocabulary import Flag


def usage_from(reported: Any, *, saw_output: bool) -> TokenUsage | None:
    """An OpenAI-style usage object as `TokenUsage`.

    `None` when it is missing, lacks a count, counts no prompt at all, or counts no output although output was seen
    (`saw_output`): such figures would book a call as free.
    """
    if not isinstance(reported, dict):
        return None
    prompt, completion = _count(reported.get("prompt_tokens")), _count(reported.get("completion_tokens"))
    if prompt is None or completion is None or (saw_output and completion == 0):
        return None
    prompt_details = _details(reported, "prompt_tokens_details")
    told = (prompt_details.get("cached_tokens"), reported.get("prompt_cache_hit_tokens"))
    cached = _first(*told)
    written = _first(
        prompt_details.get("cache_write_tokens"),
        prompt_details.get("cache_creation_tokens"),
        reported.get("cache_creation_input_tokens"),
    )
    reasoning = _first(_details(reported, "completion_tokens_details").get("reasoning_tokens"))
    if reasoning > 0 and _count(reported.get("total_tokens")) == prompt + completion + reasoning:
        completion += reasoning  # some hosts report reasoning beside the completion instead of within it
    usage = consistent(
        input_tokens=prompt,
        output_tokens=completion,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
    )
    if all(_count(value) is None for value in told):
        usage = replace(usage, flags=(*usage.flags, Flag.CACHE_UNKNOWN))
    return usage if usage.input_tokens > 0 else None


def consistent(
    *,
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int,
    cache_write_tokens: int,
    reasoning_tokens: int,
) -> TokenUsage:
    """Counts clamped to 0 <= part <= whole; `USAGE_INCONSISTENT` is flagged if anything had to be moved."""
    given = (input_tokens, output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens)
    whole_in, whole_out = max(0, input_tokens), max(0, output_tokens)
    cached = min(max(0, cached_input_tokens), whole_in)
    written = min(max(0, cache_write_tokens), whole_in - cached)
    reasoning = min(max(0, reasoning_tokens), whole_out)
    moved = given != (whole_in, whole_out, cached, written, reasoning)
    return TokenUsage(
        input_tokens=whole_in,
        output_tokens=whole_out,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        flags=(Flag.USAGE_INCONSISTENT,) if moved else (),
    )


def _count(value: Any) -> int | None:
    """A token count; integral floats pass, booleans and anything else do not."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _first(*values: Any) -> int:
    """The first value that is a count, else 0."""
    for value in values:
        count = _count(value)
        if count is not None:
            return count
    return 0


def _details(reported: dict[str, Any], key: str) -> dict[str, Any]:
    details = reported.get(key)
    return details if isinstance(details, dict) else {}
