"""The closed sets of words that the router speaks in: headers, metrics and the ledger carry them. Pure.

The suffixes of all nouns in this folder: `_tokens _bytes _usd _usd_per_mtok _nanousd _ratio` (0..1) `_s` (duration)
`_at_s` (monotonic) `_at_utc` (aware datetime) `_gpu_s`. Prices are `Decimal`; whatever is booked is an integer number
of nano-dollars.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

NANO_PER_USD = 1_000_000_000


class _Word(StrEnum):
    """A word of a closed set: its hash is that of its text, as its equality is (an Enum's own is slow Python)."""

    __hash__ = str.__hash__


class Tier(_Word):
    """Where an answer can come from, cheapest marginal cost first."""

    LOCAL = "local"
    CHEAP = "cheap"
    PREMIUM = "premium"


TIER_ORDER: Mapping[Tier, int] = {Tier.LOCAL: 0, Tier.CHEAP: 1, Tier.PREMIUM: 2}


class Locality(_Word):
    """Where a prompt may travel."""

    ANY = "any"
    LOCAL_ONLY = "local_only"


class Reason(_Word):
    """Why a candidate was chosen. Stable strings: they stand in headers, metrics and the ledger."""

    LOCAL_IDLE_FREE = "LOCAL_IDLE_FREE"
    LOCAL_CHEAPER_MARGINAL = "LOCAL_CHEAPER_MARGINAL"
    LOCAL_ONLY_POLICY = "LOCAL_ONLY_POLICY"
    CHEAP_API_CHEAPEST = "CHEAP_API_CHEAPEST"
    PREMIUM_QUALITY_FLOOR = "PREMIUM_QUALITY_FLOOR"
    PREMIUM_API_CHEAPEST = "PREMIUM_API_CHEAPEST"
    SPILL_TTFT = "SPILL_TTFT"
    SPILL_TPOT = "SPILL_TPOT"
    SPILL_PREFILL_BURST = "SPILL_PREFILL_BURST"
    SPILL_KV = "SPILL_KV"
    SPILL_SEQS = "SPILL_SEQS"
    SPILL_CONGESTION_PRICE = "SPILL_CONGESTION_PRICE"
    ONLY_ELIGIBLE = "ONLY_ELIGIBLE"
    PINNED_BY_CLIENT = "PINNED_BY_CLIENT"
    STICKY_SESSION_CACHE = "STICKY_SESSION_CACHE"
    FALLBACK_AFTER_ERROR = "FALLBACK_AFTER_ERROR"
    EXPLORE = "EXPLORE"


class Reject(_Word):
    """Why a candidate was not eligible, or was eligible and not chosen (DOMINATED)."""

    NOT_ALLOWED = "NOT_ALLOWED"
    UNCONFIGURED = "UNCONFIGURED"
    RESIDENCY = "RESIDENCY"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    QUALITY_BELOW_FLOOR = "QUALITY_BELOW_FLOOR"
    OVER_REQUEST_CAP = "OVER_REQUEST_CAP"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    BUDGET_PACED = "BUDGET_PACED"
    UNHEALTHY = "UNHEALTHY"
    BREAKER_OPEN = "BREAKER_OPEN"
    METRICS_STALE = "METRICS_STALE"
    GPU_THROTTLED = "GPU_THROTTLED"
    GPU_SHARED_CAP = "GPU_SHARED_CAP"
    PRICE_UNKNOWN = "PRICE_UNKNOWN"
    PRICE_STALE = "PRICE_STALE"
    SATURATED_TTFT = "SATURATED_TTFT"
    SATURATED_TPOT = "SATURATED_TPOT"
    SATURATED_PREFILL_BURST = "SATURATED_PREFILL_BURST"
    SATURATED_KV = "SATURATED_KV"
    SATURATED_SEQS = "SATURATED_SEQS"
    DOMINATED = "DOMINATED"


class Flag(_Word):
    """Warnings and labels that travel with a decision or a charge."""

    ESTIMATE_DEFAULT = "ESTIMATE_DEFAULT"
    COEFFS_UNCALIBRATED = "COEFFS_UNCALIBRATED"
    CACHE_UNKNOWN = "CACHE_UNKNOWN"
    METRICS_ABSENT = "METRICS_ABSENT"
    SLO_UNREACHABLE = "SLO_UNREACHABLE"
    UNPRICED_ASSET = "UNPRICED_ASSET"
    USAGE_ESTIMATED = "USAGE_ESTIMATED"
    USAGE_INCONSISTENT = "USAGE_INCONSISTENT"
    TIER_CLIFF = "TIER_CLIFF"
    PEAK_HOURS = "PEAK_HOURS"
    QUALITY_TARGET_AS_FLOOR = "QUALITY_TARGET_AS_FLOOR"
    CLASSIFIER_UNAVAILABLE = "CLASSIFIER_UNAVAILABLE"
    CANARY_MODEL = "CANARY_MODEL"
    PREMIUM_CAPPED = "PREMIUM_CAPPED"  # premium would have been chosen, but its share has risen as far as it may
    SCORE_SHRUNK = "SCORE_SHRUNK"  # to the prior, since the prompt is unlike the training data
    LOST_IN_CRASH = "LOST_IN_CRASH"


class Outcome(_Word):
    """How an attempt, or a request, ended. A small closed set: it labels metrics."""

    OK = "ok"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    RATE_LIMITED = "rate_limited"
    BROKEN = "broken"  # cut, malformed, error frame, abort
    REFUSED = "refused"  # the caller's own error
    CREDENTIALS = "credentials"
    NOT_SERVED = "not_served"  # the host does not know the model that is configured
    CONTEXT_TOO_LONG = "context_too_long"
    CLIENT_GONE = "client_gone"
    SHUTDOWN = "shutdown"  # cut off at the end of the grace, or by a second signal
    LOST = "lost"  # the gateway died while it ran
    NO_ROUTE = "no_route"
    INTERNAL = "internal"


class Limit(_Word):
    """What a key can be limited in, by the name it has in the config. A small closed set: it labels metrics."""

    REQUESTS_PER_MIN = "requests_per_min"
    REQUESTS_PER_HOUR = "requests_per_hour"
    TOKENS_PER_MIN = "tokens_per_min"
    CONCURRENCY_MAX = "concurrency_max"


class CircuitState(_Word):
    """The classic three."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
