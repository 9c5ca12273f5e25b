"""Measure an engine to fit its coefficients: prompts of growing length alone, then batches of streams side by side.

The engine must be idle otherwise. Prompts are random words, so that no prefix cache helps; what counts are the prompt
tokens that the engine reports.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec

from local_llm.calibration import CalibrationError, DecodeRun, Fit, PrefillRun, fit
from local_llm.datamodels import EngineLimits

_WORDS = ("apple", "river", "seven", "cloud", "orange", "stone", "table", "music", "winter", "garden", "blue", "paper")
_OUTPUT_TOKENS = 48
_LENGTHEN = (1, 2, 4, 8, 16)
_LASTING_S = 0.1  # a shorter run says more about when this process was let at its socket than about the engine
_LEAST_STEP_S = 1e-4  # no step is quicker than the way of a token through HTTP: these came together, in one read
_ENOUGH_RUNS = 3
_PROMPT_REPEATS = 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TimedReply:
    """A streamed answer: the prompt's tokens as the engine counts them, and when each output token came."""

    prompt_tokens: int
    sent_at_s: float
    token_at_s: tuple[float, ...]


TimedCall = Callable[[str, int], Awaitable[TimedReply]]


@dataclass(frozen=True, slots=True)
class MeasurePlan:
    """What to try, in words of prompt and streams at once."""

    prompt_words: tuple[int, ...]
    batches: tuple[int, ...]
    batch_prompt_words: tuple[int, ...]
    output_tokens: int = _OUTPUT_TOKENS


def plan_for(limits: EngineLimits, *, tokens_per_word: float = 2.0) -> MeasurePlan:
    """A plan that stays within half the context window, the engine's sequences and its KV cache.

    Batches come as smallest, largest, then the rest: when time runs out, the ends of the range have been seen.
    """
    longest = max(48, int(limits.context_window_tokens / 2 / tokens_per_word))
    prompts = tuple(words for words in (32, 128, 512, 1024, 2048, 4096) if words <= longest)
    held = 32 * tokens_per_word + _OUTPUT_TOKENS
    room = limits.max_num_seqs if limits.kv_tokens is None else min(limits.max_num_seqs, int(limits.kv_tokens / held))
    batches = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= max(1, room)]
    long = min(512, longest)
    if limits.kv_tokens is not None:  # a batch that does not fit the cache is no batch
        long = max(32, min(long, int((limits.kv_tokens / batches[-1] - _OUTPUT_TOKENS) / tokens_per_word)))
    return MeasurePlan(
        prompt_words=prompts if len(prompts) >= 3 else (longest // 4, longest // 2, longest),
        batches=(*batches[:1], *batches[:0:-1][:1], *batches[1:-1]),
        batch_prompt_words=(32, long),
    )


async def tokens_per_word(call: TimedCall) -> float:
    """How many of the engine's tokens a word of our prompts is: models know different words."""
    dice = random.Random(0)
    few, many = [(await call(_prompt(dice, words), 2)).prompt_tokens for words in (8, 40)]
    return max(0.5, (many - few) / 32)


async def measure(
    call: TimedCall,
    limits: EngineLimits,
    *,
    name: str,
    plan: MeasurePlan | None = None,
    dice: random.Random | None = None,
    note: Callable[[str], object] = lambda _: None,
    time_left: Callable[[], bool] = lambda: True,
) -> Fit:
    """Run `plan` against an idle engine and fit. `note` is told of progress in words.

    When `time_left` says no, only what a fit cannot do without (three runs of each kind) is still measured.
    Raises `CalibrationError` when too little could be measured; errors of `call` pass through.
    """
    plan, dice = plan or plan_for(limits), dice or random.Random()
    await call(_prompt(dice, 16), 4)  # the first request of an engine's life is never like the others
    prefill: list[PrefillRun] = []
    for words in _within(plan.prompt_words, prefill, time_left):
        replies = [await call(_prompt(dice, words), 2)]
        while len(replies) < _PROMPT_REPEATS and time_left():
            replies.append(await call(_prompt(dice, words), 2))
        runs = [PrefillRun(r.prompt_tokens, r.token_at_s[0] - r.sent_at_s) for r in replies if r.token_at_s]
        if runs:  # the middle one: a single hiccup would bend the whole fit
            prefill.append(sorted(runs, key=lambda run: run.ttft_s)[len(runs) // 2])
            note(f"prompt of {prefill[-1].prompt_tokens} tokens: first token after {prefill[-1].ttft_s:.3f} s")
    decode: list[DecodeRun] = []
    pairs = [(streams, words) for streams in plan.batches for words in plan.batch_prompt_words]
    for streams, words in _within(pairs, decode, time_left):
        prompts = [_prompt(dice, words) for _ in range(streams)]
        run = await _decode_run_of(call, prompts, plan.output_tokens, limits.context_window_tokens // 2)
        if run is not None:
            decode.append(run)
            note(f"{run.streaming} streams with {run.context_tokens:.0f} tokens: {run.step_s * 1e3:.1f} ms a step")
    return fit(
        name,
        decode,
        prefill,
        practical_batch=float(max(plan.batches, default=1)),
        max_batched_tokens=limits.max_batched_tokens,
    )


def _within(steps: Sequence[_T], done: Sequence[object], time_left: Callable[[], bool]) -> Iterator[_T]:
    """`steps` while there is time, and as long as fewer than three are `done`."""
    for step in steps:
        if len(done) >= _ENOUGH_RUNS and not time_left():
            return
        yield step


async def _decode_run_of(
    call: TimedCall, prompts: Sequence[str], output_tokens: int, longest_tokens: int
) -> DecodeRun | None:
    """A batch of `prompts`; streams of a fast engine may end before all have begun, or too soon: longer ones then."""
    found = None
    for times in _LENGTHEN:
        tokens = max(output_tokens, min(times * output_tokens, longest_tokens))
        run = decode_run(await asyncio.gather(*(call(prompt, tokens) for prompt in prompts)))
        found = run or found
        if run is not None and run.step_s * tokens >= _LASTING_S:
            break
    return found


def decode_run(replies: Sequence[TimedReply]) -> DecodeRun | None:
    """The steps that all of `replies` took part in: from the last first token to the first last one.

    `None` if they did not overlap for at least four tokens each, or came so late to us that they came together.
    """
    streams = [reply for reply in replies if len(reply.token_at_s) >= 2]
    if not streams or len(streams) < len(replies):
        return None
    begin_s = max(reply.token_at_s[0] for reply in streams)
    end_s = min(reply.token_at_s[-1] for reply in streams)
    gaps = [_gaps_s(reply.token_at_s, begin_s, end_s) for reply in streams]
    if min(len(of_one) for of_one in gaps) < 4:
        return None
    context = sum(
        reply.prompt_tokens + sum(1 for at_s in reply.token_at_s if at_s <= (begin_s + end_s) / 2) for reply in streams
    )
    step_s = statistics.median(statistics.fmean(of_one) for of_one in gaps)
    return DecodeRun(len(streams), float(context), step_s) if step_s >= _LEAST_STEP_S else None


def _gaps_s(token_at_s: Sequence[float], begin_s: float, end_s: float) -> list[float]:
    pairs = itertools.pairwise(token_at_s)
    return [later - earlier for earlier, later in pairs if begin_s <= earlier and later <= end_s]


def _prompt(dice: random.Random, words: int) -> str:
    return " ".join(dice.choice(_WORDS) for _ in range(words))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None


def timed_call(
    session: aiohttp.ClientSession,
    base_url: str,
    *,
    model: str,
    headers: Mapping[str, str],
    timeout_s: float = 300.0,
    now_s: Callable[[], float] = time.perf_counter,
) -> TimedCall:
    """A `TimedCall` over /v1/chat/completions of an OpenAI-compatible server at `base_url` (with /v1).

    A chunk counts as one token, as engines stream them. Raises `CalibrationError` on anything but a stream.
    """

    async def call(prompt: str, output_tokens: int) -> TimedReply:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        sent_at_s, prompt_tokens, token_at_s = now_s(), 0, []
        async with session.post(
            f"{base_url}/chat/completions",
            json=body,
            # llama.cpp's server hangs up after a stream though it promises to keep the connection
            headers={**headers, "Connection": "close"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as response:
            if response.status != 200:
                raise CalibrationError(f"the engine answers {response.status}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = msgspec.json.decode(line[6:], type=_Chunk)
                if chunk.usage is not None:
                    prompt_tokens = chunk.usage.prompt_tokens or prompt_tokens
                if chunk.choices and b'"role"' not in bytes(chunk.choices[0]):
                    token_at_s.append(now_s())
        if prompt_tokens == 0:
            raise CalibrationError("the engine does not tell the tokens of a prompt (no usage in its stream)")
        return TimedReply(prompt_tokens, sent_at_s, tuple(token_at_s))

    return call
