"""Which of our errors an upstream's answer stands for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from router.errors import (
    UpstreamBroken,
    UpstreamContextTooLong,
    UpstreamCredentials,
    UpstreamError,
    UpstreamNotServed,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from router.providers.upstream_errors import error_for_answer, read_error

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
KEY = "sk-very-secret"


def error_of(status: int, body: Any = None, /, **headers: str) -> UpstreamError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return error_for_answer(status, named, raw, now_utc=NOW, secret=KEY)


def envelope(message: str = "m", **members: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "t", "param": None, "code": None, **members}}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (204, UpstreamBroken),
        (301, UpstreamBroken),
        (307, UpstreamBroken),
        (400, UpstreamRefused),
        (401, UpstreamCredentials),
        (402, UpstreamCredentials),
        (403, UpstreamCredentials),
        (404, UpstreamNotServed),
        (410, UpstreamNotServed),
        (405, UpstreamRefused),
        (408, UpstreamTimeout),
        (409, UpstreamUnavailable),
        (413, UpstreamRefused),
        (415, UpstreamRefused),
        (422, UpstreamRefused),
        (429, UpstreamRateLimited),
        (500, UpstreamUnavailable),
        (502, UpstreamUnavailable),
        (503, UpstreamUnavailable),
        (529, UpstreamUnavailable),
    ],
)
@pytest.mark.parametrize("body", [envelope(), {"error": "Unauthorized"}, b"<html>Bad gateway</html>", b"", b"[]", b"3"])
def test_status_decides_whatever_the_body_looks_like(status: int, kind: type[UpstreamError], body: Any) -> None:
    assert type(error_of(status, body)) is kind


@pytest.mark.parametrize(
    "body",
    [
        envelope(code="context_length_exceeded"),
        envelope(  # vLLM 0.32
            "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input "
            "tokens, which exceeds this limit even without any output tokens.",
            type="BadRequestError",
            param="input_tokens",
            code=400,
        ),
        {  # llama.cpp
            "error": {
                "code": 400,
                "message": "request (4031 tokens) exceeds the available context size (2048 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 4031,
                "n_ctx": 2048,
            }
        },
        envelope("prompt is too long: 210000 tokens > 200000 maximum", type="invalid_request_error"),
        [envelope("The input exceeds the model's context window")],
        {"object": "error", "message": "This model's maximum context length is 8 tokens.", "code": 40303},
    ],
)
def test_a_prompt_beyond_the_window_is_told_from_a_bad_request(body: Any) -> None:
    error = error_of(400, body)
    assert type(error) is UpstreamContextTooLong
    assert error.retryable


def test_too_large_max_tokens_is_the_callers_own_error() -> None:
    text = "max_tokens=5000 cannot be greater than max_model_len=2048. (parameter=max_tokens, value=5000)"
    error = error_of(400, envelope(text, param="max_tokens", code=400))
    assert isinstance(error, UpstreamRefused)
    assert error.param == "max_tokens"


@pytest.mark.parametrize("member", ["code", "type"])
def test_an_exhausted_account_is_no_rate_limit(member: str) -> None:
    assert type(error_of(429, envelope(**{member: "insufficient_quota"}))) is UpstreamCredentials


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry_after": "1"}, 1.0),
        ({"retry_after": "3600"}, 3600.0),
        ({"retry_after": "0.25"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "99999999999"}, 7 * 86_400.0),
        ({"retry_after": "Sun, 22 Nov 2026 12:01:30 GMT"}, 90.0),
        ({"retry_after": "Sun, 22 Nov 2026 12:01:30 -0000"}, 90.0),
        ({"retry_after": "Sun, 22 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry_after": "Sun, 22 Nov 99999999999999999999 12:01:30 GMT"}, None),
        ({"retry_after": "Sun, 22 Nov 2026 12:01:30 +99999999999999999999"}, None),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
    ],
)
def test_retry_after_in_all_its_spellings(headers: dict[str, str], wait_s: float | None) -> None:
    assert error_of(429, envelope(), **headers).retry_after_s == wait_s
    assert error_of(503, envelope(), **headers).retry_after_s == wait_s


def test_a_refusal_is_passed_through_but_never_with_our_key() -> None:
    body = json.dumps(envelope(f"Unknown parameter for {KEY}", param="foo")).encode()
    error = error_of(400, body)
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.param, error.retryable) == (400, "foo", False)
    assert KEY.encode() not in error.body
    assert json.loads(error.body)["error"]["message"] == "Unknown parameter for [redacted]"
    untouched = json.dumps(envelope("plain")).encode()
    refused = error_of(422, untouched)
    assert isinstance(refused, UpstreamRefused)
    assert refused.body == untouched


@pytest.mark.parametrize("status", [204, 302, 400, 401, 408, 429, 500])
def test_messages_hold_no_key_no_prompt_and_no_address(status: int) -> None:
    body = envelope(f"{KEY} says my prompt at http://10.0.0.7:8000/v1", type=f"odd {KEY}", code="http://10.0.0.7")
    message = str(error_of(status, body))
    assert str(status) in message
    assert not any(part in message for part in (KEY, "prompt at", "10.0.0.7"))


@given(st.binary(max_size=60), st.integers(201, 599))
def test_no_body_can_make_it_raise(body: bytes, status: int) -> None:
    assert isinstance(error_of(status, body), UpstreamError)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"error":' * 50_000])
def test_a_deeply_nested_body_is_read_as_empty(body: bytes) -> None:
    assert read_error(body).message == ""
