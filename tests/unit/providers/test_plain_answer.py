"""What a complete answer says about itself, and all that may stand in its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request import TokenUsage
from router.errors import UpstreamBroken
from router.ports import BrokenReply
from router.providers.plain_answer import read_plain

USAGE = {"prompt_tokens": 1000, "completion_tokens": 300, "prompt_tokens_details": {"cached_tokens": 0}}
TOLD = TokenUsage(input_tokens=1000, output_tokens=300)
DEEP = b"[" * 5_000 + b"]" * 5_000


def answer(**members: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": USAGE, **members}).encode()


def test_a_good_answer_is_kept_as_it_came() -> None:
    reply = read_plain(answer())
    assert (reply.body, reply.usage, reply.finish_reason) == (answer(), TOLD, "stop")


@pytest.mark.parametrize(
    "body",
    [
        answer().replace(b"Fine.", b"\xff"),
        answer().replace(b'"Fine."', DEEP),
        answer(more=1).replace(b"1}", DEEP + b"}"),
        answer().replace(b"1000", b"1e400"),
        answer().replace(b"1000", b"9" * 5_000),
        answer().replace(b'"stop"', b'"\xff"'),
        DEEP,
    ],
)
def test_what_no_caller_could_read_is_broken(body: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        read_plain(body)


@pytest.mark.parametrize(
    "members",
    [
        {"error": {"message": "boom"}},
        {"choices": []},
        {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": {"content": "Fi"}, "finish_reason": "abort"}]},
    ],
)
def test_an_answer_that_is_none_still_tells_what_it_used(members: dict[str, Any]) -> None:
    with pytest.raises(BrokenReply) as broken:
        read_plain(answer(**members))
    assert broken.value.usage == TOLD


def test_an_answer_that_is_none_and_tells_nothing_is_left_to_be_estimated() -> None:
    with pytest.raises(BrokenReply) as broken:
        read_plain(answer(choices=[], usage=None))
    assert broken.value.usage is None


_PIECES = (
    answer()[:60],
    answer()[60:],
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b'"a":',
    b"\xff",
    b"1e400",
    b"null",
    b'"\\ud800"',
)


@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=12))
def test_any_bytes_are_an_answer_or_broken(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    try:
        assert read_plain(body).body == body
    except UpstreamBroken as error:
        assert error.message
