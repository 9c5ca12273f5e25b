"""What bounds a call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.attempts import Attempt
from router.core.vocabulary import Tier
from router.delivery import _limits
from tests.fakes import CHEAP, LOCAL
from tests.flow_world import World

DEPS = World({Tier.LOCAL: []}).deps


@pytest.mark.parametrize(
    ("candidate", "stream", "first_byte_s"),
    [(LOCAL, False, 120), (LOCAL, True, 20), (CHEAP, False, 20), (CHEAP, True, 20)],
)
def test_a_plain_answer_of_an_engine_we_watch_may_take_until_the_deadline(candidate, stream, first_byte_s):
    deps = replace(DEPS, supervised=frozenset({LOCAL.name}))
    assert _limits(Attempt(candidate, 1, 120.0), deps, stream=stream).first_byte_s == first_byte_s


def test_without_our_watch_its_headers_are_due_in_time():
    assert _limits(Attempt(LOCAL, 1, 120.0), DEPS, stream=False).first_byte_s == 20


@pytest.mark.parametrize("left_s", [119.0, 10.0, 0.5])
def test_nothing_outlives_the_requests_deadline(left_s: float):
    limits = _limits(Attempt(CHEAP, 2, left_s), DEPS, stream=True)
    assert limits.total_s == left_s
    assert limits.first_byte_s == min(20, left_s)


def test_a_few_milliseconds_do_not_make_new_limits():
    assert _limits(Attempt(CHEAP, 1, 119.99), DEPS, stream=True) is DEPS.timeouts
