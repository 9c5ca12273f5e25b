"""From settings to a running `Beside`, and its budgets as the books have them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from router.core.budgets import Period, window_at
from router.core.judgements import JUDGE_TENANT, SHADOW_TENANT
from router.learning_loop.beside import Beside, LearningDials
from router.ports import Deps
from router.settings_types import LearningSettings, to_nanousd
from router.stores.sql import SqlLedger


def beside_of(
    settings: LearningSettings, deps: Deps, ledger: SqlLedger, count: Callable[[str, str], None]
) -> Beside | None:
    """What looks at answers as `settings` want it; `None` where nothing is to be looked at."""
    if not settings.on:
        return None
    dials = LearningDials(
        shadow_ratio=settings.shadow_ratio,
        shadow_budget_nanousd=to_nanousd(settings.shadow_budget_usd_per_day) or 0,
        judge=settings.judge_model,
        judge_ratio=settings.judge_ratio,
        judge_budget_nanousd=to_nanousd(settings.judge_budget_usd_per_day) or 0,
        exact_checks=settings.exact_checks,
        max_concurrent=settings.max_concurrent,
        exclude_tenants=frozenset(settings.exclude_tenants),
    )
    dice = Random()
    return Beside(dials, deps, draw=dice.random, note=ledger.note_judgement, count=count)


async def carry_over(beside: Beside, ledger: SqlLedger) -> None:
    """What shadow runs and judges have spent today, so that a restart forgives nothing. Raises what the books raise."""
    for budget, tenant in ((beside.shadow_budget, SHADOW_TENANT), (beside.judge_budget, JUDGE_TENANT)):
        today = window_at(Period.DAY, beside.now_utc()).starts_at_utc
        budget.carry_over({Period.DAY: await ledger.spent_since(today, tenant)})
