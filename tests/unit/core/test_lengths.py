"""Lengths are learnt per class, capped by the client, bounded in number, and survive a restart."""

import json
import random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.lengths import DEFAULT_MEAN_TOKENS, DEFAULT_P90_TOKENS, MIN_OBSERVATIONS, WINDOW, LengthTable
from router.core.request import TokenEstimate


def figures(table: LengthTable, name: str = "chat", cap: int | None = None) -> tuple[int, int, str]:
    e = table.estimate(name, 100, estimated=False, cap=cap)
    return e.output_mean_tokens, e.output_p90_tokens, e.source


def taught(lengths, name: str = "chat") -> LengthTable:
    table = LengthTable()
    for length in lengths:
        table.observe(name, length)
    return table


def test_a_class_never_seen_has_the_defaults_and_says_so():
    assert figures(LengthTable()) == (DEFAULT_MEAN_TOKENS, DEFAULT_P90_TOKENS, "default")


def test_the_defaults_hold_until_the_twentieth_observation():
    assert figures(taught([7] * (MIN_OBSERVATIONS - 1)))[2] == "default"
    assert figures(taught([7] * MIN_OBSERVATIONS)) == (7, 7, "class_mean")


def test_classes_do_not_learn_from_each_other():
    table = taught([1000] * 30, "code")
    assert figures(table, "chat")[2] == "default"


def test_mean_and_p90_are_those_of_what_was_seen():
    assert figures(taught(range(1, 101)))[:2] == (60, 90)  # the mean leans to the latest


def test_the_mean_and_p90_of_a_heavy_tail_are_close_to_the_true_ones():
    rng = random.Random(7)
    lengths = [round(rng.lognormvariate(5.0, 1.0)) for _ in range(4000)]
    got_mean, got_p90, _ = figures(taught(lengths))
    assert got_mean == pytest.approx(mean(lengths), rel=0.35)
    assert got_p90 == pytest.approx(sorted(lengths)[3600], rel=0.35)


def test_both_follow_when_answers_become_longer():
    assert figures(taught([50] * 300 + [500] * 300))[:2] == (499, 500)


def test_the_clients_cap_binds_where_it_is_below_the_p90():
    table = taught([100] * 18 + [1000] * 6)
    mean_tokens, p90, _ = figures(table)
    assert (mean_tokens, p90) == (325, 1000)
    assert figures(table, cap=1000) == (325, 1000, "class_mean")
    assert figures(table, cap=500) == (325, 500, "max_tokens")
    assert figures(table, cap=20) == (20, 20, "max_tokens")


def test_a_large_cap_is_no_estimate():
    assert figures(taught([100] * 30), cap=100_000) == (100, 100, "class_mean")
    assert figures(LengthTable(), cap=100_000)[2] == "default"


def test_input_tokens_and_their_quality_are_passed_on():
    assert LengthTable().estimate("chat", 42, estimated=True, cap=5) == TokenEstimate(42, 5, 5, "max_tokens", True)


def test_the_reservation_is_never_below_the_expectation():
    assert figures(taught([0] * 19 + [10_000])) == (500, 500, "class_mean")


@pytest.mark.parametrize("nonsense", [-1, 10**9])
def test_what_cannot_be_a_length_is_passed_over(nonsense):
    assert figures(taught([nonsense] * 50))[2] == "default"


def test_the_class_not_seen_for_longest_gives_way():
    table = LengthTable(max_classes=3)
    for name in ("a", "b", "c"):
        for _ in range(MIN_OBSERVATIONS):
            table.observe(name, 5)
    table.observe("a", 5)
    table.observe("d", 5)
    assert list(table.to_dict()) == ["c", "a", "d"]


def test_memory_is_bounded_whatever_the_classes_are_called():
    table = LengthTable(max_classes=10)
    for n in range(5000):
        table.observe(f"class-{n % 50}", n)
    kept = table.to_dict()
    assert len(kept) == 10
    assert all(len(value["recent"]) <= WINDOW for value in kept.values())


@given(st.lists(st.integers(0, 5000), max_size=400))
def test_what_was_learnt_survives_a_restart_and_goes_on_alike(lengths):
    before, after = taught(lengths), LengthTable()
    after.restore(json.loads(json.dumps(before.to_dict())))
    assert figures(after) == figures(before)
    for table in (before, after):
        table.observe("chat", 77)
    assert after.to_dict() == before.to_dict()


@given(st.lists(st.integers(0, 5000), min_size=20, max_size=400))
def test_the_p90_is_exact_over_the_last_observations(lengths):
    last = sorted(lengths[-WINDOW:])
    got_mean, got_p90, _ = figures(taught(lengths))
    assert got_p90 == max(got_mean, last[-(-9 * len(last) // 10) - 1])


@pytest.mark.parametrize(
    "broken",
    [
        None,
        3,
        {},
        {"count": 1, "mean": 5.0, "recent": []},
        {"count": 1, "mean": 5.0, "recent": [1, 2]},
        {"count": 2, "mean": -5.0, "recent": [1, 2]},
        {"count": 2, "mean": float("nan"), "recent": [1, 2]},
        {"count": 2, "mean": 1.0, "recent": [1, "2"]},
        {"count": 2, "mean": 1.0, "recent": [1, -2]},
    ],
)
def test_a_malformed_memory_is_passed_over(broken):
    table = LengthTable()
    table.restore({"chat": broken, "code": {"count": 1, "mean": 4.0, "recent": [4]}})
    assert list(table.to_dict()) == ["code"]
