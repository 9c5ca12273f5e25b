"""From judgements to one quality per tier with a weight. Pure.

Sources of labels differ in how much they can be trusted; each carries a provenance and a weight, and no single key or
judge counts for more than `MAX_JUDGEMENTS_PER_JUDGE` requests, so that ten thousand thumbs-down of one caller cannot
turn a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from zlib import crc32

from classifier.datamodels import LoggedOutcome

PROVENANCE_WEIGHT: Mapping[str, float] = MappingProxyType(
    {
        "exact_check": 1.0,  # tests, schema, arithmetic, a known answer
        "shadow": 0.9,  # both answers compared
        "judge": 0.7,  # a judge model, blind, both orders
        "feedback": 0.5,  # POST /v1/feedback
        "escalation": 0.2,  # a retry on a higher tier soon after: weak evidence against the lower one
    }
)
ONE_SIDED = "escalation"  # only ever says no
MAX_JUDGEMENTS_PER_JUDGE = 200
MAX_SHARE_PER_JUDGE = 0.2
_CAPPED_PROVENANCES = frozenset({"feedback", "escalation"})


@dataclass(frozen=True, slots=True)
class Label:
    """Quality 0..1 of one tier's answer, with the weight and the kinds of evidence behind it."""

    quality_ratio: float
    weight: float
    provenances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Labels by request id and tier, and how many judgements were left out because one judge gave too many."""

    labels: Mapping[str, Mapping[str, Label]]
    used: int
    capped_by_judge: Mapping[str, int]
    unknown_provenance: int


def combine(outcomes: Iterable[LoggedOutcome]) -> LabelReport:
    """One label per (request, tier): the weighted mean of its judgements, weight that of the strongest.

    Of a judge's judgements `MAX_JUDGEMENTS_PER_JUDGE` count, and at most `MAX_SHARE_PER_JUDGE` of all feedback where
    there are several judges: an even sample by request id, so that neither old nor new ones are preferred. Of repeated
    judgements of one answer by one judge only the last one counts.
    """
    last: dict[tuple[str, str, str, str], LoggedOutcome] = {}
    unknown = 0
    for outcome in outcomes:
        if outcome.provenance not in PROVENANCE_WEIGHT or not 0.0 <= outcome.quality_ratio <= 1.0:
            unknown += 1
            continue
        last[(outcome.request_id, outcome.tier, outcome.provenance, outcome.judge)] = outcome
    kept, capped = _cap(list(last.values()))
    by_answer: dict[tuple[str, str], list[LoggedOutcome]] = defaultdict(list)
    for outcome in kept:
        by_answer[(outcome.request_id, outcome.tier)].append(outcome)
    labels: dict[str, dict[str, Label]] = defaultdict(dict)
    for (request_id, tier), judged in by_answer.items():
        labels[request_id][tier] = _label(judged)
    return LabelReport(labels=dict(labels), used=len(kept), capped_by_judge=capped, unknown_provenance=unknown)


def _cap(outcomes: Sequence[LoggedOutcome]) -> tuple[list[LoggedOutcome], dict[str, int]]:
    given: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        if outcome.provenance in _CAPPED_PROVENANCES:
            given[outcome.judge] += 1
    limit = MAX_JUDGEMENTS_PER_JUDGE
    if len(given) > 1:
        limit = min(limit, max(5, int(MAX_SHARE_PER_JUDGE * sum(min(n, limit) for n in given.values()))))
    chances: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, outcome in enumerate(outcomes):
        if outcome.provenance in _CAPPED_PROVENANCES:
            chances[outcome.judge].append((crc32(outcome.request_id.encode("utf-8", "replace")), i))
    left_out = {i for drawn in chances.values() for _, i in sorted(drawn)[limit:]}
    capped = {judge: len(drawn) - limit for judge, drawn in chances.items() if len(drawn) > limit}
    return [outcome for i, outcome in enumerate(outcomes) if i not in left_out], capped


def _label(judged: Sequence[LoggedOutcome]) -> Label:
    weights = [PROVENANCE_WEIGHT[o.provenance] for o in judged]
    quality = sum(w * o.quality_ratio for w, o in zip(weights, judged, strict=True)) / sum(weights)
    return Label(quality, max(weights), tuple(sorted({o.provenance for o in judged})))


def judged_quality(first_order: float | None, swapped_order: float | None) -> float | None:
    """Quality of an answer from two verdicts of one judge, the answers shown in both orders; each 0..1.

    A judge that changes its mind with the order has seen no difference: that is half, whichever it said first.
    `None` where a verdict is missing: half a judgement is not used.
    """
    if first_order is None or swapped_order is None:
        return None
    if (first_order - 0.5) * (swapped_order - 0.5) < 0.0:
        return 0.5
    return (first_order + swapped_order) / 2.0
