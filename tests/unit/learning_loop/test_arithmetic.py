"""Prompts that are a calculation have one right answer; everything else is left alone."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.learning_loop.answers import Answer
from router.learning_loop.arithmetic import result_of, says
from router.learning_loop.checks import Verdict, check, checkable


@pytest.mark.parametrize(
    ("prompt", "result"),
    [
        ("What is 17 * 23?", 391),
        ("what's 2+2", 4),
        ("Calculate: (3 + 4)^2 - 1,000 / 8", -76),
        ("12.5 \u00d7 4 =", 50),
        ("compute -2**2", -4),
        ("How much is 7 / 2?", Fraction(7, 2)),
        ("What does 2 + 3 equal?", 5),
        ("9 \u2212 12 = ? please", -3),
        ("What is 2^-2?", Fraction(1, 4)),
    ],
)
def test_a_calculation_is_worked_out_exactly(prompt: str, result: Fraction | int) -> None:
    assert result_of(prompt) == result
    assert checkable(wants_json=False, has_tools=False, asked=prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "", "42", "hi", "What is 5?", "1 / 0", "2 +", "(1 + 2", "3 4 + 1", "9^999", "2^2^2^2^2^2", "1.2.3 + 4",
        "If I have 3 + 4 apples, how many are red?", "Call 555-1234 now", "10,00 + 1", "(" * 60 + "1+1" + ")" * 60,
        "1+1 " * 40, "2 + 3 = 6, true or false?",
    ],
)  # fmt: skip
def test_what_is_no_plain_calculation_is_left_alone(prompt: str) -> None:
    assert result_of(prompt) is None
    assert not checkable(wants_json=False, has_tools=False, asked=prompt)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("391", True),
        ("17 * 23 = **391**.", True),
        ("It is 391, which is 17 groups of 23.", True),
        ("17 * 20 = 340, 17 * 3 = 51, so 381", False),
        ("I cannot calculate.", False),
        ("1391", False),
        ("391.4", False),
        ("391.0", True),
    ],
)
def test_the_answer_is_right_or_wrong(answer: str, right: bool) -> None:
    assert says(answer, Fraction(391), prompt="What is 17 * 23?") is right
    assert check({}, Answer(answer), "What is 17 * 23?") == Verdict("arithmetic", float(right))


def test_a_result_that_stood_in_the_prompt_has_to_come_last_and_rounding_is_allowed() -> None:
    assert says("5 - 0 is easy, there is nothing to take from 7", Fraction(5), prompt="5 - 0") is None
    assert says("It is 5", Fraction(5), prompt="5 - 0") is True
    assert says("about 0.33", Fraction(1, 3), prompt="1 / 3") is True
    assert says("1/3", Fraction(1, 3), prompt="2 / 6") is True
    assert says("1,234,567", Fraction(1234567), prompt="1234566 + 1") is True


@given(st.text(alphabet="0123456789+-*/^(). ,=?", max_size=120))
def test_no_text_breaks_it(prompt: str) -> None:
    found = result_of(prompt)
    assert found is None or says(str(found), found, prompt="") is True
