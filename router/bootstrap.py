"""The one place that knows every concrete class: settings in, a gateway out."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from classifier.heuristic import HeuristicScorer
from router.access import access_of
from router.api.auth import DEFAULT_TENANT
from router.classifier_series import watch_classifier
from router.clock import SystemClock
from router.closing import KeptAsset, PeriodKeeper
from router.core.budgets import BudgetBook, Period
from router.core.decision import Candidate
from router.core.exploration import ExplorationBudget
from router.core.fallback import RetryConfig
from router.core.lengths import LengthTable
from router.core.snapshot import PriceRow
from router.core.vocabulary import Flag, Reject
from router.engine_series import watch_engines
from router.errors import ConfigError
from router.gateway import Gateway
from router.listed_prices import listed_context_window_tokens
from router.live_state import LiveState
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

_DEFAULT_WINDOW_TOKENS = 128_000
_ID_BYTES = 8


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
    telemetry = PrometheusTelemetry(
        models={name for c in candidates for name in (c.name, c.wire_model)},
        tenants={DEFAULT_TENANT, *(key.tenant for key in settings.server.auth.keys)},
        now_s=clock.now_s,
    )
    budgets = _budgets(settings, clock)
    ledger = SqlLedger(settings.server.database_url, settings.server.data_dir, clock=clock, on_warning=telemetry.warn)
    scoring = _scoring(settings, telemetry)
    state = _live_state(settings, clock, book, candidates, ours, budgets, scoring, telemetry)
    keeper = _keeper(settings, state, candidates, ours, ledger, telemetry, clock)
    lengths = LengthTable()
    tokens = TiktokenCounter()
    deps = Deps(
        clock=clock,
        state=state,
        candidates=candidates,
        providers=_providers(settings.tiers, candidates, ours),
        tokens=tokens,
        lengths=lengths,
        ledger=ledger,
        budgets=budgets,
        telemetry=telemetry,
        timeouts=settings.timeouts.call_timeouts(),
        prior=scoring.prior,
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
    deps = replace(deps, learner=beside, cutting_off=lambda: gateway.cutting_off)
    access = access_of(settings.server.auth, telemetry, clock.now_s)
    gateway = Gateway(
        settings,
        clock,
        deps,
        state,
        ledger,
        budgets,
        telemetry,
        tokens,
        book,
        local,
        hours,
        lengths,
        keeper,
        access,
        beside,
    )
    _watch(gateway)
    return gateway


def _scoring(settings: Settings, telemetry: PrometheusTelemetry) -> ScorerChoice:
    """The heuristic for now, and where a model fails; the model in force takes its place once it is loaded."""
    policies = {"": settings.policy.policy_config()} | {
        preset: settings.policy.policy_config(preset) for preset in QUALITY_TARGETS
    }
    prior = ScoringPolicy(HeuristicScorer(), policies, ScoredBy.PRIOR, (Flag.CLASSIFIER_UNAVAILABLE,))
    return ScorerChoice(
        current=ScoringPolicy(prior.scorer, policies),
        prior=prior,
        max_score_s=settings.classifier.max_score_s,
        on_trouble=lambda cause: telemetry.warn("classifier_unavailable", cause=cause),
    )


def _live_state(
    settings: Settings,
    clock: Clock,
    book: PriceBook,
    candidates: tuple[Candidate, ...],
    engines: tuple[LocalEngine, ...],
    budgets: BudgetBook,
    scoring: ScorerChoice,
    telemetry: PrometheusTelemetry,
) -> LiveState:
    models = {model.name: model for _, model in settings.tiers.api_models()}

    def price_row(candidate: Candidate, at_utc: datetime) -> PriceRow | None:
        try:
            return book.row(models[candidate.name].price_key, at_utc)
        except PriceUnknown:
            return None

    exploration = ExplorationBudget(to_nanousd(settings.policy.exploration_budget_usd_per_day) or 0)
    return LiveState(
        clock=clock,
        candidates=candidates,
        price_row=price_row,
        budgets=budgets,
        engines={engine.candidate.name: engine.room for engine in engines},
        assets={engine.candidate.name: engine.asset for engine in engines},
        judged=scoring,
        watch=ScoreWatch(max_premium_rise_ratio=settings.policy.max_premium_rise_ratio),
        exploration=exploration if settings.policy.exploration_ratio > 0.0 else None,
        on_left_alone=lambda name, cause: telemetry.warn("upstream_left_alone", model=name, cause=cause),
    )


def _keeper(
    settings: Settings,
    state: LiveState,
    candidates: tuple[Candidate, ...],
    engines: tuple[LocalEngine, ...],
    ledger: SqlLedger,
    telemetry: PrometheusTelemetry,
    clock: Clock,
) -> ModelKeeper:
    """The keeper of the model in force, which it has loaded."""
    keeper = ModelKeeper(
        settings.classifier,
        models=tier_models(settings.tiers),
        candidates=candidates,
        policies=state.judged.prior.policies,
        judged=state.judged,
        prices=state.prices_now,
        assets={engine.candidate.name: engine.asset for engine in engines},
        clock=clock,
        on_warning=telemetry.warn,
        watch=state.watch,
        labelled=lambda version: judged_scores(ledger.read_engine, version, most=WINDOW),
    )
    keeper.load()
    return keeper


def _watch(gateway: Gateway) -> None:
    """Tie what lives to the metrics that show it."""
    telemetry, state, ledger = gateway.telemetry, gateway.state, gateway.ledger
    if gateway.beside is not None:
        gateway.beside.draining = lambda: gateway.draining
    telemetry.watch(
        in_flight=lambda: gateway.in_flight.count,
        circuits=lambda: {name: health.state for name, health in state.health.items()},
        ledger=lambda: "healthy" if ledger.state().healthy else "degraded",
        ledger_states=("healthy", "degraded"),
    )
    if gateway.access.limiters:
        telemetry.table(
            "router_limit_used_ratio",
            "How much of a limit of its key is in use",
            ("tenant", "limit"),
            gateway.access.used_ratios,
        )
    watch_classifier(telemetry, gateway.keeper, state.judged, state.watch)
    if gateway.local is not None:
        watch_engines(telemetry, gateway.local.engines, gateway.clock)


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

    kept = memoryview(b"")

    def new_id() -> str:
        nonlocal kept
        if not kept:
            kept = memoryview(os.urandom(512 * _ID_BYTES))  # asking the kernel each time costs more than all the rest
        part, kept = kept[:_ID_BYTES], kept[_ID_BYTES:]
        return f"req_{int(clock.now_utc().timestamp() * 1000):012x}{part.hex()}"

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
    tiers: TierSettings, candidates: tuple[Candidate, ...], engines: tuple[LocalEngine, ...]
) -> Mapping[str, Provider]:
    """One provider a model. Each is imported only if needed, so that a command that calls nobody starts quickly."""
    from router.providers.openai_compatible import OpenAICompatibleProvider

    models = {model.name: model for _, model in tiers.api_models()}
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
