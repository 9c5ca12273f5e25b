"""What can happen in the books. Every event can be applied any number of times, in any order, with the same result."""

from __future__ import annotations

import msgspec

from router.core.attempts import AttemptOpened, Hold, RoutingRecord
from router.core.judgements import JudgedAnswer


class Reserved(msgspec.Struct, frozen=True, tag="reserved", tag_field="event"):
    """A hold and its first attempt. `instance` is the gateway that answers for it."""

    hold: Hold
    instance: str


class Opened(msgspec.Struct, frozen=True, tag="opened", tag_field="event"):
    """A further attempt of a request that has a hold."""

    attempt: AttemptOpened
    instance: str


class Settled(msgspec.Struct, frozen=True, tag="settled", tag_field="event"):
    """A finished request. `world_hash` names a world that is told by its own event; else it is in the record."""

    record: RoutingRecord
    hold_open: bool
    world_hash: str | None = None


class Released(msgspec.Struct, frozen=True, tag="released", tag_field="event"):
    """A reservation that came to nothing: its caller has been told no, or has gone."""

    request_id: str
    tenant: str


class WorldSeen(msgspec.Struct, frozen=True, tag="world", tag_field="event"):
    """What decisions rested on (`core.replay`), kept once under its hash."""

    world_hash: str
    body: str


class FeedbackGiven(msgspec.Struct, frozen=True, tag="feedback", tag_field="event"):
    """A caller's opinion on an answer; the last one of a tenant on a request counts. `tenant` None may judge any."""

    request_id: str
    tenant: str | None
    score: float
    comment: str | None
    received_at_us: int


class Judged(msgspec.Struct, frozen=True, tag="judged", tag_field="event"):
    """What a judge or a check has said of an answer; the last word of a judge on an answer counts."""

    answer: JudgedAnswer


Event = Reserved | Opened | Settled | Released | WorldSeen | FeedbackGiven | Judged
