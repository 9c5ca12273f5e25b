"""How the limits of a key are told."""

from __future__ import annotations

import pytest

from router.api.error_responses import error_response
from router.api.limit_headers import duration_text, limit_headers
from router.core.limits import Allowance, KeyLimiter, LimitTerms
from router.errors import RateLimited
from tests.fakes import FakeClock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, b"0s"),
        (-1.0, b"0s"),
        (0.0004, b"1ms"),
        (0.35, b"350ms"),
        (1.0, b"1s"),
        (59.5, b"59.5s"),
        (60.0, b"1m0s"),
        (360.0, b"6m0s"),
        (3630.0, b"1h0m30s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: bytes):
    assert duration_text(seconds) == text


def test_of_two_limits_in_requests_the_nearer_end_is_told():
    clock = FakeClock()
    limiter = KeyLimiter(LimitTerms(requests_per_min=4, requests_per_hour=6), now_s=clock.now_s)

    def told() -> tuple[bytes, bytes]:
        headers = dict(limit_headers(limiter))
        return headers[b"x-ratelimit-limit-requests"], headers[b"x-ratelimit-remaining-requests"]

    assert told() == (b"4", b"4")
    for _ in range(2):
        with Allowance(limiter):
            pass
    assert told() == (b"4", b"2")
    clock.tick(61)
    assert told() == (b"6", b"4")


def test_retry_after_is_rounded_up_and_left_out_where_waiting_does_not_help():
    assert dict(error_response(RateLimited("m", retry_after_s=11.01)).headers)[b"retry-after"] == b"12"
    hopeless = dict(error_response(RateLimited("m", retry_after_s=None)).headers)
    assert b"retry-after" not in hopeless
    assert hopeless[b"x-should-retry"] == b"false"
