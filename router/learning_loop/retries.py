"""Who asked again was perhaps not content: weak evidence against the first answer. Pure; computed from the books.

Two signs count, both only within `WITHIN_S` of the end of the first answer:

- the same prompt again from the same caller, in one session or with a better model asked for by name;
- the next request of a session asks for a higher tier by name.

A later request that the *router* sent higher says nothing: nobody was discontent, the engine may have been full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from classifier.datamodels import LoggedOutcome
from router.core.vocabulary import TIER_ORDER, Tier

WITHIN_S = 120.0
_UNDEMANDING = frozenset({"", "auto", "auto:cheap", "auto:local"})


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """One answered request, as much of it as tells a repetition. Times in seconds since 1970."""

    request_id: str
    tenant: str
    session: str | None
    prompt_sha256: str
    requested_model: str
    tier: Tier
    received_at_s: float
    duration_s: float


def retries(calls: Iterable[AnsweredCall], *, within_s: float = WITHIN_S) -> Iterator[LoggedOutcome]:
    """Evidence from `calls`, which come in order of `received_at_s`; each earlier answer is doubted once at most.

    The caller counts as the judge, so that no key's evidence outweighs the rest. Memory: the calls of `within_s`.
    """
    before: OrderedDict[tuple[str, ...], AnsweredCall] = OrderedDict()
    doubted: OrderedDict[str, float] = OrderedDict()
    for call in calls:
        keys = [("prompt", call.tenant, call.prompt_sha256)]
        if call.session is not None:
            keys.append(("session", call.tenant, call.session))
        for key in keys:
            earlier = before.get(key)
            if (
                earlier is not None
                and earlier.request_id not in doubted
                and _is_retry(earlier, call, same_prompt=key[0] == "prompt", within_s=within_s)
            ):
                doubted[earlier.request_id] = call.received_at_s
                yield LoggedOutcome(earlier.request_id, earlier.tier.value, 0.0, "escalation", judge=call.tenant)
            before[key] = call
            before.move_to_end(key)
        _forget(before, doubted, call.received_at_s, within_s)


def _is_retry(earlier: AnsweredCall, later: AnsweredCall, *, same_prompt: bool, within_s: float) -> bool:
    if later.received_at_s - (earlier.received_at_s + earlier.duration_s) > within_s:
        return False
    asked = later.requested_model not in _UNDEMANDING and later.requested_model != earlier.requested_model
    higher = TIER_ORDER[later.tier] > TIER_ORDER[earlier.tier]
    if same_prompt:
        return (asked and higher) or (later.session is not None and later.session == earlier.session)
    return asked and higher


def _forget(
    before: OrderedDict[tuple[str, ...], AnsweredCall], doubted: OrderedDict[str, float], now_s: float, within_s: float
) -> None:
    """Drop what is too old to be asked again; an answer that took hours is dropped after those hours."""
    while before:
        oldest = next(iter(before.values()))
        if oldest.received_at_s + oldest.duration_s + within_s >= now_s:
            break
        before.popitem(last=False)
    while doubted and next(iter(doubted.values())) + 10 * within_s < now_s:
        doubted.popitem(last=False)
