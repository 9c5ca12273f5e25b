"""The current look at the world: parts that change are replaced whole, a `Snapshot` of them is built per decision.

Everything here runs on the event loop's thread; each call is O(1) in the number of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from local_llm.calibration import Calibration
from local_llm.datamodels import (
    EngineCoefficients,
    EngineLimits,
    EngineReading,
    GpuReading,
    LocalSnapshot,
    ProcessState,
    SloTargets,
)
from local_llm.inflight import Inflight
from local_llm.inflight import Ticket as EngineTicket
from router.core.attempts import AttemptResult
from router.core.budgets import BudgetBook
from router.core.decision import Candidate, Decision
from router.core.densities import DensityWindow
from router.core.exploration import ExplorationBudget, extra_nanousd
from router.core.health import after, begin_probe
from router.core.lengths import output_variance
from router.core.replay import world_bytes, world_hash
from router.core.request import RequestFacts
from router.core.snapshot import AssetRate, PriceRow, ProviderHealth, Snapshot
from router.core.vocabulary import CircuitState, Flag, Reason, Reject, Tier
from router.ports import Clock, LocalTicket, ScoringPolicy
from router.score_watch import ScoreWatch
from router.scorer_choice import ScorerChoice

_RATIO_DECAY = 0.98
_RATIO_MIN, _RATIO_MAX = 0.25, 4.0
_RATIO_FROM_TOKENS = 200
_ROOM_POLL_S = 0.05
_KV_USAGE = "kv_cache_usage_ratio"
_TOO_SLOW = frozenset({Reject.SATURATED_TTFT, Reject.SATURATED_TPOT, Reject.SATURATED_PREFILL_BURST})


@dataclass(slots=True)
class EngineRoom:
    """One local engine as the router sees it: what it promised, what is in it, and who can tell how it is.

    `coefficients` are where it starts; what is seen of its answers corrects them (the books stay on the fixed ones).
    With `careful` it counts as slower than that until the first answers have been seen. `process` gives (state,
    problem) now; `reading` and `gpus` give the last readings, or `None` if there never was one. With `metrics_optional`
    an engine that never told any metrics and has said that there are none (`metrics_absent`) is not held to them; a
    page that cannot be read is not that. Once it has told some it is held to them, and so with its KV usage.
    `wake` wakes one that we put to sleep; `None` where we never do.
    """

    coefficients: EngineCoefficients
    limits: EngineLimits
    slo: SloTargets
    process: Callable[[], tuple[ProcessState, str | None]]
    reading: Callable[[], EngineReading | None] = lambda: None
    gpus: Callable[[], tuple[float, tuple[GpuReading, ...]] | None] = lambda: None
    metrics_required: tuple[str, ...] = ()
    metrics_optional: bool = False
    metrics_absent: Callable[[], bool] = lambda: True
    stale_after_s: float = 3.0
    max_gpu_utilization_ratio: float | None = None
    careful: bool = False
    wake: Callable[[], None] | None = None
    inflight: Inflight = field(init=False)

    def __post_init__(self) -> None:
        self.inflight = Inflight(
            self.coefficients,
            self.slo,
            max_batched_tokens=self.limits.max_batched_tokens,
            calibration=Calibration(self.coefficients, careful=self.careful),
        )

    def note_decision(self, name: str, decision: Decision) -> None:
        """This engine, candidate `name`, may have been held for too slow though nothing of ours is in it."""
        if self.inflight.n == 0:
            for alternative in decision.alternatives:
                if alternative.name == name and not _TOO_SLOW.isdisjoint(alternative.reasons):
                    self.inflight.turned_away()

    def look(self, now_s: float) -> LocalSnapshot:
        """Frozen."""
        state, problem = self.process()
        gpus, reading, limits = self.gpus(), self.reading(), self.limits
        if reading is not None and reading.kv_tokens is not None and reading.kv_tokens != limits.kv_tokens:
            limits = self.limits = replace(limits, kv_tokens=reading.kv_tokens)
        known = self.metrics_optional and reading is not None and reading.kv_cache_usage_ratio is not None
        if known and _KV_USAGE not in self.metrics_required:
            # not every engine tells it; one that did and stops is in trouble
            self.metrics_required = (*self.metrics_required, _KV_USAGE)
        untold = self.metrics_optional and reading is None and self.metrics_absent()
        return LocalSnapshot(
            state=state,
            limits=limits,
            coefficients=self.inflight.coefficients,
            slo=self.slo,
            inflight=self.inflight.state(now_s),
            gpus=gpus[1] if gpus is not None else (),
            gpus_taken_at_s=gpus[0] if gpus is not None else None,
            engine=reading,
            metrics_required=() if untold else self.metrics_required,
            stale_after_s=self.stale_after_s,
            max_gpu_utilization_ratio=self.max_gpu_utilization_ratio,
            problem=problem,
            warnings=(Flag.METRICS_ABSENT.value,) if untold else (),
        )


class Ticket:
    """A request inside an engine; tells the state when room may have been made."""

    __slots__ = ("_clock", "_inner", "_wake")

    def __init__(self, inner: EngineTicket, clock: Clock, wake: Callable[[], None]) -> None:
        self._inner = inner
        self._clock = clock
        self._wake = wake

    def first_token(self) -> None:
        """The prompt has been read."""
        self._inner.first_token(self._clock.now_s())

    def token(self, count: int) -> None:
        """`count` more tokens have been generated."""
        self._inner.token(count, self._clock.now_s())

    def end(self, *, ok: bool) -> None:
        """It has left the engine; the second call does nothing. A good end is a sign of life."""
        self._inner.end(self._clock.now_s(), ok=ok)
        self._wake()


class LiveState:
    """Implements `ports.LiveState` for one process."""

    def __init__(
        self,
        *,
        clock: Clock,
        candidates: tuple[Candidate, ...],
        price_row: Callable[[Candidate, datetime], PriceRow | None],
        budgets: BudgetBook,
        engines: Mapping[str, EngineRoom],
        assets: Mapping[str, AssetRate],
        judged: ScorerChoice,
        exploration: ExplorationBudget | None = None,
        watch: ScoreWatch | None = None,
        on_left_alone: Callable[[str, str], None] = lambda _name, _cause: None,
    ) -> None:
        """`on_left_alone` hears of each candidate, and why, that fails so often that it gets no calls for a while."""
        self._clock = clock
        self._exploration = exploration
        self._on_left_alone = on_left_alone
        self._candidates = candidates
        self._price_row = price_row
        self._budgets = budgets
        self.engines = engines
        self._sleepy = tuple(name for name, room in engines.items() if room.wake is not None)
        self._assets = assets
        self.judged = judged
        self.watch = watch if watch is not None else ScoreWatch()
        self._health: Mapping[str, ProviderHealth] = {}
        self._ratios: Mapping[str, float] = {}
        self._names_of: dict[str, list[str]] = {}
        for candidate in candidates:
            self._names_of.setdefault(candidate.model, []).append(candidate.name)
        self._ratio_sums: dict[str, tuple[float, float]] = {}
        self._cache_unknown: frozenset[str] = frozenset()
        self._densities = {name: DensityWindow(name) for name in engines}
        self._quantiles: Mapping[str, tuple[float, ...]] = {}
        self._room = asyncio.Event()
        self._prices: Mapping[str, PriceRow] = {}
        self._prices_valid_until: datetime | None = None
        self._world = b""
        self._world_hash = ""
        self._refresh_prices(clock.now_utc())

    @property
    def health(self) -> Mapping[str, ProviderHealth]:
        """Circuits by candidate name, for people and metrics."""
        return self._health

    @property
    def prices(self) -> Mapping[str, PriceRow]:
        """Rows in force by candidate name."""
        return self._prices

    def prices_now(self) -> Mapping[str, PriceRow]:
        """The same, looked up again where their time is over: another object then."""
        now_utc = self._clock.now_utc()
        if self._prices_valid_until is not None and now_utc >= self._prices_valid_until:
            self._refresh_prices(now_utc)
        return self._prices

    def _refresh_prices(self, now_utc: datetime) -> None:
        """Look all rows up again and name the new world; the old one stays in the records that used it."""
        rows = {c.name: self._price_row(c, now_utc) for c in self._candidates if c.tier is not Tier.LOCAL}
        self._prices = {name: row for name, row in rows.items() if row is not None}
        ends = [row.valid_until_utc for row in self._prices.values() if row.valid_until_utc is not None]
        self._prices_valid_until = min(ends, default=None)
        bare = Snapshot(0.0, now_utc, self._prices, (), {}, {}, self._assets)
        self._world = world_bytes(self._candidates, bare)
        self._world_hash = world_hash(self._world)

    def snapshot(self) -> Snapshot:
        """One frozen look; about ten microseconds."""
        now_s, now_utc = self._clock.now_s(), self._clock.now_utc()
        if self._prices_valid_until is not None and now_utc >= self._prices_valid_until:
            self._refresh_prices(now_utc)
        return Snapshot(
            now_s=now_s,
            now_utc=now_utc,
            prices=self._prices,
            budgets=self._budgets.states(now_utc),
            health=self._health,
            engines={name: room.look(now_s) for name, room in self.engines.items()},
            assets=self._assets,
            density_quantiles=self._quantiles,
            input_token_ratio=self._ratios,
            cache_unknown=self._cache_unknown,
            scorer_version=self.judged.current.scorer.version,
            world_hash=self._world_hash,
            exploration_left_nanousd=self._exploration.left_nanousd(now_utc) if self._exploration is not None else None,
        )

    def world(self) -> bytes:
        """The canonical bytes behind `Snapshot.world_hash`."""
        return self._world

    def scoring_policy(self, key: str) -> ScoringPolicy:
        """The scoring policy for the request that `key` names."""
        return self.judged.of(key, self._clock.now_s())

    def premium_capped(self) -> bool:
        """Whether premium has had its share for now."""
        return self.watch.premium_capped()

    def note_score(self, scoring: ScoringPolicy, took_s: float | None) -> None:
        """How long a score took; `None`: it failed."""
        self.judged.note(scoring, took_s, self._clock.now_s())

    def note(self, candidate: Candidate, result: AttemptResult) -> None:
        """Tell the candidate's circuit how a call ended, and whether its host tells what came from a cache."""
        old = self._health.get(candidate.name, ProviderHealth())
        new = after(old, result.outcome, result.finished_at_s, retry_after_s=result.retry_after_s)
        if new != old:
            self._health = {**self._health, candidate.name: new}
            if new.state is CircuitState.OPEN and old.state is CircuitState.CLOSED:
                self._on_left_alone(candidate.name, result.outcome.value)
        if result.usage is not None and not result.usage.estimated:
            self._note_cache(candidate.name, told=Flag.CACHE_UNKNOWN not in result.usage.flags)

    def _note_cache(self, name: str, *, told: bool) -> None:
        if told is (name in self._cache_unknown):
            self._cache_unknown = self._cache_unknown ^ {name}

    def probing(self, candidate: Candidate) -> None:
        """Mark the one probe of a half-open circuit."""
        old = self._health.get(candidate.name)
        if old is not None:
            new = begin_probe(old, self._clock.now_s())
            if new != old:
                self._health = {**self._health, candidate.name: new}

    def asleep(self) -> tuple[str, ...]:
        """Engines that `wake` can bring back; O(1) where none is ever put to sleep."""
        return tuple(name for name in self._sleepy if self.engines[name].process()[0] is ProcessState.ASLEEP)

    def wake(self, name: str) -> None:
        """A request misses the engine `name`. Returns at once."""
        wake = self.engines[name].wake
        if wake is not None:
            wake()

    def note_decision(self, decision: Decision, *, free: bool = True) -> None:
        """Remember score, tier, what a GPU-second is worth to it (for the congestion price), what exploring costs."""
        if decision.score is not None:
            self.watch.note(decision, self.judged.scored_by(decision.score.model_version), free=free)
        if self._exploration is not None and decision.reason is Reason.EXPLORE:
            self._exploration.note(extra_nanousd(decision), self._clock.now_utc())
        for name, room in self.engines.items():
            room.note_decision(name, decision)
        changed = [window.note(decision) for window in self._densities.values()]
        if any(changed):
            self._quantiles = {name: window.quantiles for name, window in self._densities.items()}

    def carry_over_exploration(self, nanousd: int) -> None:
        """What the books show exploring to have cost today before this process began; once, at start."""
        if self._exploration is not None:
            self._exploration.note(nanousd, self._clock.now_utc())

    def note_input_tokens(self, candidate: Candidate, *, counted: int, reported: int) -> None:
        """Learn how the model's tokenizer counts: a decaying ratio of sums, so that long prompts weigh most.

        Short prompts say nothing: there a host's template weighs more than the text, and a ratio learnt from greetings
        would refuse long prompts that fit. And no report counts for more than the ratio may become, since an absurd one
        would weigh on the next thousand requests.
        """
        old_counted, old_reported = self._ratio_sums.get(candidate.model, (0.0, 0.0))
        if counted >= _RATIO_FROM_TOKENS:
            believed = min(_RATIO_MAX * counted, max(_RATIO_MIN * counted, reported))
            self._set_ratio(
                candidate.model, old_counted * _RATIO_DECAY + counted, old_reported * _RATIO_DECAY + believed
            )

    def input_ratio_sums(self) -> dict[str, tuple[float, float]]:
        """(counted, reported) tokens by model: what `input_token_ratio` rests on."""
        return dict(self._ratio_sums)

    def restore_input_ratios(self, sums: Mapping[str, Any]) -> None:
        """Take up what `input_ratio_sums` gave; what is malformed is passed over."""
        known = {c.model for c in self._candidates}
        for name, pair in sums.items():
            usable = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(n, int | float) for n in pair)
            if name in known and usable and pair[0] > 0 and pair[1] > 0:
                self._set_ratio(name, float(pair[0]), float(pair[1]))

    def _set_ratio(self, model: str, counted: float, reported: float) -> None:
        self._ratio_sums[model] = counted, reported
        ratio = round(min(_RATIO_MAX, max(_RATIO_MIN, reported / counted)), 4)
        names = self._names_of[model]
        if ratio != self._ratios.get(names[0]):
            self._ratios = {**self._ratios, **dict.fromkeys(names, ratio)}

    def enter_engine(self, candidate: Candidate, facts: RequestFacts) -> LocalTicket | None:
        """Count a dispatch into the candidate's engine; `None` if it is not one of ours."""
        room = self.engines.get(candidate.name)
        if room is None:
            return None
        tokens = max(1, round(facts.estimate.input_tokens * self._ratios.get(candidate.name, 1.0)))
        output = facts.estimate.output_mean_tokens * facts.n
        variance = output_variance(facts.estimate, facts.n)
        inner = room.inflight.enter(
            self._clock.now_s(), tokens, output, output_variance=variance, streamed=facts.stream
        )
        return Ticket(inner, self._clock, self._wake_waiters)

    def _wake_waiters(self) -> None:
        self._room.set()

    async def room_changed(self, timeout_s: float) -> None:
        """Wait until a request has left an engine, at most `timeout_s`; looks again now and then, as work drains."""
        self._room.clear()
        try:
            await asyncio.wait_for(self._room.wait(), min(timeout_s, _ROOM_POLL_S))
        except TimeoutError:
            return
