from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from router import errors
from router.api.error_responses import error_response, stream_error_event
from router.errors import RouterError


def refused(body: bytes, status: int = 422) -> errors.UpstreamRefused:
    return errors.UpstreamRefused("The upstream answered.", status=status, body=body, param="p")


def saturated(*, local_only: bool) -> errors.Saturated:
    return errors.Saturated("full", retry_after_s=0.2, local_only=local_only)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.BadRequest("m", param="n"), 400, "invalid_request_error", "invalid_request"),
        (errors.ContextTooLong("m"), 400, "invalid_request_error", "context_length_exceeded"),
        (errors.Unauthorized("m"), 401, "authentication_error", "invalid_api_key"),
        (errors.Forbidden("m"), 403, "permission_error", "forbidden"),
        (errors.NotFound("m", code="model_not_found"), 404, "invalid_request_error", "model_not_found"),
        (errors.MethodNotAllowed("m"), 405, "invalid_request_error", "method_not_allowed"),
        (errors.BodyTooSlow("m"), 408, "invalid_request_error", "request_timeout"),
        (errors.IdempotencyConflict("m"), 409, "invalid_request_error", "idempotency_conflict"),
        (errors.BodyTooLarge("m"), 413, "invalid_request_error", "body_too_large"),
        (errors.HeadTooLarge("m"), 431, "invalid_request_error", "headers_too_large"),
        (errors.HeadTooSlow("m"), 408, "invalid_request_error", "request_timeout"),
        (errors.RateLimited("m", retry_after_s=1), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.OverBudget("m"), 429, "insufficient_quota", "insufficient_quota"),
        (saturated(local_only=False), 429, "rate_limit_error", "local_saturated"),
        (saturated(local_only=True), 503, "service_unavailable_error", "local_saturated"),
        (errors.NoRoute("m"), 503, "service_unavailable_error", "no_route"),
        (errors.Unavailable("m"), 503, "service_unavailable_error", "service_unavailable"),
        (errors.UpstreamTimeout("m"), 504, "upstream_error", "upstream_timeout"),
        (errors.UpstreamUnavailable("m"), 502, "upstream_error", "upstream_unavailable"),
        (errors.UpstreamBroken("m"), 502, "upstream_error", "upstream_broken"),
        (errors.UpstreamCredentials("m"), 502, "upstream_error", "upstream_credentials_exhausted"),
        (errors.UpstreamNotServed("m"), 502, "upstream_error", "upstream_model_not_found"),
        (errors.UpstreamRateLimited("m", retry_after_s=9), 429, "rate_limit_error", "upstream_rate_limited"),
        (errors.UpstreamContextTooLong("m"), 400, "invalid_request_error", "context_length_exceeded"),
        (refused(b"<html>", 418), 418, "invalid_request_error", "upstream_refused"),
    ],
)
def test_every_error_has_its_place_in_the_table(error: RouterError, status: int, kind: str, code: str) -> None:
    got = error_response(error)
    said = json.loads(got.body)["error"]
    assert (got.status, said["type"], said["code"]) == (status, kind, code)
    assert said["message"] == error.message
    assert said["param"] == error.param
    assert (b"content-type", b"application/json") in got.headers


def all_kinds(kind: type[RouterError]) -> list[type[RouterError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in all_kinds(sub))]


def test_no_error_of_the_tree_falls_through_but_its_root_and_a_broken_config() -> None:
    tree = {kind for kind in all_kinds(RouterError) if inspect.getmodule(kind) is errors}
    made: dict[type[RouterError], RouterError] = {
        errors.RateLimited: errors.RateLimited("m", retry_after_s=1),
        errors.Saturated: saturated(local_only=False),
        errors.UpstreamRefused: refused(b""),
        errors.ConfigError: errors.ConfigError([(1, "a", "b")]),
    }
    without_row = {k for k in tree if error_response(made.get(k) or k("m")).status == 500}
    assert without_row == {RouterError, errors.ConfigError}


@pytest.mark.parametrize(
    "error",
    [ValueError("secret detail"), KeyError(), RouterError("secret detail"), errors.ConfigError([(1, "k", "secret")])],
)
def test_what_is_our_own_fault_says_nothing_of_the_inside(error: Exception) -> None:
    got = error_response(error)
    assert got.status == 500
    assert json.loads(got.body)["error"]["code"] == "internal_error"
    assert b"secret" not in got.body + stream_error_event(error)


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (3600, b"3600")])
def test_our_own_throttle_says_when_to_come_back_in_whole_seconds(wait_s: float, header: bytes) -> None:
    assert (b"retry-after", header) in error_response(errors.RateLimited("m", retry_after_s=wait_s)).headers


def test_a_providers_throttle_is_told_apart_by_the_missing_retry_after() -> None:
    assert "retry-after" not in names(errors.UpstreamRateLimited("m", retry_after_s=5))
    assert "retry-after" in names(saturated(local_only=True))
    assert "retry-after" not in names(errors.OverBudget("m"))


def names(error: RouterError) -> set[str]:
    return {name.decode() for name, _ in error_response(error).headers}


def test_a_connection_that_cannot_be_used_again_is_closed() -> None:
    assert "connection" in names(errors.Unavailable("m", closing=True))
    assert "connection" not in names(errors.Unavailable("m"))
    assert "connection" in names(errors.BodyTooLarge("m"))
    assert "connection" in names(errors.BodyTooSlow("m"))


def test_a_refused_key_is_challenged() -> None:
    assert (b"www-authenticate", b"Bearer") in error_response(errors.Unauthorized("m")).headers


def test_an_upstreams_own_error_passes_byte_for_byte() -> None:
    body = b'{"error" : {"message":"bad n","type":"invalid_request_error","param":"n","code":"x"} }'
    got = error_response(refused(body, 400))
    assert (got.status, got.body) == (400, body)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"message": "m", "code": 400}, {"type": "invalid_request_error", "param": None, "code": "400"}),
        (
            {"message": "m", "type": "T", "param": "q", "code": None},
            {"type": "T", "param": "q", "code": "upstream_refused"},
        ),
        ({"message": "m", "type": None, "extra": [1]}, {"type": "invalid_request_error", "extra": [1]}),
    ],
)
def test_an_upstreams_error_is_completed_to_our_envelope(said: dict[str, Any], wanted: dict[str, Any]) -> None:
    got = json.loads(error_response(refused(json.dumps({"error": said}).encode())).body)["error"]
    assert {"message", "type", "param", "code"} <= got.keys()
    assert wanted.items() <= got.items()
    assert isinstance(got["code"], str)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>no</html>", b"\xff", b"[]", b'"x"', b'{"error":"text"}', b'{"error":{"message":1}}',
        b'{"detail":1}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_upstreams_error_we_cannot_read_is_wrapped(body: bytes) -> None:
    got = error_response(refused(body, 404))
    assert got.status == 404
    assert json.loads(got.body)["error"] == {
        "message": "The upstream answered.", "type": "invalid_request_error", "param": "p", "code": "upstream_refused"
    }  # fmt: skip


def test_a_refusal_with_a_status_that_is_none_is_a_bad_gateway() -> None:
    assert error_response(refused(b"", 302)).status == 502
    assert error_response(refused(b"", 500)).status == 502


def test_an_error_within_a_stream_is_one_event_with_the_same_envelope() -> None:
    error = errors.UpstreamBroken('cut "here"\nand there')
    event = stream_error_event(error)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:]) == json.loads(error_response(error).body)


def test_a_text_that_cannot_be_encoded_still_becomes_an_answer() -> None:
    got = json.loads(error_response(errors.BadRequest("bad \ud800", param="\udfff")).body)["error"]
    assert (got["message"], got["param"]) == ("bad ?", "?")


def test_an_endless_message_is_cut() -> None:
    assert len(error_response(errors.BadRequest("x" * 1_000_000)).body) < 3_000
