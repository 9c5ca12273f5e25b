"""The nouns of the pure core: frozen, slotted, units in the names.

Suffixes: `_tokens _bytes _usd _usd_per_mtok _nanousd _ratio` (0..1) `_s` (duration) `_at_s` (monotonic)
`_at_utc` (aware datetime) `_gpu_s`. Prices are `Decimal`; whatever is booked is an integer number of nano-dollars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from classifier.datamodels import RequestFeatures, Score
from local_llm.datamodels import EngineCoefficients, LocalSnapshot

NANO_PER_USD = 1_000_000_000


class Tier(StrEnum):
    """Where an answer can come from, cheapest marginal cost first."""

    LOCAL = "local"
    CHEAP = "cheap"
    PREMIUM = "premium"


TIER_ORDER: Mapping[Tier, int] = {Tier.LOCAL: 0, Tier.CHEAP: 1, Tier.PREMIUM: 2}


class Locality(StrEnum):
    """Where a prompt may travel."""

    ANY = "any"
    LOCAL_ONLY = "local_only"


class Reason(StrEnum):
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


class Reject(StrEnum):
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


class Flag(StrEnum):
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


class Outcome(StrEnum):
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
    LOST = "lost"  # the gateway died while it ran
    NO_ROUTE = "no_route"
    INTERNAL = "internal"


class CircuitState(StrEnum):
    """The classic three."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens before the call. `source` says what the output figure rests on; mean decides, p90 reserves."""

    input_tokens: int
    output_mean_tokens: int
    output_p90_tokens: int
    source: str  # class_mean | max_tokens | hint | default
    input_estimated: bool = True


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of a call. `input_tokens` includes cached ones, `output_tokens` includes reasoning, whoever reports."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the decision needs to know of a request, and nothing of its text.

    `quality_floor_ratio` is the hard per-request floor; `deadline_s` is a duration from `received_at_s`.
    `exploration_draw` is a uniform number from [0, 1) where the policy explores: chance is an input like any other.
    """

    request_id: str
    tenant: str
    estimate: TokenEstimate
    received_at_s: float
    deadline_s: float
    request_class: str = "chat"
    needs_tools: bool = False
    needs_images: bool = False
    needs_json: bool = False
    stream: bool = False
    max_output_tokens: int | None = None
    n: int = 1
    pinned_model: str | None = None
    pinned_tier: Tier | None = None
    locality: Locality = Locality.ANY
    quality_floor_ratio: float | None = None
    max_nanousd: int | None = None
    session: str | None = None
    exploration_draw: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model at one place that may answer. `name` is unique; `wire_model` is what its host is told.

    `unavailable` is set when it can never answer in this process (UNCONFIGURED, PRICE_UNKNOWN) with the cause in
    `unavailable_detail`, ready for people.
    """

    name: str
    tier: Tier
    provider: str
    wire_model: str
    context_window_tokens: int
    max_output_tokens: int | None = None
    supports_tools: bool = True
    supports_images: bool = False
    supports_json: bool = True
    unavailable: Reject | None = None
    unavailable_detail: str | None = None

    @property
    def model(self) -> str:
        """The model as configured: what several engines that serve it have in common."""
        return self.wire_model if self.tier is Tier.LOCAL else self.name


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices in force from `from_input_tokens` input tokens on; a cliff: they apply to all tokens of the request."""

    from_input_tokens: int
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    cached_input_usd_per_mtok: Decimal | None = None
    cache_write_usd_per_mtok: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PriceRow:
    """The price of one model at one moment. `tiers` is ascending and starts at 0 input tokens.

    `valid_until_utc` is the next instant at which another row may be in force (a dated change or a peak hour).
    `request_usd` is a fee per call on top of the tokens; 0 with nearly every host.
    """

    model: str
    provider: str
    tiers: tuple[PriceTier, ...]
    effective_from_utc: datetime
    valid_until_utc: datetime | None
    source: str
    version: str
    flags: tuple[Flag, ...] = ()
    request_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class AssetRate:
    """What a GPU-second of the local tier stands for in the books.

    `usd_per_gpu_s` is the standard rate rho = usd_per_hour / (3600 * kappa_p), `None` where no hardware is priced;
    `energy_usd_per_gpu_s` is the true marginal cost (0 for rented hardware). `coefficients` turn tokens into work for
    the books: fixed, so that what an answer costs does not depend on what has been learnt about the engine since.
    """

    asset: str
    usd_per_gpu_s: Decimal | None
    energy_usd_per_gpu_s: Decimal = Decimal(0)
    version: str = "unpriced"
    coefficients: EngineCoefficients | None = None


@dataclass(frozen=True, slots=True)
class BudgetState:
    """One budget window. `pace` is the multiplier lambda_B on cash."""

    scope: str
    limit_nanousd: int
    spent_nanousd: int
    reserved_nanousd: int
    window_ends_at_utc: datetime
    pace: float = 0.0

    @property
    def left_nanousd(self) -> int:
        """Room for new reservations; never below 0."""
        return max(0, self.limit_nanousd - self.spent_nanousd - self.reserved_nanousd)


@dataclass(frozen=True, slots=True)
class ProviderHealth:
    """Circuit of one target. `open_until_at_s` is monotonic; `failure_ratio` is a decaying mean, P(retry)."""

    state: CircuitState = CircuitState.CLOSED
    consecutive_failures: int = 0
    open_until_at_s: float = 0.0
    failure_ratio: float = 0.0
    probe_in_flight: bool = False
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One frozen look at the world; every mapping is keyed by candidate name.

    `density_quantiles` are ascending value densities (usd per GPU-second) of recent requests, from which the
    congestion price is read; empty means no congestion price yet. `exploration_left_nanousd` is what exploring may
    still cost today above the usual choice, `None` for no bound. `cache_unknown` names the candidates whose last answer
    did not say how much of its prompt came from a cache.
    """

    now_s: float
    now_utc: datetime
    prices: Mapping[str, PriceRow]
    budgets: tuple[BudgetState, ...]
    health: Mapping[str, ProviderHealth]
    engines: Mapping[str, LocalSnapshot]
    assets: Mapping[str, AssetRate]
    density_quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    input_token_ratio: Mapping[str, float] = field(default_factory=dict)
    cache_unknown: frozenset[str] = frozenset()
    scorer_version: str = ""
    world_hash: str = ""
    exploration_left_nanousd: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The dials of the decision; defaults are those of the shipped config.

    `nu_usd` is what a unit of missing quality costs, `None` while the scorer has no calibration sample: then the
    target serves as the floor. `premium_capped`: a free choice goes to premium only where nothing else may answer.
    """

    quality_target_ratio: float = 0.95
    quality_floor_ratio: float | None = None
    nu_usd: float | None = None
    lambda_late_usd: float = 0.0
    on_saturation: str = "spill"  # spill | queue | reject
    max_nanousd_per_request: int | None = None
    f_ttft: float = 0.9
    f_tpot: float = 0.6
    f_bucket: float = 1.0
    f_kv: float = 0.95
    congestion_from_u: float = 0.9
    context_margin_ratio: float = 0.0
    exploration_ratio: float = 0.0
    policy_version: str = "1"
    premium_capped: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """One candidate as the decision saw it. Costs in usd (floats: for comparing and showing, never for booking).

    Exactly one holds: `reasons` is not empty, or `objective_usd` is set (and then it was eligible; DOMINATED is added
    for those not chosen).
    """

    name: str
    tier: Tier
    reasons: tuple[Reject, ...]
    expected_cost_usd: float | None = None
    marginal_cost_usd: float | None = None
    standard_cost_usd: float | None = None
    reserve_nanousd: int = 0
    p_adequate: float | None = None
    objective_usd: float | None = None
    tightness: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    work_gpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The choice and everything needed to explain and replay it.

    `ranked` is the chosen candidate and then those to fall back to, best first; empty when nothing can answer now.
    Then `queue_for_s` > 0 says that waiting for the local engine is allowed, and `blocked_by_saturation` that it is
    only fullness that stands in the way. `moment` is what `inputs_hash` was taken over (see `core.replay`).
    `exploration_probability` is the probability with which the chosen candidate was taken, 1 where nothing was left to
    chance; `action_probability` that of every tier that chance might have taken, empty where there was no chance.
    """

    ranked: tuple[Candidate, ...]
    alternatives: tuple[Alternative, ...]
    reason: Reason | None
    reserve_nanousd: int
    score: Score | None
    inputs_hash: str
    policy_version: str
    flags: tuple[Flag, ...] = ()
    queue_for_s: float = 0.0
    blocked_by_saturation: bool = False
    exploration_probability: float = 1.0
    action_probability: Mapping[str, float] = field(default_factory=dict)
    moment: bytes = field(default=b"", repr=False)

    @property
    def chosen(self) -> Candidate | None:
        """The head of `ranked`."""
        return self.ranked[0] if self.ranked else None

    def alternative(self, name: str) -> Alternative:
        """The record of candidate `name`; KeyError if it was not considered."""
        for alt in self.alternatives:
            if alt.name == name:
                return alt
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to make. `timeout_s` is what is left of the request's deadline; `wait_s` is to be waited before."""

    candidate: Candidate
    number: int
    timeout_s: float
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How a call ended. `first_token_sent` means the caller has seen a token: no second try after that."""

    outcome: Outcome
    finished_at_s: float
    usage: TokenUsage | None = None
    first_token_sent: bool = False
    retry_after_s: float | None = None
    cost_nanousd: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """What one attempt costs. `work_gpu_ns` is set for local work; `price_version` names row or rate.

    `asset` is the hardware whose hours the charge is booked in; `None` for an API and for hardware without a price.
    """

    amount_nanousd: int
    price_version: str
    work_gpu_ns: int | None = None
    flags: tuple[Flag, ...] = ()
    asset: str | None = None


@dataclass(frozen=True, slots=True)
class WorkDone:
    """What a local attempt that is still running has done so far, priced as if it ended now."""

    request_id: str
    number: int
    tenant: str
    model: str
    asset: str
    started_at_utc: datetime
    work_gpu_ns: int
    amount_nanousd: int
    price_version: str


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt as it is booked."""

    number: int
    candidate: str
    tier: Tier
    provider: str
    model: str
    outcome: Outcome
    usage: TokenUsage | None
    charge: Charge
    started_at_utc: datetime
    duration_s: float
    first_token_s: float | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation: what a request may spend at most, durable before any money can be spent."""

    request_id: str
    tenant: str
    reserve_nanousd: int
    reserved_at_utc: datetime
    expires_at_utc: datetime
    first: AttemptOpened


@dataclass(frozen=True, slots=True)
class AttemptOpened:
    """An attempt that is about to leave the house; if nothing follows, it is what was lost."""

    request_id: str
    number: int
    tenant: str
    candidate: str
    tier: Tier
    provider: str
    model: str
    opened_at_utc: datetime
    estimate_input_tokens: int
    reserve_nanousd: int


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """One request as it is remembered: the learner's raw material and the answer to "why did it go there?"."""

    schema_version: int
    request_id: str
    tenant: str
    received_at_utc: datetime
    requested_model: str
    stream: bool
    features: RequestFeatures | None
    score: Score | None
    decision: Decision | None
    attempts: tuple[AttemptRecord, ...]
    outcome: Outcome
    usage: TokenUsage | None
    cost_nanousd: int
    duration_s: float
    first_token_s: float | None
    exploration_probability: float
    prompt_sha256: str
    prompt_text: str | None = None
    reason: Reason | None = None
    session: str | None = None
    world: bytes | None = None
    moment: bytes | None = None
