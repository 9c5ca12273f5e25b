"""Everything that can go wrong, as a tree. The lowest floor: it knows no HTTP status and no library.

    RouterError
    ├── ClientError                the caller can cure it
    │   ├── BadRequest             malformed or out of range; `param` names the field
    │   ├── ContextTooLong         no tier can hold the prompt
    │   ├── Unauthorized · Forbidden
    │   ├── NotFound               unknown route or model
    │   ├── HeadTooLarge · BodyTooLarge · BodyTooSlow (HeadTooSlow)
    │   ├── IdempotencyConflict    the same key with another body
    │   ├── RateLimited            a limit of the caller's key; carries `retry_after_s`
    │   └── OverBudget             a budget or a per-request cap is exhausted
    ├── NoRoute                    no tier may or can answer; carries who was rejected and why
    │   └── Saturated              the only tier that may answer is full; carries `retry_after_s`
    ├── Unavailable                we are draining, or the ledger cannot record money
    ├── UpstreamError              the place we asked failed; `.retryable` says whether another try can help
    │   ├── UpstreamTimeout · UpstreamUnavailable · UpstreamRateLimited · UpstreamBroken
    │   ├── UpstreamContextTooLong the model's window is smaller than we thought
    │   ├── UpstreamRefused        the caller's own error, passed through as it came
    │   ├── UpstreamCredentials    our key was refused
    │   └── UpstreamNotServed      it does not know the model, or the path, that is configured
    └── ConfigError                every mistake of a config at once

The text of an error names the value that is wrong and, where one exists, the setting that cures it. It never holds a
key, a prompt or an internal address.
"""

from __future__ import annotations

from collections.abc import Sequence


class RouterError(Exception):
    """Root of the tree. `code` is a stable string for clients, `param` the offending field if there is one.

    `request_id` and `attempts` are set on the way out, so that the caller can name what failed.
    """

    code = "internal_error"
    request_id: str | None = None
    attempts: int | None = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class ClientError(RouterError):
    """The caller can cure it."""

    code = "invalid_request"


class BadRequest(ClientError):
    """Malformed or out of range; `param` names the field."""


class ContextTooLong(ClientError):
    """No candidate that may answer can hold the prompt."""

    code = "context_length_exceeded"


class Unauthorized(ClientError):
    """No key, or not one of ours."""

    code = "invalid_api_key"


class Forbidden(ClientError):
    """A known key that may not do this."""

    code = "forbidden"


class NotFound(ClientError):
    """An unknown route (`not_found`) or model (`model_not_found`)."""

    code = "not_found"


class MethodNotAllowed(ClientError):
    """The route exists for another method."""

    code = "method_not_allowed"


class BodyTooLarge(ClientError):
    """The body, as sent or as unpacked, exceeds `server.max_body_bytes`."""

    code = "body_too_large"


class BodyTooSlow(ClientError):
    """The body did not arrive in time."""

    code = "request_timeout"


class HeadTooLarge(ClientError):
    """Line and headers of the request are larger than any honest request's."""

    code = "headers_too_large"


class HeadTooSlow(BodyTooSlow):
    """Line and headers did not arrive in time."""


class IdempotencyConflict(ClientError):
    """The same Idempotency-Key was used with another body."""

    code = "idempotency_conflict"


class RateLimited(ClientError):
    """Our own throttle: a limit of the caller's key. `retry_after_s` is `None` where no waiting helps."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverBudget(ClientError):
    """A budget or the request's own cost cap leaves no candidate."""

    code = "insufficient_quota"


class NoRoute(RouterError):
    """No tier may or can answer. `rejected` holds (candidate, reasons) pairs."""

    code = "no_route"

    def __init__(self, message: str, rejected: Sequence[tuple[str, tuple[str, ...]]] = ()) -> None:
        super().__init__(message)
        self.rejected = tuple(rejected)


class Saturated(NoRoute):
    """The only tier that may answer is full and stayed full for as long as we may wait."""

    code = "local_saturated"

    def __init__(
        self,
        message: str,
        rejected: Sequence[tuple[str, tuple[str, ...]]] = (),
        *,
        retry_after_s: float,
        local_only: bool,
    ) -> None:
        super().__init__(message, rejected)
        self.retry_after_s = retry_after_s
        self.local_only = local_only


class Unavailable(RouterError):
    """The gateway itself cannot take the request now: draining, or no way to record money."""

    code = "service_unavailable"

    def __init__(self, message: str, *, code: str | None = None, closing: bool = False) -> None:
        super().__init__(message, code=code)
        self.closing = closing


class UpstreamError(RouterError):
    """The place we asked failed. `retryable` says whether another try, there or elsewhere, can help."""

    code = "upstream_error"
    retryable = True
    retry_after_s: float | None = None


class UpstreamTimeout(UpstreamError):
    """No first byte, no next byte, or no end in time."""

    code = "upstream_timeout"


class UpstreamUnavailable(UpstreamError):
    """5xx, connection refused or reset, name or TLS failure."""

    code = "upstream_unavailable"


class UpstreamBroken(UpstreamError):
    """The answer does not follow the protocol: cut, malformed, an error frame, an abort."""

    code = "upstream_broken"


class UpstreamRateLimited(UpstreamError):
    """429 from the provider; `retry_after_s` as it asked, if it did."""

    code = "upstream_rate_limited"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamContextTooLong(UpstreamError):
    """This model cannot hold the prompt; a larger one may. Says nothing about the target's health."""

    code = "context_length_exceeded"


class UpstreamRefused(UpstreamError):
    """The caller's own error (400, 413, 422…), passed through as it came: no retry, no fallback."""

    code = "upstream_refused"
    retryable = False

    def __init__(self, message: str, *, status: int, body: bytes, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.body = body


class UpstreamCredentials(UpstreamError):
    """401 or 403 for our key: not the caller's fault, and another tier may have a good key."""

    code = "upstream_credentials_exhausted"


class UpstreamNotServed(UpstreamError):
    """404 or 410 for what is configured (a retired or misspelt model, a wrong path): not the caller's fault."""

    code = "upstream_model_not_found"


class ConfigError(RouterError):
    """Every mistake of a config at once: (line or None, path, what is wrong and the cure)."""

    code = "config_error"

    def __init__(self, problems: Sequence[tuple[int | None, str, str]], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a mistake, `file:line: path: text`; what has no line stands in the environment."""
        return [
            f"{self.source if line is None else f'{self.source}:{line}'}: {path}: {text}"
            for line, path, text in self.problems
        ]
