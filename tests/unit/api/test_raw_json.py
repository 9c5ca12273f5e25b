"""Strictness of the JSON door, against the standard parser as the referee."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.raw_json import BIG_BODY_BYTES, MAX_CONTAINERS_OF_BIG_BODY, MAX_DEPTH, decode_object
from router.errors import BadRequest

LONG = 'a long prompt with "quotes" and \\ backslashes\n' * 100


def refusal(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decode_object(body)
    return caught.value


def nested(levels: int) -> bytes:
    """An object with arrays in it, `levels` containers deep."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "valid JSON"),
        (b'{"a":1', "valid JSON"),
        (b'{"a":1,}', "valid JSON"),
        (b'{"a":1}x', "valid JSON"),
        (b"{'a':1}", "valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a":[Infinity]}', "Infinity"),
        (b'{"a":-Infinity}', "valid JSON"),
        (b'{"a":1e999}', "out of range"),
        (b'{"a":"x\x00y"}', "valid JSON"),
        (b'{"a":"x\\u0000y"}', "NUL"),
        (b'{"\\u0000":1}', "NUL"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":"\\udc00 low first"}', "surrogate"),
        (b'{"a":"\\ud800x and more text"}', "surrogate"),
        (b'{"\\ud800":1}', "surrogate"),
        (b'{"a":"\xff"}', "UTF-8 at byte 6"),
        (b'{"\xff":1}', "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"text"', "JSON object"),
        (b"1", "JSON object"),
        (b"[" * 100_000, "nested"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (nested(MAX_DEPTH + 1), "nested"),
        (b'{"messages":' + b'{"a":' * 100 + b"1" + b"}" * 101, "nested"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value,
)
def test_what_is_no_plain_json_object_is_refused_and_says_why(body: bytes, says: str) -> None:
    error = refusal(body)
    assert says in error.message
    assert error.param == "body"


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"a":1,"a":2}', "a"),
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":12,"b":0,"a":1}', "a"),
        (b'{"a":1, "\\u0061" : 2}', "a"),
        (b'{"m":[{"role":"user","content":"x","role":"system"}]}', "role"),
        (b'{"t":{"deep":{"k":null,"k":null}}}', "k"),
        # An escaped quote in a value makes up for the quotes that the vanished key took along.
        (b'{"a":"\\u0022\\u0022","b":1,"b":2}', "b"),
        (json.dumps({"messages": [{"content": LONG}]}).encode()[:-3] + b',"content":""}]}', "content"),
        (b'{"":1,"":2}', ""),
    ],
)
def test_a_key_twice_in_one_object_is_refused_at_any_depth(body: bytes, key: str) -> None:
    error = refusal(body)
    assert error.code == "duplicate_key"
    assert error.param == key


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": "\\u0000 is only text here", "b": "\\\\u0000"},
        {"a": 'quotes " and : , { [ inside', "b": {"a": {"a": 1}}},
        {"messages": [{"role": "user", "content": LONG}, {"role": "user", "content": LONG}, "odd", None]},
        {"messages": {"content": LONG}},
        {"emoji": "😀 שלום 漢字", "big": 2**70, "float": 1.5e-300, "none": None},
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_honest_documents_come_through_whole(document: dict[str, Any], ascii_only: bool) -> None:
    for separators in ((",", ":"), (" , ", " : ")):
        body = json.dumps(document, ensure_ascii=ascii_only, separators=separators).encode()
        decoded, members = decode_object(body)
        assert decoded == document
        assert {key: json.loads(bytes(raw)) for key, raw in members.items()} == document


def test_an_escaped_quote_alone_is_no_offence() -> None:
    assert decode_object(b'{"a":"say \\u0022yes\\u0022"}')[0] == {"a": 'say "yes"'}


def test_the_deepest_allowed_nesting_passes() -> None:
    assert decode_object(nested(MAX_DEPTH))[0].keys() == {"a"}


def test_members_keep_the_bytes_they_came_with() -> None:
    _, members = decode_object(b'{"a" : 1.50, "b":{ "x":"\\u00e9" } }')
    assert {key: bytes(raw) for key, raw in members.items()} == {"a": b"1.50", "b": b'{ "x":"\\u00e9" }'}


def test_a_big_body_may_not_unfold_into_millions_of_objects() -> None:
    assert refusal(b'{"a":[' + b"{}," * BIG_BODY_BYTES + b"{}]}").code == "body_too_complex"
    text = b'{"a":"' + b"x" * BIG_BODY_BYTES + b'","b":[' + b"[]," * 1000 + b"[]]}"
    assert len(decode_object(text)[0]["b"]) == 1001
    assert MAX_CONTAINERS_OF_BIG_BODY > 1001


def test_endless_backslashes_are_read_in_one_pass() -> None:
    run = b"\\\\" * 2_000_000
    assert decode_object(b'{"a":"' + run + b'u0000"}')[0]["a"].endswith("\\u0000")
    assert "NUL" in refusal(b'{"a":"' + run + b'\\u0000"}').message


def test_a_refusal_never_quotes_the_body() -> None:
    for body in (b'{"a": secretword}', b'{"a":"secretword', b'{"a":"secretword\\ud800"}', b'{"a":"secretword\xff"}'):
        assert "secretword" not in refusal(body).message


def strictly(body: bytes) -> dict[str, Any] | None:
    """What the standard library makes of `body` when told to be strict; `None` where it refuses."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("duplicate")
        return dict(pairs)

    def constant(name: str) -> float:
        raise ValueError(name)

    try:
        document = json.loads(body.decode(), object_pairs_hook=unique, parse_constant=constant)
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return None
    return (
        document if isinstance(document, dict) and "\\u0000" not in json.dumps(document).replace("\\\\", "") else None
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(['"', "\\", "\\u0022", "\\u0000", "\0", LONG]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "role", 'q"', "é"]), inner),
    max_leaves=12,
)


@st.composite
def broken_bodies(draw: st.DrawFn) -> bytes:
    """JSON objects with a few bytes cut out, doubled, replaced or put in."""
    document = draw(st.dictionaries(st.sampled_from(["model", "messages", "content", "x"]), json_values, max_size=4))
    body = bytearray(json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    pieces = [
        b'"',
        b"\\",
        b",",
        b"{",
        b"}",
        b'"a":1,',
        b"\\u0022",
        b"\\u0000",
        b"\\ud800",
        b"NaN",
        b"\xff",
        b"\0",
        b" ",
    ]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        cut = draw(st.integers(0, 6))
        body[at : at + cut] = draw(st.sampled_from([b"", *pieces]))
    return bytes(body)


@settings(max_examples=600, deadline=None)
@given(broken_bodies() | st.binary(max_size=60))
def test_accepted_means_the_strict_referee_reads_the_same(body: bytes) -> None:
    wanted = strictly(body)
    try:
        document, members = decode_object(body)
    except BadRequest:
        assert wanted is None
        return
    assert document == wanted
    assert list(members) == list(document)


@pytest.mark.parametrize("quotes", [0, 20, 60, 64, 200])
def test_a_key_twice_is_found_in_a_long_body_however_many_quotes_it_holds(quotes: int) -> None:
    text = json.dumps("long " * 4_000 + '"' * quotes)
    honest = f'{{"messages": [{{"role": "user", "content": {text}}}], "n": 1}}'.encode()
    assert decode_object(honest)[0]["n"] == 1
    with pytest.raises(BadRequest, match="twice"):
        decode_object(honest[:-1] + b', "n": 2}')
