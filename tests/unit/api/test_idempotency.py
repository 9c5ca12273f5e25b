from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.api.idempotency import IdempotencyStore, Recording, Replay
from router.errors import BadRequest, IdempotencyConflict

HEADERS = [(b"x-request-id", b"r1")]


class Watch:
    """A clock that stands until told otherwise."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s


def store(watch: Watch | None = None, **limits: int) -> IdempotencyStore:
    return IdempotencyStore(now_s=(watch or Watch()).now_s, **limits)


async def first(kept: IdempotencyStore, key: str = "k", digest: str = "d", tenant: str = "t") -> Recording:
    claim = await kept.begin(tenant, key, digest)
    assert isinstance(claim, Recording)
    return claim


async def test_the_same_request_again_gets_the_same_answer() -> None:
    kept = store()
    (await first(kept)).keep(200, HEADERS, b"answer")
    assert await kept.begin("t", "k", "d") == Replay(200, tuple(HEADERS), b"answer")
    assert await kept.begin("t", "k", "d") == Replay(200, tuple(HEADERS), b"answer")


async def test_another_body_under_the_key_is_a_conflict_while_running_and_after() -> None:
    kept = store()
    running = await first(kept)
    with pytest.raises(IdempotencyConflict, match="another request"):
        await kept.begin("t", "k", "other")
    running.keep(200, HEADERS, b"a")
    with pytest.raises(IdempotencyConflict, match="another request"):
        await kept.begin("t", "k", "other")


async def test_tenants_do_not_share_keys() -> None:
    kept = store()
    (await first(kept)).keep(200, HEADERS, b"a")
    assert isinstance(await kept.begin("stranger", "k", "other"), Recording)


async def test_while_the_first_is_at_work_the_others_wait_for_its_answer() -> None:
    kept = store()
    running = await first(kept)
    others = [asyncio.ensure_future(kept.begin("t", "k", "d")) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(other.done() for other in others)
    running.keep(200, HEADERS, b"a")
    assert [answer.body for answer in await asyncio.gather(*others) if isinstance(answer, Replay)] == [b"a"] * 5


async def test_when_the_first_fails_exactly_one_of_those_waiting_takes_over() -> None:
    kept = store()
    running = await first(kept)
    others = [asyncio.ensure_future(kept.begin("t", "k", "d")) for _ in range(3)]
    await asyncio.sleep(0)
    running.release()
    done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    (taken,) = [task.result() for task in done]
    assert isinstance(taken, Recording)
    taken.keep(201, [], b"second")
    for other in waiting:
        assert await other == Replay(201, (), b"second")


async def test_a_waiter_who_leaves_harms_nobody() -> None:
    kept = store()
    running = await first(kept)
    leaver, stayer = (asyncio.ensure_future(kept.begin("t", "k", "d")) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    running.keep(200, [], b"a")
    assert await stayer == Replay(200, (), b"a")
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_what_ends_without_an_answer_frees_its_key() -> None:
    kept = store()
    with pytest.raises(RuntimeError), await first(kept):
        raise RuntimeError
    assert len(kept) == 0
    (await first(kept, digest="other body")).release()


async def test_the_first_word_about_an_end_stands() -> None:
    kept = store()
    recording = await first(kept)
    recording.keep(200, [], b"a")
    recording.release()
    recording.keep(500, [], b"b")
    assert await kept.begin("t", "k", "d") == Replay(200, (), b"a")


async def test_after_a_day_the_key_is_fresh() -> None:
    watch = Watch()
    kept = store(watch)
    (await first(kept)).keep(200, [], b"a")
    watch.at_s = 86_399.0
    assert isinstance(await kept.begin("t", "k", "d"), Replay)
    watch.at_s = 86_400.0
    assert isinstance(await kept.begin("t", "k", "other body"), Recording)


async def test_an_answer_too_large_to_keep_is_refused_rather_than_paid_twice() -> None:
    kept = store(max_answer_bytes=5_000)
    (await first(kept)).keep(200, [], b"x" * 5_001)
    assert kept.total_bytes < 5_000
    with pytest.raises(IdempotencyConflict) as caught:
        await kept.begin("t", "k", "d")
    assert caught.value.code == "idempotency_answer_gone"


async def test_the_oldest_answers_make_room_for_new_ones() -> None:
    kept = store(max_total_bytes=20_000, max_answer_bytes=10_000)
    for i in range(4):
        (await first(kept, key=f"k{i}")).keep(200, [], b"x" * 6_000)
    assert kept.total_bytes <= 20_000
    with pytest.raises(IdempotencyConflict):
        await kept.begin("t", "k0", "d")
    assert isinstance(await kept.begin("t", "k3", "d"), Replay)


async def test_the_oldest_keys_go_when_there_are_too_many() -> None:
    kept = store(max_entries=3)
    for i in range(5):
        (await first(kept, key=f"k{i}")).keep(200, [], b"a")
    assert len(kept) == 3
    assert isinstance(await kept.begin("t", "k0", "d"), Recording)
    assert isinstance(await kept.begin("t", "k4", "d"), Replay)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "clé", "\x7f"])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await store().begin("t", key, "d")
    assert caught.value.param == "Idempotency-Key"


async def test_the_longest_key_is_taken() -> None:
    assert isinstance(await store().begin("t", "x" * 255, "d"), Recording)


class Bounds(RuleBasedStateMachine):
    """Whatever is done in whatever order: bounds hold, and a kept answer is never another request's."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()
        self.kept = store(self.watch, max_entries=4, max_total_bytes=9_000, max_answer_bytes=3_000)
        self.loop = asyncio.new_event_loop()
        self.running: dict[str, tuple[str, Recording]] = {}

    def teardown(self) -> None:
        self.loop.close()

    @rule(key=st.sampled_from("abcdef"), digest=st.sampled_from("xy"), size=st.sampled_from([0, 1_000, 2_500]),
          end=st.sampled_from(["keep", "release", "leave"]))  # fmt: skip
    def ask(self, key: str, digest: str, size: int, end: str) -> None:
        if key in self.running:
            return
        try:
            claim = self.loop.run_until_complete(self.kept.begin("t", key, digest))
        except IdempotencyConflict:
            return
        if isinstance(claim, Replay):
            assert claim.body.startswith(f"{key}{digest}".encode())
        elif end == "keep":
            claim.keep(200, HEADERS, f"{key}{digest}".encode() + b"." * size)
        elif end == "release":
            claim.release()
        else:
            self.running[key] = (digest, claim)

    @rule(size=st.sampled_from([0, 2_500]))
    def finish_one(self, size: int) -> None:
        if self.running:
            key, (digest, claim) = self.running.popitem()
            claim.keep(200, HEADERS, f"{key}{digest}".encode() + b"." * size)

    @rule(hours=st.integers(1, 30))
    def wait(self, hours: int) -> None:
        self.watch.at_s += hours * 3600.0

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.kept) - len(self.running) <= 4
        assert 0 <= self.kept.total_bytes <= 9_000
        if len(self.kept) == len(self.running):
            assert self.kept.total_bytes == 0


TestBounds = Bounds.TestCase
TestBounds.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
