"""The drawn workloads are of the kind they stand in for, come again from the same seed, and are cut where asked."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from router.simulation.arrivals import modulated, waves
from router.simulation.traces import TraceError, TraceRequest, mean_rate_rps
from router.simulation.workloads import CONVERSATIONS_FILE, SETS, Workload, shapes, six

LENGTHS = (TraceRequest(0.0, 10, 5), TraceRequest(1.0, 1000, 50))


@pytest.fixture(scope="module")
def drawn() -> dict[str, Workload]:
    return {workload.name: workload for workload in six(seed=3)}


def variation(trace: tuple[TraceRequest, ...]) -> float:
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(trace)]
    return statistics.pstdev(gaps) / statistics.mean(gaps)


def peak_to_mean(trace: tuple[TraceRequest, ...]) -> float:
    counts: dict[int, int] = {}
    for request in trace:
        counts[int(request.at_s)] = counts.get(int(request.at_s), 0) + 1
    return max(counts.values()) / mean_rate_rps(trace)


def test_the_six_come_at_their_rates(drawn: dict[str, Workload]) -> None:
    assert list(drawn) == ["conv 0.7", "conv 1.3", "code 0.7", "code 1.3", "bursts 0.7", "bursts 1.2"]
    assert mean_rate_rps(drawn["conv 1.3"].trace) == pytest.approx(1.3 * 11.03, rel=1e-3)
    assert mean_rate_rps(drawn["code 0.7"].trace) == pytest.approx(0.7 * 6.99, rel=1e-3)
    assert mean_rate_rps(drawn["bursts 1.2"].trace) == pytest.approx(1.2 * 0.885 * 11.03, rel=1e-3)


def test_drawn_conversations_are_as_long_and_as_even_as_the_published_ones(drawn: dict[str, Workload]) -> None:
    trace = drawn["conv 0.7"].trace
    assert statistics.mean(r.prompt_tokens for r in trace) == pytest.approx(1150, rel=0.06)
    assert statistics.mean(r.output_tokens for r in trace) == pytest.approx(211, rel=0.06)
    assert variation(trace) == pytest.approx(1.09, abs=0.1)


def test_drawn_code_comes_in_sessions_with_long_prompts_and_short_answers(drawn: dict[str, Workload]) -> None:
    trace = drawn["code 1.3"].trace
    assert statistics.mean(r.prompt_tokens for r in trace) == pytest.approx(2048, rel=0.08)
    assert statistics.mean(r.output_tokens for r in trace) == pytest.approx(30, rel=0.3)
    assert 9.0 < variation(trace) < 17.0
    assert peak_to_mean(six(seed=3)[2].trace) > 15.0


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    for made in SETS.values():
        assert made(seed=1, requests=50) == made(seed=1, requests=50)
        assert made(seed=1, requests=50) != made(seed=2, requests=50)


def test_every_shape_is_in_order_cut_where_asked_and_slower_for_a_slower_gpu() -> None:
    full, half = shapes(requests=400), shapes(requests=400, rate_factor=0.5)
    for one, other in zip(full, half, strict=True):
        assert len(one.trace) in (50, 400)
        times = [request.at_s for request in one.trace]
        assert times == sorted(times)
        assert other.trace[-1].at_s > 1.2 * one.trace[-1].at_s
    names = {workload.name: workload.trace for workload in full}
    assert min(r.prompt_tokens for r in names["long prompts"]) >= 8000
    assert min(r.output_tokens for r in names["reasoning"]) >= 2000


def test_a_folder_without_the_published_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=CONVERSATIONS_FILE):
        six(tmp_path)


def test_published_files_are_played_with_prompts_cut_at_what_fits(tmp_path: Path) -> None:
    for name in ("conv", "code"):
        rows = "".join(f"{at},{9000 if at == 3 else 100},20\n" for at in range(10))
        (tmp_path / f"AzureLLMInferenceTrace_{name}.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    made = six(tmp_path)
    assert [len(workload.trace) for workload in made] == [10, 10, 10, 10, 12_000, 12_000]
    assert [len(workload.trace) for workload in six(tmp_path, requests=7)] == [7] * 6
    assert max(r.prompt_tokens for r in made[0].trace) == 8000


def test_a_day_swings_and_sessions_are_followed_by_silence() -> None:
    day = waves(LENGTHS, rate_rps=20.0, count=8000, period_s=100.0, swing=0.9, seed=1)
    night = sum(1 for r in day if r.at_s % 100.0 < 25.0 or r.at_s % 100.0 >= 75.0)
    assert night < 0.3 * len(day)
    assert mean_rate_rps(day) == pytest.approx(20.0, rel=0.1)
    sessions = modulated(LENGTHS, rate_rps=10.0, count=6000, seed=1, block_s=5.0, sigma=0.0, on_s=20.0, off_s=20.0)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(sessions)]
    assert max(gaps) > 20.0
    assert statistics.median(gaps) < 0.06
    assert mean_rate_rps(sessions) == pytest.approx(10.0, rel=0.4)
