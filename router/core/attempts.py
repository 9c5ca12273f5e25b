"""Calls made for a request: what each is, how it ended, what it cost and how both are booked. Frozen nouns."""

from __future__ import annotations

from datetime import datetime

from classifier.datamodels import RequestFeatures, Score
from router.core.decision import Candidate, Decision
from router.core.nouns import Noun
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Reason, Tier


class Attempt(Noun, frozen=True):
    """One call to make. `timeout_s` is what is left of the request's deadline; `wait_s` is to be waited before."""

    candidate: Candidate
    number: int
    timeout_s: float
    wait_s: float = 0.0


class AttemptResult(Noun, frozen=True):
    """How a call ended. `first_token_sent` means the caller has seen a token: no second try after that."""

    outcome: Outcome
    finished_at_s: float
    usage: TokenUsage | None = None
    first_token_sent: bool = False
    retry_after_s: float | None = None
    cost_nanousd: int = 0


class Charge(Noun, frozen=True):
    """What one attempt costs. `work_gpu_ns` is set for local work; `price_version` names row or rate.

    `asset` is the hardware whose hours the charge is booked in; `None` for an API and for hardware without a price.
    """

    amount_nanousd: int
    price_version: str
    work_gpu_ns: int | None = None
    flags: tuple[Flag, ...] = ()
    asset: str | None = None


class WorkDone(Noun, frozen=True):
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


class AttemptRecord(Noun, frozen=True):
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


class Hold(Noun, frozen=True):
    """A reservation: what a request may spend at most, durable before any money can be spent."""

    request_id: str
    tenant: str
    reserve_nanousd: int
    reserved_at_utc: datetime
    expires_at_utc: datetime
    first: AttemptOpened


class AttemptOpened(Noun, frozen=True):
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


class RoutingRecord(Noun, frozen=True):
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
