"""The product's own admission in simulated time: its `decide` over its own count of what is in the engine.

Nothing here is a model of the product. The decision, tightness, in-flight count, self-calibration, congestion price
and length estimates are those the gateway runs; only the world around them (clock, engine, streams) is simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType

from classifier.datamodels import Score
from local_llm.coefficients import may_flatter
from local_llm.datamodels import EngineCoefficients, EngineLimits, ProcessState, SloTargets
from local_llm.inflight import Inflight, Ticket
from local_llm.unseen import UnseenLoad
from router.core.decision import Candidate, PolicyConfig
from router.core.densities import DensityWindow
from router.core.lengths import LengthTable, output_variance
from router.core.policy import decide
from router.core.replay import world_bytes, world_hash
from router.core.request import RequestFacts
from router.core.snapshot import PriceRow, Snapshot
from router.core.vocabulary import Tier
from router.live_state import EngineRoom
from router.simulation.policies import Gauges, Running
from router.simulation.traces import TraceRequest

_START_UTC = datetime(2026, 1, 1, tzinfo=UTC)
_DEADLINE_S = 120.0
_API_WINDOW_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """What the gateway is told, or believes before it has seen anything.

    `coefficients` need not be those of the simulated engine: finding out is what `self_calibration` is for.
    """

    coefficients: EngineCoefficients
    limits: EngineLimits
    slo: SloTargets
    price: PriceRow
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    self_calibration: bool = True
    congestion_price: bool = True


PRODUCTS: Mapping[str, Callable[[ProductConfig], ProductConfig]] = MappingProxyType(
    {
        "product": lambda config: config,
        "product_fixed": lambda config: replace(config, self_calibration=False),
    }
)
"""By name: the gateway as it is, and as it would be if it never learnt how fast its engine is."""


class ProductPolicy:
    """Implements `Policy` by `decide`; every prompt could be answered by either tier."""

    def __init__(self, config: ProductConfig) -> None:
        self._config = config
        self.watches_tokens = True
        self._room = EngineRoom(
            config.coefficients,
            config.limits,
            config.slo,
            process=lambda: (ProcessState.READY, None),
            careful=may_flatter(config.coefficients),
        )
        if not config.self_calibration:
            limits = config.limits
            self._room.inflight = Inflight(
                config.coefficients, config.slo, max_batched_tokens=limits.max_batched_tokens
            )
        self._unseen = UnseenLoad()
        self._densities = DensityWindow()
        self._lengths = LengthTable()
        local = Candidate("local", Tier.LOCAL, "simulated", "local", config.limits.context_window_tokens)
        api = Candidate(config.price.model, Tier.CHEAP, config.price.provider, config.price.model, _API_WINDOW_TOKENS)
        self._local, self._candidates = local.name, (local, api)
        self._world_hash = ""
        self._prices = {api.name: config.price}
        self._score = Score(0.0, {"local": 1.0, "cheap": 1.0, "premium": 1.0}, 0.0, "simulation", 1)
        self._world_hash = world_hash(world_bytes(self._candidates, self._snapshot(0.0)))

    def _snapshot(self, now_s: float) -> Snapshot:
        config = self._config
        return Snapshot(
            now_s=now_s,
            now_utc=_START_UTC,
            prices=self._prices,
            budgets=(),
            health={},
            engines={self._local: self._room.look(now_s)},
            assets={},
            density_quantiles={self._local: self._densities.quantiles} if config.congestion_price else {},
            world_hash=self._world_hash,
        )

    def admit(self, request: TraceRequest, now_s: float) -> Running | None:
        """As `flow` does it: estimate, decide, remember, count the dispatch."""
        estimate = self._lengths.estimate(request.request_class, request.prompt_tokens, estimated=False, cap=None)
        facts = RequestFacts(
            request_id="simulated",
            tenant="default",
            estimate=estimate,
            received_at_s=now_s,
            deadline_s=_DEADLINE_S,
            request_class=request.request_class,
            stream=True,
        )
        decision = decide(facts, self._score, self._candidates, self._snapshot(now_s), self._config.policy)
        self._densities.note(decision)
        self._room.note_decision(self._local, decision)
        if decision.chosen is None or decision.chosen.tier is not Tier.LOCAL:
            return None
        ticket = self._room.inflight.enter(
            now_s,
            request.prompt_tokens,
            estimate.output_mean_tokens,
            output_variance=output_variance(estimate),
        )
        return _Tracked(ticket, self._lengths, request.request_class)

    def scraped(self, gauges: Gauges, now_s: float) -> None:
        """What is ours in the engine is known better from our own streams; what is not shows here, as to the poller."""
        inflight = self._room.inflight
        own = inflight.state(now_s)
        room = self._config.limits.kv_tokens
        self._unseen.observe(
            now_s,
            running=gauges.running,
            waiting=gauges.waiting,
            own_n=own.n,
            own_context_tokens=own.context_tokens + own.waiting_prompt_tokens,
            kv_tokens_used=gauges.kv_usage_ratio * room if room is not None else None,
        )
        inflight.unseen_factor, inflight.others = self._unseen.factor, self._unseen.others

    def answered_elsewhere(self, request: TraceRequest) -> None:
        """The length of an answer is seen wherever it was written."""
        self._lengths.observe(request.request_class, request.output_tokens)


class _Tracked:
    """A stream of ours; its tokens go where those of a real one go."""

    __slots__ = ("_lengths", "_request_class", "_ticket", "token")

    def __init__(self, ticket: Ticket, lengths: LengthTable, request_class: str) -> None:
        self._ticket = ticket
        self._lengths = lengths
        self._request_class = request_class
        self.token = ticket.token

    def first_token(self, now_s: float) -> None:
        self._ticket.first_token(now_s)

    def end(self, now_s: float, output_tokens: int) -> None:
        self._ticket.end(now_s, ok=True)
        self._lengths.observe(self._request_class, output_tokens)
