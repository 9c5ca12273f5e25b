"""Are scores still what they were in training, and does premium still get its usual share? O(1) per decision.

Three windows: the last scores of the model in force (their distribution and novelty are held against training), the
last decisions (share that goes to premium) and what came before those (its usual share). A prompt that steers the
router shows as a jump of the share, whoever wrote it and however it works.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from classifier.drift import MIN_SCORES, PREMIUM_JUMP_ALARM, DriftReport, drift, premium_jump
from router.core.datamodels import Decision, Reason, Tier
from router.ports import ScoredBy

WINDOW = 2_000
RECENT = 300
_USUAL_DECAY = 1.0 - 1.0 / 5_000
NOTHING = DriftReport(None, None, None, ())


@dataclass(frozen=True, slots=True)
class PremiumShare:
    """Share of the free choices that went to premium, lately and usually; `None` where there is too little to say."""

    recent_ratio: float | None
    usual_ratio: float | None
    jumped: bool


class ScoreWatch:
    """Counts decisions. `restart` when another model scores: its scores are held against its own training data."""

    def __init__(self, quantiles: Sequence[float] = ()) -> None:
        self._quantiles = tuple(quantiles)
        self._scores: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._premium: deque[bool] = deque(maxlen=RECENT)
        self._recent_premium = 0
        self._usual_premium = self._usual_count = 0.0
        self.labelled: Sequence[tuple[float, float]] = ()
        self.decisions: Counter[tuple[ScoredBy, Tier]] = Counter()

    def restart(self, quantiles: Sequence[float]) -> None:
        """Another model is in force; the premium share goes on, since a jump with the new model is a jump as well."""
        self._quantiles = tuple(quantiles)
        self._scores.clear()
        self.labelled = ()

    def note(self, decision: Decision, scored_by: ScoredBy) -> None:
        """Remember a decision that left the router a choice."""
        score = decision.score
        if not decision.ranked or score is None or decision.reason is Reason.PINNED_BY_CLIENT:
            return
        tier = decision.ranked[0].tier
        self.decisions[scored_by, tier] += 1
        if scored_by is ScoredBy.CURRENT:
            self._scores.append((score.complexity_ratio, score.novelty_ratio))
        recent = self._premium
        if len(recent) == RECENT:
            left = recent[0]
            self._recent_premium -= left
            self._usual_premium = self._usual_premium * _USUAL_DECAY + left
            self._usual_count = self._usual_count * _USUAL_DECAY + 1.0
        premium = tier is Tier.PREMIUM
        recent.append(premium)
        self._recent_premium += premium

    def premium_share(self) -> PremiumShare:
        """The share now; O(1)."""
        seen = len(self._premium)
        recent = self._recent_premium / seen if seen >= MIN_SCORES else None
        usual = self._usual_premium / self._usual_count if self._usual_count >= MIN_SCORES else None
        jumped = usual is not None and premium_jump(usual_share=usual, recent_premium=self._recent_premium, recent=seen)
        return PremiumShare(recent, usual, jumped)

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

    def usual(self) -> tuple[float, float]:
        """What `restore_usual` takes, with the decisions of the recent window counted in."""
        return self._usual_premium + self._recent_premium, self._usual_count + len(self._premium)

    def restore_usual(self, known: object) -> None:
        """Take up what `usual` gave before a restart; what is malformed is passed over."""
        if isinstance(known, list | tuple) and len(known) == 2 and all(isinstance(n, int | float) for n in known):
            premium, count = float(known[0]), float(known[1])
            if 0.0 <= premium <= count < float("inf"):
                self._usual_premium, self._usual_count = premium, count


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
