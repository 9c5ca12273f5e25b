"""From judgements to labels."""

from __future__ import annotations

import pytest

from classifier.datamodels import LoggedOutcome
from classifier.labels import MAX_JUDGEMENTS_PER_JUDGE, PROVENANCE_WEIGHT, combine, judged_quality


def said(
    request: str, quality: float, provenance: str = "feedback", judge: str = "k1", tier: str = "local"
) -> LoggedOutcome:
    return LoggedOutcome(request, tier, quality, provenance, judge)


def test_stronger_evidence_weighs_more() -> None:
    label = combine([said("r", 0.0), said("r", 1.0, "exact_check", "checker")]).labels["r"]["local"]
    assert label.quality_ratio == pytest.approx(1.0 / 1.5)
    assert label.weight == PROVENANCE_WEIGHT["exact_check"]
    assert label.provenances == ("exact_check", "feedback")


def test_a_judge_that_speaks_twice_is_heard_once() -> None:
    report = combine([said("r", 0.0), said("r", 1.0)])
    assert report.labels["r"]["local"].quality_ratio == 1.0
    assert report.used == 1


def test_ten_thousand_thumbs_down_of_one_key_count_for_few() -> None:
    honest = [said(f"h{i}", 1.0, judge=f"user{i % 40}") for i in range(400)]
    report = combine([said(f"p{i}", 0.0, judge="attacker") for i in range(10_000)] + honest)
    poisoned = sum(1 for r in report.labels if r.startswith("p"))
    assert poisoned <= MAX_JUDGEMENTS_PER_JUDGE
    assert poisoned <= 0.3 * report.used
    assert report.capped_by_judge["attacker"] == 10_000 - poisoned


def test_checks_are_not_capped() -> None:
    assert combine([said(f"r{i}", 1.0, "exact_check", "checker") for i in range(1_000)]).used == 1_000


def test_what_is_no_judgement_is_counted_and_left_out() -> None:
    report = combine([said("r", 2.0), said("r", 0.5, "rumour")])
    assert report.labels == {}
    assert report.unknown_provenance == 2


@pytest.mark.parametrize(
    ("first", "swapped", "expected"),
    [(1.0, 1.0, 1.0), (1.0, 0.0, 0.5), (0.8, 0.6, 0.7), (None, 1.0, None), (0.5, 1.0, 0.75)],
)
def test_a_judge_swayed_by_order_has_seen_no_difference(
    first: float | None, swapped: float | None, expected: float | None
) -> None:
    got = judged_quality(first, swapped)
    assert got == (None if expected is None else pytest.approx(expected))
