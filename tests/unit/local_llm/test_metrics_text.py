"""What an engine says of itself, and everything that is not what it seems: never read as idle."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.datamodels import EngineCounters, EngineReading
from local_llm.metrics_text import MAX_TEXT_CHARS, parse_counters, parse_metrics

PAGES = Path(__file__).parents[2] / "fixtures" / "metrics"
VLLM = (PAGES / "vllm_0_32.txt").read_text()
LLAMACPP = (PAGES / "llamacpp.txt").read_text()


def read(text: str) -> EngineReading:
    return parse_metrics(text, taken_at_s=7.0)


def vllm(series: str, value: str) -> EngineReading:
    """The real page with one value changed."""
    lines = [line.rsplit(" ", 1)[0] + " " + value if line.startswith(series) else line for line in VLLM.splitlines()]
    return read("\n".join(lines))


def test_a_real_page_of_vllm_is_read_in_full() -> None:
    assert read(VLLM) == EngineReading(
        running_requests=0,
        waiting_requests=0,
        kv_cache_usage_ratio=0.0,
        taken_at_s=7.0,
        asleep=False,
        preemptions=60,
        kv_tokens=5120,
        prompt_tokens=1468,
        output_tokens=36000,
    )


def test_the_histograms_of_a_real_page_tell_how_fast_the_engine_has_been() -> None:
    assert parse_counters(VLLM, taken_at_s=7.0) == EngineCounters(
        read(VLLM),
        cached_prompt_tokens=0,
        steps=7235,
        token_gaps=35976,
        token_gaps_s=307.77972535699655,
        first_tokens=24,
        first_tokens_s=106.69030451774597,
    )
    assert parse_counters(LLAMACPP, taken_at_s=7.0) == EngineCounters(read(LLAMACPP))


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1.0", "many"])
def test_a_histogram_that_makes_no_sense_is_not_learnt_from_and_spoils_no_reading(value: str) -> None:
    lines = VLLM.splitlines()
    spoilt = [
        line.rsplit(" ", 1)[0] + f" {value}" if line.startswith("vllm:inter_token_latency_seconds_") else line
        for line in lines
    ]
    found = parse_counters("\n".join(spoilt), taken_at_s=7.0)
    assert (found.token_gaps, found.token_gaps_s) == (None, None)
    assert found.reading == read(VLLM)


def test_the_older_name_of_the_gaps_is_understood() -> None:
    old = VLLM.replace("inter_token_latency_seconds", "time_per_output_token_seconds")
    assert parse_counters(old, taken_at_s=7.0).token_gaps == 35976


def test_a_real_page_of_llamacpp_has_no_kv_reading_rather_than_zero() -> None:
    reading = read(LLAMACPP)
    assert (reading.running_requests, reading.waiting_requests) == (0, 0)
    assert reading.kv_cache_usage_ratio is None
    assert reading.preemptions is None
    assert reading.problem is None


def test_values_are_taken_from_the_right_series() -> None:
    assert vllm("vllm:num_requests_running", "16.0").running_requests == 16
    assert vllm("vllm:num_requests_waiting{", "21").waiting_requests == 21
    assert vllm("vllm:kv_cache_usage_perc", "0.9875").kv_cache_usage_ratio == 0.9875


def test_the_old_name_of_the_kv_gauge_is_understood() -> None:
    reading = read(VLLM.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"))
    assert reading.kv_cache_usage_ratio == 0.0


def test_a_version_that_exports_both_names_counts_the_new_one() -> None:
    reading = read('vllm:gpu_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="0"} 0.4\n')
    assert reading.kv_cache_usage_ratio == 0.4


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e300", "two", "0x10", "0.5"])
def test_a_count_that_cannot_be_true_is_unknown(value: str) -> None:
    reading = vllm("vllm:num_requests_running", value)
    assert reading.running_requests is None
    assert "num_requests_running" in (reading.problem or "")
    assert reading.waiting_requests == 0


@pytest.mark.parametrize("value", ["NaN", "-0.1", "1.01", "87"])
def test_a_kv_usage_outside_zero_to_one_is_unknown(value: str) -> None:
    reading = vllm("vllm:kv_cache_usage_perc", value)
    assert reading.kv_cache_usage_ratio is None
    assert reading.problem


def test_a_renamed_series_is_unknown_and_not_idle() -> None:
    reading = read(VLLM.replace("vllm:num_requests_waiting", "vllm:requests_queued"))
    assert reading.waiting_requests is None
    assert reading.running_requests == 0


def test_a_page_without_either_count_says_so() -> None:
    reading = read('vllm:kv_cache_usage_perc{engine="0"} 0.4\n')
    assert reading.problem == "/metrics tells neither running nor waiting requests"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no series"),
        ("   \n", "no series"),
        ("<!DOCTYPE html><html><body>vllm:num_requests_running 0</body></html>", "HTML"),
        ("\n <html>", "HTML"),
        ('{"detail":"Not Found"}', "no series"),
        ("process_cpu_seconds_total 4\nnode_load1 0.2\n", "no series"),
        ("vllm:num_requests_running", "no series"),
        ('vllm:num_requests_running{engine="0" 3\n', "no series"),
        ("x" * (MAX_TEXT_CHARS + 1), "characters long"),
    ],
)
def test_what_is_no_metrics_page_is_a_problem(text: str, problem: str) -> None:
    reading = read(text)
    assert reading.running_requests is None
    assert reading.waiting_requests is None
    assert problem in (reading.problem or "")


def test_a_series_that_contradicts_itself_is_unknown() -> None:
    reading = read('vllm:num_requests_running{engine="0"} 0\nvllm:num_requests_running{engine="0"} 9\n')
    assert reading.running_requests is None
    assert "twice" in (reading.problem or "")


def test_a_series_repeated_word_for_word_counts_once() -> None:
    assert read('vllm:num_requests_running{engine="0"} 4\n' * 2).running_requests == 4


def test_engines_behind_one_page_are_summed_and_the_fullest_cache_counts() -> None:
    reading = read(
        'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.7\n'
    )
    assert reading.running_requests == 7
    assert reading.kv_cache_usage_ratio == 0.7


def test_one_engine_of_several_with_nonsense_makes_the_sum_unknown() -> None:
    reading = read('vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} NaN\n')
    assert reading.running_requests is None


def test_sleep_is_told_by_its_gauge() -> None:
    assert vllm('vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"}', "0.0").asleep is True
    assert read(LLAMACPP).asleep is None


def test_timestamps_tabs_and_braces_in_labels_are_understood() -> None:
    reading = read('vllm:num_requests_running{model_name="a} b\\" {c"}\t5 1700000000000\nvllm:num_requests_waiting 2')
    assert (reading.running_requests, reading.waiting_requests) == (5, 2)


def test_the_size_of_the_kv_cache_falls_back_to_its_blocks() -> None:
    assert read('vllm:cache_config_info{num_gpu_blocks="364",block_size="128"} 1').kv_tokens == 46592
    assert read('vllm:cache_config_info{num_gpu_blocks="None",block_size="128"} 1').kv_tokens is None


@given(st.text())
def test_no_text_raises_or_looks_idle(text: str) -> None:
    reading = read(text)
    assert reading.running_requests is None
    assert reading.problem


@given(st.text(alphabet='vllm:num_requests_running{}="0123456789.eE+-NaInf# \n\t', max_size=200))
def test_near_metrics_text_never_raises_and_never_gives_negative_counts(text: str) -> None:
    reading = read("vllm:num_requests_running " + text)
    assert reading.running_requests is None or reading.running_requests >= 0
