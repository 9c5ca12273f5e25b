"""An engine's own histograms teach how fast it is where no stream of ours does: against one whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from local_llm.calibration import Calibration
from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, EngineCounters, EngineLimits, EngineReading, SloTargets
from local_llm.histograms import EngineInterval, between, predicted
from local_llm.inflight import Inflight
from local_llm.simulated_engine import EngineRequest, SimulatedEngine

H100 = PRESETS["h100-8b-fp16"]
ROOM = EngineLimits(256, 2048, 200_000, 32_768)
EMPTY = EngineCounters(
    EngineReading(0, 0, 0.0, 0.0, kv_tokens=200_000, prompt_tokens=0, output_tokens=0),
    cached_prompt_tokens=0,
    steps=0,
    token_gaps=0,
    token_gaps_s=0.0,
    first_tokens=0,
    first_tokens_s=0.0,
)


class Served(EngineRequest):
    """Somebody else's request, and when it came."""

    __slots__ = ("came_at_s",)

    def __init__(self, prompt_tokens: int, output_tokens: int, came_at_s: float) -> None:
        super().__init__(prompt_tokens, output_tokens)
        self.came_at_s = came_at_s


class Busy:
    """An engine that others use; counts what vLLM counts."""

    def __init__(self, truth: EngineCoefficients) -> None:
        self.truth = truth
        self.engine: SimulatedEngine[Served] = SimulatedEngine(truth, ROOM)
        self.now_s = 0.0
        self.steps = self.gaps = self.firsts = self.prompts = 0
        self.gaps_s = self.firsts_s = 0.0
        self.begun: dict[int, Served] = {}

    def send(self, prompt_tokens: int, output_tokens: int) -> None:
        self.prompts += prompt_tokens
        self.engine.submit(Served(prompt_tokens, output_tokens, self.now_s))

    def work(self, until_s: float) -> None:
        while not self.engine.idle and self.now_s < until_s:
            dt_s = self.engine.start_step()
            self.now_s += dt_s
            started, done = self.engine.end_step()
            self.steps += 1
            self.gaps += len(self.begun)
            self.gaps_s += dt_s * len(self.begun)
            for request in started:
                self.firsts += 1
                self.firsts_s += self.now_s + self.truth.api_s - request.came_at_s
                self.begun[id(request)] = request
            for request in done:
                self.begun.pop(id(request))
        self.now_s = max(self.now_s, until_s)

    def look(self) -> EngineCounters:
        reading = EngineReading(
            self.engine.running,
            self.engine.waiting,
            self.engine.kv_usage_ratio,
            self.now_s,
            kv_tokens=200_000,
            prompt_tokens=self.prompts,
            output_tokens=self.gaps + self.firsts,
        )
        return EngineCounters(reading, 0, self.steps, self.gaps, self.gaps_s, self.firsts, self.firsts_s)


def scaled(row: EngineCoefficients, prefill: float, decode: float) -> EngineCoefficients:
    return replace(
        row,
        t0_s=row.t0_s * decode,
        c_seq_s=row.c_seq_s * decode,
        c_kv_s=row.c_kv_s * decode,
        c_prefill_s=row.c_prefill_s * prefill,
        c_att_s=row.c_att_s * prefill,
    )


@pytest.mark.parametrize("requests_per_s", [0.2, 4.0])
@pytest.mark.parametrize(("prefill", "decode"), [(0.4, 0.4), (2.5, 2.0), (1.0, 1.0)])
def test_an_engine_that_only_others_use_is_learnt_from_its_histograms(
    requests_per_s: float, prefill: float, decode: float
) -> None:
    dice = random.Random(5)
    start = scaled(H100, prefill, decode)
    inflight = Inflight(start, SloTargets(), calibration=Calibration(start))
    busy = Busy(H100)
    before = busy.look()
    next_s = 0.0
    for second in range(1, 600 if requests_per_s > 1.0 else 1500):
        while next_s < second:
            busy.work(next_s)
            busy.send(dice.randrange(300, 3000), dice.randrange(50, 400))
            next_s += dice.expovariate(requests_per_s)
        busy.work(float(second))
        after = busy.look()
        seen = between(before, after)
        if seen is not None:
            inflight.learn_from_engine(seen)
        before = after
    assert inflight.lessons > 50
    assert inflight.coefficients.c_prefill_s == pytest.approx(H100.c_prefill_s, rel=0.15)
    assert inflight.coefficients.t0_s == pytest.approx(H100.t0_s, rel=0.2)


def after(**changes: object) -> EngineCounters:
    """One second later: 100 gaps of 10 ms in 10 steps of 10 streams."""
    reading = replace(EMPTY.reading, running_requests=10, kv_cache_usage_ratio=0.05, taken_at_s=1.0, prompt_tokens=0)
    counters = {"steps": 10, "token_gaps": 100, "token_gaps_s": 1.0, "first_tokens": 0, "first_tokens_s": 0.0}
    in_reading = {name: value for name, value in changes.items() if name in EngineReading.__slots__}
    own = {name: value for name, value in changes.items() if name not in in_reading}
    return replace(EMPTY, reading=replace(reading, **in_reading), **{**counters, **own})  # type: ignore[arg-type]


BUSY_BEFORE = replace(EMPTY, reading=replace(EMPTY.reading, running_requests=10, kv_cache_usage_ratio=0.05))


def test_gaps_without_a_prompt_are_plain_steps() -> None:
    assert between(BUSY_BEFORE, after()) == EngineInterval(0.01, 10.0, 10_000.0)


def test_prompts_read_meanwhile_are_spread_over_the_steps_and_cached_ones_cost_nothing() -> None:
    seen = between(BUSY_BEFORE, after(prompt_tokens=3000, cached_prompt_tokens=1000, first_tokens=2))
    assert seen == EngineInterval(0.01, 10.0, 10_000.0, prompt_tokens_per_step=200.0)


def test_a_lone_prompt_is_known_by_its_first_token() -> None:
    seen = between(EMPTY, after(prompt_tokens=1000, first_tokens=1, first_tokens_s=0.06))
    assert seen == EngineInterval(0.06, 0.0, 0.0, lone_prompt_tokens=1000)
    assert seen is not None
    expected_s = H100.api_s + H100.t0_s + H100.c_prefill_s * 1000 + 0.5 * H100.c_att_s * 1000**2
    assert predicted(seen, H100, 2048)[0] == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("before", "later"),
    [
        (EMPTY, after(taken_at_s=0.0)),
        (BUSY_BEFORE, after(taken_at_s=60.0)),
        (BUSY_BEFORE, after(token_gaps=5)),
        (BUSY_BEFORE, after(running_requests=11)),
        (BUSY_BEFORE, after(kv_tokens=None)),
        (BUSY_BEFORE, after(prompt_tokens=500, steps=None)),
        (BUSY_BEFORE, after(token_gaps=None, token_gaps_s=None)),
        (BUSY_BEFORE, after(prompt_tokens=None)),
        (replace(BUSY_BEFORE, token_gaps=500, token_gaps_s=9.0), after()),
        (EMPTY, after(prompt_tokens=1000, first_tokens=1, first_tokens_s=None)),
    ],
)
def test_where_little_is_known_nothing_is_learnt(before: EngineCounters, later: EngineCounters) -> None:
    assert between(before, later) is None


def test_an_engine_that_is_not_calibrated_while_it_serves_learns_nothing() -> None:
    inflight = Inflight(H100, SloTargets())
    inflight.learn_from_engine(EngineInterval(9.0, 1.0, 100.0))
    assert (inflight.coefficients, inflight.lessons) == (H100, 0)
