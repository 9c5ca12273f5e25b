"""The starting prior."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.datamodels import RequestFeatures
from classifier.features import features
from classifier.heuristic import HeuristicScorer, PromptClass, needs_reasoning, prompt_class

PATTERNS = [
    re.compile(p, re.IGNORECASE)
    for p in (r"why.*(happen|work|fail)", r"compare.*(and|vs|versus)", r"explain.*(how|why)", r"analyze")
]
FRAGMENTS = [
    "why",
    "happen",
    "work",
    "fail",
    "compare",
    "and",
    "vs",
    "explain",
    "how",
    "analyze",
    "WHY",
    " ",
    "\n",
    "x",
]


def of(text: str, *, system: str = "", has_tools: bool = False, has_images: bool = False) -> RequestFeatures:
    return features(
        texts=[t for t in (system, text) if t],
        system_text=system,
        last_user_text=text,
        turns=1,
        input_tokens=10,
        input_tokens_estimated=True,
        has_tools=has_tools,
        has_images=has_images,
        wants_json=False,
        max_output_tokens=None,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of Peru?", PromptClass.SIMPLE),
        ("", PromptClass.SIMPLE),
        ("x" * 49, PromptClass.SIMPLE),
        ("x" * 50, PromptClass.MIDDLE),
        ("why does it fail", PromptClass.REASONING),
        ("Please ANALYZE this", PromptClass.REASONING),
        ("compare a vs b", PromptClass.REASONING),
        ("explain to me\nhow", PromptClass.SIMPLE),
        ("works? why", PromptClass.SIMPLE),
    ],
)
def test_class_follows_length_and_words(text: str, expected: PromptClass) -> None:
    assert prompt_class(of(text)) is expected


def test_a_short_question_behind_a_long_document_is_not_simple() -> None:
    assert prompt_class(of("Summarize it.", system="clause " * 1_000)) is PromptClass.MIDDLE
    assert prompt_class(of("Summarize it.", system="Be brief.")) is PromptClass.SIMPLE


def test_a_short_question_with_an_image_or_tools_is_not_simple() -> None:
    assert prompt_class(of("What is it?", has_images=True)) is PromptClass.MIDDLE
    assert prompt_class(of("Book it.", has_tools=True)) is PromptClass.MIDDLE


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_string_search_equals_the_regular_expressions(text: str) -> None:
    assert needs_reasoning(text) == any(p.search(text) for p in PATTERNS)


@given(st.text(st.characters(), max_size=200))
def test_every_text_gets_probabilities(text: str) -> None:
    score = HeuristicScorer().score(of(text))
    assert all(0.0 < p < 1.0 for p in score.p_adequate.values())
    assert score.complexity_ratio == pytest.approx(1.0 - score.p_adequate["local"])
    assert not score.calibrated
    assert score.novelty_ratio == 0.0


def test_repeated_opening_words_do_not_make_it_slow() -> None:
    hostile = of("why " * 500_000)
    assert len(hostile.text) <= 5_000  # whatever is searched is bounded, and the search is linear in it
    assert HeuristicScorer().score(hostile).complexity_ratio > 0
