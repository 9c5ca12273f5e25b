"""The one place that knows every concrete class: settings in, a gateway out; start and stop order."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from classifier.heuristic import HeuristicScorer
from local_llm.datamodels import ProcessState
from router import learned
from router.api.auth import DEFAULT_TENANT, Authenticator
from router.api.face import Face, InFlight
from router.api.idempotency import IdempotencyStore
from router.classifier_series import watch_classifier
from router.clock import SystemClock
from router.closing import KeptAsset, PeriodKeeper
from router.core.budgets import BudgetBook, Period, window_at
from router.core.decision import Candidate
from router.core.eligibility import engine_problems
from router.core.exploration import ExplorationBudget
from router.core.fallback import RetryConfig
from router.core.health import is_open
from router.core.lengths import LengthTable
from router.core.request import TokenUsage
from router.core.snapshot import AssetRate, PriceRow
from router.core.vocabulary import Flag, Reject
from router.engine_series import watch_engines
from router.errors import BadRequest, ConfigError, NotFound
from router.estimates import estimate, estimate_shown
from router.listed_prices import listed_context_window_tokens
from router.live_state import EngineRoom, LiveState
from router.ports import Clock, Deps, Provider, ScoredBy, ScoringPolicy
from router.prices import PriceBook, PriceUnknown
from router.score_watch import WINDOW, ScoreWatch
from router.scorer_choice import ScorerChoice
from router.scoring import ModelKeeper, tier_models
from router.settings_types import QUALITY_TARGETS, ApiModel, Settings, TierSettings, Wire, to_nanousd
from router.stores.periods import PeriodStore
from router.stores.scores import judged_scores
from router.stores.sql import SqlLedger
from router.telemetry import PrometheusTelemetry
from router.tokens import TiktokenCounter

if TYPE_CHECKING:
    from router.learning_loop.beside import Beside
    from router.local_engines import LocalEngine
    from router.local_tier import LocalTier

_CAN_ANSWER = ("ready", "asleep")  # the first request wakes what we have put to sleep
_DEFAULT_WINDOW_TOKENS = 128_000


@dataclass(slots=True)
class Gateway:
    """Everything that runs. `start` and `stop` are each called once."""

    settings: Settings
    clock: Clock
    deps: Deps
    state: LiveState
    ledger: SqlLedger
    budgets: BudgetBook
    telemetry: PrometheusTelemetry
    tokens: TiktokenCounter
    book: PriceBook
    local: LocalTier | None
    hours: PeriodKeeper
    lengths: LengthTable
    keeper: ModelKeeper
    beside: Beside | None = None
    draining: bool = False
    in_flight: InFlight = field(default_factory=InFlight)
    _saving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Books first, then budgets as the books have them; the engine comes up beside them, or later."""
        loading = asyncio.create_task(asyncio.to_thread(self.tokens.load))
        if self.local is not None:
            await self.local.start()
        await self.ledger.start()
        await self.hours.start()
        self.keeper.start()
        await self._carry_over_budgets()
        known = learned.load(self.settings.server.data_dir)
        self.lengths.restore(known.get("output_lengths") or {})
        self.state.restore_input_ratios(known.get("input_tokens") or {})
        self.state.watch.restore_usual(known.get("premium_share"))
        await loading
        self._saving = asyncio.create_task(self._save_now_and_then())

    async def _save_now_and_then(self) -> None:
        while True:
            await self.clock.sleep(learned.SAVE_EVERY_S)
            await asyncio.to_thread(self._save)

    def _save(self) -> None:
        known = {
            "output_lengths": self.lengths.to_dict(),
            "input_tokens": self.state.input_ratio_sums(),
            "premium_share": self.state.watch.usual(),
        }
        learned.save(self.settings.server.data_dir, known)

    async def _carry_over_budgets(self) -> None:
        """What this window has already spent, so that a restart forgives nothing."""
        spent: dict[Period, int] = {}
        for period, window in self.budgets.windows.items():
            try:
                spent[period] = await self.ledger.spent_since(window.starts_at_utc)
            except Exception:  # noqa: BLE001 - whatever is wrong with the database, the gateway starts
                self.telemetry.warn("budget_history_unknown")
        self.budgets.carry_over(spent)
        try:
            await self._carry_over_learning()
        except Exception:  # noqa: BLE001 - the same
            self.telemetry.warn("budget_history_unknown")

    async def _carry_over_learning(self) -> None:
        if self.settings.policy.exploration_ratio > 0.0:
            today = window_at(Period.DAY, self.clock.now_utc()).starts_at_utc
            self.state.carry_over_exploration(await self.ledger.explored_since(today))
        if self.beside is not None:
            from router.learning_loop.wiring import carry_over

            await carry_over(self.beside, self.ledger)

    async def stop(self) -> None:
        """Connections, engine, books: the books last, since everything before may still settle."""
        if self._saving is not None:
            self._saving.cancel()
            self._save()
        if self.beside is not None:
            await self.beside.stop()
        for provider in set(self.deps.providers.values()):
            await provider.close()
        if self.local is not None:
            await self.local.stop()
        await self.keeper.stop()
        await self.hours.stop()
        await self.ledger.close()

    def candidate_state(self, candidate: Candidate) -> tuple[str, str | None]:
        """(ready | starting | asleep | unavailable | cooling down, why not)."""
        if candidate.unavailable is not None:
            return "unavailable", candidate.unavailable_detail
        room = self.state.engines.get(candidate.name)
        if room is not None:
            now_s = self.clock.now_s()
            seen = room.look(now_s)
            if seen.state is ProcessState.STARTING:
                return "starting", seen.problem
            if seen.state is ProcessState.ASLEEP and room.wake is not None:
                return "asleep", seen.problem
            if against := engine_problems(seen, now_s):
                return "unavailable", seen.problem or ", ".join(reason.value for reason in against)
        health = self.state.health.get(candidate.name)
        if health is not None and is_open(health, self.clock.now_s()):
            return "cooling down", health.cause
        return "ready", None

    def tier_lines(self) -> list[str]:
        """Each tier's state for people: `premium: unavailable, OPENAI_API_KEY is not set (openai/gpt-6.1-sol)`."""
        lines = []
        for candidate in self.deps.candidates:
            state, why = self.candidate_state(candidate)
            named = candidate.name if candidate.name == candidate.model else f"{candidate.model} on {candidate.name}"
            lines.append(f"{candidate.tier.value}: {state}{f', {why}' if why else ''} ({named})")
        return lines

    def readiness(self) -> tuple[str, dict[str, Any]]:
        """`ready`, `degraded` (something that is configured does not work) or `unavailable` (no tier can answer)."""
        states = {c.name: self.candidate_state(c) for c in self.deps.candidates}
        books = self.ledger.state()
        if not any(state in _CAN_ANSWER for state, _ in states.values()) or self.draining:
            status = "unavailable"
        else:
            wanted = [c for c in self.deps.candidates if c.unavailable is None]
            well = books.healthy and all(states[c.name][0] in _CAN_ANSWER for c in wanted)
            status = "ready" if well else "degraded"
        tiers = [
            {"tier": c.tier.value, "model": c.model, "state": states[c.name][0], "detail": states[c.name][1]}
            | ({"engine": c.name} if c.name != c.model else {})
            for c in self.deps.candidates
        ]
        ledger = {"healthy": books.healthy, "detail": books.reason, "spooled_events": books.spooled_events}
        return status, {"tiers": tiers, "ledger": ledger, "draining": self.draining}

    def face(self) -> Face:
        """This gateway as HTTP sees it."""
        server = self.settings.server
        keys = ((key.tenant, key.key.get_secret_value(), key.admin) for key in server.auth.keys)
        return Face(
            deps=self.deps,
            authenticator=Authenticator.from_keys(required=server.auth.required, keys=keys),
            idempotency=IdempotencyStore(now_s=self.clock.now_s),
            books=self.ledger,
            readiness=self.readiness,
            candidate_state=self.candidate_state,
            price_estimate=self.price_estimate,
            metrics=self.telemetry.render,
            max_body_bytes=server.max_body_bytes,
            body_timeout_s=server.body_timeout_s,
            draining=lambda: self.draining,
            in_flight=self.in_flight,
        )

    def price_estimate(self, model: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        """Cost of given token counts now; for `auto`, or a tier of several models, the range and what it depends on.

        Raises NotFound for a model without a price.
        """
        usage = TokenUsage(input_tokens, output_tokens)
        try:
            found = estimate(self.settings, self.book, model, usage, self.clock.now_utc())
        except BadRequest as error:
            raise NotFound(str(error), code="model_not_found", param="model") from None
        return estimate_shown(found, usage)


def build(settings: Settings, *, clock: Clock | None = None) -> Gateway:
    """Put a gateway together; touches no network and starts nothing.

    Raises ConfigError for a model without a price, ModelNotTrusted for a classifier whose files were changed.
    """
    clock = clock or SystemClock()
    book = PriceBook.load(settings.price_overrides())
    refuse_unpriced(settings, book, clock.now_utc())
    local = _local_tier(settings, clock)
    ours: tuple[LocalEngine, ...] = local.engines if local is not None else ()
    candidates = (*(engine.candidate for engine in ours), *_api_candidates(settings.tiers))
    models = {model.name: model for _, model in settings.tiers.api_models()}
    budgets = _budgets(settings, clock)
    exploration = ExplorationBudget(to_nanousd(settings.policy.exploration_budget_usd_per_day) or 0)
    telemetry = PrometheusTelemetry(
        models={name for c in candidates for name in (c.name, c.wire_model)},
        tenants={DEFAULT_TENANT, *(key.tenant for key in settings.server.auth.keys)},
        now_s=clock.now_s,
    )
    engines: Mapping[str, EngineRoom] = {engine.candidate.name: engine.room for engine in ours}
    assets: Mapping[str, AssetRate] = {engine.candidate.name: engine.asset for engine in ours}
    policies = {"": settings.policy.policy_config()} | {
        preset: settings.policy.policy_config(preset) for preset in QUALITY_TARGETS
    }
    prior = ScoringPolicy(HeuristicScorer(), policies, ScoredBy.PRIOR, (Flag.CLASSIFIER_UNAVAILABLE,))

    def price_row(candidate: Candidate, at_utc: datetime) -> PriceRow | None:
        try:
            return book.row(models[candidate.name].price_key, at_utc)
        except PriceUnknown:
            return None

    judged = ScorerChoice(
        current=ScoringPolicy(prior.scorer, policies),
        prior=prior,
        max_score_s=settings.classifier.max_score_s,
        on_trouble=lambda cause: telemetry.warn("classifier_unavailable", cause=cause),
    )
    state = LiveState(
        clock=clock,
        candidates=candidates,
        price_row=price_row,
        budgets=budgets,
        engines=engines,
        assets=assets,
        judged=judged,
        watch=ScoreWatch(max_premium_rise_ratio=settings.policy.max_premium_rise_ratio),
        exploration=exploration if settings.policy.exploration_ratio > 0.0 else None,
    )
    keeper = ModelKeeper(
        settings.classifier,
        models=tier_models(settings.tiers),
        candidates=candidates,
        policies=policies,
        judged=judged,
        prices=state.prices_now,
        assets=assets,
        clock=clock,
        on_warning=telemetry.warn,
        watch=state.watch,
        labelled=lambda version: judged_scores(ledger.read_engine, version, most=WINDOW),
    )
    keeper.load()
    watch_classifier(telemetry, keeper, judged, state.watch)
    ledger = SqlLedger(settings.server.database_url, settings.server.data_dir, clock=clock, on_warning=telemetry.warn)
    tokens = TiktokenCounter()
    lengths = LengthTable()
    deps = Deps(
        clock=clock,
        state=state,
        candidates=candidates,
        providers=_providers(models, candidates, ours),
        tokens=tokens,
        lengths=lengths,
        ledger=ledger,
        budgets=budgets,
        telemetry=telemetry,
        timeouts=settings.timeouts.call_timeouts(),
        prior=prior,
        new_id=request_ids(clock),
        retry=RetryConfig(),
        draw=secrets.SystemRandom().random,
        store_prompts=settings.server.store_prompts,
        supervised=frozenset(engine.candidate.name for engine in ours if engine.process is not None),
    )
    hours = PeriodKeeper(
        PeriodStore(settings.server.database_url),
        assets=[KeptAsset(one.terms, one.is_on, one.metered) for one in ours if one.terms is not None],
        in_progress=deps.in_progress,
        data_dir=settings.server.data_dir,
        clock=clock,
        ready=lambda: ledger.state().healthy,
        on_warning=telemetry.warn,
    )
    beside = _beside(settings, deps, ledger, telemetry)
    deps = replace(deps, learner=beside)
    gateway = Gateway(
        settings, clock, deps, state, ledger, budgets, telemetry, tokens, book, local, hours, lengths, keeper, beside
    )
    if beside is not None:
        beside.draining = lambda: gateway.draining
    telemetry.watch(
        in_flight=lambda: gateway.in_flight.count,
        circuits=lambda: {name: health.state for name, health in state.health.items()},
        ledger=lambda: "healthy" if ledger.state().healthy else "degraded",
        ledger_states=("healthy", "degraded"),
    )
    if local is not None:
        watch_engines(telemetry, local.engines, clock)
    return gateway


def _local_tier(settings: Settings, clock: Clock) -> LocalTier | None:
    if not settings.tiers.engines:
        return None
    # imported only where there is an engine: process and probing machinery is a tenth of a second and 10 MB
    from router.local_tier import build_local_tier

    return build_local_tier(settings.tiers.engines, clock=clock, data_dir=settings.server.data_dir)


def _beside(settings: Settings, deps: Deps, ledger: SqlLedger, telemetry: PrometheusTelemetry) -> Beside | None:
    if not settings.learning.on:
        return None
    from router.learning_loop.wiring import beside_of

    return beside_of(settings.learning, deps, ledger, telemetry.learning_done)


def request_ids(clock: Clock) -> Callable[[], str]:
    """Ids that nobody can guess and that sort by time: random ones would touch a new page of every index."""

    def new_id() -> str:
        return f"req_{int(clock.now_utc().timestamp() * 1000):012x}{secrets.token_hex(8)}"

    return new_id


def unpriced(
    tiers: TierSettings, book: PriceBook, at_utc: datetime, *, keyless_too: bool = False
) -> Iterator[tuple[ApiModel, str]]:
    """Models that could be called but whose price nobody knows, and what to do about it.

    `keyless_too` looks at models that cannot be called for want of a key as well.
    """
    for _, model in tiers.api_models():
        if model.unavailable is None or keyless_too:
            try:
                book.row(model.price_key, at_utc)
            except PriceUnknown as error:
                yield model, str(error)


def refuse_unpriced(settings: Settings, book: PriceBook, at_utc: datetime) -> None:
    """A model without a price is a mistake, not a free lunch. Raises ConfigError."""
    problems = [
        (*settings.places.get(model.path, (None, model.path)), what)
        for model, what in unpriced(settings.tiers, book, at_utc)
    ]
    if problems:
        raise ConfigError(problems, settings.source)


def _api_candidates(tiers: TierSettings) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            name=model.name,
            tier=tier,
            provider=model.provider,
            wire_model=model.wire_model,
            context_window_tokens=model.context_window_tokens
            or listed_context_window_tokens(model.model)
            or _DEFAULT_WINDOW_TOKENS,
            max_output_tokens=model.max_output_tokens,
            supports_tools=model.supports_tools,
            supports_images=model.supports_images,
            supports_json=model.supports_json,
            unavailable=Reject.UNCONFIGURED if model.unavailable is not None else None,
            unavailable_detail=model.unavailable,
        )
        for tier, model in tiers.api_models()
    )


def _budgets(settings: Settings, clock: Clock) -> BudgetBook:
    limits = {Period.DAY: settings.policy.budget_usd_per_day, Period.MONTH: settings.policy.budget_usd_per_month}
    set_limits = {period: nanousd for period, usd in limits.items() if (nanousd := to_nanousd(usd)) is not None}
    return BudgetBook(set_limits, now_utc=clock.now_utc)


def _providers(
    models: Mapping[str, ApiModel], candidates: tuple[Candidate, ...], engines: tuple[LocalEngine, ...]
) -> Mapping[str, Provider]:
    """One provider a model. Each is imported only if needed, so that a command that calls nobody starts quickly."""
    from router.providers.openai_compatible import OpenAICompatibleProvider

    providers: dict[str, Provider] = {
        engine.candidate.name: OpenAICompatibleProvider(engine.base_url, engine.api_key) for engine in engines
    }
    for candidate in candidates:
        model = models.get(candidate.name)
        if model is None or model.unavailable is not None:
            continue
        key = model.api_key.get_secret_value() if model.api_key is not None else None
        if model.wire is Wire.OPENAI and model.api_base is not None:
            providers[candidate.name] = OpenAICompatibleProvider(model.api_base, key)
        else:
            from router.providers.litellm_provider import LiteLLMProvider

            providers[candidate.name] = LiteLLMProvider(model.model, api_key=key, api_base=model.api_base)
    return providers
