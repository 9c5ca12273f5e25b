"""Features of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.datamodels import RequestFeatures
from classifier.features import EDGE_CHARS, FEATURE_VERSION, bounded, features

ANY_TEXT = st.text(st.characters(), max_size=300)  # lone surrogates and NUL included


def of(text: str, *, earlier: tuple[str, ...] = (), system: str = "") -> RequestFeatures:
    return features(
        texts=[t for t in (system, *earlier, text) if t],
        system_text=system,
        last_user_text=text,
        turns=1 + len(earlier),
        input_tokens=len(text) // 4,
        input_tokens_estimated=True,
        has_tools=False,
        has_images=False,
        wants_json=False,
        max_output_tokens=None,
    )


@given(ANY_TEXT, ANY_TEXT, st.lists(ANY_TEXT, max_size=4))
def test_no_text_makes_it_raise(text: str, system: str, earlier: list[str]) -> None:
    got = of(text, earlier=tuple(earlier), system=system)
    assert 0.0 <= got.non_ascii_ratio <= 1.0
    assert len(got.text) <= 2 * EDGE_CHARS + 1
    assert got.context_chars >= 0
    assert got.feature_version == FEATURE_VERSION


def test_a_long_text_keeps_both_ends() -> None:
    text = "a" * 50_000 + "z"
    assert bounded(text) == "a" * EDGE_CHARS + "\n" + "a" * (EDGE_CHARS - 1) + "z"
    assert of(text).text_chars == 50_001


@pytest.mark.parametrize("length", [0, 1, 2 * EDGE_CHARS])
def test_a_text_that_fits_is_kept_as_it_is(length: int) -> None:
    assert bounded("x" * length) == "x" * length


def test_system_and_earlier_turns_count_but_are_not_scored() -> None:
    got = of("and why?", earlier=("first question", "its answer"), system="You are terse.")
    assert got.text == "and why?"
    assert got.context_chars == len("first question" + "its answer" + "You are terse.")


def test_without_a_user_message_the_last_text_is_scored() -> None:
    got = features(
        texts=["system", "result of the tool", "  "],
        system_text="system",
        last_user_text="",
        turns=0,
        input_tokens=5,
        input_tokens_estimated=False,
        has_tools=True,
        has_images=False,
        wants_json=False,
        max_output_tokens=16,
    )
    assert got.text == "result of the tool"


def test_code_blocks_questions_and_foreign_letters_are_counted() -> None:
    got = of("what? ```py\nx\n``` и\uff1f")
    assert (got.code_block_count, got.question_count) == (1, 2)
    assert got.non_ascii_ratio == pytest.approx(2 / len(got.text))


def test_of_a_two_megabyte_word_only_the_ends_are_looked_at() -> None:
    seen = of("x" * 2_000_000)
    assert len(seen.text) <= 5_000
    assert seen.text_chars == 2_000_000
