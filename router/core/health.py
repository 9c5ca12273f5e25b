"""Circuit breaker of one target, as functions of (health, what happened, now). Pure.

    CLOSED --3 failures in a row--> OPEN --cool-down over--> one probe (HALF_OPEN) --ok--> CLOSED
                                     ^------------------------- failed -----'

A refused key, or a model that its host does not know, opens at once and for longer; a rate limit opens until the time
the target asked for and is no failure.
The caller's own errors say nothing against the target, and neither does a caller who has gone.
"""

from __future__ import annotations

from msgspec.structs import replace

from router.core.snapshot import ProviderHealth
from router.core.vocabulary import CircuitState, Outcome

FAILURES_TO_OPEN = 3
COOL_DOWN_S = 10.0
"""From opening to the first probe, and between probes."""
CREDENTIALS_COOL_DOWN_S = 300.0
"""People have to do something: asking again soon would only cost time."""
RATE_LIMIT_DEFAULT_S = 5.0
"""For a rate limit that names no time."""
RETRY_AFTER_MAX_S = 3600.0
"""A target that asks for more is asked again after this."""
FAILURE_RATIO_WEIGHT = 0.05
"""Weight of the newest attempt in `failure_ratio`: a memory of about 20 attempts."""

_FAILURES = frozenset({Outcome.TIMEOUT, Outcome.UNAVAILABLE, Outcome.BROKEN})
# The target answered, and properly: it is alive whatever was wrong with the request.
_ANSWERED = frozenset({Outcome.OK, Outcome.REFUSED, Outcome.CONTEXT_TOO_LONG})


def is_open(health: ProviderHealth, now_s: float) -> bool:
    """Whether no call may be made now. False for a target that is due for its one probe."""
    if health.state is CircuitState.CLOSED:
        return False
    return now_s < health.open_until_at_s


def begin_probe(health: ProviderHealth, now_s: float) -> ProviderHealth:
    """A call to a target that is not closed is about to be made: no other one until it has ended.

    Should its end never be told, the next probe may be made a cool-down later. A closed circuit stays as it is.
    """
    if health.state is CircuitState.CLOSED:
        return health
    return replace(health, state=CircuitState.HALF_OPEN, probe_in_flight=True, open_until_at_s=now_s + COOL_DOWN_S)


def after(health: ProviderHealth, outcome: Outcome, now_s: float, retry_after_s: float | None = None) -> ProviderHealth:
    """Health after an attempt ended with `outcome` at `now_s` (monotonic); `retry_after_s` as the target asked."""
    if outcome in _ANSWERED:
        return _answered(health, outcome)
    if outcome is Outcome.RATE_LIMITED:
        wait_s = RATE_LIMIT_DEFAULT_S if retry_after_s is None else min(max(0.0, retry_after_s), RETRY_AFTER_MAX_S)
        return _opened(_counted(health, failed=True), now_s + wait_s, outcome)
    if outcome in (Outcome.CREDENTIALS, Outcome.NOT_SERVED):
        return _opened(_counted(health, failed=True), now_s + CREDENTIALS_COOL_DOWN_S, outcome)
    if outcome in _FAILURES:
        health = _counted(health, failed=True)
        health = replace(health, consecutive_failures=health.consecutive_failures + 1)
        if health.state is CircuitState.HALF_OPEN or (
            health.state is CircuitState.CLOSED and health.consecutive_failures >= FAILURES_TO_OPEN
        ):
            return _opened(health, now_s + COOL_DOWN_S, outcome)
        return health
    # Nothing was learnt about the target; if this was the probe, another may be made.
    if health.probe_in_flight:
        return replace(health, state=CircuitState.OPEN, probe_in_flight=False, open_until_at_s=now_s)
    return health


def _answered(health: ProviderHealth, outcome: Outcome) -> ProviderHealth:
    if health.state is CircuitState.OPEN:
        # a call from before the opening: too old to speak for the target now
        return health
    if health.state is CircuitState.HALF_OPEN:
        return replace(ProviderHealth(), failure_ratio=_counted(health, failed=False).failure_ratio)
    if outcome is not Outcome.OK:
        return health
    if health.consecutive_failures == 0 and health.failure_ratio == 0.0:
        return health
    return replace(_counted(health, failed=False), consecutive_failures=0, cause=None)


def _opened(health: ProviderHealth, until_s: float, cause: Outcome) -> ProviderHealth:
    # while open, only a longer wait counts; a probe's verdict replaces what was before
    if health.state is CircuitState.OPEN and health.open_until_at_s > until_s:
        return health
    return replace(health, state=CircuitState.OPEN, open_until_at_s=until_s, probe_in_flight=False, cause=cause.value)


def _counted(health: ProviderHealth, *, failed: bool) -> ProviderHealth:
    ratio = health.failure_ratio + FAILURE_RATIO_WEIGHT * ((1.0 if failed else 0.0) - health.failure_ratio)
    # exactly 0 again in the end, so that a healthy target costs nothing to note
    return replace(health, failure_ratio=ratio if ratio > 1e-6 else 0.0)
