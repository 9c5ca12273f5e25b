"""The world as a decision sees it: prices, budgets, health, engines, hardware. Frozen nouns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

import msgspec

from local_llm.datamodels import EngineCoefficients, LocalSnapshot
from router.core.nouns import Noun
from router.core.vocabulary import CircuitState, Flag


class PriceTier(Noun, frozen=True):
    """Prices in force from `from_input_tokens` input tokens on; a cliff: they apply to all tokens of the request."""

    from_input_tokens: int
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    cached_input_usd_per_mtok: Decimal | None = None
    cache_write_usd_per_mtok: Decimal | None = None


class PriceRow(Noun, frozen=True):
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


class AssetRate(Noun, frozen=True):
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


class BudgetState(Noun, frozen=True):
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


class ProviderHealth(Noun, frozen=True):
    """Circuit of one target. `open_until_at_s` is monotonic; `failure_ratio` is a decaying mean, P(retry)."""

    state: CircuitState = CircuitState.CLOSED
    consecutive_failures: int = 0
    open_until_at_s: float = 0.0
    failure_ratio: float = 0.0
    probe_in_flight: bool = False
    cause: str | None = None


class Snapshot(Noun, frozen=True):
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
    density_quantiles: Mapping[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    input_token_ratio: Mapping[str, float] = msgspec.field(default_factory=dict)
    cache_unknown: frozenset[str] = frozenset()
    scorer_version: str = ""
    world_hash: str = ""
    exploration_left_nanousd: int | None = None
