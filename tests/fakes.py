"""What tests pass in instead of the world: small, honest, and without a single patch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from classifier.datamodels import RequestFeatures, Score
from local_llm.datamodels import (
    EngineCoefficients,
    EngineLimits,
    InflightState,
    LocalSnapshot,
    ProcessState,
    SloTargets,
)
from router.core.attempts import AttemptOpened, Hold, RoutingRecord
from router.core.decision import Candidate
from router.core.request import RequestFacts, TokenEstimate
from router.core.snapshot import AssetRate, BudgetState, PriceRow, PriceTier, Snapshot
from router.core.vocabulary import Tier
from router.errors import Unavailable

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

LOCAL = Candidate("smol", Tier.LOCAL, "engine", "smol", 8192)
CHEAP = Candidate("openai/cheap", Tier.CHEAP, "openai", "cheap", 128_000, supports_images=True)
BIG = Candidate("openai/big", Tier.PREMIUM, "openai", "big", 400_000, supports_images=True)
ALL = (LOCAL, CHEAP, BIG)

EASY = Score(0.07, {"local": 0.93, "cheap": 0.93, "premium": 0.95}, 0.0, "test", 1)
HARD = Score(0.65, {"local": 0.35, "cheap": 0.65, "premium": 0.92}, 0.0, "test", 1)
MIDDLE = Score(0.35, {"local": 0.65, "cheap": 0.90, "premium": 0.93}, 0.0, "test", 1)

H100 = EngineCoefficients("h100-8b-fp16", 6.37e-3, 18e-6, 87e-9, 35e-6, calibrated=True)


def price(model: str, input_usd: str, output_usd: str) -> PriceRow:
    """A flat price row in usd per million tokens."""
    return PriceRow(
        model=model,
        provider="openai",
        tiers=(PriceTier(0, Decimal(input_usd), Decimal(output_usd)),),
        effective_from_utc=NOON - timedelta(days=100),
        valid_until_utc=None,
        source="test",
        version=f"test/{model}",
    )


PRICES = {CHEAP.name: price("cheap", "0.10", "0.50"), BIG.name: price("big", "2", "10")}


def facts(**changes: Any) -> RequestFacts:
    """A short plain chat request."""
    given: dict[str, Any] = {
        "request_id": "req_1",
        "tenant": "default",
        "estimate": TokenEstimate(200, 100, 300, "class_mean", False),
        "received_at_s": 1000.0,
        "deadline_s": 120.0,
    }
    return RequestFacts(**{**given, **changes})


def engine(**changes: Any) -> LocalSnapshot:
    """A ready H100, empty."""
    given: dict[str, Any] = {
        "state": ProcessState.READY,
        "limits": EngineLimits(max_num_seqs=256, kv_tokens=400_000, context_window_tokens=8192),
        "coefficients": H100,
        "slo": SloTargets(),
        "inflight": InflightState(taken_at_s=1000.0),
    }
    return LocalSnapshot(**{**given, **changes})


FULL = InflightState(
    n=250, streaming=250, context_tokens=380_000.0, reserved_tokens=399_000.0, bucket_at_s=1000.0, taken_at_s=1000.0
)


def snapshot(**changes: Any) -> Snapshot:
    """Everything well, nothing in flight, no budget."""
    given: dict[str, Any] = {
        "now_s": 1000.0,
        "now_utc": NOON,
        "prices": PRICES,
        "budgets": (),
        "health": {},
        "engines": {LOCAL.name: engine()},
        "assets": {LOCAL.name: AssetRate("gpu", Decimal("0.000817"), version="rented-2.50")},
    }
    return Snapshot(**{**given, **changes})


def budget(left_usd: float, **changes: object) -> BudgetState:
    """A day's budget of ten dollars with so much left."""
    limit = 10_000_000_000
    return replace(BudgetState("day", limit, limit - int(left_usd * 1e9), 0, NOON), **changes)  # type: ignore[arg-type]


@dataclass
class FakeClock:
    """Time that moves only when told, or when somebody sleeps."""

    t_s: float = 1000.0
    utc: datetime = NOON
    slept_s: list[float] = field(default_factory=list)

    def now_s(self) -> float:
        return self.t_s

    def now_utc(self) -> datetime:
        return self.utc

    def tick(self, seconds: float) -> None:
        self.t_s += seconds
        self.utc += timedelta(seconds=seconds)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.tick(seconds)
        await asyncio.sleep(0)


@dataclass
class MemoryLedger:
    """The books in memory; `broken` refuses reservations."""

    holds: list[Hold] = field(default_factory=list)
    opened: list[AttemptOpened] = field(default_factory=list)
    settled: list[RoutingRecord] = field(default_factory=list)
    broken: bool = False

    async def reserve(self, hold: Hold) -> None:
        if self.broken:
            raise Unavailable("no durable place for money", code="ledger_unavailable")
        self.holds.append(hold)

    async def open_attempt(self, attempt: AttemptOpened) -> None:
        self.opened.append(attempt)

    def settle(self, record: RoutingRecord, *, hold_open: bool) -> None:
        self.settled.append(record)

    @property
    def open_holds(self) -> set[str]:
        return {h.request_id for h in self.holds} - {r.request_id for r in self.settled}


@dataclass
class SilentTelemetry:
    """Remembers what it was told."""

    done: list[RoutingRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def request_done(self, record: RoutingRecord, *, overhead_s: float) -> None:
        self.done.append(record)

    def warn(self, event: str, **labels: str) -> None:
        self.warnings.append(event)


@dataclass
class FixedScorer:
    """Always the same score."""

    fixed: Score = EASY
    version: str = "test"

    def score(self, features: RequestFeatures) -> Score:
        return self.fixed


class BrokenScorer:
    """A scorer that fails."""

    version = "broken"

    def score(self, features: RequestFeatures) -> Score:
        raise RuntimeError("bad weights")


class WordCounter:
    """A token a word."""

    def count(self, texts: Sequence[str], *, messages: int) -> tuple[int, bool]:
        return sum(len(t.split()) for t in texts) + 3 * messages + 3, False


def names(candidates: Sequence[Candidate]) -> list[str]:
    """Their names."""
    return [c.name for c in candidates]


def reasons_of(decision: Any) -> Mapping[str, list[str]]:
    """Reasons against, by candidate."""
    return {a.name: [r.value for r in a.reasons] for a in decision.alternatives}
