"""A measured run of a simulated engine gives back the engine's own coefficients."""

from __future__ import annotations

import random

import pytest

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineLimits
from local_llm.measure import MeasurePlan, TimedReply, decode_run, measure, plan_for, tokens_per_word
from local_llm.steptime import prefill_s, step_s

TRUTH = PRESETS["a100-8b-fp16"]


class SteppedEngine:
    """Answers at the times that the step model gives to a batch that starts and runs together."""

    def __init__(self) -> None:
        self.batch: list[int] = []

    async def __call__(self, prompt: str, output_tokens: int) -> TimedReply:
        words = len(prompt.split())
        self.batch.append(words)
        ttft = TRUTH.api_s + TRUTH.t0_s * 1.5 + prefill_s(TRUTH, words)
        streams = self.streams(output_tokens)
        times = [ttft]
        for emitted in range(1, output_tokens):
            context = streams * (words + emitted)
            times.append(times[-1] + step_s(TRUTH, streaming=streams, context_tokens=context))
        return TimedReply(words, 0.0, tuple(times))

    def streams(self, output_tokens: int) -> int:
        return 1 if output_tokens < 10 else self.expected.pop(0)

    expected: list[int]


async def test_a_run_gives_back_the_coefficients() -> None:
    engine = SteppedEngine()
    plan = MeasurePlan(prompt_words=(50, 500, 1000, 2000), batches=(1, 4, 16), batch_prompt_words=(50, 1000))
    engine.expected = [streams for streams in plan.batches for _ in plan.batch_prompt_words for _ in range(streams)]
    told: list[str] = []
    found = await measure(engine, EngineLimits(), name="mine", plan=plan, dice=random.Random(1), note=told.append)
    row = found.coefficients
    assert row.t0_s == pytest.approx(TRUTH.t0_s, rel=0.02)
    assert row.c_seq_s == pytest.approx(TRUTH.c_seq_s, rel=0.05)
    assert row.c_kv_s == pytest.approx(TRUTH.c_kv_s, rel=0.05)
    assert row.c_prefill_s == pytest.approx(TRUTH.c_prefill_s, rel=0.02)
    assert row.practical_batch == 16
    assert found.decode_error_ratio < 0.02
    assert len(told) == 4 + 6


def test_only_the_steps_that_all_streams_share_count() -> None:
    early = TimedReply(100, 0.0, tuple(1.0 + 0.1 * i for i in range(20)))
    late = TimedReply(200, 0.0, tuple(1.55 + 0.2 * i for i in range(20)))
    run = decode_run([early, late])
    assert run is not None
    assert run.streaming == 2
    assert run.step_s == pytest.approx(0.15)
    assert 300 < run.context_tokens < 330


def test_streams_that_do_not_overlap_are_no_batch() -> None:
    first = TimedReply(10, 0.0, tuple(0.1 * i for i in range(20)))
    second = TimedReply(10, 0.0, tuple(10 + 0.1 * i for i in range(20)))
    assert decode_run([first, second]) is None
    assert decode_run([first, TimedReply(10, 0.0, ())]) is None
    assert decode_run([]) is None


@pytest.mark.parametrize("window", [256, 2048, 8192, 131_072])
def test_a_plan_stays_within_the_engine(window: int) -> None:
    plan = plan_for(EngineLimits(max_num_seqs=6, context_window_tokens=window))
    assert max(plan.prompt_words) * 2 <= window
    assert max(plan.batch_prompt_words) * 2 + plan.output_tokens <= window
    assert plan.batches == (1, 4, 2)  # the ends of the range come first
    assert len(plan.prompt_words) >= 3


def test_a_plan_for_a_small_cache_has_batches_that_fit_it() -> None:
    plan = plan_for(EngineLimits(max_num_seqs=64, kv_tokens=5120, context_window_tokens=2048), tokens_per_word=4.0)
    assert max(plan.prompt_words) * 4 <= 1024
    assert max(plan.batches) * (max(plan.batch_prompt_words) * 4 + plan.output_tokens) <= 5120


async def test_when_time_runs_out_only_what_a_fit_needs_is_measured() -> None:
    engine = SteppedEngine()
    plan = MeasurePlan(prompt_words=(50, 500, 1000, 2000), batches=(1, 16, 4), batch_prompt_words=(50, 1000))
    engine.expected = [1, 1, *[16] * 16]
    told: list[str] = []
    found = await measure(engine, EngineLimits(), name="mine", plan=plan, note=told.append, time_left=lambda: False)
    assert len(told) == 3 + 3
    assert found.coefficients.t0_s == pytest.approx(TRUTH.t0_s, rel=0.1)


async def test_the_engines_own_tokens_a_word_are_asked_for() -> None:
    async def call(prompt: str, output_tokens: int) -> TimedReply:
        return TimedReply(30 + 3 * len(prompt.split()), 0.0, (1.0,))

    assert await tokens_per_word(call) == 3.0


def test_tokens_that_came_in_one_read_tell_nothing_of_a_step() -> None:
    assert decode_run([TimedReply(100, 0.0, tuple(1.0 + 1e-6 * i for i in range(48)))]) is None


async def test_streams_too_short_to_be_told_from_a_hiccup_are_made_longer() -> None:
    asked: list[int] = []

    async def quick(prompt: str, output_tokens: int) -> TimedReply:
        asked.append(output_tokens)
        return TimedReply(len(prompt.split()), 0.0, tuple(0.01 + 0.001 * i for i in range(output_tokens)))

    plan = MeasurePlan(prompt_words=(50, 500, 1000), batches=(1,), batch_prompt_words=(32, 64, 128))
    found = await measure(quick, EngineLimits(), name="quick", plan=plan, dice=random.Random(1))
    assert [tokens for tokens in asked if tokens > 10] == [48, 96, 192] * 3
    assert step_s(found.coefficients, streaming=1, context_tokens=100) == pytest.approx(0.001, rel=0.05)
