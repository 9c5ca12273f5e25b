"""Numbers and words of a request."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from classifier.rows import request_features
from classifier.textstats import DENSE_COUNT, DENSE_NAMES, dense, words


def numbers_of(text: str) -> dict[str, float]:
    features = request_features({"messages": [{"role": "user", "content": text}]})
    found = words(features.text)
    return dict(zip(DENSE_NAMES, dense(features, len(found), set(found)), strict=True))


@given(st.text(st.characters(), max_size=400))
def test_every_text_gives_finite_numbers(text: str) -> None:
    numbers = numbers_of(text)
    assert len(numbers) == DENSE_COUNT
    assert all(math.isfinite(n) for n in numbers.values())


@given(st.text(st.characters(max_codepoint=127), max_size=300))
def test_the_fast_way_to_words_equals_the_pattern(text: str) -> None:
    assert words(text) == re.findall(rb"[a-z0-9]+", text.lower().encode())


def test_words_of_other_alphabets_are_words() -> None:
    assert words("Ça va? \u041f\u0440\u0438\u0432\u0435\u0442 2x") == [
        "ça".encode(),
        b"va",
        "\u043f\u0440\u0438\u0432\u0435\u0442".encode(),
        b"2x",
    ]


def test_answer_options_are_seen() -> None:
    numbers = numbers_of("Which is prime?\nA. 4\nB. 17\nC. banana\nAnswer:")
    assert numbers["option_count"] == 3.0
    assert numbers["option_number_ratio"] == 2 / 3
    assert numbers["ends_with_answer"] == 1.0


def test_numbers_are_counted_as_runs_of_digits() -> None:
    numbers = numbers_of("7 apples, 12 pears and 3.5 kg for 2024")
    assert numbers["log_numbers"] == math.log1p(5)
    assert numbers["log_decimals"] == math.log1p(1)
    assert numbers["log_long_numbers"] == math.log1p(1)
