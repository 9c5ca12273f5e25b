"""Putting an engine to sleep and waking it, on a clock of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineReading, SloTargets
from local_llm.inflight import Inflight
from local_llm.probe import ProbeError
from local_llm.sleep import Phase, Sleeper
from tests.fakes import FakeClock
from tests.gateway import until

IDLE_S = 60.0


class Bench:
    """A sleeper, and an engine that does as it is told unless `answers` says otherwise."""

    def __init__(self) -> None:
        self.clock = FakeClock(t_s=100.0)
        self.inflight = Inflight(PRESETS["h100-8b-fp16"], SloTargets())
        self.asleep: bool | None = False
        self.running = 0
        self.calls: list[str] = []
        self.answers: dict[str, int | ProbeError] = {}
        self.stuck: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.sleeper = Sleeper(
            after_idle_s=IDLE_S,
            root_url=lambda: "http://engine",
            headers={},
            post=self.post,
            inflight=self.inflight,
            clock=self.clock,
            on_stuck=self.on_stuck,
        )

    async def post(self, url: str, *, headers: Mapping[str, str], timeout_s: float) -> int:
        path = url.removeprefix("http://engine")
        self.calls.append(path)
        await self.hold.wait()
        answer = self.answers.get(path.partition("?")[0], 200)
        if isinstance(answer, ProbeError):
            raise answer
        if answer == 200:
            self.asleep = path.startswith("/sleep")
        return answer

    async def on_stuck(self, problem: str) -> None:
        self.stuck.append(problem)

    def reading(self) -> EngineReading:
        return EngineReading(self.running, 0, 0.0, taken_at_s=self.clock.t_s, asleep=self.asleep)

    async def pass_s(self, seconds: int, *, alive: bool = True) -> None:
        for _ in range(seconds):
            self.clock.t_s += 1.0
            await self.sleeper.look(alive=alive, reading=self.reading())

    async def until(self, phase: Phase) -> None:
        await until(lambda: self.sleeper.phase is phase)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_it_goes_to_sleep_after_its_time_without_work_and_not_before(bench: Bench) -> None:
    await bench.pass_s(int(IDLE_S) - 1)
    assert bench.calls == []
    await bench.pass_s(1)
    assert bench.calls == ["/sleep?level=1&mode=wait"]
    assert bench.sleeper.phase is Phase.ASLEEP
    assert "asleep after 60 s without work" in bench.sleeper.told
    await bench.pass_s(1000)
    assert len(bench.calls) == 1


@pytest.mark.parametrize("whose", ["ours", "others"])
async def test_work_keeps_it_awake_whosever_it_is(bench: Bench, whose: str) -> None:
    ticket = bench.inflight.enter(bench.clock.t_s, 100, 100) if whose == "ours" else None
    bench.running = 0 if whose == "ours" else 1
    await bench.pass_s(500)
    assert bench.calls == []
    if ticket is not None:
        ticket.end(bench.clock.t_s)
    bench.running = 0
    await bench.pass_s(int(IDLE_S) - 1)
    assert bench.calls == []
    await bench.pass_s(2)
    assert bench.sleeper.phase is Phase.ASLEEP


async def test_an_engine_of_which_nothing_is_known_is_left_alone(bench: Bench) -> None:
    old = bench.reading()
    for _ in range(500):
        bench.clock.t_s += 1.0
        await bench.sleeper.look(alive=True, reading=None)
        await bench.sleeper.look(alive=True, reading=old)
    assert bench.calls == []


async def test_the_first_that_misses_it_wakes_it_and_it_is_waken_once(bench: Bench) -> None:
    await bench.pass_s(61)
    bench.hold.clear()
    for _ in range(5):
        bench.sleeper.wake()
    assert bench.sleeper.phase is Phase.WAKING
    await asyncio.sleep(0)
    bench.hold.set()
    await bench.until(Phase.AWAKE)
    assert bench.calls[1:] == ["/wake_up"]
    await bench.pass_s(int(IDLE_S) - 1)
    assert len(bench.calls) == 2  # the time without work begins anew


async def test_who_misses_it_while_it_falls_asleep_is_not_forgotten(bench: Bench) -> None:
    await bench.pass_s(59)
    bench.hold.clear()
    falling = asyncio.create_task(bench.pass_s(1))
    await bench.until(Phase.FALLING_ASLEEP)
    bench.sleeper.wake()
    bench.hold.set()
    await falling
    await bench.until(Phase.AWAKE)
    assert bench.calls[1:] == ["/wake_up"]


@pytest.mark.parametrize("answer", [404, 500, ProbeError("no answer within 120 s")])
async def test_one_that_does_not_go_to_sleep_is_used_on_and_asked_again_later(
    bench: Bench, answer: int | ProbeError
) -> None:
    bench.answers["/sleep"] = answer
    await bench.pass_s(61)
    assert bench.sleeper.phase is Phase.AWAKE
    await bench.pass_s(58)
    assert len(bench.calls) == 1
    await bench.pass_s(3)
    assert len(bench.calls) == 2


async def test_one_that_fell_asleep_though_nobody_heard_it_say_so_is_known_by_its_metric(bench: Bench) -> None:
    bench.answers["/sleep"] = ProbeError("ServerDisconnectedError")
    await bench.pass_s(61)
    bench.asleep = True
    await bench.pass_s(1)
    assert bench.sleeper.phase is Phase.ASLEEP
    bench.sleeper.wake()
    await bench.until(Phase.AWAKE)


async def test_one_that_does_not_wake_up_is_reported(bench: Bench) -> None:
    await bench.pass_s(61)
    bench.answers["/wake_up"] = 500
    bench.sleeper.wake()
    await bench.until(Phase.ASLEEP)
    await until(lambda: bench.stuck)
    assert bench.calls[1:] == ["/wake_up"] * 3
    assert bench.stuck == ["it does not wake up: /wake_up answers 500"]
    await bench.pass_s(1, alive=False)  # it is started anew
    assert bench.sleeper.phase is Phase.AWAKE


async def test_an_old_reading_does_not_undo_what_has_just_been_done(bench: Bench) -> None:
    await bench.pass_s(60)
    before = EngineReading(0, 0, 0.0, taken_at_s=bench.clock.t_s - 1, asleep=False)
    await bench.sleeper.look(alive=True, reading=before)
    assert bench.sleeper.phase is Phase.ASLEEP
    bench.sleeper.wake()
    await bench.until(Phase.AWAKE)
    after = EngineReading(0, 0, 0.0, taken_at_s=bench.clock.t_s - 1, asleep=True)
    await bench.sleeper.look(alive=True, reading=after)
    assert bench.sleeper.phase is Phase.AWAKE


async def test_somebody_else_may_wake_it(bench: Bench) -> None:
    await bench.pass_s(61)
    bench.asleep = False
    await bench.pass_s(1)
    assert bench.sleeper.phase is Phase.AWAKE


async def test_closing_ends_a_waking_under_way(bench: Bench) -> None:
    await bench.pass_s(61)
    bench.hold.clear()
    bench.sleeper.wake()
    await asyncio.sleep(0)
    await bench.sleeper.close()
    assert bench.calls[1:] == ["/wake_up"]
