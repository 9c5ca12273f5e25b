"""Reading answers back: from bodies, from streams, from anything."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.learning_loop.answers import Answer, of_body, of_events


def body(message: object) -> bytes:
    return json.dumps({"choices": [{"message": message}]}).encode()


def events(*deltas: object) -> list[bytes]:
    return [b"data: " + json.dumps({"choices": [{"delta": d}]}).encode() + b"\n\n" for d in deltas]


def call(arguments: str, name: str = "weather", **more: object) -> dict[str, object]:
    return {"function": {"name": name, "arguments": arguments}, **more}


def test_text_and_tool_calls_of_a_plain_answer() -> None:
    assert of_body(body({"content": "Hi"})) == Answer("Hi")
    assert of_body(body({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})) == Answer("ab")
    assert of_body(body({"content": None, "tool_calls": [call('{"x":1}')]})) == Answer("", (("weather", '{"x":1}'),))


def test_a_stream_reads_as_the_plain_answer_would() -> None:
    blocks = events({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {})
    assert of_events([*blocks, b": comment\n\n"]) == Answer("Hello")
    halves = events(
        {"tool_calls": [call('{"a":', index=0)]},
        {"tool_calls": [call("1}", "", index=0)]},
        {"tool_calls": [call("{}", "time", index=1)]},
    )
    assert of_events(halves) == Answer("", (("weather", '{"a":1}'), ("time", "{}")))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"\xff", body(7)])
def test_what_holds_no_answer_reads_as_none(data: bytes) -> None:
    assert of_body(data) is None
    assert of_events([b"data: " + data + b"\n\n"]) is None


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_reading_never_raises(value: object) -> None:
    for shaped in (value, {"choices": value}, {"choices": [value]}, {"choices": [{"message": value, "delta": value}]}):
        data = json.dumps(shaped).encode()
        of_body(data)
        of_events([b"data: " + data + b"\n\n"])
