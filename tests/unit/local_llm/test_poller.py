"""Looking at an engine: readings with their age, others' load, hangs, sleep and broken cards, on a clock of our own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from local_llm.calibration import Calibration
from local_llm.coefficients import PRESETS
from local_llm.datamodels import GpuReading, ProcessState, SloTargets
from local_llm.inflight import Inflight, Ticket
from local_llm.poller import EnginePoller, GpuWatcher
from local_llm.probe import Page, ProbeError
from tests.fakes import FakeClock
from tests.patience import PATIENCE_S

VLLM = (Path(__file__).parents[2] / "fixtures" / "metrics" / "vllm_0_32.txt").read_text()


class Engine:
    """What an engine's pages say; a `ProbeError` in place of a page is raised."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | ProbeError] = {
            "/health": Page(200, b""),
            "/metrics": Page(200, VLLM.encode()),
        }
        self.state: tuple[ProcessState, str | None] = (ProcessState.READY, None)
        self.generates = False
        self.hung: list[str] = []
        self.while_looked_at: Callable[[], object] = lambda: None

    async def get(self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int) -> Page:
        if url.endswith("/metrics"):
            self.while_looked_at()
        page = self.pages["/" + url.rpartition("/")[2]]
        if isinstance(page, ProbeError):
            raise page
        return page

    async def generate(self) -> bool:
        return self.generates

    async def on_hung(self, problem: str) -> None:
        self.hung.append(problem)

    def metrics(self, **changes: float) -> None:
        text = VLLM
        for series, value in changes.items():
            lines = text.splitlines()
            text = "\n".join(
                line.rsplit(" ", 1)[0] + f" {value}" if line.startswith(f"vllm:{series}{{") else line for line in lines
            )
        self.pages["/metrics"] = Page(200, text.encode())


class Bench:
    def __init__(
        self,
        *,
        supervised: bool = True,
        slo: SloTargets | None = None,
        gpus_used: frozenset[int] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.clock, self.engine = FakeClock(t_s=100.0), Engine()
        self.gpus: tuple[float, tuple[GpuReading, ...]] | None = None
        slo = slo or SloTargets()
        self.inflight = Inflight(PRESETS["h100-8b-fp16"], slo, calibration=calibration)
        self.poller = EnginePoller(
            root_url=lambda: "http://engine",
            headers={},
            inflight=self.inflight,
            slo=slo,
            clock=self.clock,
            get=self.engine.get,
            process=(lambda: self.engine.state) if supervised else None,
            generate=self.engine.generate,
            on_hung=self.engine.on_hung,
            gpus=lambda: self.gpus,
            gpus_used=gpus_used,
        )

    async def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.t_s += 1.0
            await self.poller.poll()


async def test_a_look_gives_a_reading_with_its_time() -> None:
    bench = Bench()
    await bench.pass_s(1)
    assert bench.poller.reading is not None
    assert bench.poller.reading.taken_at_s == 101.0
    assert bench.poller.reading.kv_tokens == 5120
    assert (bench.poller.scrapes, bench.poller.scrape_errors) == (1, 0)
    assert bench.poller.state() == (ProcessState.READY, None)


@pytest.mark.parametrize(
    "page",
    [ProbeError("no answer within 2 s"), Page(404, b""), Page(500, b""), Page(200, b"", complete=False)],
)
async def test_a_look_that_fails_lets_the_last_reading_grow_old(page: Page | ProbeError) -> None:
    bench = Bench()
    await bench.pass_s(1)
    bench.engine.pages["/metrics"] = page
    await bench.pass_s(5)
    assert bench.poller.reading is not None
    assert bench.poller.reading.taken_at_s == 101.0
    assert bench.poller.scrape_errors == 5
    assert bench.poller.last_error


async def test_a_page_that_turns_to_html_is_a_fresh_reading_of_nothing() -> None:
    bench = Bench()
    await bench.pass_s(1)
    bench.engine.pages["/metrics"] = Page(200, b"<html>gateway error</html>")
    await bench.pass_s(1)
    assert bench.poller.reading is not None
    assert bench.poller.reading.running_requests is None
    assert bench.poller.scrape_errors == 1


@pytest.mark.parametrize("page", [Page(404, b""), Page(200, b'{"error": "Unexpected endpoint"}'), Page(200, b"")])
async def test_an_engine_that_never_had_metrics_is_not_held_to_them(page: Page) -> None:
    bench = Bench(supervised=False)
    bench.engine.pages["/metrics"] = page
    await bench.pass_s(3)
    assert bench.poller.metrics_absent
    assert bench.poller.reading is None
    assert bench.poller.state() == (ProcessState.READY, None)


@pytest.mark.parametrize(
    "page",
    [
        Page(200, b"<html>please log in</html>"),
        Page(200, b"vllm:requests_in_engine 3\n"),
        Page(200, b"vllm:num_requests_running NaN\nvllm:num_requests_waiting NaN\n"),
        Page(200, b"# filler", complete=False),
        Page(401, b""),
        Page(500, b""),
        ProbeError("no answer within 2 s"),
    ],
)
async def test_a_page_that_cannot_be_read_from_the_start_is_unknown_not_absent(page: Page | ProbeError) -> None:
    bench = Bench(supervised=False)
    bench.engine.pages["/metrics"] = page
    await bench.pass_s(3)
    assert not bench.poller.metrics_absent
    assert bench.poller.reading is None or bench.poller.reading.running_requests is None
    assert bench.poller.scrape_errors == 3
    bench.engine.pages["/metrics"] = Page(404, b"")
    await bench.pass_s(1)
    assert bench.poller.metrics_absent == (bench.poller.reading is None), "once told, never absent again"


async def test_an_external_engine_is_down_after_three_failed_health_checks_and_back_with_one_good_one() -> None:
    bench = Bench(supervised=False)
    assert bench.poller.state()[0] is ProcessState.STARTING
    await bench.pass_s(1)
    assert bench.poller.state() == (ProcessState.READY, None)
    bench.engine.pages["/health"] = Page(503, b"")
    await bench.pass_s(2)
    assert bench.poller.state()[0] is ProcessState.READY
    await bench.pass_s(1)
    assert bench.poller.state() == (ProcessState.DOWN, "/health answers 503")
    bench.engine.pages["/health"] = Page(200, b"")
    await bench.pass_s(1)
    assert bench.poller.state() == (ProcessState.READY, None)


async def test_an_external_server_without_a_health_page_is_alive() -> None:
    bench = Bench(supervised=False)
    bench.engine.pages["/health"] = Page(404, b"")
    await bench.pass_s(1)
    assert bench.poller.state()[0] is ProcessState.READY


async def test_an_external_engine_that_was_never_reached_is_not_ready() -> None:
    bench = Bench(supervised=False)
    bench.engine.pages["/health"] = ProbeError("connection refused")
    await bench.pass_s(5)
    assert bench.poller.state() == (ProcessState.STARTING, "/health: connection refused")


async def test_a_sleeping_engine_is_asleep_though_its_health_is_well() -> None:
    bench = Bench()
    bench.engine.pages["/metrics"] = Page(
        200, VLLM.replace('sleep_state="awake"} 1.0', 'sleep_state="awake"} 0.0').encode()
    )
    await bench.pass_s(1)
    assert bench.poller.state() == (ProcessState.ASLEEP, "the engine is asleep")


async def test_a_broken_card_takes_the_engine_down() -> None:
    bench = Bench()
    bench.gpus = (100.0, (GpuReading(0, "A10G"), GpuReading(1, "L4", problem="XID 79")))
    assert bench.poller.state() == (ProcessState.DOWN, "GPU 1: XID 79")


async def test_a_broken_card_that_the_engine_does_not_use_is_none_of_its_trouble() -> None:
    bench = Bench(gpus_used=frozenset({0}))
    bench.gpus = (100.0, (GpuReading(0, "A10G"), GpuReading(1, "L4", problem="XID 79")))
    assert bench.poller.state() == (ProcessState.READY, None)


async def test_a_hung_engine_is_ejected_probed_and_comes_back() -> None:
    bench = Bench()
    await bench.pass_s(1)
    ticket = bench.inflight.enter(bench.clock.now_s(), 500, 100)
    await bench.pass_s(2)
    assert bench.poller.state()[0] is ProcessState.READY
    await bench.pass_s(2)
    state, problem = bench.poller.state()
    assert state is ProcessState.DEGRADED
    assert "1 requests in flight" in (problem or "")
    ticket.end(bench.clock.now_s())
    await bench.pass_s(4)
    assert bench.poller.state()[0] is ProcessState.DEGRADED, "a failed request is no sign of life"
    bench.engine.generates = True
    await bench.pass_s(5)
    assert bench.poller.state() == (ProcessState.READY, None)
    assert bench.engine.hung == []


async def test_an_engine_gets_the_time_of_the_longest_prompt_it_was_given_though_its_caller_has_left() -> None:
    bench = Bench()
    long, short = (bench.inflight.enter(100.0, prompt, 10) for prompt in (150_000, 10))
    await bench.pass_s(2)
    long.end(bench.clock.now_s())  # it is still being read, and the short one stands behind it
    await bench.pass_s(15)
    assert bench.poller.state()[0] is ProcessState.READY
    await bench.pass_s(15)
    assert bench.poller.state()[0] is ProcessState.DEGRADED
    short.end(bench.clock.now_s())


async def test_an_engine_that_stays_hung_is_reported_once_per_three_probes() -> None:
    bench = Bench()
    bench.inflight.enter(bench.clock.now_s(), 500, 100)
    await bench.pass_s(4 + 3 * 5)
    assert len(bench.engine.hung) == 1


async def test_tokens_keep_an_engine_well_however_long_it_takes() -> None:
    bench = Bench()
    ticket = bench.inflight.enter(bench.clock.now_s(), 500, 100)
    ticket.first_token(bench.clock.now_s())
    for _ in range(30):
        await bench.pass_s(1)
        ticket.token(1)
    assert bench.poller.state()[0] is ProcessState.READY


async def test_a_hung_engine_whose_stream_goes_on_is_well_again() -> None:
    bench = Bench()
    ticket = bench.inflight.enter(bench.clock.now_s(), 500, 100)
    await bench.pass_s(4)
    assert bench.poller.state()[0] is ProcessState.DEGRADED
    ticket.first_token(bench.clock.now_s())
    await bench.pass_s(1)
    assert bench.poller.state()[0] is ProcessState.READY


async def test_the_engines_own_counters_show_progress_of_plain_calls() -> None:
    bench = Bench()
    bench.inflight.enter(bench.clock.now_s(), 500, 2000, streamed=False)
    for second in range(20):
        bench.engine.metrics(generation_tokens_total=float(second))
        await bench.pass_s(1)
    assert bench.poller.state()[0] is ProcessState.READY
    await bench.pass_s(4)
    assert bench.poller.state()[0] is ProcessState.DEGRADED


async def test_plain_calls_into_an_engine_without_counters_prove_nothing() -> None:
    bench = Bench()
    bench.engine.pages["/metrics"] = Page(404, b"")
    bench.inflight.enter(bench.clock.now_s(), 500, 2000, streamed=False)
    await bench.pass_s(30)
    assert bench.poller.state()[0] is ProcessState.READY


async def test_a_long_prompt_is_given_the_time_it_takes() -> None:
    bench = Bench()
    bench.inflight.enter(bench.clock.now_s(), 40_000, 10)
    await bench.pass_s(4)
    assert bench.poller.state()[0] is ProcessState.READY
    await bench.pass_s(10)
    assert bench.poller.state()[0] is ProcessState.DEGRADED


async def test_a_slow_promise_means_more_patience() -> None:
    bench = Bench(slo=SloTargets(ttft_s=15, tpot_s=0.5, slack_s=5))
    bench.inflight.enter(bench.clock.now_s(), 500, 10)
    await bench.pass_s(29)
    assert bench.poller.state()[0] is ProcessState.READY
    await bench.pass_s(3)
    assert bench.poller.state()[0] is ProcessState.DEGRADED


async def test_an_engine_that_is_down_is_not_called_hung() -> None:
    bench = Bench()
    bench.inflight.enter(bench.clock.now_s(), 500, 10)
    bench.engine.state = (ProcessState.DOWN, "killed")
    await bench.pass_s(30)
    assert bench.poller.state() == (ProcessState.DOWN, "killed")
    assert bench.poller.scrapes == 0


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_request_that_leaves_or_comes_while_the_page_is_read_is_nobody_elses(leaves: bool) -> None:
    bench = Bench()
    bench.engine.metrics(num_requests_running=4.0, num_requests_waiting=0.0)
    ours: list[Ticket] = []

    def come() -> None:
        ours.extend(bench.inflight.enter(bench.clock.now_s(), 100, 10) for _ in range(4))

    def leave() -> None:
        while ours:
            ours.pop().end(bench.clock.now_s())

    bench.engine.while_looked_at = leave if leaves else come
    for _ in range(5):
        if leaves:
            come()
        await bench.pass_s(1)
        leave()
    assert bench.inflight.state(bench.clock.now_s()).others_n == 0


async def test_load_by_others_reaches_the_in_flight_count() -> None:
    bench = Bench()
    bench.engine.metrics(num_requests_running=12.0)
    tickets = [bench.inflight.enter(bench.clock.now_s(), 10, 10) for _ in range(4)]
    for ticket in tickets:
        ticket.first_token(bench.clock.now_s())
    await bench.pass_s(10)
    assert bench.inflight.unseen_factor == pytest.approx(3.0)
    assert bench.inflight.state(bench.clock.now_s()).others_n == 8


async def test_a_card_that_is_slowed_down_makes_predictions_slower_until_it_recovers() -> None:
    bench = Bench(gpus_used=frozenset({0}))
    hot = GpuReading(0, "H100", throttle_reasons=("hw_thermal_slowdown",), sm_clock_mhz=990, sm_clock_max_mhz=1980)
    other = GpuReading(1, "H100", throttle_reasons=("hw_slowdown",), sm_clock_mhz=210, sm_clock_max_mhz=1980)
    bench.gpus = (101.0, (hot, other))
    await bench.pass_s(1)
    assert bench.inflight.coefficients.c_prefill_s == pytest.approx(2.0 * PRESETS["h100-8b-fp16"].c_prefill_s)
    assert bench.poller.state() == (ProcessState.READY, None)
    bench.gpus = (102.0, (GpuReading(0, "H100"), other))
    await bench.pass_s(1)
    assert bench.inflight.coefficients == PRESETS["h100-8b-fp16"]


def test_the_watcher_keeps_the_last_look_of_a_driver_that_hangs() -> None:
    hang, second, over = threading.Event(), threading.Event(), threading.Event()
    looks: list[float] = []

    def read() -> tuple[GpuReading, ...]:
        looks.append(0.0)
        if len(looks) > 1:
            second.set()
            hang.wait(PATIENCE_S)
            over.set()
        return (GpuReading(0, "A10G", utilization_ratio=0.5),)

    watcher = GpuWatcher(read, now_s=lambda: 42.0, interval_s=0.001)
    assert watcher.latest() is None
    watcher.start()
    watcher.start()
    assert second.wait(PATIENCE_S)
    assert watcher.latest() == (42.0, (GpuReading(0, "A10G", utilization_ratio=0.5),))
    watcher.stop(timeout_s=0.05)
    assert not over.is_set()  # it has not waited for the driver
    hang.set()


def page_of_others(second: int, *, gap_s: float) -> dict[str, float]:
    """An engine that has ten streams of somebody else's and gives each a token every `gap_s`."""
    gaps = second * round(1.0 / gap_s) * 10
    return {
        "num_requests_running": 10.0,
        "kv_cache_usage_perc": 0.5,
        "generation_tokens_total": 36_000.0 + gaps,
        "iteration_tokens_total_count": 7235.0 + gaps / 10,
        "inter_token_latency_seconds_count": 35_976.0 + gaps,
        "inter_token_latency_seconds_sum": 307.77972535699655 + gaps * gap_s,
    }


async def test_an_engine_that_only_others_use_teaches_its_speed_through_its_histograms() -> None:
    row = PRESETS["h100-8b-fp16"]
    bench = Bench(supervised=False, calibration=Calibration(row))
    for second in range(200):
        bench.engine.metrics(**page_of_others(second, gap_s=0.02))
        await bench.pass_s(1)
    slower = bench.inflight.coefficients.t0_s / row.t0_s
    predicted_s = slower * (row.t0_s + 10 * row.c_seq_s + 2560 * row.c_kv_s)
    assert predicted_s == pytest.approx(0.02, rel=0.1)


async def test_what_our_own_streams_show_counts_for_more_than_the_histograms() -> None:
    row = PRESETS["h100-8b-fp16"]
    learner = Calibration(row)
    bench = Bench(supervised=False, calibration=learner)
    stream = bench.inflight.enter(bench.clock.t_s, 10, 1000)
    stream.first_token(bench.clock.t_s)
    for second in range(20):
        bench.engine.metrics(**page_of_others(second, gap_s=0.02))
        for tick in range(4):
            stream.token(1, bench.clock.t_s + 0.2 * tick)
        await bench.pass_s(1)
    own = learner.gap_observations
    assert own >= 20
    stream.end(bench.clock.t_s)
    await bench.pass_s(1)
    bench.engine.metrics(**page_of_others(21, gap_s=0.02))
    await bench.pass_s(1)
    assert learner.gap_observations == own + 1
