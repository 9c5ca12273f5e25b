"""Finding out, beside the requests, how good answers are: exact checks, shadow runs, and a judge over both answers.

A request is looked at only once its answer is whole, and never waits for it. What is not wanted costs one look at the
dice; what is, is kept in memory for as long as it takes to be judged, and no longer. Whoever comes when all places are
taken, or while the gateway ends, is dropped: labels can be missed, answers cannot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from classifier.datamodels import RequestFeatures, Score
from router.core.budgets import BudgetBook, Period
from router.core.chat import ChatRequest
from router.core.decision import Candidate, Decision, PolicyConfig
from router.core.judgements import JUDGE_TENANT, SHADOW_TENANT, JudgedAnswer, seen_probability
from router.core.request import RequestFacts, TokenEstimate
from router.core.vocabulary import Locality, Reject, Tier
from router.learning_loop import judging
from router.learning_loop.answers import MAX_ANSWER_BYTES, Answer, of_body, of_events
from router.learning_loop.checks import check, checkable
from router.learning_loop.recorded import RecordedStream
from router.learning_loop.side_calls import SideAnswer, SideCalls
from router.ports import Deps, PlainReply, StreamReply

_SOFT = frozenset({Reject.DOMINATED, Reject.QUALITY_BELOW_FLOOR})
_JUDGE_CLASS = "judge"
_log = logging.getLogger("router.learning")


@dataclass(frozen=True, slots=True)
class LearningDials:
    """What is wanted. Ratios 0..1, money in nano-dollars a day (UTC); `judge` is the name of a candidate."""

    shadow_ratio: float = 0.0
    shadow_budget_nanousd: int = 0
    judge: str | None = None
    judge_ratio: float = 1.0
    judge_budget_nanousd: int = 0
    exact_checks: bool = False
    max_concurrent: int = 2
    exclude_tenants: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Looked:
    """A request that is looked at: what was asked and decided, and where its shadow goes (`None`: nowhere).

    `actions` are the probabilities of the tiers that might have been taken, `others` how many tiers were not.
    """

    chat: ChatRequest
    facts: RequestFacts
    features: RequestFeatures
    score: Score
    cfg: PolicyConfig
    answered_by: Candidate
    shadow: Tier | None
    actions: Mapping[str, float]
    others: int
    checked: bool

    def seen(self, tier: str, shadow_ratio: float) -> float:
        """P(an answer of `tier` is seen) where that share of requests like this one is shadowed."""
        return seen_probability(self.actions.get(tier, 0.0), self.others, shadow_ratio)


class Beside:
    """Implements `ports.Learner`. `note` keeps a judgement; `count(kind, outcome)` is told of every call.

    While `draining()` nothing new is begun.
    """

    def __init__(
        self,
        dials: LearningDials,
        deps: Deps,
        *,
        draw: Callable[[], float],
        note: Callable[[JudgedAnswer], None],
        count: Callable[[str, str], None],
    ) -> None:
        self._dials = dials
        self._deps = deps
        self._draw = draw
        self._note = note
        self._count = count
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.draining: Callable[[], bool] = lambda: False
        now_utc = deps.clock.now_utc
        self.shadow_budget = BudgetBook({Period.DAY: dials.shadow_budget_nanousd}, now_utc=now_utc)
        self.judge_budget = BudgetBook({Period.DAY: dials.judge_budget_nanousd}, now_utc=now_utc)
        self._shadows = SideCalls(deps, "shadow", SHADOW_TENANT, self.shadow_budget, count)
        self._judges = SideCalls(deps, "judge", JUDGE_TENANT, self.judge_budget, count)

    def now_utc(self) -> datetime:
        """The wall clock that its budgets go by."""
        return self._deps.clock.now_utc()

    @property
    def busy(self) -> int:
        """How many requests are being looked at now."""
        return len(self._tasks)

    def watch(
        self,
        chat: ChatRequest,
        facts: RequestFacts,
        features: RequestFeatures,
        decision: Decision,
        cfg: PolicyConfig,
        answered_by: Candidate,
    ) -> Looked | None:
        """Whether this request, which `answered_by` answers, is to be looked at. Cheap: asked of every request."""
        dials = self._dials
        drawn = dials.shadow_ratio > 0.0 and self._draw() < dials.shadow_ratio
        checked = dials.exact_checks and checkable(
            wants_json=chat.wants_json, has_tools=chat.has_tools, asked=chat.last_user_text
        )
        if not (drawn or checked) or self._ending or not self._may_look(chat, facts, decision, answered_by):
            return None
        taken = answered_by.tier
        others = sorted({a.tier for a in decision.alternatives if a.tier is not taken and set(a.reasons) <= _SOFT})
        if not (checked or others) or decision.score is None:
            return None
        if len(self._tasks) >= dials.max_concurrent:
            self._count("shadow" if drawn else "check", "no_place")
            return None
        actions = decision.action_probability or {taken.value: 1.0}
        shadow = others[min(int(self._draw() * len(others)), len(others) - 1)] if drawn and others else None
        return Looked(chat, facts, features, decision.score, cfg, answered_by, shadow, actions, len(others), checked)

    def _may_look(self, chat: ChatRequest, facts: RequestFacts, decision: Decision, answered_by: Candidate) -> bool:
        """Never at what must stay where it is, at what the caller chose, or at what another tier answered instead."""
        return (
            facts.locality is not Locality.LOCAL_ONLY
            and facts.pinned_model is None
            and facts.pinned_tier is None
            and facts.tenant not in self._dials.exclude_tenants
            and chat.n == 1
            and decision.chosen == answered_by
        )

    def answered(self, looked: Looked, reply: PlainReply) -> None:
        """The answer is whole: it is looked at beside what comes next."""
        if len(reply.body) <= MAX_ANSWER_BYTES:
            tokens = reply.usage.output_tokens if reply.usage is not None else None
            self._begin(looked, lambda: of_body(reply.body), tokens)

    def streaming(self, looked: Looked, stream: StreamReply, blocks: list[bytes], *, ended: bool) -> StreamReply:
        """`stream`, kept while it is relayed; `blocks` are those read already."""

        def whole(kept: list[bytes], output_tokens: int | None) -> None:
            self._begin(looked, lambda: of_events(kept), output_tokens)

        return RecordedStream(stream, list(blocks), whole, ended=ended)

    @property
    def _ending(self) -> bool:
        return self._closed or self.draining()

    def _begin(self, looked: Looked, read: Callable[[], Answer | None], output_tokens: int | None) -> None:
        if self._ending or len(self._tasks) >= self._dials.max_concurrent:
            self._count("shadow" if looked.shadow is not None else "check", "no_place")
            return
        task = asyncio.get_running_loop().create_task(self._look(looked, read, output_tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, looked: Looked, read: Callable[[], Answer | None], output_tokens: int | None) -> None:
        try:
            answer = await asyncio.to_thread(read)
            if answer is not None:
                await self._judge_all(looked, answer, output_tokens)
        except Exception as error:  # noqa: BLE001 - a label is lost, nothing else
            self._count("look", "internal")
            _log.error("learning_failed", extra={"fields": {"kind": type(error).__name__}})

    async def _judge_all(self, looked: Looked, answer: Answer, output_tokens: int | None) -> None:
        by = looked.answered_by
        mine = SideAnswer(by.tier, by.wire_model, answer, None)
        # A verdict puts a request into the labels whatever the dice say, so its other tiers are seen only now and then;
        # without one it is there because it was drawn for a shadow run.
        always = await self._check(looked, mine, output_tokens, self._dials.shadow_ratio)
        if looked.shadow is None:
            return
        share = self._dials.shadow_ratio if always else 1.0
        facts = replace(looked.facts, pinned_tier=looked.shadow)
        other = await self._shadows.call(looked.chat, facts, looked.features, looked.score, looked.cfg)
        if other is None:
            return
        other_tokens = other.usage.output_tokens if other.usage is not None else None
        await self._check(looked, other, other_tokens, share)
        if self._dials.judge is None or self._draw() >= self._dials.judge_ratio:
            return
        found = await self._ask_judge(looked, answer, other.answer)
        if found is not None:
            judged = ((mine, found[0], output_tokens), (other, found[1], other_tokens))
            ratio = self._dials.shadow_ratio * self._dials.judge_ratio
            for side, quality, tokens in judged:
                self._keep(looked, side, quality, ("judge", self._dials.judge), (share, ratio), tokens)

    async def _check(self, looked: Looked, side: SideAnswer, output_tokens: int | None, shadow_ratio: float) -> bool:
        verdict = (
            await asyncio.to_thread(check, looked.chat.fields, side.answer, looked.chat.last_user_text)
            if looked.checked
            else None
        )
        if verdict is not None:
            source = ("exact_check", verdict.check)
            self._keep(looked, side, verdict.quality_ratio, source, (shadow_ratio, 1.0), output_tokens)
        return verdict is not None

    async def _ask_judge(self, looked: Looked, mine: Answer, other: Answer) -> tuple[float, float] | None:
        if not mine.text or not other.text:
            return None  # what a tool call is worth cannot be read off it
        request, secret = "\n\n".join(looked.chat.texts), looked.facts.request_id
        forwards = await self._marks(looked, judging.question(request, mine.text, other.text, secret=secret))
        if forwards is None:
            return None
        swapped = await self._marks(looked, judging.question(request, other.text, mine.text, secret=secret))
        found = judging.qualities(forwards, swapped)
        if found is None:
            self._count("judge", "unreadable")
        return found

    async def _marks(self, looked: Looked, messages: list[dict[str, str]]) -> tuple[float, float] | None:
        chat = _judge_request(messages)
        tokens, estimated = self._deps.tokens.count(chat.texts, messages=chat.message_count)
        estimate: TokenEstimate = self._deps.lengths.estimate(_JUDGE_CLASS, tokens, estimated=estimated, cap=None)
        facts = replace(
            looked.facts, estimate=estimate, request_class=_JUDGE_CLASS, pinned_model=self._dials.judge,
            pinned_tier=None, needs_tools=False, needs_images=False, needs_json=False, max_output_tokens=None,
        )  # fmt: skip
        reply = await self._judges.call(chat, facts, looked.features, looked.score, looked.cfg)
        if reply is None:
            return None
        found = judging.marks(reply.answer.text)
        if found is None:
            self._count("judge", "unreadable")
        return found

    def _keep(
        self,
        looked: Looked,
        side: SideAnswer,
        quality_ratio: float,
        source: tuple[str, str],
        ratios: tuple[float, float],
        output_tokens: int | None,
    ) -> None:
        """`source`: provenance and judge. `ratios`: share shadowed among those looked at, share looked at."""
        (provenance, judge), (shadow_ratio, label_probability) = source, ratios
        self._note(
            JudgedAnswer(
                request_id=looked.facts.request_id,
                tier=side.tier.value,
                model=side.model,
                quality_ratio=quality_ratio,
                provenance=provenance,
                judge=judge,
                action_probability=looked.seen(side.tier.value, shadow_ratio),
                label_probability=label_probability,
                output_tokens=output_tokens,
                judged_at_utc=self._deps.clock.now_utc(),
            )
        )

    async def stop(self) -> None:
        """Take no more, and end what runs: its calls are booked as far as they got."""
        self._closed = True
        tasks: Iterable[asyncio.Task[None]] = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _judge_request(messages: list[dict[str, str]]) -> ChatRequest:
    texts = tuple(message["content"] for message in messages)
    fields: dict[str, Any] = {"messages": msgspec.Raw(msgspec.json.encode(messages))}
    return ChatRequest(
        requested_model="",
        fields=fields,
        stream=False,
        include_usage=False,
        texts=texts,
        schema_texts=(),
        message_count=len(messages),
        turns=1,
        image_count=0,
        system_text=texts[0],
        last_user_text=texts[-1],
        has_tools=False,
        wants_json=False,
    )
