"""Usage objects of many hosts, one meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request import TokenUsage
from router.core.vocabulary import Flag
from router.providers.usage import usage_from

UNTOLD = (Flag.CACHE_UNKNOWN,)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, TokenUsage(10, 5, flags=UNTOLD)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            TokenUsage(10, 5, cached_input_tokens=8, reasoning_tokens=3),
        ),
        (  # vLLM without details
            {"prompt_tokens": 37, "total_tokens": 45, "completion_tokens": 8, "prompt_tokens_details": None},
            TokenUsage(37, 8, flags=UNTOLD),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4}, TokenUsage(9, 1, 4)),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cache_write_tokens": 4}},
            TokenUsage(9, 1, cache_write_tokens=4, flags=UNTOLD),
        ),
        (  # reasoning beside the completion
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 35,
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            TokenUsage(10, 25, reasoning_tokens=20, flags=UNTOLD),
        ),
        ({"prompt_tokens": 10.0, "completion_tokens": 5.0}, TokenUsage(10, 5, flags=UNTOLD)),
    ],
)
def test_known_dialects(reported: Any, expected: TokenUsage) -> None:
    assert usage_from(reported, saw_output=True) == expected


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}},
            TokenUsage(10, 5, cached_input_tokens=10, flags=(Flag.USAGE_INCONSISTENT,)),
        ),
        ({"prompt_tokens": 10, "completion_tokens": -5}, TokenUsage(10, 0, flags=(Flag.USAGE_INCONSISTENT, *UNTOLD))),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}},
            TokenUsage(10, 5, flags=(Flag.USAGE_INCONSISTENT,)),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 9}},
            TokenUsage(10, 5, reasoning_tokens=5, flags=(Flag.USAGE_INCONSISTENT, *UNTOLD)),
        ),
    ],
)
def test_contradictions_are_clamped_and_flagged(reported: Any, expected: TokenUsage) -> None:
    assert usage_from(reported, saw_output=True) == expected


@pytest.mark.parametrize(
    "reported",
    [
        None,
        [],
        "12",
        {},
        {"prompt_tokens": 10},
        {"completion_tokens": 10},
        {"prompt_tokens": None, "completion_tokens": 3},
        {"prompt_tokens": "10", "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": 3},
        {"prompt_tokens": -4, "completion_tokens": 3},
        {"prompt_tokens": 10, "completion_tokens": 0},
    ],
)
def test_what_says_nothing_usable_is_none(reported: Any) -> None:
    assert usage_from(reported, saw_output=True) is None


def test_no_output_and_none_counted_is_usable() -> None:
    found = usage_from({"prompt_tokens": 10, "completion_tokens": 0}, saw_output=False)
    assert found == TokenUsage(10, 0, flags=UNTOLD)


@pytest.mark.parametrize("details", [None, {}, [], {"cached_tokens": None}, {"audio_tokens": 0}])
def test_cached_tokens_that_nobody_told_are_unknown_and_not_zero(details: Any) -> None:
    reported = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": details}
    assert usage_from(reported, saw_output=True) == TokenUsage(10, 5, flags=UNTOLD)


@pytest.mark.parametrize("told", [{"prompt_tokens_details": {"cached_tokens": 0}}, {"prompt_cache_hit_tokens": 0}])
def test_a_told_zero_is_a_zero(told: dict[str, Any]) -> None:
    assert usage_from({"prompt_tokens": 10, "completion_tokens": 5, **told}, saw_output=True) == TokenUsage(10, 5)


COUNTS = st.one_of(st.integers(-50, 50), st.floats(), st.none(), st.booleans(), st.text(max_size=3))
DETAILS = st.one_of(
    st.none(),
    st.lists(COUNTS, max_size=2),
    st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "reasoning_tokens"]), COUNTS),
)


@given(
    st.fixed_dictionaries(
        {"prompt_tokens": COUNTS, "completion_tokens": COUNTS},
        optional={
            "total_tokens": COUNTS,
            "prompt_tokens_details": DETAILS,
            "completion_tokens_details": DETAILS,
            "prompt_cache_hit_tokens": COUNTS,
            "cache_creation_input_tokens": COUNTS,
        },
    )
)
def test_parts_never_exceed_their_whole_and_nothing_is_negative(reported: Any) -> None:
    usage = usage_from(reported, saw_output=False)
    if usage is not None:
        assert 0 <= usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens
        assert 0 <= usage.reasoning_tokens <= usage.output_tokens
        assert min(usage.cached_input_tokens, usage.cache_write_tokens) >= 0
