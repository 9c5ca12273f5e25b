"""The one map from an upstream's HTTP answer to our errors; pure.

No message made here holds a key, a prompt or an address: it names the status and, where they are plain words, the
upstream's own error type and code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

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

ACCOUNT_CODES = frozenset(
    {
        "insufficient_quota",
        "insufficient_balance",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "access_terminated",
    }
)
CONTEXT_KINDS = frozenset({"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"})
CONTEXT_PHRASES = (
    "maximum context length",
    "context size",
    "context window",
    "prompt is too long",
    "input is too long",
)
MAX_RETRY_AFTER_S = 7 * 86_400.0

# Words, with a short number behind them or alone: what a key never looks like, should an upstream quote ours.
_PLAIN_WORD = re.compile(r"(?=.{1,64}\Z)(?:[A-Za-z]+(?:[._-][A-Za-z]+)*(?:[._-]?\d{1,4})?|\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error answer says, whatever its shape: OpenAI's envelope, a bare string, HTML, nothing."""

    message: str = ""
    kind: str = ""
    code: str = ""
    param: str | None = None

    @property
    def suffix(self) -> str:
        """Type and code in brackets, for our own message."""
        words = [word for word in dict.fromkeys((self.kind, self.code)) if _PLAIN_WORD.fullmatch(word)]
        return f" ({', '.join(words)})" if words else ""


def read_error(body: bytes) -> ErrorBody:
    """Never raises; what cannot be read is empty."""
    try:
        decoded: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ErrorBody()
    if isinstance(decoded, list) and decoded:  # some hosts wrap the envelope in a list
        decoded = decoded[0]
    if not isinstance(decoded, Mapping):
        return ErrorBody()
    error = decoded.get("error", decoded)
    if isinstance(error, str):
        return ErrorBody(message=error)
    if not isinstance(error, Mapping):
        return ErrorBody()
    param = error.get("param")
    return ErrorBody(
        message=_text(error.get("message")),
        kind=_text(error.get("type")),
        code=_text(error.get("code")),
        param=param if isinstance(param, str) else None,
    )


def error_for_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, now_utc: datetime, secret: str | None
) -> UpstreamError:
    """The error that an answer other than 200 stands for. `headers` is case-insensitive.

    `secret` is our key: should the upstream echo it, it does not travel on.
    """
    said = read_error(body)
    wait_s = retry_after_s(headers, now_utc)
    text = f"The upstream answered {status}{said.suffix}"
    if 300 <= status < 400:
        return UpstreamBroken(f"{text}: a redirection, which is not followed; set api_base to the final address")
    if status < 300:
        return UpstreamBroken(f"{text} instead of 200")
    if status == 408:
        return UpstreamTimeout(text)
    if status >= 500 or status in (409, 425):
        error: UpstreamError = UpstreamUnavailable(text)
        error.retry_after_s = wait_s
        return error
    if status in (401, 402, 403) or said.code in ACCOUNT_CODES or said.kind in ACCOUNT_CODES:
        return UpstreamCredentials(f"{text}: our key or account was refused")
    if status in (404, 410):
        return UpstreamNotServed(
            f"{text}: it does not serve the configured model under this address; check the tier's model and api_base"
        )
    if status == 429:
        return UpstreamRateLimited(text, retry_after_s=wait_s)
    if is_context_error(said):
        return UpstreamContextTooLong(f"{text}: the prompt is longer than this model's context", param=said.param)
    return UpstreamRefused(text, status=status, body=_redacted(body, secret), param=said.param)


def refusal(text: str, *, param: str, code: str) -> UpstreamRefused:
    """A 400 of our own, for what a kind of provider cannot be sent."""
    body = {"error": {"message": text, "type": "invalid_request_error", "param": param, "code": code}}
    return UpstreamRefused(text, status=400, body=json.dumps(body).encode(), param=param)


def is_context_error(said: ErrorBody) -> bool:
    """Whether a 4xx means that the prompt does not fit this model, in any of the known dialects."""
    if said.code in CONTEXT_KINDS or said.kind in CONTEXT_KINDS or said.param == "input_tokens":
        return True
    message = said.message.lower()
    return any(phrase in message for phrase in CONTEXT_PHRASES)


def retry_after_s(headers: Mapping[str, str], now_utc: datetime) -> float | None:
    """Seconds to wait as the upstream asks: `retry-after-ms`, `retry-after` in seconds or as an HTTP date."""
    millis = _seconds(headers.get("retry-after-ms"))
    if millis is not None:
        return min(millis / 1000.0, MAX_RETRY_AFTER_S)
    asked = headers.get("retry-after")
    seconds = _seconds(asked)
    if seconds is None and asked is not None:
        try:
            until = parsedate_to_datetime(asked)
        except (ValueError, OverflowError):
            return None
        if until.tzinfo is None:  # "-0000": UTC without saying where
            until = until.replace(tzinfo=now_utc.tzinfo)
        seconds = max(0.0, (until - now_utc).total_seconds())
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None or isinstance(value, bool) else str(value)


def _redacted(body: bytes, secret: str | None) -> bytes:
    return body.replace(secret.encode(), b"[redacted]") if secret else body
