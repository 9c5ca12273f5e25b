"""What the flow needs from the world, as Protocols. No implementation is known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from classifier.datamodels import RequestFeatures, Score
from router.core.attempts import AttemptOpened, AttemptResult, Hold, RoutingRecord, WorkDone
from router.core.chat import ChatRequest
from router.core.decision import Candidate, Decision, PolicyConfig
from router.core.fallback import RetryConfig
from router.core.nouns import Noun
from router.core.request import RequestFacts, TokenEstimate, TokenUsage
from router.core.snapshot import Snapshot
from router.core.vocabulary import Flag
from router.errors import UpstreamBroken


class Clock(Protocol):
    """The only source of time."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def now_utc(self) -> datetime:
        """Aware wall-clock time."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class CallTimeouts(Noun, frozen=True):
    """Bounds of one upstream call, in seconds. `first_byte_s`: first token of a stream, headers of a plain call."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    min_tokens_per_s: float = 0.25


class ProviderCall(Noun, frozen=True):
    """One call as a provider gets it.

    `fields` are the top-level members of the client's JSON body (opaque values that the provider can splice without
    decoding), without ours (`router`) and without `model`. `include_usage` tells whether the client asked for usage on
    its stream; the provider asks the upstream for it always.
    """

    request_id: str
    candidate: Candidate
    fields: Mapping[str, Any]
    stream: bool
    include_usage: bool
    timeouts: CallTimeouts


class PlainReply(Noun, frozen=True):
    """A complete answer: the body as the upstream sent it, and what we read in it.

    `output_text` is filled only when the upstream told no usage, or one beyond its size, so that tokens can be counted.
    """

    body: bytes
    usage: TokenUsage | None
    finish_reason: str | None
    output_text: str = ""


class BrokenReply(UpstreamBroken):
    """A complete answer that is none (an error, an abort), with the usage that it tells all the same."""

    def __init__(self, message: str, *, usage: TokenUsage | None) -> None:
        super().__init__(message)
        self.usage = usage


class StreamReply(Protocol):
    """An open stream. Blocks are whole SSE events, ready to be relayed, without the usage-only event and `[DONE]`.

    A stream ends well only by `None` from `next_block`; anything else (cut, error frame, abort, silence, trickle)
    raises an `UpstreamError`. `close` is idempotent and stops the upstream.
    """

    output_events: int  # data events that carried text, tool or reasoning deltas so far
    saw_output: bool  # a first token has been read

    @property
    def usage(self) -> TokenUsage | None:
        """What the upstream has told so far: all of it at the end, often nothing before."""
        ...

    usage_event: Mapping[str, Any] | None  # the decoded usage-only chunk, for clients who asked

    async def next_block(self) -> bytes | None:
        """The next events, or `None` at the end."""
        ...

    async def close(self) -> None:
        """Stop reading and make the upstream stop generating."""
        ...


class Provider(Protocol):
    """A way to reach models. Raises `UpstreamError`s only; does not retry."""

    async def complete(self, call: ProviderCall) -> PlainReply:
        """A plain answer."""
        ...

    async def open_stream(self, call: ProviderCall) -> StreamReply:
        """A stream, returned once the upstream has answered 200."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Scorer(Protocol):
    """Features to score. Never raises on any text."""

    version: str

    def score(self, features: RequestFeatures) -> Score:
        """P(adequate) per tier."""
        ...


class ScoredBy(StrEnum):
    """Who scored a request. A small closed set: it labels metrics."""

    CURRENT = "current"
    CANARY = "canary"
    PRIOR = "prior"


class ScoringPolicy(Noun, frozen=True):
    """How a request is scored: a scorer and the dials that were set for it. Handed out and swapped as one, never mixed.

    `policies` is keyed by preset name (`""` is the configured one); their `nu_usd` was computed on the calibration
    sample of this very scorer. `flags` travel with every decision that rests on it.
    """

    scorer: Scorer
    policies: Mapping[str, PolicyConfig]
    scored_by: ScoredBy = ScoredBy.CURRENT
    flags: tuple[Flag, ...] = ()


class TokenCounter(Protocol):
    """Tokens before the call, without a network."""

    def count(self, texts: Sequence[str], *, messages: int) -> tuple[int, bool]:
        """(tokens, estimated) of a conversation of `messages` messages holding `texts`; bounded in time."""
        ...


class OutputLengths(Protocol):
    """What requests of a class have shown."""

    def estimate(self, request_class: str, input_tokens: int, *, estimated: bool, cap: int | None) -> TokenEstimate:
        """Mean and p90 of the output of `request_class`, capped at `cap` (the client's max_tokens)."""
        ...

    def observe(self, request_class: str, output_tokens: int) -> None:
        """Learn from a finished request."""
        ...


class Ledger(Protocol):
    """Durable books. Reserve before the call, settle exactly once after it."""

    async def reserve(self, hold: Hold) -> None:
        """Return once hold and first attempt are durable. Raises `Unavailable` when nothing durable is left."""
        ...

    async def open_attempt(self, attempt: AttemptOpened) -> None:
        """The same for a further attempt of the request."""
        ...

    def settle(self, record: RoutingRecord, *, hold_open: bool) -> None:
        """Book a finished request; never blocks and never raises. Exactly once per request id."""
        ...


class Budgets(Protocol):
    """Money that may still be spent; exact under concurrency within the process."""

    def try_reserve(self, nanousd: int) -> bool:
        """Take room in every window, or nothing."""
        ...

    def settle(self, *, reserved_nanousd: int, spent_nanousd: int) -> None:
        """Give the reservation back and book what was really spent."""
        ...


class LocalTicket(Protocol):
    """One request inside a local engine; every call is O(1), `end` is idempotent."""

    def first_token(self) -> None:
        """The prompt has been read."""
        ...

    def token(self, count: int) -> None:
        """`count` more tokens have been generated."""
        ...

    def end(self, *, ok: bool) -> None:
        """It has left the engine."""
        ...


class LiveState(Protocol):
    """The current look at the world, and the places where events are noted."""

    def snapshot(self) -> Snapshot:
        """One frozen look."""
        ...

    def scoring_policy(self, key: str) -> ScoringPolicy:
        """The scoring policy for the request of `key` (its session, else its id): the same key, the same model."""
        ...

    def premium_capped(self) -> bool:
        """Whether free choices should leave premium alone for now: its share has risen as far as it may."""
        ...

    def note_score(self, scoring: ScoringPolicy, took_s: float | None) -> None:
        """How long a score took; `None`: it failed."""
        ...

    def note(self, candidate: Candidate, result: AttemptResult) -> None:
        """Health of the candidate's target."""
        ...

    def asleep(self) -> tuple[str, ...]:
        """Local engines that are asleep and that `wake` would bring back, by candidate name."""
        ...

    def wake(self, name: str) -> None:
        """A request misses the engine `name`: wake it, soon. Returns at once."""
        ...

    def note_decision(self, decision: Decision, *, free: bool = True) -> None:
        """Value density of the request, from which the congestion price is read."""
        ...

    def note_input_tokens(self, candidate: Candidate, *, counted: int, reported: int) -> None:
        """How the candidate's tokenizer counts against ours."""
        ...

    def probing(self, candidate: Candidate) -> None:
        """A call to a half-open target is about to be made."""
        ...

    def enter_engine(self, candidate: Candidate, facts: RequestFacts) -> LocalTicket | None:
        """Count a dispatch into a local engine; `None` for an API."""
        ...

    def world(self) -> bytes:
        """The canonical bytes behind `Snapshot.world_hash` (see `core.replay`)."""
        ...

    async def room_changed(self, timeout_s: float) -> None:
        """Wait until a local engine may have more room, at most `timeout_s`."""
        ...


class InProgress(Protocol):
    """A request that a local engine is working on now."""

    def work_done(self) -> WorkDone | None:
        """What its running attempt has done so far; `None` where nothing shows it: no first token, or no stream."""
        ...


class Telemetry(Protocol):
    """Counts and durations; never raises, never blocks."""

    def request_done(self, record: RoutingRecord, *, overhead_s: float) -> None:
        """A request has ended."""
        ...

    def warn(self, event: str, **labels: str) -> None:
        """An alert: a metric and a log line. Labels come from small closed sets."""
        ...


class Learner(Protocol):
    """Looks at some answers beside the requests; what it is told never delays an answer and never fails."""

    def watch(
        self,
        chat: ChatRequest,
        facts: RequestFacts,
        features: RequestFeatures,
        decision: Decision,
        cfg: PolicyConfig,
        answered_by: Candidate,
    ) -> Any | None:
        """A token for a request that is to be looked at, `None` for all others. Asked of every answered request."""
        ...

    def answered(self, looked: Any, reply: PlainReply) -> None:
        """The plain answer is whole."""
        ...

    def streaming(self, looked: Any, stream: StreamReply, blocks: list[bytes], *, ended: bool) -> StreamReply:
        """The stream to relay instead of `stream`, of which `blocks` have been read."""
        ...


@dataclass(frozen=True, slots=True)
class Deps:
    """Everything the flow is given; built in one place (`bootstrap`), by hand in tests.

    `prior` judges where the scorer in force fails; `in_progress` holds the requests that a local engine is working on
    now. `draw` gives uniform numbers from [0, 1) for exploration; without it nothing is explored.
    Without `learner` no answer is looked at. `cutting_off` says that whoever is cancelled now is so by our own end.
    """

    clock: Clock
    state: LiveState
    candidates: tuple[Candidate, ...]
    providers: Mapping[str, Provider]
    tokens: TokenCounter
    lengths: OutputLengths
    ledger: Ledger
    budgets: Budgets
    telemetry: Telemetry
    timeouts: CallTimeouts
    prior: ScoringPolicy
    new_id: Callable[[], str]
    retry: RetryConfig
    store_prompts: bool = False
    supervised: frozenset[str] = frozenset()
    max_precommit_bytes: int = 262_144
    in_progress: set[InProgress] = field(default_factory=set)
    draw: Callable[[], float] | None = None
    learner: Learner | None = None
    cutting_off: Callable[[], bool] = lambda: False
