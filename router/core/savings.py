"""What routing has saved against sending everything to the premium model, step by step. Pure, for reports only.

    always premium = every answered request at the premium model's price: one attempt, no prompt cache
    - routing        what a cheaper API's list price was below that
    - local tier     what the standard cost of the engine's work was below that
    - cache          what prompt caches took off the API's list price (cache writes cost extra)
    - failed attempts, classifier overhead, idle GPU: what the premium model would not have cost; all negative
    = spent          cash for the APIs and the invoice of the hardware

Every step may be negative; they add up to the nano-dollar, since each is a difference of booked amounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from router.core.pricing import cost_nanousd
from router.core.request import TokenUsage
from router.core.snapshot import PriceRow
from router.core.vocabulary import Outcome, Tier

_SERVED = frozenset({Outcome.OK, Outcome.CLIENT_GONE})

OVERHEAD_PREFIX = "overhead:"
"""How the requested model of calls begins that nobody asked for: shadow runs and judges, made for the learner."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One booked attempt; `usage` is `None` where nothing was used."""

    candidate: str
    tier: Tier
    outcome: Outcome
    usage: TokenUsage | None
    amount_nanousd: int


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Nano-dollars. Steps are signed: what saved is positive, what cost extra is negative."""

    always_premium_nanousd: int = 0
    routing_nanousd: int = 0
    local_tier_nanousd: int = 0
    cache_nanousd: int = 0
    failed_attempts_nanousd: int = 0
    classifier_overhead_nanousd: int = 0
    idle_gpu_nanousd: int = 0
    other_periods_nanousd: int = 0
    requests: int = 0
    not_compared: int = 0

    def __add__(self, other: Waterfall) -> Waterfall:
        return Waterfall(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def steps(self) -> dict[str, int]:
        """The steps by name, in order."""
        return {
            "routing": self.routing_nanousd,
            "local_tier": self.local_tier_nanousd,
            "cache": self.cache_nanousd,
            "failed_attempts": self.failed_attempts_nanousd,
            "classifier_overhead": self.classifier_overhead_nanousd,
            "idle_gpu": self.idle_gpu_nanousd,
            "other_periods": self.other_periods_nanousd,
        }

    @property
    def saved_nanousd(self) -> int:
        """All steps; below 0 the premium model alone would have been cheaper."""
        return sum(self.steps.values())

    @property
    def spent_nanousd(self) -> int:
        """Cash for the APIs plus the invoice of the hardware."""
        return self.always_premium_nanousd - self.saved_nanousd


def of_request(attempts: Sequence[Tried], premium: PriceRow | None, prices: Mapping[str, PriceRow]) -> Waterfall:
    """The steps of one request; `attempts` in order, the last one served it if it ended well or the caller left.

    Without a `premium` row to compare with the request counts as `not_compared`: its baseline is what it cost.
    """
    last = attempts[-1] if attempts else None
    if last is None or last.outcome not in _SERVED or last.usage is None:
        failed = sum(a.amount_nanousd for a in attempts)
        return Waterfall(failed_attempts_nanousd=-failed, requests=1)
    failed = sum(a.amount_nanousd for a in attempts[:-1])
    if premium is None:
        return Waterfall(last.amount_nanousd, failed_attempts_nanousd=-failed, requests=1, not_compared=1)
    uncached = replace(last.usage, cached_input_tokens=0, cache_write_tokens=0)
    baseline = cost_nanousd(premium, uncached)
    local = routing = cache = 0
    if last.tier is Tier.LOCAL:
        local = baseline - last.amount_nanousd
    else:
        row = prices.get(last.candidate)
        listed = cost_nanousd(row, uncached) if row is not None else last.amount_nanousd
        routing, cache = baseline - listed, listed - last.amount_nanousd
    return Waterfall(baseline, routing, local, cache, -failed, requests=1)


def of_overhead(attempts: Sequence[Tried]) -> Waterfall:
    """The steps of calls made for the learner: all of their cost is overhead, and they replace no premium answer."""
    return Waterfall(classifier_overhead_nanousd=-sum(a.amount_nanousd for a in attempts))


def with_hardware(
    requests: Waterfall, *, invoice_nanousd: int, absorbed_nanousd: int, booked_local_nanousd: int
) -> Waterfall:
    """`requests` with what the hardware cost beyond their work.

    `booked_local_nanousd` is the standard cost of the same requests' local attempts. What of it stands in periods
    outside the range (work over its edges, hours before there were books) is the step `other_periods`.
    """
    return requests + Waterfall(
        idle_gpu_nanousd=absorbed_nanousd - invoice_nanousd,
        other_periods_nanousd=booked_local_nanousd - absorbed_nanousd,
    )
