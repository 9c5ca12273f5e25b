"""A whole gateway in front of hosts whose quality is known: what its log, naively read, gets wrong, and we do not.

The prompts that look hard go to premium, so the cheap tier is seen on easy prompts only, and its mean over all prompts
is not the mean of what is seen. Everything is the product's own: decisions, books, feedback, judging, export.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from classifier import cli
from classifier.datamodels import LabelledExample
from classifier.dataset import read_labels
from classifier.matrix import as_matrix
from classifier.offpolicy import NoOverlap, check_overlap, tier_quality, uneven_selection
from classifier.pipeline import TierModel
from classifier.told import LearningError
from router.api.schemas import decode_chat
from router.bootstrap import build
from router.core.budgets import Period, window_at
from router.flow import PlainAnswer, handle_chat
from router.gateway import Gateway
from router.learning_loop.beside import Beside, LearningDials
from router.learning_loop.export import Exported, export
from router.ports import Deps, PlainReply, ProviderCall, StreamReply
from router.providers.plain_answer import read_plain
from tests.gateway import settings_of, until

TIERS = ("cheap", "premium")
# P(adequate) by kind of prompt. The gateway's prior tells the kinds apart and sends the hard ones to premium.
TRUTH = {"easy": {"cheap": 0.9, "premium": 0.95}, "hard": {"cheap": 0.3, "premium": 0.85}}
EASY_SHARE = 0.6
TENANTS = 30
CONFIG = {
    "cheap": {"model": "openai/cheap", "price": {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.5}},
    "premium": {
        "models": [
            {"model": f"openai/{name}", "price": {"input_usd_per_mtok": usd, "output_usd_per_mtok": 5 * usd}}
            for name, usd in (("big", 2), ("judge", 40))
        ]
    },
}


def prompt(number: int, kind: str) -> str:
    return f"Name colour {number}." if kind == "easy" else f"Explain why proof {number} fails, step by step, in detail."


def adequate(text: str, tier: str) -> bool:
    """Whether this tier's answer to this prompt is good: fixed once and for all, as the truth is."""
    kind = "easy" if text.startswith("Name") else "hard"
    return Random(f"{text}/{tier}").random() < TRUTH[kind][tier]


@dataclass
class Host:
    """Says `good` or `bad`, as the truth has it; as a judge it reads the answers it is shown."""

    tier: str
    judges: bool = False
    calls: int = 0

    async def complete(self, call: ProviderCall) -> PlainReply:
        self.calls += 1
        said = json.loads(bytes(call.fields["messages"]))[-1]["content"]
        if self.judges:
            shown = re.findall(r"^(good|bad)$", said, re.MULTILINE)
            text = json.dumps(dict(zip("AB", (9 if word == "good" else 1 for word in shown), strict=True)))
        else:
            text = "good" if adequate(said, self.tier) else "bad"
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        return read_plain(json.dumps({"id": "x", "object": "chat.completion", **body}).encode())

    async def open_stream(self, call: ProviderCall) -> StreamReply:
        raise NotImplementedError

    async def close(self) -> None:
        return None


@dataclass
class Town:
    """A gateway and the people who use it."""

    gateway: Gateway
    deps: Deps
    hosts: Mapping[str, Host]
    dice: Random

    async def live(self, count: int, *, feedback_ratio: float | Callable[[str, str], float]) -> dict[str, float]:
        """`count` requests of many tenants; some of them say how good the answer was. Gives the truth of each tier.

        `feedback_ratio`: how many of them do, or how many by kind of prompt and tier that answered.
        """
        kinds = ["easy" if self.dice.random() < EASY_SHARE else "hard" for _ in range(count)]
        throws = [self.dice.random() for _ in range(count)]

        def judged(number: int, answer: PlainAnswer) -> bool:
            if not callable(feedback_ratio):
                return throws[number] < feedback_ratio
            return throws[number] < feedback_ratio(kinds[number], answer.meta.tier)

        for start in range(0, count, 50):
            numbers = range(start, min(start + 50, count))
            answers = await asyncio.gather(*(self._ask(prompt(i, kinds[i]), i) for i in numbers))
            await self.gateway.ledger.flush()
            told = (
                self.gateway.ledger.add_feedback(
                    answer.meta.request_id, f"t{i % TENANTS}", float(b"good" in answer.body), None
                )
                for i, answer in zip(numbers, answers, strict=True)
                if judged(i, answer)
            )
            assert all(await asyncio.gather(*told))
        texts = [prompt(i, kind) for i, kind in enumerate(kinds)]
        return {tier: sum(adequate(text, tier) for text in texts) / count for tier in TIERS}

    async def _ask(self, text: str, number: int) -> PlainAnswer:
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).encode()
        answer = await handle_chat(decode_chat(body, {}), f"t{number % TENANTS}", self.deps)
        assert isinstance(answer, PlainAnswer)
        return answer

    def labels(self, out: Path) -> tuple[list[LabelledExample], Exported]:
        """What `export-labels` makes of the books, as training reads it."""
        found = export(self.gateway.ledger.read_engine, out)
        return read_labels(out)[0], found


Start = Callable[..., Any]


@pytest.fixture
def town(tmp_path: Path) -> Start:
    """`async with town(exploration=0.1, shadow=0.0, seed=1) as t:`"""

    @asynccontextmanager
    async def start(*, exploration: float = 0.0, shadow: float = 0.0, seed: int = 0) -> AsyncIterator[Town]:
        folder = tmp_path / f"{exploration}-{shadow}-{seed}"
        config = {
            "server": {"data_dir": str(folder), "store_prompts": True},
            "tiers": {"local": {"engine": "none"}, **CONFIG},
            "policy": {"exploration_ratio": exploration},
            "classifier": {"model": "heuristic"},
        }
        gateway = build(settings_of(config, {"OPENAI_API_KEY": "sk-x"}))
        await gateway.start()
        hosts = {"openai/cheap": Host("cheap"), "openai/big": Host("premium"), "openai/judge": Host("premium", True)}
        deps = replace(gateway.deps, providers=hosts, draw=Random(seed).random)
        beside = Beside(
            LearningDials(shadow, 10**9, "openai/judge", 1.0, 10**9, max_concurrent=1_000),
            deps,
            draw=Random(seed + 1).random,
            note=gateway.ledger.note_judgement,
            count=gateway.telemetry.learning_done,
        )
        try:
            yield Town(gateway, replace(deps, learner=beside), hosts, Random(seed + 2))
            await until(lambda: beside.busy == 0)
        finally:
            await beside.stop()
            await gateway.stop()

    return start


async def test_feedback_on_explored_traffic_naive_is_biased_ours_is_not(town: Start, tmp_path: Path) -> None:
    async with town(exploration=0.1, seed=11) as t:
        true = await t.live(1_200, feedback_ratio=0.7)
        examples, found = t.labels(tmp_path / "labels.jsonl")
        midnight = window_at(Period.DAY, datetime.now(UTC)).starts_at_utc
        explored_nanousd = await t.gateway.ledger.explored_since(midnight)
        left_nanousd = t.gateway.state.snapshot().exploration_left_nanousd
    assert found.explored > 50 and found.capped_by_judge == {}
    assert explored_nanousd > 0 and left_nanousd == 10**9 - explored_nanousd
    async with town(exploration=0.1, seed=11) as again:  # a restart forgives nothing
        assert again.gateway.state.snapshot().exploration_left_nanousd == left_nanousd
    check_overlap(examples, TIERS)
    estimates = tier_quality(examples, "cheap", np.full(len(examples), 0.6))  # a poor guess: the weights must carry it
    low, high = estimates["naive"].interval()
    assert not low <= true["cheap"] <= high
    for name in ("ips", "dr"):
        low, high = estimates[name].interval()
        assert low <= true["cheap"] <= high, name

    # a learner whose form is wrong (it sees no words) is right on average only with the weights
    blind = [replace(e, features=msgspec.structs.replace(examples[0].features, text="same")) for e in examples]
    matrix = as_matrix(blind)
    common = {"sources": matrix.sources, "groups": np.arange(len(blind))}
    naive, ours = (TierModel(tiers=list(TIERS), sources=["log"], tree_count=20) for _ in range(2))
    naive.fit([e.features for e in blind], matrix.outcomes, **common)
    ours.fit([e.features for e in blind], matrix.outcomes, weights=matrix.weights, **common)
    assert naive.predict_proba([blind[0].features])[0, 0] > true["cheap"] + 0.1
    assert ours.predict_proba([blind[0].features])[0, 0] == pytest.approx(true["cheap"], abs=0.07)


async def test_feedback_that_depends_on_the_prompt_is_weighted_back_to_all_traffic(town: Start, tmp_path: Path) -> None:
    """Whoever asks hard things and gets a cheap answer nearly always says what it was worth; hardly anybody else."""

    def ratio(kind: str, tier: str) -> float:
        return {("hard", "cheap"): 0.95, ("hard", "premium"): 0.5}.get((kind, tier), 0.15)

    async with town(exploration=0.2, seed=41) as t:
        true = await t.live(1_200, feedback_ratio=ratio)
        examples, found = t.labels(tmp_path / "labels.jsonl")
    assert found.uneven is not None and "hardest" in found.uneven
    guess = np.full(len(examples), 0.6)
    for tier in TIERS:
        ours = tier_quality(examples, tier, guess)
        low, high = ours["dr"].interval(3.3)  # who explores depends on who comes first
        assert low <= true[tier] <= high, tier
    rows_alone = tier_quality([replace(e, selection_probability=None) for e in examples], "cheap", guess)
    low, high = rows_alone["dr"].interval()
    assert true["cheap"] > high, "what holds for the judged does not hold for all"
    hard = np.array([0.0 if "colour" in e.features.text else 1.0 for e in examples])
    assert "figures about rows are not figures about all traffic" in str(uneven_selection(examples, hard))


async def test_shadow_runs_show_what_the_policy_never_tries(town: Start, tmp_path: Path) -> None:
    async with town(shadow=0.4, seed=21) as t:
        true = await t.live(700, feedback_ratio=0.0)
        beside = t.deps.learner
        assert isinstance(beside, Beside)
        await until(lambda: beside.busy == 0)
        await t.gateway.ledger.flush()
        examples, found = t.labels(tmp_path / "labels.jsonl")
        spent = await t.gateway.ledger.costs()
    assert found.shadowed == found.rows == len(examples) > 200
    check_overlap(examples, TIERS)
    for tier in TIERS:
        # marks of 9 and 1 out of 10 stand for good and bad
        # (which requests are drawn depends on who comes first, so the interval is a wide one)
        low, high = tier_quality(examples, tier, np.full(len(examples), 0.6))["dr"].interval(3.3)
        assert (low - 0.1) / 0.8 <= true[tier] <= (high - 0.1) / 0.8, tier
    assert t.hosts["openai/judge"].calls == 2 * found.shadowed
    assert {row.tenant for row in spent.rows} >= {"router:shadow", "router:judge"}


async def test_with_neither_evaluation_refuses_and_says_why(town: Start, tmp_path: Path) -> None:
    async with town(exploration=0.2, seed=31) as t:
        await t.live(400, feedback_ratio=1.0)
        t.labels(tmp_path / "explored.jsonl")
    model = tmp_path / "model"
    cli.train(tmp_path / "explored.jsonl", model, now_utc=datetime(2026, 11, 22, tzinfo=UTC), with_card=False)
    async with town(seed=32) as t:
        await t.live(200, feedback_ratio=1.0)
        examples, found = t.labels(tmp_path / "greedy.jsonl")
    assert found.explored == found.shadowed == 0
    with pytest.raises(NoOverlap, match="every logged choice was certain"):
        check_overlap(examples, TIERS)
    with pytest.raises(LearningError, match=r"Set `policy.exploration_ratio`\s+above 0, or switch on shadow runs"):
        cli.evaluate(tmp_path / "greedy.jsonl", tmp_path / "report", model=model, include_seen=True, with_plots=False)
