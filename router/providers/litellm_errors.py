"""The one map from litellm's exceptions to our errors.

Most specific first: litellm's tree is shallow and many of its classes are `BadRequestError`s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime

import httpx
from litellm import exceptions as litellm_exceptions

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
from router.providers.upstream_errors import ACCOUNT_CODES, ErrorBody, is_context_error, read_error, retry_after_s

_PREFIX = re.compile(r"^(?:litellm\.\w+: |\w+(?:Exception|Error) - )+")


class _Case:
    """One exception, and what can be read out of it."""

    def __init__(self, error: BaseException, *, secret: str | None, now_utc: datetime) -> None:
        self.name = type(error).__name__
        self.headers: Mapping[str, str] = _headers_of(error)
        self.wait_s = retry_after_s(self.headers, now_utc)
        self.status = int(getattr(error, "status_code", None) or 400)
        self.said = _said(str(getattr(error, "message", None) or error))
        self._secret = secret

    def refused(self) -> UpstreamError:
        if is_context_error(self.said):
            return self.too_long()
        if self.said.kind in ACCOUNT_CODES or self.said.code in ACCOUNT_CODES:
            return self.credentials()
        message = self.said.message.replace(self._secret, "[redacted]") if self._secret else self.said.message
        inner = {
            "message": message,
            "type": self.said.kind or "invalid_request_error",
            "param": self.said.param,
            "code": self.said.code or None,
        }
        status = self.status if 400 <= self.status < 500 else 400
        body = json.dumps({"error": inner}).encode()
        return UpstreamRefused(
            f"The upstream refused the request ({self.name})", status=status, body=body, param=self.said.param
        )

    def too_long(self) -> UpstreamError:
        return UpstreamContextTooLong(f"The prompt is longer than this model's context ({self.name})")

    def credentials(self) -> UpstreamError:
        return UpstreamCredentials(f"The upstream refused our key or account ({self.name})")

    def not_served(self) -> UpstreamError:
        return UpstreamNotServed(
            f"The upstream does not know the configured model ({self.name}); check the tier's model"
        )

    def rate_limited(self) -> UpstreamError:
        if self.said.kind in ACCOUNT_CODES or self.said.code in ACCOUNT_CODES:
            return self.credentials()
        return UpstreamRateLimited(f"The upstream limits our rate ({self.name})", retry_after_s=self.wait_s)

    def timed_out(self) -> UpstreamError:
        return UpstreamTimeout(f"The upstream did not answer in time ({self.name})")

    def unavailable(self) -> UpstreamError:
        if "location" in self.headers:
            return UpstreamBroken("The upstream answered with a redirection, which is not followed")
        error: UpstreamError = UpstreamUnavailable(f"The upstream cannot answer ({self.name})")
        error.retry_after_s = self.wait_s
        return error

    def broken(self) -> UpstreamError:
        return UpstreamBroken(f"The upstream's answer is broken ({self.name})")


LITELLM_ERRORS: tuple[tuple[type[BaseException], Callable[[_Case], UpstreamError]], ...] = (
    (litellm_exceptions.ContextWindowExceededError, _Case.too_long),
    (litellm_exceptions.PaymentRequiredError, _Case.credentials),
    (litellm_exceptions.AuthenticationError, _Case.credentials),
    (litellm_exceptions.PermissionDeniedError, _Case.credentials),
    (litellm_exceptions.RateLimitError, _Case.rate_limited),
    (litellm_exceptions.Timeout, _Case.timed_out),
    (litellm_exceptions.BadRequestError, _Case.refused),
    (litellm_exceptions.NotFoundError, _Case.not_served),
    (litellm_exceptions.UnprocessableEntityError, _Case.refused),
    (litellm_exceptions.ServiceUnavailableError, _Case.unavailable),
    (litellm_exceptions.BadGatewayError, _Case.unavailable),
    (litellm_exceptions.InternalServerError, _Case.unavailable),
    (litellm_exceptions.APIResponseValidationError, _Case.broken),
    (litellm_exceptions.APIConnectionError, _Case.unavailable),
    (litellm_exceptions.APIError, _Case.unavailable),
    (TimeoutError, _Case.timed_out),
    (httpx.TimeoutException, _Case.timed_out),
    (httpx.TransportError, _Case.unavailable),
    (OSError, _Case.unavailable),
)


def error_from_litellm(
    error: BaseException, *, streaming: bool, secret: str | None, now_utc: datetime
) -> UpstreamError:
    """Our error for one of litellm's; raise it `from` the original.

    `streaming`: chunks have been read, so that whatever went wrong (but slowness) has broken a stream.
    """
    original = getattr(error, "original_exception", None)
    if isinstance(error, litellm_exceptions.MidStreamFallbackError) and isinstance(original, BaseException):
        error = original
    case = _Case(error, secret=secret, now_utc=now_utc)
    make = next((make for kind, make in LITELLM_ERRORS if isinstance(error, kind)), _Case.broken)
    if streaming and make is not _Case.timed_out:
        return UpstreamBroken(f"The upstream's stream is broken ({case.name})")
    return make(case)


def _headers_of(error: BaseException) -> Mapping[str, str]:
    """Headers of the upstream's answer, wherever litellm has put them."""
    response = getattr(error, "response", None)
    for headers in (getattr(error, "litellm_response_headers", None), getattr(response, "headers", None)):
        if isinstance(headers, Mapping) and headers:
            return httpx.Headers({str(name): str(value) for name, value in headers.items()})
    return {}


def _said(text: str) -> ErrorBody:
    """The upstream's own words within litellm's text."""
    start = text.find("{")
    if start >= 0:
        try:
            inner, _ = json.JSONDecoder().raw_decode(text[start:])
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict):
            said = read_error(json.dumps(inner).encode())
            if said.message:
                return said
    return ErrorBody(message=_PREFIX.sub("", text))
