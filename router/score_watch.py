"""Are scores still what they were in training, and does premium still get its usual share? O(1) per decision.

Three windows: the last scores of the model in force (their distribution and novelty are held against training), the
last decisions (share that goes to premium) and what came before those (its usual share). A prompt that steers the
router shows as a jump of the share, whoever wrote it and however it works.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from classifier.drift import MIN_SCORES, PREMIUM_JUMP_ALARM, DriftReport, drift, premium_jump
from router.core.decision import Decision
from router.core.vocabulary import Reason, Tier
from router.ports import ScoredBy

WINDOW = 2_000
RECENT = 300
_UNUSUAL_RISE = 0.1
_UNUSUAL_WEIGHT = 0.1
_USUAL_DECAY = 1.0 - 1.0 / 5_000
_NO_CHOICE = frozenset({Reason.PINNED_BY_CLIENT, Reason.LOCAL_ONLY_POLICY})
NOTHING = DriftReport(None, None, None, ())


@dataclass(frozen=True, slots=True)
class PremiumShare:
    """Share of the free choices that went to premium, lately and usually; `None` where there is too little to say.

    Until enough choices were seen, what is usual is the share of the model's calibration sample.
    """

    recent_ratio: float | None
    usual_ratio: float | None
    jumped: bool


class ScoreWatch:
    """Counts decisions. `max_premium_rise_ratio` caps how far premium's recent share may exceed its usual one; 1: not.

    `restart` when another model scores: its scores are held against its own training data.
    """

    def __init__(self, quantiles: Sequence[float] = (), *, max_premium_rise_ratio: float = 1.0) -> None:
        self._max_rise = max_premium_rise_ratio
        self._basis = ""
        self._expected: float | None = None
        self._quantiles = tuple(quantiles)
        self._scores: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._premium: deque[bool] = deque(maxlen=RECENT)
        self._recent_premium = 0
        self._usual_premium = self._usual_count = 0.0
        self.labelled: Sequence[tuple[float, float]] = ()
        self.decisions: Counter[tuple[ScoredBy, Tier]] = Counter()

    def restart(self, quantiles: Sequence[float]) -> None:
        """Another model is in force."""
        self._quantiles = tuple(quantiles)
        self._scores.clear()
        self.labelled = ()

    def rebase(self, basis: str, expected_ratio: float | None = None) -> None:
        """Requests are judged on another `basis` (model and dials) from now on: what is usual has to be seen anew.

        `expected_ratio` is the share of premium on the model's calibration sample; it stands for the usual one until
        that is known.
        """
        self._expected = expected_ratio
        if basis != self._basis:
            self._basis = basis
            self._premium.clear()
            self._recent_premium = 0
            self._usual_premium = self._usual_count = 0.0

    def note(self, decision: Decision, scored_by: ScoredBy, *, free: bool = True) -> None:
        """Remember a decision; `free`: the caller left it to the router how good the answer has to be."""
        score = decision.score
        if not decision.ranked or score is None or decision.reason in _NO_CHOICE:
            return
        tier = decision.ranked[0].tier
        self.decisions[scored_by, tier] += 1
        if scored_by is ScoredBy.CURRENT:
            self._scores.append((score.complexity_ratio, score.novelty_ratio))
        if free:
            self._note_share(tier is Tier.PREMIUM)

    def _note_share(self, premium: bool) -> None:
        recent = self._premium
        if len(recent) == RECENT:
            left = recent[0]
            weight = _UNUSUAL_WEIGHT if self._is_unusual() else 1.0
            self._recent_premium -= left
            self._usual_premium = self._usual_premium * _USUAL_DECAY + weight * left
            self._usual_count = self._usual_count * _USUAL_DECAY + weight
        recent.append(premium)
        self._recent_premium += premium

    def _is_unusual(self) -> bool:
        """Whether the recent share is high: then it becomes the usual one only slowly, so that a flood does not."""
        known = self._usual_count >= MIN_SCORES
        return known and self._recent_premium / RECENT > self._usual_premium / self._usual_count + _UNUSUAL_RISE

    def premium_share(self) -> PremiumShare:
        """The share now; O(1)."""
        seen = len(self._premium)
        recent = self._recent_premium / seen if seen >= MIN_SCORES else None
        usual = self._usual()
        jumped = usual is not None and premium_jump(usual_share=usual, recent_premium=self._recent_premium, recent=seen)
        return PremiumShare(recent, usual, jumped)

    def _usual(self) -> float | None:
        return self._usual_premium / self._usual_count if self._usual_count >= MIN_SCORES else self._expected

    def premium_capped(self) -> bool:
        """Whether premium has had as many of the last `RECENT` free choices as usual share and rise allow; O(1).

        Whatever is written into prompts then, one free choice more in `RECENT` at most goes to premium. From the first
        choice on: those that were not made yet count as not premium, so that a few hard prompts are never in its way.
        """
        if self._max_rise >= 1.0:
            return False
        usual = self._usual()
        return usual is not None and self._recent_premium >= (usual + self._max_rise) * RECENT

    def drift(self) -> DriftReport:
        """The scores of the model in force against its training; a millisecond, so not on the path of a request."""
        if not self._quantiles:
            return NOTHING
        return drift(
            training_quantiles=self._quantiles,
            scores=[complexity for complexity, _ in self._scores],
            novelty=[novelty for _, novelty in self._scores],
            labelled=self.labelled,
        )

    def usual(self) -> dict[str, Any]:
        """What `restore_usual` takes."""
        return {"premium": self._usual_premium, "count": self._usual_count, "basis": self._basis}

    def restore_usual(self, known: object) -> None:
        """Take up what `usual` gave before a restart, if it was seen on the same basis; else it is passed over."""
        if not isinstance(known, dict) or known.get("basis") != self._basis:
            return
        premium, count = known.get("premium"), known.get("count")
        if isinstance(premium, int | float) and isinstance(count, int | float) and 0.0 <= premium <= count < inf:
            self._usual_premium, self._usual_count = float(premium), float(count)


class Alarms:
    """Tells each trouble once when it begins; `warn(event, **labels)`."""

    def __init__(self, watch: ScoreWatch, warn: Callable[..., None]) -> None:
        self._watch = watch
        self._warn = warn
        self._jumped = False
        self._drifted: tuple[str, ...] = ()
        self.report = NOTHING

    def look_at_share(self) -> None:
        """Has premium's share jumped? O(1)."""
        share = self._watch.premium_share()
        if share.jumped and not self._jumped:
            self._warn(
                "premium_share_jumped",
                recent=f"{share.recent_ratio:.2f}",
                usual=f"{share.usual_ratio:.2f}",
                limit=f"usual + {PREMIUM_JUMP_ALARM}",
            )
        self._jumped = share.jumped

    def look_at_drift(self) -> None:
        """Is a retrain due?"""
        self.report = report = self._watch.drift()
        for sign, reason in zip(report.signs, report.alarms, strict=True):
            if sign not in self._drifted:
                self._warn("classifier_drift", sign=sign, reason=reason)
        self._drifted = report.signs
