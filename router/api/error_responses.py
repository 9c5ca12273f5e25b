"""The one table RouterError -> status, type, headers, body.

Envelope: `{"error": {"message", "type", "param", "code"}}`, `code` always a string. `Retry-After` stands only where we
ourselves throttle, so that a caller can tell our limit from a provider's: a provider's 429 goes out without it.
Most specific class first: a class that is not listed takes the row of its nearest listed ancestor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from router import errors

Header = tuple[bytes, bytes]

_INVALID = "invalid_request_error"
_RATE = "rate_limit_error"
_SERVICE = "service_unavailable_error"
_UPSTREAM = "upstream_error"
_INTERNAL = "internal_error"
_CLOSE: Header = (b"connection", b"close")
_MAX_MESSAGE_CHARS = 2_000


class ErrorResponse(NamedTuple):
    """An error on the wire. `headers` are those the error itself asks for, and `content-type`."""

    status: int
    headers: list[Header]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    kind: str
    headers: Callable[[Any], Sequence[Header]] = lambda _: ()


def _retry_after(error: Any) -> Sequence[Header]:
    if error.retry_after_s is None:  # OpenAI's own clients would try again all the same, but for this header
        return ((b"x-should-retry", b"false"),)
    # Whole seconds, rounded up: a caller who comes back a moment early is refused again.
    return ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)


def _challenge(_: Any) -> Sequence[Header]:
    return ((b"www-authenticate", b"Bearer"),)


def _close(_: Any) -> Sequence[Header]:
    return (_CLOSE,)


_TABLE: dict[type[errors.RouterError], _Row] = {
    errors.BadRequest: _Row(400, _INVALID),
    errors.ContextTooLong: _Row(400, _INVALID),
    errors.Unauthorized: _Row(401, "authentication_error", _challenge),
    errors.Forbidden: _Row(403, "permission_error"),
    errors.NotFound: _Row(404, _INVALID),
    errors.MethodNotAllowed: _Row(405, _INVALID),
    # What is left of an unread body would be taken for the next request: the connection ends here.
    errors.BodyTooSlow: _Row(408, _INVALID, _close),
    errors.IdempotencyConflict: _Row(409, _INVALID),
    errors.BodyTooLarge: _Row(413, _INVALID, _close),
    errors.HeadTooLarge: _Row(431, _INVALID, _close),
    errors.RateLimited: _Row(429, _RATE, _retry_after),
    errors.OverBudget: _Row(429, "insufficient_quota"),
    errors.ClientError: _Row(400, _INVALID),
    errors.NoRoute: _Row(503, _SERVICE),
    errors.Saturated: _Row(429, _RATE, _retry_after),
    errors.Unavailable: _Row(503, _SERVICE, lambda error: (_CLOSE,) if error.closing else ()),
    errors.UpstreamRefused: _Row(400, _INVALID),  # its own status stands, see `_status`
    errors.UpstreamCredentials: _Row(502, _UPSTREAM),
    errors.UpstreamNotServed: _Row(502, _UPSTREAM),
    errors.UpstreamRateLimited: _Row(429, _RATE),
    errors.UpstreamContextTooLong: _Row(400, _INVALID),
    errors.UpstreamTimeout: _Row(504, _UPSTREAM),
    errors.UpstreamUnavailable: _Row(502, _UPSTREAM),
    errors.UpstreamBroken: _Row(502, _UPSTREAM),
    errors.UpstreamError: _Row(502, _UPSTREAM),
}
_INTERNAL_ROW = _Row(500, _INTERNAL)
_INTERNAL_MESSAGE = "The router failed on its own account; the cause is in its log under this request's id."


def error_response(error: BaseException) -> ErrorResponse:
    """`error` as an answer. Anything outside the tree, and a config error, is 500 without details."""
    row = _row(error)
    headers = [(b"content-type", b"application/json"), *row.headers(error)]
    return ErrorResponse(_status(error, row), headers, _body(error, row))


def stream_error_event(error: BaseException) -> bytes:
    """`error` as an event within a stream that has begun; nothing follows it, not even `[DONE]`."""
    return b"data: " + _body(error, _row(error)) + b"\n\n"


def _row(error: BaseException) -> _Row:
    for kind in type(error).__mro__:
        row = _TABLE.get(kind)
        if row is not None:
            return row
    return _INTERNAL_ROW


def _status(error: BaseException, row: _Row) -> int:
    if isinstance(error, errors.UpstreamRefused):
        return error.status if 400 <= error.status < 500 else 502
    if isinstance(error, errors.Saturated) and error.local_only:
        return 503
    return row.status


def _body(error: BaseException, row: _Row) -> bytes:
    if row is _INTERNAL_ROW or not isinstance(error, errors.RouterError):
        return _envelope(_INTERNAL_MESSAGE, _INTERNAL, None, _INTERNAL)
    if isinstance(error, errors.UpstreamRefused):
        passed = _upstream_envelope(error)
        if passed is not None:
            return passed
    kind = _SERVICE if isinstance(error, errors.Saturated) and error.local_only else row.kind
    return _envelope(error.message, kind, error.param, error.code)


def _envelope(message: str, kind: str, param: str | None, code: str) -> bytes:
    # A lone surrogate cannot be encoded; none should get here, and none may turn a 400 into a 500.
    message = message[:_MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()
    param = None if param is None else param.encode("utf-8", "replace").decode()
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _upstream_envelope(error: errors.UpstreamRefused) -> bytes | None:
    """The upstream's own error as it came; completed only where our callers could not read it. `None`: not readable."""
    try:
        document = msgspec.json.decode(error.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    said = document.get("error") if isinstance(document, dict) else None
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        return None
    code = said.get("code")
    if {"type", "param"} <= said.keys() and isinstance(code, str):
        return error.body
    kind = said.get("type")
    full = {
        **said,
        "type": kind if isinstance(kind, str) and kind else _INVALID,
        "param": said.get("param"),
        "code": code if isinstance(code, str) else error.code if code is None else str(code),
    }
    return msgspec.json.encode({**document, "error": full})
