"""Retry and fallback as a generator that asks for I/O: it yields an `Attempt` and is sent its `AttemptResult`.

The rules, in order: a success, a caller's own error, a caller who has gone, or a token already sent ends the plan; so
does the deadline, the cost cap, or the attempt limit. An overloaded or failing target is tried once more only when the
failure was quick and says "try again" (5xx, reset); everything else moves on to the next candidate. A target that asked
for a pause is not called before it is over.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from router.core.attempts import Attempt, AttemptResult
from router.core.decision import Candidate, Decision
from router.core.vocabulary import Outcome, Tier

_FINAL = frozenset({Outcome.OK, Outcome.REFUSED, Outcome.CLIENT_GONE, Outcome.SHUTDOWN, Outcome.INTERNAL})


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Bounds of the plan. `max_wait_s` bounds obedience to Retry-After when there is nowhere else to go.

    After `max_engines` of our own have failed a request leaves the house, if it may: what has hit two of them has
    probably hit the machine, and the attempts that are left are for others.
    """

    max_attempts: int = 4
    max_engines: int = 2
    retries_per_target: int = 1
    backoff_s: float = 0.1
    max_wait_s: float = 10.0
    min_useful_s: float = 0.05


def attempts(
    decision: Decision,
    *,
    now_s: float,
    deadline_at_s: float,
    cap_nanousd: int | None = None,
    cfg: RetryConfig = RetryConfig(),
) -> Generator[Attempt, AttemptResult, None]:
    """Plan the calls of one request. `cap_nanousd` bounds the sum over its attempts (None: no cap)."""
    reserve = {alt.name: alt.reserve_nanousd for alt in decision.alternatives}
    spent_nanousd = 0
    number = engines = 0
    last_outside = max((i for i, c in enumerate(decision.ranked) if c.tier is not Tier.LOCAL), default=-1)
    for index, candidate in enumerate(decision.ranked):
        has_next = index + 1 < len(decision.ranked)
        if candidate.tier is Tier.LOCAL:
            if engines >= cfg.max_engines and index < last_outside:
                continue
            engines += 1
        retries = 0
        wait_s = 0.0
        while number < cfg.max_attempts:
            if cap_nanousd is not None and spent_nanousd + reserve.get(candidate.name, 0) > cap_nanousd and number:
                break
            timeout_s = deadline_at_s - now_s - wait_s
            if timeout_s < cfg.min_useful_s and number:
                return
            number += 1
            result = yield Attempt(candidate, number, max(timeout_s, cfg.min_useful_s), wait_s)
            now_s = result.finished_at_s
            spent_nanousd += result.cost_nanousd
            if result.outcome in _FINAL or result.first_token_sent:
                return
            again = _wait_before_retry(candidate, result, retries, has_next, cfg)
            if again is None:
                break
            wait_s = again
            retries += 1


def _wait_before_retry(
    candidate: Candidate, result: AttemptResult, retries: int, has_next: bool, cfg: RetryConfig
) -> float | None:
    """Seconds to wait before the same target is asked again; `None`: do not."""
    if retries >= cfg.retries_per_target:
        return None
    if result.outcome is Outcome.RATE_LIMITED:
        wait_s = result.retry_after_s if result.retry_after_s is not None else 1.0
        return None if has_next or wait_s > cfg.max_wait_s else max(wait_s, cfg.backoff_s)
    if result.outcome is Outcome.UNAVAILABLE and not (candidate.tier is Tier.LOCAL and has_next):
        wait_s = max(cfg.backoff_s, result.retry_after_s or 0.0)
        return wait_s if wait_s <= cfg.max_wait_s and not (has_next and wait_s > 1.0) else None
    return None
