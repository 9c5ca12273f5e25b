from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.controls import read_controls
from router.core.chat import NO_CONTROLS, RouterControls
from router.core.vocabulary import Locality
from router.errors import BadRequest

ALL_HEADERS = {
    "x-router-quality": " 0.95 ",
    "x-router-max-cost-usd": "0.0025",
    "x-router-locality": "Local",
    "x-router-session": "abc-1",
    "x-router-debug": "TRUE",
}
ALL = RouterControls(0.95, 2_500_000, Locality.LOCAL_ONLY, "abc-1", True)


def refused(headers: dict[str, str], member: object = None) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read_controls(headers, member)
    return caught.value


def test_nothing_asked_is_nothing_set() -> None:
    assert read_controls({"user-agent": "x"}, None) is NO_CONTROLS
    assert read_controls({}, {}) == NO_CONTROLS
    assert read_controls({}, {"quality": None}) == NO_CONTROLS


def test_headers_and_body_say_the_same_things() -> None:
    member = {"quality": 0.95, "max_cost_usd": 0.0025, "locality": "local", "session": "abc-1", "debug": True}
    assert read_controls(ALL_HEADERS, None) == ALL
    assert read_controls({}, member) == ALL
    assert read_controls(ALL_HEADERS, member) == ALL


@pytest.mark.parametrize(
    ("header", "value"),
    [(name, value) for name, values in {
        "x-router-quality": ["", "1.01", "-0.1", "nan", "inf", "1_0", "0x1", "1e99", "\u0660.\u0665", "0.5 0.6"],
        "x-router-max-cost-usd": ["", "-1", "-0", "NaN", "Infinity", "1e999999", "1000001", "$1", "1,5", "9" * 5000],
        "x-router-locality": ["", "cloud", "local_only"],
        "x-router-session": ["", "x" * 257, "a\tb", "a\x7fb"],
        "x-router-debug": ["", "1", "yes"],
    }.items() for value in values],
)  # fmt: skip
def test_a_header_out_of_range_is_refused_by_its_name(header: str, value: str) -> None:
    assert refused({header: value}).param == header


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", 2), ("quality", -0.5), ("quality", True), ("quality", [1]), ("max_cost_usd", -1),
        ("max_cost_usd", 10**300), ("max_cost_usd", False), ("locality", 1), ("session", 7), ("session", ""),
        ("debug", 1), ("debug", "yes"), ("tier", "local"), ("api_base", "http://x"), ("api_key", "k"),
        ("base_url", "u"),
    ],
)  # fmt: skip
def test_a_member_unknown_or_out_of_range_is_refused_by_its_name(name: str, value: Any) -> None:
    assert refused({}, {name: value}).param == f"router.{name}"


def test_header_and_body_that_differ_are_refused_and_both_named() -> None:
    error = refused({"x-router-quality": "0.5"}, {"quality": 0.6})
    assert "x-router-quality" in error.message
    assert "router.quality" in error.message


def test_the_debug_header_false_against_a_true_body_is_a_conflict_too() -> None:
    assert refused({"x-router-debug": "false"}, {"debug": True}).code == "conflicting_controls"
    assert read_controls({"x-router-debug": "false"}, None).debug is False


def test_a_cap_is_rounded_down_to_the_nano_dollar() -> None:
    assert read_controls({"x-router-max-cost-usd": "0.0000000019"}, None).max_nanousd == 1
    assert read_controls({"x-router-max-cost-usd": "0"}, None).max_nanousd == 0
    assert read_controls({}, {"max_cost_usd": 1e-10}).max_nanousd == 0


def test_headers_that_pretend_to_be_ours_change_nothing() -> None:
    forged = {"x-router-tier": "premium", "x-forwarded-user": "admin", "x-router-model": "m", "x-router-tenant": "boss"}
    assert read_controls(forged, None) is NO_CONTROLS


@given(st.integers(0, 10**15))
def test_every_whole_number_of_nano_dollars_survives_its_text(nanousd: int) -> None:
    text = f"{nanousd // 10**9}.{nanousd % 10**9:09d}"
    assert read_controls({"x-router-max-cost-usd": text}, None).max_nanousd == nanousd
