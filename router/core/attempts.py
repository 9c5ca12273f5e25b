"""Calls made for a request: what each is, how it ended, what it cost and how both are booked. Frozen nouns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from classifier.datamodels import RequestFeatures, Score
from router.core.decision import Candidate, Decision
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Reason, Tier


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
