"""Which scorer judges: shares, circuits, and a swap that leaves nothing behind."""

from __future__ import annotations

import pytest

from router.core.decision import PolicyConfig
from router.core.health import COOL_DOWN_S, FAILURES_TO_OPEN
from router.core.vocabulary import Flag
from router.ports import ScoredBy, ScoringPolicy
from router.scorer_choice import ScorerChoice, place_of
from tests.fakes import FixedScorer

POLICIES = {"": PolicyConfig()}
CURRENT = ScoringPolicy(FixedScorer(version="v1"), POLICIES)
CANARY = ScoringPolicy(FixedScorer(version="v2"), POLICIES, ScoredBy.CANARY, (Flag.CANARY_MODEL,))
PRIOR = ScoringPolicy(FixedScorer(version="prior"), POLICIES, ScoredBy.PRIOR, (Flag.CLASSIFIER_UNAVAILABLE,))


def choice(*, share: float = 0.0) -> tuple[ScorerChoice, list[str]]:
    heard: list[str] = []
    canary = CANARY if share else None
    return ScorerChoice(CURRENT, PRIOR, canary, share, max_score_s=0.05, on_trouble=heard.append), heard


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_canary_judges_its_share_of_the_keys_and_always_the_same_ones(share: float) -> None:
    judged, _ = choice(share=share)
    keys = [f"session-{i}" for i in range(4000)]
    first = [judged.of(key, 0.0) for key in keys]
    assert first == [judged.of(key, 99.0) for key in keys]
    assert first.count(CANARY) / len(keys) == pytest.approx(share, abs=0.03)


def test_another_canary_tries_its_luck_with_other_sessions() -> None:
    keys = [f"session-{i}" for i in range(4000)]
    both = sum(place_of(key, "v2") < 0.1 and place_of(key, "v3") < 0.1 for key in keys)
    assert both / len(keys) == pytest.approx(0.01, abs=0.01)


def test_a_scorer_that_is_slow_several_times_in_a_row_is_left_out_for_a_while_and_tried_again() -> None:
    judged, heard = choice()
    for _ in range(FAILURES_TO_OPEN - 1):
        judged.note(judged.of("a", 0.0), 0.2, 0.0)
    judged.note(judged.of("a", 0.0), 0.001, 0.0)  # a quick one between them: not in a row
    for at_s in range(FAILURES_TO_OPEN):
        assert judged.of("a", float(at_s)) is CURRENT
        judged.note(CURRENT, 0.2, float(at_s))
    assert heard == ["slow"]
    assert judged.of("a", 5.0) is PRIOR
    probed_at_s = FAILURES_TO_OPEN + COOL_DOWN_S
    assert judged.of("a", probed_at_s) is CURRENT
    assert judged.of("b", probed_at_s) is PRIOR, "one probe at a time"
    judged.note(CURRENT, 0.001, probed_at_s)
    assert judged.of("b", probed_at_s) is CURRENT


def test_a_canary_in_trouble_leaves_its_share_to_the_current_model() -> None:
    judged, heard = choice(share=0.5)
    key = next(f"s{i}" for i in range(100) if judged.of(f"s{i}", 0.0) is CANARY)
    for _ in range(FAILURES_TO_OPEN):
        judged.note(judged.of(key, 0.0), None, 0.0)
    assert (judged.of(key, 1.0), heard) == (CURRENT, ["error"])


def test_a_new_model_is_not_held_to_what_the_old_one_did() -> None:
    judged, _ = choice()
    for _ in range(FAILURES_TO_OPEN):
        judged.note(CURRENT, None, 0.0)
    assert judged.of("a", 1.0) is PRIOR
    judged.swap(ScoringPolicy(FixedScorer(version="v9"), POLICIES))
    assert judged.of("a", 1.0).scorer.version == "v9"
    judged.note(CURRENT, None, 1.0)  # a request that was still under way with the old one
    assert judged.of("a", 1.0).scorer.version == "v9"
