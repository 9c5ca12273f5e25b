"""The guard against streams that live but do not move."""

from __future__ import annotations

from router.providers.http_stream import TrickleGuard


def run(gap_s: float, seconds: float, *, min_per_s: float = 0.25, window_s: float = 20.0) -> float | None:
    """When a stream with one event every `gap_s` is given up; `None` if it is not."""
    guard = TrickleGuard(min_per_s, window_s)
    guard.start(0.0, 1)
    events = 1
    now_s = gap_s
    while now_s < seconds:
        events += 1
        if guard.too_slow(now_s, events):
            return now_s
        now_s += gap_s
    return None


def test_one_token_in_five_seconds_is_given_up_after_a_window() -> None:
    assert run(5.0, 100.0) == 20.0


def test_a_slow_but_steady_stream_lives() -> None:
    assert run(3.9, 1000.0) is None
    assert run(0.01, 100.0) is None


def test_a_stream_that_slows_down_later_is_given_up_too() -> None:
    guard = TrickleGuard(0.25, 20.0)
    guard.start(0.0, 1)
    assert not guard.too_slow(20.0, 500)
    assert not guard.too_slow(39.9, 501)
    assert guard.too_slow(40.0, 501)


def test_before_the_first_output_nothing_is_a_trickle() -> None:
    assert not TrickleGuard(0.25, 20.0).too_slow(1e6, 0)
