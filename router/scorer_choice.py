"""Which scorer judges a request: the one in force, its canary, or the prior while either is in trouble. O(1), no I/O.

A scorer that fails or takes too long several times in a row is left out for a while and then tried again, like any
other target: its circuit is that of `core.health`. Text is bounded before it is scored, so that a single slow score
cannot hold up the loop for long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from router.core.health import after, begin_probe, is_open
from router.core.snapshot import ProviderHealth
from router.core.vocabulary import CircuitState, Outcome
from router.ports import ScoredBy, ScoringPolicy

MAX_SCORE_S = 0.05
_HEALTHY = ProviderHealth()
_RANGE = 2**64


def place_of(key: str, salt: str) -> float:
    """Where `key` falls in [0, 1): the same for the same key, unrelated for another `salt`."""
    digest = blake2b(key.encode("utf-8", "replace"), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / _RANGE


@dataclass(slots=True)
class ScorerChoice:
    """What judges now. `swap` replaces all of it at once; requests under way keep what they were given.

    `canary_share` (0..1) of the keys are judged by the canary. `on_trouble(cause)` hears of a scorer that is left out
    from now on, `slow` or `error`.
    """

    current: ScoringPolicy
    prior: ScoringPolicy
    canary: ScoringPolicy | None = None
    canary_share: float = 0.0
    max_score_s: float = MAX_SCORE_S
    on_trouble: Callable[[str], None] = lambda _: None
    _current_health: ProviderHealth = _HEALTHY
    _canary_health: ProviderHealth = _HEALTHY

    def swap(self, current: ScoringPolicy, canary: ScoringPolicy | None = None, canary_share: float = 0.0) -> None:
        """Put others in force, whole. What was held against the old ones is forgotten."""
        self.current, self.canary, self.canary_share = current, canary, canary_share
        self._current_health = self._canary_health = _HEALTHY

    def left_out(self) -> float:
        """1 while the model in force is in trouble, for people."""
        return float(self._current_health.state is not CircuitState.CLOSED)

    def scored_by(self, model_version: str) -> ScoredBy:
        """Who `model_version` is now; the prior's and any that is in force no longer count as the prior."""
        if model_version == self.current.scorer.version:
            return self.current.scored_by
        if self.canary is not None and model_version == self.canary.scorer.version:
            return ScoredBy.CANARY
        return ScoredBy.PRIOR

    def of(self, key: str, now_s: float) -> ScoringPolicy:
        """What scores the request that `key` names."""
        canary = self.canary
        if canary is not None and place_of(key, canary.scorer.version) < self.canary_share:
            if self._canary_health is _HEALTHY:
                return canary
            if not is_open(self._canary_health, now_s):
                self._canary_health = begin_probe(self._canary_health, now_s)
                return canary
        if self._current_health is _HEALTHY:
            return self.current
        if is_open(self._current_health, now_s):
            return self.prior
        self._current_health = begin_probe(self._current_health, now_s)
        return self.current

    def note(self, scoring: ScoringPolicy, took_s: float | None, now_s: float) -> None:
        """How long a score took; `None`: it failed."""
        well = took_s is not None and took_s <= self.max_score_s
        if scoring is self.current:
            if not well or self._current_health is not _HEALTHY:
                self._current_health = self._after(self._current_health, took_s, well, now_s)
        elif scoring is self.canary and (not well or self._canary_health is not _HEALTHY):
            self._canary_health = self._after(self._canary_health, took_s, well, now_s)

    def _after(self, health: ProviderHealth, took_s: float | None, well: bool, now_s: float) -> ProviderHealth:
        outcome = Outcome.OK if well else Outcome.BROKEN if took_s is None else Outcome.TIMEOUT
        now = after(health, outcome, now_s)
        if now.state is CircuitState.OPEN and health.state is not CircuitState.OPEN:
            self.on_trouble("error" if took_s is None else "slow")
        # one slow score is forgotten by the next quick one: only several in a row say anything about the model
        now = replace(now, failure_ratio=0.0)
        return _HEALTHY if now == _HEALTHY else now
