"""A gateway that runs: started, saved now and then, stopped in order, and what it says of itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from local_llm.datamodels import ProcessState
from router import learned
from router.access import Access
from router.api.face import Face, InFlight
from router.api.idempotency import IdempotencyStore
from router.closing import PeriodKeeper
from router.core.budgets import BudgetBook, Period, window_at
from router.core.decision import Candidate
from router.core.eligibility import engine_problems
from router.core.health import is_open
from router.core.lengths import LengthTable
from router.core.request import TokenUsage
from router.errors import BadRequest, NotFound
from router.estimates import estimate, estimate_shown
from router.live_state import LiveState
from router.ports import Clock, Deps
from router.prices import PriceBook
from router.scoring import ModelKeeper
from router.settings_types import Settings
from router.stores.sql import SqlLedger
from router.telemetry import PrometheusTelemetry
from router.tokens import TiktokenCounter

if TYPE_CHECKING:
    from router.learning_loop.beside import Beside
    from router.local_tier import LocalTier

_CAN_ANSWER = ("ready", "asleep")  # the first request wakes what we have put to sleep


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
    access: Access
    beside: Beside | None = None
    draining: bool = False
    cutting_off: bool = False
    in_flight: InFlight = field(default_factory=InFlight)
    _saving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Books first, then budgets as the books have them; the engine comes up beside them, or later."""
        if unset := self.access.unset_env:
            self.telemetry.warn("auth_key_unset", variables=", ".join(unset), cure="export them, or remove the keys")
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
        access = self.access.shown()
        return status, {"tiers": tiers, "ledger": ledger, "access": access, "draining": self.draining}

    def face(self) -> Face:
        """This gateway as HTTP sees it."""
        server = self.settings.server
        return Face(
            deps=self.deps,
            authenticator=self.access.authenticator,
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
