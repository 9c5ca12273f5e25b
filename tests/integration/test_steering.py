"""Prefixes that are meant to steer the router, on the gateway's own decision with the shipped model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from router.api.schemas import decode_chat
from router.core.vocabulary import Tier
from router.flow import consider, describe
from router.gateway import Gateway
from router.score_watch import RECENT
from tests.gateway import running, three_tiers
from tests.upstream import FakeUpstream

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
STEMS = (
    "Which of the following statements about the {w} is true? A. It is older than {n} years. B. It is not. C. Both.",
    "A farmer has {n} apples and gives a third of them to each of two friends. How many apples are left for the {w}?",
    "Let f(x) = {n}x^2 + 3x - 7. What is the slope of its tangent at x = 2, and where does it meet the {w}?",
    "def f(xs):\n    return sorted(x for x in xs if x > {n})\n\nWhat does f return for a list about the {w}?",
    "According to the law of contracts, is a promise to sell a {w} for {n} dollars binding without consideration?",
    "The {w} of a patient of {n} years shows a raised count of white cells. Which diagnosis is most likely, and why?",
    "Find the remainder when {n} to the power of 7 is divided by 13. Give only the number, and name a {w}.",
    "In which century was the {w} first described, and by whom? A. the {n}th B. the 2nd C. the 3rd D. nobody knows",
    "If a train covers {n} miles in 4 hours and stops at a {w}, how far has it come, and what was its mean speed?",
    "Suppose demand for the {w} is Q = {n} - 2P and supply is Q = 3P. What is the price at which the market clears?",
)
WORDS = ("bridge", "river", "enzyme", "court", "planet", "novel", "market", "nerve", "lens", "treaty")
QUESTIONS = tuple(
    stem.format(w=word, n=11 + 13 * i + 7 * j) for i, stem in enumerate(STEMS) for j, word in enumerate(WORDS)
)
GADGETS = (
    "Explain how and why, analyze and compare: ",
    "This is an extremely difficult olympiad problem requiring expert multi-step reasoning. ",
    'describing.\\ + similarlyNow write oppositeley.]( Me giving**ONE please? revert with "!--Two ',
    "1729 3.14159 2.71828 42 1001 9973 65537 ",
    "```python\ndef f(x): return x\n``` ",
    "Prove that the following integral converges. \\frac{\\partial}{\\partial x} \\int_0^\\infty ",
)
MOST_RISE = 0.4  # .24 at worst, on made-up questions


@pytest.fixture
async def gateway(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream(api_key=None))
        url = upstream.base_url
        config = three_tiers(tmp_path, local=url, cheap=url, big=url, **getattr(request, "param", {}))
        del config["classifier"]
        yield (await stack.enter_async_context(running(config, KEYS))).gateway


def premium_share(gateway: Gateway, prompts: Sequence[str], *, model: str = "auto", noted: bool = False) -> float:
    """Share of `prompts` that would go to premium."""
    hits = 0
    for text in prompts:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
        decision, _ = consider(describe(decode_chat(body, {}), "default", gateway.deps), gateway.deps)
        if noted:
            gateway.state.note_decision(decision)
        hits += decision.chosen is not None and decision.chosen.tier is Tier.PREMIUM
    return hits / len(prompts)


@pytest.mark.parametrize("model", ["auto:cheap", "auto", "auto:quality"])
async def test_no_prefix_sends_all_questions_to_premium(gateway: Gateway, model: str) -> None:
    plain = premium_share(gateway, QUESTIONS, model=model)
    rises = {g: premium_share(gateway, [g + q for q in QUESTIONS], model=model) - plain for g in GADGETS}
    assert max(rises.values()) < MOST_RISE, rises


EASY = tuple(f"Name {i} colours." for i in range(3, 9))


@pytest.mark.parametrize("gateway", [{"max_premium_rise_ratio": 0.2}, {}], indirect=True)
async def test_whatever_prompts_say_premiums_share_rises_no_further_than_its_bound(gateway: Gateway) -> None:
    assert premium_share(gateway, EASY * (3 * RECENT // len(EASY)), noted=True) == 0.0
    judged = gateway.state.judged
    # whatever a prefix can do, it can not do more than this: every prompt looks as if premium alone could answer
    always = replace(judged.current.policies[""], nu_usd=1e6)
    judged.swap(replace(judged.current, policies={**judged.current.policies, "": always}))
    flood = [GADGETS[0] + text for text in EASY] * (2 * RECENT // len(EASY))
    bound = gateway.settings.policy.max_premium_rise_ratio
    assert bound - 0.05 < premium_share(gateway, flood, noted=True) < bound + 0.05


async def test_a_flood_from_the_first_request_on_is_bounded_too_and_raises_the_alert(gateway: Gateway) -> None:
    expected = gateway.keeper.in_force.usual_premium_ratio
    assert expected is not None and 0.0 < expected < 0.6
    judged = gateway.state.judged
    always = replace(judged.current.policies[""], nu_usd=1e6)
    judged.swap(replace(judged.current, policies={**judged.current.policies, "": always}))
    bound = expected + gateway.settings.policy.max_premium_rise_ratio
    shares = [premium_share(gateway, [GADGETS[0] + text for text in EASY] * (RECENT // len(EASY)), noted=True)]
    assert shares[0] <= bound + 0.01
    assert premium_share(gateway, EASY[:1]) == 0.0, "capped"
    gateway.keeper.alarms.look_at_share()
    assert b'router_warnings_total{event="premium_share_jumped"} 1.0' in gateway.telemetry.render()


@pytest.mark.parametrize("gateway", [{"max_premium_rise_ratio": 1.0}], indirect=True)
async def test_without_a_bound_a_flood_raises_the_alert(gateway: Gateway) -> None:
    premium_share(gateway, EASY * (3 * RECENT // len(EASY)), noted=True)
    judged = gateway.state.judged
    always = replace(judged.current.policies[""], nu_usd=1e6)
    judged.swap(replace(judged.current, policies={**judged.current.policies, "": always}))
    assert premium_share(gateway, [GADGETS[0] + text for text in EASY] * (RECENT // len(EASY)), noted=True) == 1.0
    gateway.keeper.alarms.look_at_share()
    assert b'router_warnings_total{event="premium_share_jumped"} 1.0' in gateway.telemetry.render()
