"""The figures of the benchmark are computed from raw windows as the performance page says."""

from __future__ import annotations

from typing import Any

import pytest

from bench.report import DOCUMENT_BEGIN, DOCUMENT_END, FIGURES, document, figures_of, foreign_load, quiet_windows, table

CONTESTANTS = ("direct", "pass-through", "gateway")
LATENCY_US = {"direct": 20.0, "pass-through": 220.0, "gateway": 420.0}
RATE = {"direct": 90_000.0, "pass-through": 6_000.0, "gateway": 3_000.0}


def window(phase: str, contestant: str, round_number: int, *, foreign_ratio: float = 0.0) -> dict[str, Any]:
    """One report, slower by 100 us a round, so that medians can be told from first and last."""
    p50 = LATENCY_US[contestant] + 100.0 * round_number
    series = {"n": 200, "p50": p50, "p95": p50 + 50.0, "p99": p50 + 100.0, "max": p50 + 500.0}
    return {
        "round": round_number,
        "phase": phase,
        "contestant": contestant,
        "latency_us": dict(series),
        "first_delta_us": dict(series),
        "transit_us": dict(series),
        "reads_with_deltas": 200,
        "requests_per_s": RATE[contestant] / (1 + round_number),
        "cpu_us_per_request": p50,
        "cpu_us_per_chunk": p50 / 200,
        "foreign_ratio": foreign_ratio,
    }


PHASES = (
    "one_in_flight",
    "sixteen_in_flight",
    "sixteen_in_flight_32k",
    "slow_upstream",
    "stream_one",
    "stream_paced",
    "stream_unpaced",
)
WINDOWS = [window(phase, name, number) for phase in PHASES for name in CONTESTANTS for number in range(3)]


def test_added_latency_is_taken_against_the_direct_call_of_the_same_round() -> None:
    figures = figures_of("gateway", WINDOWS)
    assert figures["added_p50_ms"] == pytest.approx(0.4)
    assert figures["added_p99_ms"] == pytest.approx(0.5)


def test_figures_are_medians_over_the_rounds() -> None:
    assert figures_of("gateway", WINDOWS)["requests_per_s"] == 1_500.0
    assert figures_of("gateway", WINDOWS)["cpu_2k_ms"] == pytest.approx(0.52)


def test_the_ratio_to_the_pass_through_is_taken_within_each_round() -> None:
    assert figures_of("gateway", WINDOWS)["passthrough_ratio"] == pytest.approx(0.5)


def test_disturbed_rounds_are_left_out_while_three_remain() -> None:
    noisy = [
        window("one_in_flight", "gateway", number, foreign_ratio=0.9 if number == 3 else 0.0) for number in range(4)
    ]
    assert [w["round"] for w in quiet_windows(noisy)] == [0, 1, 2]
    assert quiet_windows(noisy[1:]) == noisy[1:]


def test_what_others_used_is_the_median_share_of_the_core() -> None:
    shares = [window("one_in_flight", "gateway", n, foreign_ratio=ratio) for n, ratio in enumerate((0.0, 0.2, 0.9))]
    assert foreign_load(shares) == 0.2


def test_the_table_says_which_budgets_are_kept() -> None:
    figures = {name: figures_of(name, WINDOWS) for name in CONTESTANTS}
    lines = {line.split("  ")[0]: line for line in table(figures).splitlines()}
    assert lines["added latency p50, 1 in flight, ms"].endswith("<= 0.5    kept")
    assert lines["requests/s, 16 in flight"].endswith(">= 2,200  MISSED")
    assert len(table(figures).splitlines()) == len(FIGURES) + 2  # heading and rule


def test_the_page_keeps_everything_but_the_figures() -> None:
    figures = {name: figures_of(name, WINDOWS) for name in CONTESTANTS}
    page = f"before\n{DOCUMENT_BEGIN}\nold figures\n{DOCUMENT_END}\nafter\n"
    written = document(page, "A machine:", figures)
    assert written.startswith(f"before\n{DOCUMENT_BEGIN}\nA machine:\n")
    assert written.endswith(f"{DOCUMENT_END}\nafter\n")
    assert "old figures" not in written
    assert document(written, "A machine:", figures) == written


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks"):
        document("# Performance\n", "A machine:", {})
