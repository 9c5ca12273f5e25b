"""Events may arrive any number of times, in any order, after any crash: the books come out the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.vocabulary import Tier
from router.stores import queries
from router.stores.database import Database
from router.stores.engines import parse_url, read_engine
from router.stores.events import Event, FeedbackGiven, Opened, Reserved, Settled
from tests.ledger_samples import NOON, hold, opened, settled, tried

RESERVE, PREMIUM_RESERVE = 900, 8000


def life(request_id: str, owner: str, tries: int, tier: Tier) -> list[Event]:
    """A request's events as they really come."""
    reserve = 0 if tier is Tier.LOCAL else RESERVE
    events: list[Event] = [Reserved(hold(request_id, tier=tier, reserve_nanousd=reserve), owner)]
    events += [
        Opened(opened(request_id, number=n, tier=Tier.PREMIUM, reserve_nanousd=PREMIUM_RESERVE), owner)
        for n in range(2, tries + 1)
    ]
    attempts = [tried(1, tier=tier, amount_nanousd=10)]
    attempts += [tried(n, tier=Tier.PREMIUM, amount_nanousd=100 * n) for n in range(2, tries + 1)]
    events.append(Settled(settled(request_id, *attempts, rich=False), True))
    return events


@contextmanager
def database(owner: str, folder: Path) -> Iterator[Database]:
    store = Database(parse_url(f"sqlite:///{folder}/ledger.db"), owner, lambda: NOON)
    store.connect()
    try:
        yield store
    finally:
        store.close()


def books(folder: Path) -> tuple[object, ...]:
    engine = read_engine(f"sqlite:///{folder}/ledger.db")
    report = queries.costs(engine)
    records = {r.request_id: (r.cost_nanousd, r.outcome, r.attempts) for r in queries.iterate_records(engine)}
    assert report.totals.cost_nanousd == sum(cost for cost, _, _ in records.values())
    assert report.totals.requests == sum(1 for _, _, attempts in records.values() if attempts)
    return report, sorted(records.items())


def in_batches(store: Database, events: Sequence[Event], sizes: Sequence[int]) -> None:
    start = 0
    for size in (*sizes, len(events)):
        store.apply(events[start : start + size])
        start += size


shapes = st.tuples(st.integers(1, 3), st.sampled_from([Tier.LOCAL, Tier.CHEAP]))
sizes = st.lists(st.integers(0, 5), max_size=6)


@settings(deadline=None, max_examples=12)
@given(data=st.data(), kinds=st.lists(shapes, min_size=1, max_size=4), first=sizes, second=sizes)
def test_any_order_and_any_repetition_gives_the_same_books(
    data: st.DataObject, kinds: list[tuple[int, Tier]], first: list[int], second: list[int]
) -> None:
    events = [e for i, (tries, tier) in enumerate(kinds) for e in life(f"r{i}", "me", tries, tier)]
    shuffled = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=6))))
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        with database("me", Path(a)) as store:
            store.apply(events)
        with database("me", Path(b)) as store:
            in_batches(store, shuffled, first)
            once = books(Path(b))
            in_batches(store, events, second)
        assert books(Path(a)) == once == books(Path(b))
        assert queries.costs(read_engine(f"sqlite:///{b}/ledger.db")).totals.open_reservations == 0


@settings(deadline=None, max_examples=12)
@given(data=st.data(), kinds=st.lists(shapes, min_size=1, max_size=3))
def test_a_crash_after_any_prefix_charges_every_request_once(
    data: st.DataObject, kinds: list[tuple[int, Tier]]
) -> None:
    """What was written before the crash may turn up again after it, and what was on its way may still arrive."""
    lives = [life(f"r{i}", "dead", tries, tier) for i, (tries, tier) in enumerate(kinds)]
    cuts = [data.draw(st.integers(0, len(events))) for events in lives]
    before = [e for events, cut in zip(lives, cuts, strict=True) for e in events[:cut]]
    with tempfile.TemporaryDirectory() as folder:
        with database("dead", Path(folder)) as store:
            store.apply(before)
        with database("next", Path(folder)) as store:
            store.resolve_dead()
            resolved = books(Path(folder))
            expected = 0
            for events, cut in zip(lives, cuts, strict=True):
                done = events[:cut]
                if any(isinstance(e, Settled) for e in done):
                    expected += sum(a.charge.amount_nanousd for a in done[-1].record.attempts)  # type: ignore[union-attr]
                else:
                    expected += sum(e.hold.reserve_nanousd if isinstance(e, Reserved) else e.attempt.reserve_nanousd
                                    for e in done if isinstance(e, Reserved | Opened))  # fmt: skip
            report = queries.costs(read_engine(f"sqlite:///{folder}/ledger.db"))
            assert (report.totals.cost_nanousd, report.totals.open_reservations) == (expected, 0)
            assert report.totals.requests == sum(1 for cut in cuts if cut)
            # The same lines once more, from a spool: nothing changes, and nothing stays open for long.
            store.apply(data.draw(st.permutations(before)))
            store.resolve_dead()
            assert books(Path(folder)) == resolved
            # The rest of each life, found late: the real settlement wins, once.
            rest = [e for events, cut in zip(lives, cuts, strict=True) for e in events[cut:]]
            in_batches(store, data.draw(st.permutations(rest)), [1, 2])
            store.resolve_dead()
        with tempfile.TemporaryDirectory() as clean:
            with database("dead", Path(clean)) as store:
                store.apply([e for events in lives for e in events])
            assert books(Path(folder)) == books(Path(clean))


def test_an_attempt_told_of_after_recovery_is_booked_by_the_next_recovery(tmp_path: Path) -> None:
    with database("dead", tmp_path) as store:
        store.apply([Reserved(hold("r"), "dead")])
    with database("next", tmp_path) as store:
        assert store.resolve_dead() == 1
        store.apply([Opened(opened("r", number=2, tier=Tier.PREMIUM, reserve_nanousd=8000), "dead")])
        assert store.resolve_dead() == 1
        assert store.resolve_dead() == 0
    totals = queries.costs(read_engine(f"sqlite:///{tmp_path}/ledger.db")).totals
    assert (totals.requests, totals.attempts, totals.cost_nanousd) == (1, 2, 8900)


def test_an_older_opinion_arriving_late_does_not_replace_the_newer_one(tmp_path: Path) -> None:
    with database("me", tmp_path) as store:
        store.apply([Settled(settled("r"), False)])
        assert store.apply([FeedbackGiven("r", "acme", 1.0, "new", 20)]) == [True]
        assert store.apply([FeedbackGiven("r", "acme", 0.0, "old", 10)]) == [True]
    found = list(queries.iterate_feedback(read_engine(f"sqlite:///{tmp_path}/ledger.db")))
    assert [f.comment for f in found] == ["new"]
