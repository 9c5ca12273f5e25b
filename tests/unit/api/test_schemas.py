from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.schemas import MAX_OUTPUT_TOKENS, decode_chat
from router.core.chat import ChatRequest
from router.core.vocabulary import Locality
from router.errors import BadRequest, ClientError

HELLO = [{"role": "user", "content": "hello"}]
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def chat(headers: dict[str, str] | None = None, /, **fields: Any) -> ChatRequest:
    return decode_chat(json.dumps({"model": "auto", "messages": HELLO, **fields}).encode(), headers or {})


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    return caught.value


def test_a_plain_request_becomes_our_noun() -> None:
    got = chat(max_tokens=7, temperature=0, n=2)
    assert got.requested_model == "auto"
    assert (got.texts, got.message_count, got.turns) == (("hello",), 1, 1)
    assert (got.last_user_text, got.system_text) == ("hello", "")
    assert (got.max_output_tokens, got.temperature, got.n) == (7, 0.0, 2)
    assert (got.stream, got.include_usage, got.has_tools, got.has_images, got.wants_json) == (False,) * 5


def test_unknown_fields_pass_through_byte_for_byte_and_ours_do_not() -> None:
    body = (
        b'{"guided_regex":"\\u00e9+", "x":{ "y":1.50 }, "model":"m", "router":{"debug":true}, '
        b'"messages":[{"role":"user","content":"a"}]}'
    )
    got = decode_chat(body, {})
    assert {name: bytes(raw) for name, raw in got.fields.items()} == {
        "guided_regex": b'"\\u00e9+"',
        "x": b'{ "y":1.50 }',
        "messages": b'[{"role":"user","content":"a"}]',
    }
    assert got.controls.debug


def test_texts_of_all_parts_are_gathered_in_order() -> None:
    got = chat(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "and kind"}]},
            {"role": "user", "content": [{"type": "text", "text": "one"}, PICTURE, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "user", "content": "three"},
        ]
    )
    assert got.texts == ("be brief", "and kind", "one", "two", "42", "no", "three")
    assert got.system_text == "be brief\nand kind"
    assert got.last_user_text == "three"
    assert (got.turns, got.message_count, got.image_count, got.has_images) == (2, 7, 1, True)
    assert got.schema_texts == ("f", "{}")


def test_tools_and_schemas_are_seen_and_count_as_prompt() -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    got = chat(tools=tools, response_format={"type": "json_schema", "json_schema": {"name": "s"}})
    assert got.has_tools
    assert got.wants_json
    assert json.loads(got.schema_texts[0]) == tools
    assert not chat(tools=[], response_format={"type": "text"}).has_tools
    assert not chat(response_format={"type": "text"}).wants_json


def test_of_two_token_limits_the_newer_form_wins_and_travels_alone() -> None:
    got = chat(max_tokens=5, max_completion_tokens=9)
    assert got.max_output_tokens == 9
    assert "max_tokens" not in got.fields
    assert "max_completion_tokens" in got.fields
    assert chat(max_tokens=5, max_completion_tokens=None).max_output_tokens == 5


def test_null_is_the_same_as_absent() -> None:
    names = (
        "max_tokens",
        "n",
        "temperature",
        "stream",
        "stop",
        "seed",
        "logprobs",
        "tools",
        "stream_options",
        "router",
    )
    got = chat(**dict.fromkeys((*names, "response_format", "top_logprobs")))
    assert (got.n, got.stream, got.max_output_tokens, got.temperature, got.has_tools) == (1, False, None, None, False)


def test_usage_on_a_stream_is_an_explicit_wish() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True, stream_options={"include_usage": False}).include_usage
    assert not chat(stream=True, stream_options={}).include_usage


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None), ("model", ""), ("model", 3), ("model", ["auto"]), ("model", True),
        ("messages", None), ("messages", []), ("messages", {}), ("messages", "hello"), ("messages", {"role": "user"}),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1_000_000_000), ("max_tokens", MAX_OUTPUT_TOKENS + 1),
        ("max_tokens", True), ("max_tokens", 1.5), ("max_tokens", "9"), ("max_tokens", 2**70),
        ("max_completion_tokens", 0), ("max_completion_tokens", [1]),
        ("n", 0), ("n", 129), ("n", 1_000_000_000), ("n", False), ("best_of", 1_000_000),
        ("temperature", "hot"), ("temperature", -0.1), ("temperature", 2.01), ("temperature", True),
        ("top_p", 1.1), ("top_p", -1), ("top_p", {}),
        ("presence_penalty", 2.5), ("frequency_penalty", -2.5),
        ("logprobs", 1_000_000), ("logprobs", "yes"), ("top_logprobs", 21), ("top_logprobs", -1),
        ("prompt_logprobs", 1_000_000), ("seed", 2**63), ("seed", 1.0), ("seed", -(2**63) - 1),
        ("stream", "true"), ("stream", 1), ("stop", 3), ("stop", [1]), ("stop", {"a": 1}),
        ("stream_options", True), ("tools", {}), ("tools", ["x"]), ("functions", "f"),
        ("response_format", "json"), ("response_format", {}), ("response_format", {"type": 3}),
        ("api_base", "http://169.254.169.254"), ("base_url", "file:///etc/passwd"), ("api_key", "sk-x"),
        ("api_key", None),
        ("router", []), ("router", "cheap"),
    ],
)  # fmt: skip
def test_a_field_out_of_shape_or_range_is_refused_by_its_name(name: str, value: object) -> None:
    error = refusal(**{name: value})
    assert error.param == name
    assert name in error.message


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("max_tokens", 1, MAX_OUTPUT_TOKENS),
        ("n", 1, 128),
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("top_logprobs", 0, 20),
        ("seed", -(2**63), 2**63 - 1),
    ],
)
def test_the_bounds_themselves_are_allowed(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert json.loads(bytes(chat(**{name: value}).fields[name])) == value


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hello", ""),
        (None, ""),
        ({"content": "x"}, ".role"),
        ({"role": "wizard", "content": "x"}, ".role"),
        ({"role": ["user"], "content": "x"}, ".role"),
        ({"role": "user"}, ".content"),
        ({"role": "user", "content": None}, ".content"),
        ({"role": "user", "content": 3}, ".content"),
        ({"role": "user", "content": {}}, ".content"),
        ({"role": "user", "content": []}, ".content"),
        ({"role": "user", "content": ["x"]}, ".content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, ".content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, ".content[0].text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, ".content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}, ".content[0].image_url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]},
            ".content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "file:///x"}}]},
            ".content[0].video_url",
        ),
        ({"role": "assistant", "tool_calls": {}}, ".tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, ".tool_calls"),
    ],
)
def test_a_message_out_of_shape_is_refused_by_its_place(message: object, param: str) -> None:
    assert refusal(messages=[*HELLO, message]).param == f"messages[1]{param}"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "x"}],
        [{"role": "tool", "content": "42", "tool_call_id": "c"}],
        [{"role": "user", "content": [PICTURE]}],
        [{"role": "user", "content": "😀"}],
        [{"role": "user", "content": "a" * 2_000_000}],
        [{"role": "user", "content": "שלום עולם 漢字かな"}],
        [{"role": "assistant", "content": None, "tool_calls": None}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
    ],
)
def test_odd_but_honest_conversations_are_taken(messages: list[dict[str, Any]]) -> None:
    assert chat(messages=messages).message_count == 1


def test_controls_come_from_headers_and_from_the_body() -> None:
    got = chat({"x-router-locality": "local"}, router={"quality": 0.9, "max_cost_usd": "0.000000001"})
    assert got.controls.locality is Locality.LOCAL_ONLY
    assert got.controls.quality_floor_ratio == 0.9
    assert got.controls.max_nanousd == 1


def test_a_cap_inside_a_literal_extra_body_is_not_lost() -> None:
    got = chat(extra_body={"router": {"max_cost_usd": 0.5}})
    assert got.controls.max_nanousd == 500_000_000
    assert "extra_body" not in got.fields
    kept = chat(extra_body={"router": {"debug": True}, "top_k": 5}).fields["extra_body"]
    assert json.loads(bytes(kept)) == {"top_k": 5}
    assert refusal(extra_body={"router": {}}, router={"debug": True}).code == "conflicting_controls"
    assert refusal(extra_body={"api_base": "http://x"}).param == "extra_body.api_base"


def test_a_refusal_never_repeats_what_was_in_the_text() -> None:
    assert "secretword" not in refusal(temperature="secretword").message
    assert "secretword" not in refusal(messages=[{"role": "secretword", "content": "x"}]).message


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["user", "assistant", "text", "image_url", "http://[", "data:"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "image_url", "url", "tool_calls", "function", "quality"]
            ),
            inner,
        )
    ),
    max_leaves=8,
)
FIELDS = ("model", "messages", "router", "extra_body", "stream_options", "response_format", "tools", "stop", "n",
          "seed", "temperature", "max_tokens", "max_completion_tokens", "stream", "logprobs", "other")  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), anything, max_size=5),
    messages=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), anything), max_size=3
    ),
    headers=st.dictionaries(
        st.sampled_from(["x-router-quality", "x-router-max-cost-usd", "x-router-locality", "x-router-session"]),
        st.text(max_size=8),
    ),
)
def test_any_json_is_taken_or_refused_but_never_breaks(
    fields: dict[str, Any], messages: list[Any], headers: dict[str, str]
) -> None:
    body = json.dumps({"model": "auto", "messages": messages or HELLO, **fields}).encode()
    try:
        got = decode_chat(body, headers)
    except ClientError as error:
        assert error.param
    else:
        assert got.message_count >= 1
        assert 1 <= got.n <= 128


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_refused_but_never_break(body: bytes) -> None:
    with pytest.raises(ClientError):
        decode_chat(body, {})
