"""Traces: what is read, what is refused with its line, and what is drawn."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.simulation.arrivals import gamma_bursts, poisson
from router.simulation.traces import (
    TraceError,
    TraceRequest,
    at_rate,
    faster,
    from_zero,
    mean_rate_rps,
    read_csv,
)

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LENGTHS = (TraceRequest(0.0, 10, 5), TraceRequest(1.0, 1000, 50))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    return file


def test_azure_rows_are_read_in_order_of_time_from_zero(tmp_path: Path) -> None:
    text = HEAD + "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.6805900,374,44\n"
    first, second = read_csv(written(tmp_path, text))
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.at_s == pytest.approx(4.314579, abs=1e-5)


def test_seconds_other_columns_and_time_zones_are_understood(tmp_path: Path) -> None:
    assert read_csv(written(tmp_path, "x,GeneratedTokens,ContextTokens,TIMESTAMP\n1,2,3,7.5\n"))[0].prompt_tokens == 3
    zoned = HEAD + "2026-01-01T01:00:00.5+01:00,1,1\n2026-01-01T00:00:01Z,1,1\n"
    assert [request.at_s for request in read_csv(written(tmp_path, zoned))] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "no column GeneratedTokens"),
        (HEAD, "no request"),
        (HEAD + "1,2,3\nyesterday,2,3\n", ":3:"),
        (HEAD + "1,two,3\n", ":2: ContextTokens is 'two'"),
        (HEAD + "1,2\n", ":2: GeneratedTokens is missing"),
        (HEAD + "1,-2,3\n", "ContextTokens is '-2'; write a whole number"),
        (HEAD + "1,2.5,3\n", "ContextTokens is '2.5'"),
        (HEAD + "1,NaN,3\n", "ContextTokens is 'NaN'"),
        (HEAD + "1,2,1e30\n", "GeneratedTokens is '1e30'"),
        (HEAD + "nan,2,3\n", ":2: TIMESTAMP is 'nan'"),
        (HEAD + "2026-13-01,2,3\n", "TIMESTAMP is '2026-13-01'; write a date and time"),
    ],
)
def test_what_is_wrong_with_a_trace_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(TraceError, match=told):
        read_csv(written(tmp_path, text))


def test_numbers_as_a_spreadsheet_writes_them_are_read(tmp_path: Path) -> None:
    (found,) = read_csv(written(tmp_path, HEAD + "1,396.0,0\n"))
    assert (found.prompt_tokens, found.output_tokens) == (396, 1)


def test_of_a_long_file_only_the_part_asked_for_is_read(tmp_path: Path) -> None:
    rows = "".join(f"{at},10,10\n" for at in range(100)) + "broken\n"
    assert len(read_csv(written(tmp_path, HEAD + rows), 7)) == 7
    with pytest.raises(TraceError, match=":102:"):
        read_csv(written(tmp_path, HEAD + rows))


def test_a_file_too_long_to_play_is_refused_with_its_cure(tmp_path: Path) -> None:
    file = written(tmp_path, HEAD + "1,10,10\n" * 12)
    with pytest.raises(TraceError, match="more than 10 requests; play a part of it with --requests"):
        read_csv(file, limit=10)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(b"TIMESTAMP\xff\xfe")
    with pytest.raises(TraceError, match="cannot be read"):
        read_csv(file)


def test_a_trace_is_scaled_in_time_and_not_in_length() -> None:
    trace = tuple(TraceRequest(float(at), 100, 10) for at in range(11))
    assert faster(trace, 2.0)[-1].at_s == 5.0
    assert mean_rate_rps(at_rate(trace, 7.0)) == pytest.approx(7.0)
    assert {request.prompt_tokens for request in at_rate(trace, 7.0)} == {100}
    with pytest.raises(TraceError, match="all at once"):
        at_rate(trace[:1], 1.0)
    with pytest.raises(TraceError, match="as fast"):
        faster(trace, 0.0)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.5, 50), st.floats(0.5, 8))
def test_what_is_drawn_comes_in_order_and_again_from_the_same_seed(seed: int, rate: float, cv: float) -> None:
    drawn = gamma_bursts(LENGTHS, rate_rps=rate, count=50, cv=cv, seed=seed)
    assert drawn == gamma_bursts(LENGTHS, rate_rps=rate, count=50, cv=cv, seed=seed)
    assert [request.at_s for request in drawn] == sorted(request.at_s for request in drawn)
    assert {(request.prompt_tokens, request.output_tokens) for request in drawn} <= {(10, 5), (1000, 50)}


def test_bursts_are_burstier_than_independent_arrivals_of_the_same_rate() -> None:
    def variation(trace: tuple[TraceRequest, ...]) -> float:
        gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(trace)]
        return statistics.pstdev(gaps) / statistics.mean(gaps)

    calm = poisson(LENGTHS, rate_rps=10.0, count=8000, seed=1)
    bursts = gamma_bursts(LENGTHS, rate_rps=10.0, count=8000, seed=1)
    assert mean_rate_rps(calm) == pytest.approx(10.0, rel=0.05)
    assert mean_rate_rps(bursts) == pytest.approx(10.0, rel=0.4)
    assert variation(calm) == pytest.approx(1.0, rel=0.05)
    assert variation(bursts) > 3.0


def test_a_trace_without_requests_stays_empty_and_nothing_can_be_drawn_from_it() -> None:
    assert from_zero([]) == ()
    with pytest.raises(TraceError, match="no lengths"):
        poisson((), rate_rps=1.0, count=1, seed=0)
