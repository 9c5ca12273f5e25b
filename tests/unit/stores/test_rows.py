"""Nouns survive the way to a row and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.attempts import RoutingRecord
from router.core.request import TokenUsage
from router.core.vocabulary import Flag, Outcome, Tier
from router.stores.events import Opened, Released, Reserved, Settled
from router.stores.rows import (
    ATTEMPT_COLUMNS,
    EVENTS_AT_ONCE,
    OPEN_COLUMNS,
    REQUEST_COLUMNS,
    Worlds,
    attempt_of,
    batch_of,
    from_us,
    record_of,
    storable,
    to_us,
)
from tests.ledger_samples import NOON, WORLD, hold, opened, settled, tried


def stored_and_read(record: RoutingRecord) -> RoutingRecord:
    batch = batch_of([Settled(record, True)], Worlds())
    row = dict(zip(REQUEST_COLUMNS, batch.requests[0], strict=True))
    row["body"] = batch.worlds.get(row["world_hash"])
    return record_of(row, [attempt_of(dict(zip(ATTEMPT_COLUMNS, a, strict=True))) for a in batch.attempts])


def test_a_record_reads_back_as_it_was_written() -> None:
    record = settled("r", tried(1, outcome=Outcome.TIMEOUT), tried(2, tier=Tier.LOCAL, amount_nanousd=7))
    assert stored_and_read(record) == record


def test_a_record_without_features_score_or_decision_reads_back() -> None:
    record = settled("r", rich=False)
    assert stored_and_read(record) == record


def test_the_scored_text_is_never_kept() -> None:
    record = settled("r")
    assert record.features is not None
    told = replace(record, features=msgspec.structs.replace(record.features, text="my password is hunter2"))
    batch = batch_of([Settled(told, True)], Worlds())
    assert "hunter2" not in repr(batch)


def test_the_cost_of_a_request_is_the_sum_of_its_attempts_whatever_the_record_says() -> None:
    record = replace(settled("r", tried(1, amount_nanousd=3), tried(2, amount_nanousd=4)), cost_nanousd=99)
    assert stored_and_read(record).cost_nanousd == 7


def test_only_the_last_attempt_is_marked_as_last() -> None:
    batch = batch_of([Settled(settled("r", tried(1), tried(3), tried(2)), True)], Worlds())
    marks = {row[1]: row[ATTEMPT_COLUMNS.index("is_last")] for row in batch.attempts}
    assert marks == {1: 0, 2: 0, 3: 1}


def test_of_two_settlements_of_one_request_in_a_batch_the_first_counts() -> None:
    first, second = settled("r", tried(1, amount_nanousd=3)), settled("r", tried(1), tried(2))
    batch = batch_of([Settled(first, True), Settled(second, True)], Worlds())
    assert [len(batch.requests), len(batch.attempts)] == [1, 1]


def test_a_reservation_is_one_row_that_carries_the_hold() -> None:
    batch = batch_of([Reserved(hold("r", reserve_nanousd=900), "me"), Opened(opened("r", number=2), "me")], Worlds())
    rows = [dict(zip(OPEN_COLUMNS, row, strict=False)) for row in batch.opened]
    assert [(row["number"], row["hold_nanousd"], row["instance"]) for row in rows] == [(1, 900, "me"), (2, 0, "me")]


def test_a_world_is_named_once_for_many_records() -> None:
    batch = batch_of([Settled(settled(f"r{i}"), True) for i in range(5)], Worlds())
    assert list(batch.worlds.values()) == [WORLD.decode()]


def test_candidates_of_a_record_without_its_world_are_names_only() -> None:
    decision = stored_and_read(settled("r", world=None)).decision
    assert decision is not None
    assert [(c.name, c.tier, c.provider) for c in decision.ranked][:1] == [("local/llama", Tier.LOCAL, "")]


def test_usage_that_was_never_told_stays_unknown() -> None:
    record = settled("r", replace(tried(), usage=None))
    assert stored_and_read(record).attempts[0].usage is None


def test_flags_of_usage_and_of_the_charge_stay_apart() -> None:
    usage = TokenUsage(1, 2, estimated=True, flags=(Flag.USAGE_ESTIMATED, Flag.USAGE_INCONSISTENT))
    attempt = stored_and_read(settled("r", replace(tried(), usage=usage))).attempts[0]
    assert (attempt.usage, attempt.charge.flags) == (usage, (Flag.PEAK_HOURS,))


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_moment_survives_to_the_microsecond(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment


def test_a_moment_is_the_same_in_every_time_zone() -> None:
    assert to_us(NOON.astimezone(timezone(timedelta(hours=-7)))) == to_us(NOON)


@pytest.mark.parametrize(
    ("text", "kept"),
    [(None, None), ("plain", "plain"), ("naïve 🎈", "naïve 🎈"), ("a\x00b", "a\ufffdb"), ("a\ud800b", "a?b")],
)
def test_text_no_database_can_keep_is_mended(text: str | None, kept: str | None) -> None:
    assert storable(text) == kept


def test_a_large_batch_gives_way_now_and_then_and_a_small_one_does_not() -> None:
    def pauses(events: int) -> int:
        given: list[int] = []
        batch_of([Released(f"r{i}", "t") for i in range(events)], Worlds(), lambda: given.append(1))
        return len(given)

    assert [pauses(EVENTS_AT_ONCE - 1), pauses(EVENTS_AT_ONCE), pauses(5 * EVENTS_AT_ONCE)] == [0, 1, 5]
