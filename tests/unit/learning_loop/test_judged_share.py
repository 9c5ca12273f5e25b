"""P(judged): by tier and by how hard the prompt looked, and drawn to the tier's where little is known."""

from __future__ import annotations

import pytest

from router.learning_loop.judged_share import JudgedShare, judged_share


def of(count: int, judged_easy: float, judged_hard: float) -> JudgedShare:
    answered = [(f"r{i}", "cheap", i / count) for i in range(count)]
    told = [
        (f"r{i}", "cheap")
        for i in range(count)
        if (i * 7 % 100) / 100 < (judged_easy if i < count / 2 else judged_hard)
    ]
    return judged_share(answered, told)


def test_hard_prompts_may_be_judged_more_often_than_easy_ones() -> None:
    share = of(1_000, 0.1, 0.6)
    assert share.of("cheap", 0.05) == pytest.approx(0.1, abs=0.02)
    assert share.of("cheap", 0.95) == pytest.approx(0.6, abs=0.02)
    assert share.of_tier("cheap") == pytest.approx(0.35, abs=0.02)
    said = share.uneven()
    assert said is not None and "of the answers to the easiest fifth" in said


def test_equal_shares_are_not_called_uneven_and_few_answers_prove_nothing() -> None:
    assert of(1_000, 0.3, 0.3).uneven() is None
    assert of(40, 0.0, 1.0).uneven() is None


def test_a_cell_without_answers_is_that_of_its_tier_and_a_tier_nobody_judged_is_unknown() -> None:
    share = of(1_000, 0.2, 0.2)
    assert share.of("cheap", None) == pytest.approx(0.2, abs=0.02)
    assert share.of("premium", 0.5) is None
    assert JudgedShare().of("cheap", 0.5) is None and JudgedShare().uneven() is None


def test_an_answer_judged_twice_counts_once_and_another_tiers_not_at_all() -> None:
    answered = [("a", "cheap", 0.5), ("b", "cheap", 0.5)]
    assert judged_share(answered, [("a", "cheap"), ("a", "cheap"), ("b", "premium"), ("x", "cheap")]).judged == {
        ("cheap", 0): 1
    }
