"""Who asked again: what counts as doubt in an answer, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from classifier.datamodels import LoggedOutcome
from router.core.vocabulary import Tier
from router.learning_loop.retries import AnsweredCall, retries

FIRST = AnsweredCall("a", "acme", "s", "hash-1", "auto", Tier.LOCAL, 100.0, 5.0)


def later(**changes: object) -> AnsweredCall:
    """The same caller, 30 seconds after."""
    return replace(FIRST, **{"request_id": "b", "received_at_s": 130.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "second",
    [
        later(),
        later(tier=Tier.PREMIUM),
        later(session=None, tier=Tier.PREMIUM, requested_model="premium"),
        later(prompt_sha256="hash-2", tier=Tier.CHEAP, requested_model="openai/gpt-6-luna"),
        later(prompt_sha256="hash-2", tier=Tier.PREMIUM, requested_model="auto:quality"),
        later(received_at_s=225.0),
    ],
)
def test_asking_again_is_weak_evidence_against_the_first_answer(second: AnsweredCall) -> None:
    assert list(retries([FIRST, second])) == [LoggedOutcome("a", "local", 0.0, "escalation", judge="acme")]


@pytest.mark.parametrize(
    "second",
    [
        later(prompt_sha256="hash-2"),  # the conversation goes on
        later(prompt_sha256="hash-2", tier=Tier.PREMIUM),  # it was the router that went higher
        later(session=None),  # a job that asks the same every time
        later(session=None, tier=Tier.PREMIUM),  # a job whose prompt was spilled
        later(tenant="other"),
        later(received_at_s=226.0),
        later(prompt_sha256="hash-2", requested_model="local"),
    ],
)
def test_what_may_have_other_causes_is_no_evidence(second: AnsweredCall) -> None:
    assert list(retries([FIRST, second])) == []


def test_an_answer_is_doubted_once_and_a_long_log_is_not_kept_in_memory() -> None:
    calls = [replace(FIRST, request_id=str(i), received_at_s=100.0 + i) for i in range(5)]
    assert [found.request_id for found in retries(calls)] == ["0", "1", "2", "3"]
    spread = (replace(FIRST, request_id=str(i), session=str(i), received_at_s=1000.0 * i) for i in range(2000))
    assert list(retries(spread)) == []
