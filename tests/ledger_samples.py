"""Made-up requests for the ledger's tests."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec

from classifier.datamodels import RequestFeatures, Score
from router.core.attempts import AttemptOpened, AttemptRecord, Charge, Hold, RoutingRecord
from router.core.decision import Alternative, Candidate, Decision
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Reason, Reject, Tier

NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)

CANDIDATES = {
    Tier.LOCAL: Candidate("local/llama", Tier.LOCAL, "vllm", "llama-3.1-8b", 8192),
    Tier.CHEAP: Candidate("cheap/luna", Tier.CHEAP, "openai", "gpt-6-luna", 400_000),
    Tier.PREMIUM: Candidate("premium/sol", Tier.PREMIUM, "openai", "gpt-6.1-sol", 1_000_000),
}

WORLD = msgspec.json.encode({"candidates": list(CANDIDATES.values()), "prices": {}, "assets": {}})


class WallClock:
    """The machine's own time, or a wall clock that the test sets; the loop's sleep."""

    def __init__(self, now_utc: datetime | None = None) -> None:
        self.fixed_utc = now_utc

    def now_s(self) -> float:
        return time.monotonic()

    def now_utc(self) -> datetime:
        return self.fixed_utc or datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def opened(
    request_id: str, *, number: int = 1, tier: Tier = Tier.CHEAP, tenant: str = "acme", reserve_nanousd: int = 900,
    at_utc: datetime = NOON,
) -> AttemptOpened:  # fmt: skip
    c = CANDIDATES[tier]
    return AttemptOpened(
        request_id, number, tenant, c.name, tier, c.provider, c.wire_model, at_utc, 321, reserve_nanousd
    )


def hold(
    request_id: str, *, tier: Tier = Tier.CHEAP, tenant: str = "acme", reserve_nanousd: int = 900,
    at_utc: datetime = NOON,
) -> Hold:  # fmt: skip
    first = opened(request_id, tier=tier, tenant=tenant, reserve_nanousd=reserve_nanousd, at_utc=at_utc)
    return Hold(request_id, tenant, reserve_nanousd, at_utc, at_utc + timedelta(seconds=180), first)


def tried(
    number: int = 1, *, tier: Tier = Tier.CHEAP, amount_nanousd: int = 250, outcome: Outcome = Outcome.OK,
    at_utc: datetime = NOON,
) -> AttemptRecord:  # fmt: skip
    c = CANDIDATES[tier]
    usage = TokenUsage(1000, 300, cached_input_tokens=64, reasoning_tokens=12, flags=(Flag.USAGE_INCONSISTENT,))
    work_gpu_ns = 78_200_000 if tier is Tier.LOCAL else None
    charge = Charge(amount_nanousd, "genai-prices@1", work_gpu_ns, (Flag.PEAK_HOURS,))
    return AttemptRecord(
        number, c.name, tier, c.provider, c.wire_model, outcome, usage, charge, at_utc, 1.25, 0.125, "as it should"
    )


def settled(
    request_id: str, *attempts: AttemptRecord, tenant: str = "acme", outcome: Outcome = Outcome.OK,
    at_utc: datetime = NOON, world: bytes | None = WORLD, rich: bool = True,
) -> RoutingRecord:  # fmt: skip
    attempts = attempts or (tried(at_utc=at_utc),)
    score = Score(0.25, {"local": 0.75, "cheap": 0.9, "premium": 0.99}, 0.1, "m1", 1, calibrated=True)
    moment = b'{"facts":{"request_id":"x"}}'
    decision = Decision(
        ranked=tuple(CANDIDATES.values()),
        alternatives=(
            Alternative("local/llama", Tier.LOCAL, (Reject.SATURATED_TTFT,)),
            Alternative("cheap/luna", Tier.CHEAP, (), 0.00025, 0.00025, 0.00025, 900, 0.9, 0.0003),
            Alternative("premium/sol", Tier.PREMIUM, (Reject.DOMINATED,), 0.005, 0.005, 0.005, 9000, 0.99, 0.005),
        ),
        reason=Reason.SPILL_TTFT,
        reserve_nanousd=900,
        score=score,
        inputs_hash="aa-bb",
        policy_version="1",
        flags=(Flag.CACHE_UNKNOWN,),
        moment=moment,
    )
    features = RequestFeatures("", 1000, False, 3, 1, 1, 0.0, False, False, False, 400, 1)
    return RoutingRecord(
        schema_version=1,
        request_id=request_id,
        tenant=tenant,
        received_at_utc=at_utc,
        requested_model="auto",
        stream=True,
        features=features if rich else None,
        score=score if rich else None,
        decision=decision if rich else None,
        attempts=attempts,
        outcome=outcome,
        usage=attempts[-1].usage,
        cost_nanousd=sum(a.charge.amount_nanousd for a in attempts),
        duration_s=1.5,
        first_token_s=0.25,
        exploration_probability=0.0,
        prompt_sha256="ab" * 32,
        reason=Reason.SPILL_TTFT,
        session="s-1",
        world=world if rich else None,
        moment=moment if rich else None,
    )
