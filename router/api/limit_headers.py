"""`x-ratelimit-…` headers: how the limits of the caller's key stand, under OpenAI's names.

Of several limits in one kind of unit (requests a minute and an hour) the one that is nearest to its end is told. What
is told is what this gateway enforces: one of several gives out its share.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from router.api.answer_headers import Headers
from router.core.limits import KeyLimiter, Standing
from router.core.vocabulary import Limit

_Names = tuple[bytes, bytes, bytes]


def _names(unit: bytes) -> _Names:
    return b"x-ratelimit-limit-" + unit, b"x-ratelimit-remaining-" + unit, b"x-ratelimit-reset-" + unit


_REQUESTS = _names(b"requests")
_NAMES: Mapping[Limit, _Names] = {
    Limit.REQUESTS_PER_MIN: _REQUESTS,
    Limit.REQUESTS_PER_HOUR: _REQUESTS,
    Limit.TOKENS_PER_MIN: _names(b"tokens"),
    Limit.CONCURRENCY_MAX: _names(b"concurrency"),
}


def limit_headers(limiter: KeyLimiter) -> Headers:
    """The headers of every answer to a key that has limits."""
    told: dict[_Names, Standing] = {}
    for standing in limiter.standings():
        names = _NAMES[standing.limit]
        other = told.get(names)
        if other is None or standing.left * other.most < other.left * standing.most:
            told[names] = standing
    headers: Headers = []
    for (most, left, reset), standing in told.items():
        headers.append((most, b"%d" % standing.most))
        headers.append((left, b"%d" % standing.left))
        if standing.reset_s is not None:
            headers.append((reset, duration_text(standing.reset_s)))
    return headers


def duration_text(seconds: float) -> bytes:
    """A duration as OpenAI writes it, rounded up to a millisecond: `0s`, `350ms`, `59.5s`, `6m0s`, `1h0m0s`."""
    ms = max(0, ceil(seconds * 1_000 - 1e-6))
    if 0 < ms < 1_000:
        return b"%dms" % ms
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = b"%gs" % (ms / 1_000)
    if hours:
        return b"%dh%dm" % (hours, minutes) + rest
    return b"%dm" % minutes + rest if minutes else rest
