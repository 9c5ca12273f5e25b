"""From the books to labelled rows: `export-labels`.

Two passes. The first reads every judgement (small: no prompts) and makes labels of them, with their weights and caps
(`classifier.labels`). The second fetches the records of labelled requests, some at a time, and writes a row for each
whose prompt was kept.

What a row says of probabilities. A row is in the file because its request was *selected*: by a shadow run, whose dice
are known, or because somebody judged the answer, whose habits are not. `observation_probability` is, per tier, the
probability that this tier's outcome would be seen given that; `exploration_probability` and `label_probability` are
the probabilities of the action and of being judged, apart; `selection_probability` is that of the request being in
the file, by which figures about the rows become figures about all traffic.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from classifier.datamodels import LoggedOutcome
from classifier.labels import Label, combine
from classifier.whole_file import whole_file
from router.core.attempts import RoutingRecord
from router.core.judgements import JudgedAnswer
from router.core.vocabulary import Reason, Reject
from router.learning_loop.judged_share import JudgedShare, judged_share
from router.learning_loop.retries import AnsweredCall, retries
from router.stores import label_sources, queries

SOURCE = "log"
_PAGE_IDS = 200
_NO_CHOICE = frozenset({Reason.PINNED_BY_CLIENT, Reason.LOCAL_ONLY_POLICY, None})
_SOFT = frozenset({Reject.DOMINATED, Reject.QUALITY_BELOW_FLOOR})

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Exported:
    """What came of an export. `left_out` counts labelled requests without a row, by cause."""

    answered: int = 0
    labelled: int = 0
    rows: int = 0
    judgements: Counter[str] = field(default_factory=Counter)
    capped_by_judge: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    explored: int = 0
    shadowed: int = 0
    uneven: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Ready to be shown as JSON."""
        return {
            "answered_requests": self.answered,
            "labelled_requests": self.labelled,
            "rows": self.rows,
            "explored_rows": self.explored,
            "shadowed_rows": self.shadowed,
            "judgements": dict(sorted(self.judgements.items())),
            "capped_by_judge": self.capped_by_judge,
            "left_out": dict(sorted(self.left_out.items())),
        }


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known of how good answers were.

    `judged` holds the judgements that came with probabilities, by request and tier; `share` says how often answers are
    judged by somebody (retries, which only ever say no, do not count).
    """

    labels: Mapping[str, Mapping[str, Label]]
    judged: Mapping[str, Mapping[str, JudgedAnswer]]
    share: JudgedShare


class _NoRow(Exception):
    """There is nothing to write."""


def export(
    engine: Engine,
    out: Path,
    *,
    from_utc: datetime | None = None,
    to_utc: datetime | None = None,
    without_tenants: Collection[str] = (),
    progress: Progress | None = None,
) -> Exported:
    """Write a row for each labelled request. Packed if `out` ends in .gz.

    What was at `out` is replaced only when the new rows are whole, and there is one.
    """
    found = Exported()
    known = read_known(engine, found, from_utc, to_utc, without_tenants)
    found.labelled = len(known.labels)
    with suppress(_NoRow), whole_file(out) as file:
        for record in _records(engine, sorted(known.labels)):
            row = row_of(record, known)
            if isinstance(row, str):
                found.left_out[row] += 1
            else:
                file.write(json.dumps(row, ensure_ascii=True) + "\n")
                found.rows += 1
                found.explored += record.reason is Reason.EXPLORE
                found.shadowed += len(row["outcomes"]) > 1
            if progress is not None:
                progress(found.rows + found.left_out.total(), found.labelled)
        if not found.rows:
            raise _NoRow
    return found


def read_known(
    engine: Engine,
    found: Exported,
    from_utc: datetime | None,
    to_utc: datetime | None,
    without_tenants: Collection[str] = (),
) -> Known:
    """The first pass; notes in `found` what it has seen."""
    answered: list[tuple[str, str, float | None]] = []
    outcomes: list[LoggedOutcome] = []

    def calls() -> Iterator[AnsweredCall]:
        for row in label_sources.answered_requests(engine, from_utc, to_utc, without=without_tenants):
            answered.append((row.request_id, row.tier.value, row.complexity_ratio))
            yield AnsweredCall(
                row.request_id, row.tenant, row.session, row.prompt_sha256, row.requested_model, row.tier,
                row.received_at_us / 1e6, row.duration_us / 1e6,
            )  # fmt: skip

    outcomes += retries(calls())
    told: list[tuple[str, str]] = []
    for opinion in label_sources.opinions(engine, from_utc, to_utc, without=without_tenants):
        told.append((opinion.request_id, opinion.tier))
        outcomes.append(
            LoggedOutcome(opinion.request_id, opinion.tier, opinion.score_ratio, "feedback", judge=opinion.tenant)
        )
    judged: dict[str, dict[str, JudgedAnswer]] = defaultdict(dict)
    for said in label_sources.judgements(engine, from_utc, to_utc, without=without_tenants):
        judged[said.request_id][said.tier] = said
        outcomes.append(
            LoggedOutcome(said.request_id, said.tier, said.quality_ratio, said.provenance, said.judge, said.model)
        )
    found.answered = len(answered)
    found.judgements = Counter(o.provenance for o in outcomes)
    report = combine(outcomes)
    found.capped_by_judge = dict(report.capped_by_judge)
    told += [(request_id, tier) for request_id, tiers in judged.items() if len(tiers) == 1 for tier in tiers]
    kept = [(request_id, tier) for request_id, tier in told if tier in report.labels.get(request_id, ())]
    share = judged_share(answered, kept)
    found.uneven = share.uneven()
    return Known(report.labels, judged, share)


def row_of(record: RoutingRecord, known: Known) -> dict[str, Any] | str:
    """The labelled row of `record`, or why there is none. Pure."""
    taken = record.attempts[-1] if record.attempts else None
    decision, features = record.decision, record.features
    if taken is None or decision is None or features is None:
        return "no_record"
    if record.prompt_text is None:
        return "prompt_not_kept"
    if record.reason is Reason.FALLBACK_AFTER_ERROR:
        return "answered_by_fallback"
    if record.reason in _NO_CHOICE or len(_open_tiers(record)) < 2:
        return "no_choice_was_made"
    tier = taken.tier.value
    labels, judged = known.labels[record.request_id], known.judged.get(record.request_id, {})
    models = {t: said.model for t, said in judged.items() if t in labels} | {tier: taken.model}
    tokens = {t: said.output_tokens for t, said in judged.items() if said.output_tokens is not None}
    if taken.usage is not None:
        tokens[tier] = taken.usage.output_tokens
    observation, label_probability, selection = _probabilities(record, tier, labels, judged, known.share)
    row: dict[str, Any] = {
        "request_id": record.request_id,
        "source": SOURCE,
        "received_at": record.received_at_utc.isoformat(),
        "conversation": record.session or "",
        "messages": _messages(record.prompt_text),
        "input_tokens": features.input_tokens,
        "outcomes": {t: round(label.quality_ratio, 6) for t, label in sorted(labels.items())},
        "models": models,
        "output_tokens": tokens,
        "weight": max(label.weight for label in labels.values()),
        "label_source": "+".join(sorted({p for label in labels.values() for p in label.provenances})),
        "taken_tier": tier,
        "exploration_probability": record.exploration_probability or 1.0,  # 0 in books older than exploration
        "label_probability": label_probability,
        "observation_probability": observation,
        "selection_probability": selection,
    }
    row |= {"tools": True} if features.has_tools else {}
    row |= {"response_format": {"type": "json_object"}} if features.wants_json else {}
    row |= {"max_tokens": features.max_output_tokens} if features.max_output_tokens is not None else {}
    return row


def _probabilities(
    record: RoutingRecord,
    taken: str,
    labels: Mapping[str, Label],
    judged: Mapping[str, JudgedAnswer],
    share: JudgedShare,
) -> tuple[dict[str, float], float, float]:
    """P(outcome seen | in the file) per tier, P(judged), and P(such a request is in the file).

    A shadow run knows all three. Else tier k is seen with pi_k q_k / sum_j pi_j q_j, where pi is the probability of the
    action and q the share of a tier's answers to such prompts that are judged at all; the sum is that of being here.
    """
    shadows = {t: said for t, said in judged.items() if t in labels}
    if set(shadows) - {taken}:
        own = shadows.get(taken)
        seen = {t: said.action_probability for t, said in shadows.items()}
        if own is None and taken in labels:
            seen[taken] = 1.0
        selected = max(said.label_probability for said in shadows.values())
        return seen, selected, selected
    decision = record.decision
    actions = dict(decision.action_probability) if decision is not None else {}
    actions = actions or {taken: record.exploration_probability or 1.0}
    complexity = decision.score.complexity_ratio if decision is not None and decision.score is not None else None
    ratio = share.of(taken, complexity) or 1.0
    among = sum(p * (share.of(t, complexity) or ratio) for t, p in actions.items())
    if among <= 0.0:
        return {taken: 1.0}, ratio, ratio
    return {taken: min(1.0, actions.get(taken, 1.0) * ratio / among)}, ratio, min(1.0, among)


def _open_tiers(record: RoutingRecord) -> set[str]:
    """Tiers that could have answered, as the decision saw them."""
    if record.decision is None:
        return set()
    return {a.tier.value for a in record.decision.alternatives if set(a.reasons) <= _SOFT}


def _messages(kept: str) -> list[dict[str, Any]]:
    """The conversation; texts kept without their roles are taken as one message of the user."""
    try:
        messages = json.loads(kept)  # half characters and all
    except (ValueError, RecursionError):
        messages = None
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        return messages
    return [{"role": "user", "content": kept}]


def _records(engine: Engine, request_ids: Sequence[str]) -> Iterator[RoutingRecord]:
    for start in range(0, len(request_ids), _PAGE_IDS):
        yield from queries.records_of(engine, request_ids[start : start + _PAGE_IDS])
