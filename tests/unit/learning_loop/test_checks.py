"""Exact checks: a form that was asked for is kept or not; where none was, there is no verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.learning_loop.answers import Answer
from router.learning_loop.checks import Verdict, check

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]


def fields(**members: Any) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in members.items()}


def schema(wanted: Any) -> dict[str, bytes]:
    return fields(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}})


@pytest.mark.parametrize(
    ("request_fields", "text", "verdict"),
    [
        (fields(response_format={"type": "json_object"}), '{"a": 1}', Verdict("json", 1.0)),
        (fields(response_format={"type": "json_object"}), '{"a": 1', Verdict("json", 0.0)),
        (fields(response_format={"type": "json_object"}), "[1]", Verdict("json", 0.0)),
        (schema(CITY), '{"city": "Oslo"}', Verdict("json_schema", 1.0)),
        (schema(CITY), '{"city": 4}', Verdict("json_schema", 0.0)),
        (schema(CITY), "Oslo", Verdict("json_schema", 0.0)),
        (fields(response_format={"type": "text"}), "Oslo", None),
        (fields(), "Oslo", None),
        (fields(tools=TOOLS), "I need no tool.", None),
    ],
)
def test_json_is_held_to_what_was_asked_for(request_fields: dict[str, bytes], text: str, verdict: Verdict) -> None:
    assert check(request_fields, Answer(text)) == verdict


@pytest.mark.parametrize(
    ("name", "arguments", "quality"),
    [
        ("weather", '{"city": "Oslo"}', 1.0),
        ("weather", "{}", 0.0),
        ("weather", '{"city": "Os', 0.0),
        ("weather", '"Oslo"', 0.0),
        ("invented", '{"city": "Oslo"}', 0.0),
    ],
)
def test_tool_calls_are_held_to_the_tools(name: str, arguments: str, quality: float) -> None:
    assert check(fields(tools=TOOLS), Answer("", ((name, arguments),))) == Verdict("tool_arguments", quality)


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "string", "pattern": "(a+)+$"},
        {"properties": {"a": {"patternProperties": {"(a+)+$": {}}}}},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"type": "nonsense"},
        {"description": "x" * 70_000},
        "no schema",
        None,
    ],
)
def test_a_schema_that_is_broken_or_could_reach_out_or_take_for_ever_gets_no_verdict(wanted: Any) -> None:
    assert check(schema(wanted), Answer('"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"')) is None
