"""Header -> caller.

Keys are compared by their SHA-256, each of them, in constant time: how long a refusal takes says nothing about any
key. No other header names a caller; what a client forges there is read by nobody.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.core.limits import KeyLimiter
from router.errors import Forbidden, Unauthorized

MAX_KEY_CHARS = 1_024
DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. An admin sees the usage of every tenant, anybody else only the own. `limiter`: of the key, if any."""

    tenant: str
    admin: bool = False
    limiter: KeyLimiter | None = field(default=None, compare=False, repr=False)


ANYBODY = Caller(DEFAULT_TENANT, admin=True)


def key_digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


class Authenticator:
    """`required` false: keys are not looked at and every caller is `anybody`. `callers` is keyed by `key_digest`.

    `metrics_digest` is that of the key which `/metrics` asks for; without one it is open.
    """

    def __init__(
        self,
        *,
        required: bool,
        callers: Mapping[bytes, Caller],
        anybody: Caller = ANYBODY,
        metrics_digest: bytes | None = None,
    ) -> None:
        self._required = required
        self._callers = tuple(callers.items())
        self._anybody = anybody
        self._metrics_digest = metrics_digest

    @classmethod
    def from_keys(
        cls,
        *,
        required: bool,
        keys: Iterable[tuple[str, Caller]],
        anybody: Caller = ANYBODY,
        metrics_key: str | None = None,
    ) -> Authenticator:
        """`keys` are pairs of a key and whose it is."""
        return cls(
            required=required,
            callers={key_digest(key): caller for key, caller in keys},
            anybody=anybody,
            metrics_digest=None if metrics_key is None else key_digest(metrics_key),
        )

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind `headers` (lower-case names, values as latin-1 text).

        Raises `Unauthorized`; and `Forbidden` where no key protects us from a web page of another site: a browser on
        this machine would carry its requests here, and they would be paid for.
        """
        if not self._required:
            if headers.get("sec-fetch-site") == "cross-site":
                raise Forbidden(
                    "a web page of another site may not use a gateway that asks for no key; export ROUTER_API_KEY",
                    param="sec-fetch-site",
                )
            return self._anybody
        found = self._known(_presented_digest(headers))
        if found is None:
            raise _unknown_key()
        return found

    def authenticate_scrape(self, headers: Mapping[str, str]) -> None:
        """Let `/metrics`, which shows every tenant's figures, be read with its own key or an admin's; or by anybody.

        Raises `Unauthorized`, or `Forbidden` for a key that may see its own usage only.
        """
        if self._metrics_digest is None:
            return
        digest = _presented_digest(headers)
        caller = self._known(digest)
        if hmac.compare_digest(self._metrics_digest, digest) or (caller is not None and caller.admin):
            return
        if caller is None:
            raise _unknown_key()
        raise Forbidden("the metrics show all tenants; read them with the key of server.auth.metrics_key_env")

    def _known(self, digest: bytes) -> Caller | None:
        found: Caller | None = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def _presented_digest(headers: Mapping[str, str]) -> bytes:
    try:
        return hashlib.sha256(_presented(headers).encode("latin-1")).digest()
    except UnicodeEncodeError:
        raise _unknown_key() from None


def _presented(headers: Mapping[str, str]) -> str:
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization[: MAX_KEY_CHARS + 16].partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("the Authorization header must read `Bearer KEY`", param="authorization")
    else:
        key = headers.get("x-api-key", "")
    key = key.strip()
    if not key:
        raise Unauthorized("no API key; send `Authorization: Bearer KEY` or `x-api-key: KEY`", param="authorization")
    if len(key) > MAX_KEY_CHARS:
        raise _unknown_key()
    return key


def _unknown_key() -> Unauthorized:
    return Unauthorized("the API key is not known here", param="authorization")
