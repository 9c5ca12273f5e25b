"""Settings of the learning loop."""

from __future__ import annotations

from decimal import Decimal

import pytest

from router.errors import ConfigError
from router.settings import (
    parse_settings,
)
from tests.settings_problems import EMBEDDED


def test_learning_is_off_unless_asked_for_and_its_judge_is_one_of_the_models() -> None:
    assert not parse_settings(EMBEDDED, {}).learning.on
    tiers = "tiers: {local: {engine: embedded}, premium: {model: openai/gpt-6.1-sol}}\n"
    asked = "learning: {shadow: {ratio: 0.02}, judge: {model: openai/gpt-6.1-sol, ratio: 0.5}, exclude_tenants: [acme]}"
    learning = parse_settings(tiers + asked, {}).learning
    assert learning.on and learning.shadow_budget_usd_per_day == learning.judge_budget_usd_per_day == Decimal(1)
    assert (learning.shadow_ratio, learning.judge_ratio, learning.exclude_tenants) == (0.02, 0.5, ("acme",))
    with pytest.raises(ConfigError, match=r"learning\.judge\.model.*'nobody' is no configured model; known here: "):
        parse_settings(EMBEDDED + "learning: {judge: {model: nobody}}", {})
    with pytest.raises(ConfigError, match="should be less than or equal to 1"):
        parse_settings(EMBEDDED + "learning: {shadow: {ratio: 2}}", {})


JUDGE = "model: openai/gpt-6.1-sol"


@pytest.mark.parametrize(
    ("learning", "line", "key", "says"),
    [
        ("shadow: {ratio: 0.1}", 4, "shadow.ratio", "nothing judges their answers; name learning.judge.model"),
        (f"shadow:\n    ratio: 0.1\n    budget_usd_per_day: 0\n  judge: {{{JUDGE}}}", 6, "shadow.budget_usd_per_day",
         "0 lets no shadow run happen; give an amount"),
        ("shadow: {budget_usd_per_day: 5}", 4, "shadow.budget_usd_per_day", "set learning.shadow.ratio to the share"),
        (f"judge: {{{JUDGE}}}", 4, "judge.model", "does nothing without shadow runs; set learning.shadow.ratio"),
        ("exact_checks: true\n  shadow: {ratio: 0.1}\n  judge: {budget_usd_per_day: 2}", 6,
         "judge.budget_usd_per_day", "does nothing without a judge; name learning.judge.model"),
        ("judge: {ratio: 0.5}", 4, "judge.ratio", "does nothing without a judge"),
        (f"shadow: {{ratio: 0.1}}\n  judge: {{budget_usd_per_day: 0, {JUDGE}}}", 5, "judge.budget_usd_per_day",
         "0 lets nothing be judged"),
    ],
)  # fmt: skip
def test_learning_keys_that_do_nothing_without_each_other_are_refused_with_their_line_and_the_cure(
    learning: str, line: int, key: str, says: str
) -> None:
    text = f"tiers:\n  premium: {{model: openai/gpt-6.1-sol}}\nlearning:\n  {learning}\n"
    with pytest.raises(ConfigError) as refused:
        parse_settings(text, {"OPENAI_API_KEY": "sk-x"})
    (found,) = refused.value.problems
    assert (found[0], found[1]) == (line, f"learning.{key}")
    assert says in found[2]


def test_a_shadow_ratio_of_nought_switches_the_rest_off_without_taking_it_out() -> None:
    asked = f"learning: {{shadow: {{ratio: 0, budget_usd_per_day: 5}}, judge: {{{JUDGE}, budget_usd_per_day: 0}}}}"
    tiers = "tiers: {premium: {model: openai/gpt-6.1-sol}}\n"
    assert not parse_settings(tiers + asked, {"OPENAI_API_KEY": "sk-x"}).learning.on


def test_a_tenant_cannot_take_a_name_under_which_overhead_is_booked() -> None:
    keys = "server: {auth: {keys: [{tenant: 'router:shadow', key_env: K}]}}\n"
    with pytest.raises(ConfigError, match="names that begin with router: are ours"):
        parse_settings(keys + EMBEDDED, {"K": "secret"})
