"""Drift of scores and jumps of the premium share, decision by decision."""

from __future__ import annotations

import json
import random

import pytest

from classifier.datamodels import Score
from router.core.decision import Candidate, Decision
from router.core.vocabulary import Reason, Tier
from router.ports import ScoredBy
from router.score_watch import RECENT, Alarms, ScoreWatch
from tests.fakes import BIG, CHEAP, LOCAL

DECILES = tuple(i / 10 for i in range(1, 10))
OF_TIER = {Tier.LOCAL: LOCAL, Tier.CHEAP: CHEAP, Tier.PREMIUM: BIG}


def decision(
    tier: Tier = Tier.LOCAL, *, complexity: float = 0.5, novelty: float = 0.0, pinned: bool = False
) -> Decision:
    chosen: Candidate = OF_TIER[tier]
    reason = Reason.PINNED_BY_CLIENT if pinned else Reason.CHEAP_API_CHEAPEST
    return Decision((chosen,), (), reason, 0, Score(complexity, {}, novelty, "v1", 1, calibrated=True), "", "1")


def premium(watch: ScoreWatch, share: float, count: int, *, pinned: bool = False) -> None:
    """Of each ten decisions so many tenths go to premium."""
    for i in range(count):
        tier = Tier.PREMIUM if i % 10 < round(share * 10) else Tier.LOCAL
        watch.note(decision(tier, pinned=pinned), ScoredBy.CURRENT)


def alarmed() -> tuple[ScoreWatch, Alarms, list[str]]:
    watch, heard = ScoreWatch(DECILES), []
    return watch, Alarms(watch, lambda event, **labels: heard.append(labels.get("sign", event))), heard


def test_a_jump_of_the_premium_share_is_told_once_and_again_after_it_was_over() -> None:
    watch, alarms, heard = alarmed()
    premium(watch, 0.2, 2 * RECENT)
    for share, told in ((0.2, 0), (0.3, 0), (0.6, 1), (0.6, 1), (0.2, 1), (0.7, 2)):
        premium(watch, share, RECENT)
        alarms.look_at_share()
        assert len(heard) == told, share
    assert set(heard) == {"premium_share_jumped"}


def test_what_clients_pin_says_nothing_about_the_router() -> None:
    watch, alarms, heard = alarmed()
    premium(watch, 0.1, 3 * RECENT)
    premium(watch, 1.0, RECENT, pinned=True)
    alarms.look_at_share()
    assert heard == []
    assert watch.premium_share().recent_ratio == pytest.approx(0.1)


def test_the_usual_share_survives_a_restart() -> None:
    before = ScoreWatch()
    before.rebase("v1")
    premium(before, 0.2, 3 * RECENT)
    known = json.loads(json.dumps(before.usual()))
    other = ScoreWatch()
    other.rebase("v2")
    other.restore_usual(known)
    assert other.usual()["count"] == 0.0, "it was seen with other dials"
    after, heard = ScoreWatch(), []
    after.rebase("v1")
    after.restore_usual(known)
    premium(after, 0.6, RECENT)
    Alarms(after, lambda event, **_: heard.append(event)).look_at_share()
    assert heard == ["premium_share_jumped"]


@pytest.mark.parametrize(
    "known",
    [
        None,
        "x",
        [1, 2],
        {},
        {"basis": "", "premium": 3, "count": 2},
        {"basis": "", "premium": -1, "count": 5},
        {"basis": "", "premium": 1, "count": float("inf")},
        {"basis": "", "premium": "a", "count": None},
    ],
)
def test_a_usual_share_that_makes_no_sense_is_passed_over(known: object) -> None:
    watch = ScoreWatch()
    watch.restore_usual(known)
    assert (watch.usual()["premium"], watch.usual()["count"]) == (0.0, 0.0)


def test_what_was_usual_with_another_model_says_nothing_about_this_one() -> None:
    watch, alarms, heard = alarmed()
    premium(watch, 0.1, 3 * RECENT)
    watch.rebase("another model")
    premium(watch, 0.9, RECENT)
    alarms.look_at_share()
    assert (heard, watch.premium_capped()) == ([], False)


def test_what_callers_ask_for_themselves_is_not_held_against_the_router() -> None:
    watch, _, _ = alarmed()
    premium(watch, 0.1, 3 * RECENT)
    for _ in range(RECENT):
        watch.note(decision(Tier.PREMIUM), ScoredBy.CURRENT, free=False)
    assert watch.premium_share().recent_ratio == pytest.approx(0.1)


def test_from_the_first_choice_on_premium_has_no_more_than_training_leads_to_expect_and_the_rise() -> None:
    watch, heard = ScoreWatch(max_premium_rise_ratio=0.2), []
    watch.rebase("v1", 0.1)
    given = 0
    for _ in range(2 * RECENT):
        tier = Tier.CHEAP if watch.premium_capped() else Tier.PREMIUM
        given += tier is Tier.PREMIUM
        watch.note(decision(tier), ScoredBy.CURRENT)
        assert given > 50 or tier is Tier.PREMIUM, "a few hard prompts are nobody's flood"
        if watch.usual()["count"] == 0.0:
            assert given <= 0.3 * RECENT + 1
    assert given <= 2 * (0.5 * RECENT)
    Alarms(watch, lambda event, **_: heard.append(event)).look_at_share()
    assert watch.premium_share().usual_ratio is not None
    unknown = ScoreWatch(max_premium_rise_ratio=0.2)
    premium(unknown, 1.0, RECENT)
    assert not unknown.premium_capped(), "without a sample what is usual has to be seen first"


def test_few_decisions_say_nothing() -> None:
    watch, alarms, heard = alarmed()
    premium(watch, 1.0, 50)
    alarms.look_at_share()
    alarms.look_at_drift()
    share = watch.premium_share()
    assert (share.recent_ratio, share.usual_ratio, share.jumped, heard) == (None, None, False, [])


def test_scores_that_have_shifted_and_novel_prompts_are_told_once_each() -> None:
    watch, alarms, heard = alarmed()
    rng = random.Random(0)
    for _ in range(1000):
        watch.note(decision(complexity=rng.random()), ScoredBy.CURRENT)
    alarms.look_at_drift()
    assert (heard, alarms.report.retrain) == ([], False)
    for _ in range(2000):
        watch.note(decision(complexity=rng.random() ** 4, novelty=0.4), ScoredBy.CURRENT)
    for _ in range(3):
        alarms.look_at_drift()
    assert heard == ["scores", "novelty"]
    assert alarms.report.retrain
    watch.restart(DECILES)
    alarms.look_at_drift()
    assert not alarms.report.retrain, "another model starts afresh"


def test_wrong_probabilities_on_fresh_labels_are_told() -> None:
    watch, alarms, heard = alarmed()
    rng = random.Random(0)
    watch.labelled = [(0.9, float(rng.random() < 0.6)) for _ in range(400)]
    alarms.look_at_drift()
    assert heard == ["calibration"]


def test_only_the_model_in_force_is_held_against_its_training() -> None:
    watch, alarms, heard = alarmed()
    for _ in range(1000):
        watch.note(decision(complexity=0.01, novelty=1.0), ScoredBy.CANARY)
    alarms.look_at_drift()
    assert (alarms.report.psi, heard) == (None, [])
    assert watch.decisions[ScoredBy.CANARY, Tier.LOCAL] == 1000


def test_a_scorer_without_training_data_does_not_drift() -> None:
    watch = ScoreWatch()
    premium(watch, 0.5, 1000)
    assert watch.drift().psi is None


def test_a_flood_of_steered_prompts_cannot_lift_premiums_share_past_the_bound() -> None:
    watch = ScoreWatch(max_premium_rise_ratio=0.2)
    premium(watch, 0.1, 3 * RECENT)
    recent: list[bool] = [i % 10 < 1 for i in range(RECENT)]
    shares = []
    for _ in range(1_000):  # every prompt asks for premium from here on
        tier = Tier.LOCAL if watch.premium_capped() else Tier.PREMIUM
        watch.note(decision(tier), ScoredBy.CURRENT)
        recent = [*recent[1:], tier is Tier.PREMIUM]
        shares.append(sum(recent) / RECENT)
    assert 0.28 < max(shares) < 0.1 + 0.2 + 0.05, "what was let through counts as usual, but only slowly"
    free = ScoreWatch()
    premium(free, 0.1, 3 * RECENT)
    premium(free, 1.0, RECENT)
    assert not free.premium_capped(), "no bound, no cap"


def test_before_it_is_known_what_is_usual_nothing_is_capped() -> None:
    watch = ScoreWatch(max_premium_rise_ratio=0.1)
    premium(watch, 1.0, RECENT)
    assert not watch.premium_capped()
