"""Idempotency-Key: the same request sent again gets the same answer, and is paid once.

The store lives in the process: it does not outlive a restart, and workers do not share it. What is kept is bounded in
entries, bytes and age. Where an answer was too large to keep, or had to make room, only the fact is kept: a repetition
is then refused (409, `idempotency_answer_gone`) rather than paid a second time. The oldest facts go when there are too
many entries.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from router.errors import BadRequest, IdempotencyConflict

DAY_S = 86_400.0
MAX_KEY_CHARS = 255
_ENTRY_BYTES = 1_000  # what an entry takes besides its answer, roughly

Header = tuple[bytes, bytes]
_Slot = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Replay:
    """An answer given before. `body` is the whole of it; of a stream, all its events."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    @property
    def size_bytes(self) -> int:
        """What keeping it takes."""
        return _ENTRY_BYTES + len(self.body) + sum(len(name) + len(value) for name, value in self.headers)


@dataclass(slots=True)
class _Running:
    digest: str
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Kept:
    digest: str
    kept_at_s: float
    answer: Replay | None  # None: gone, or too large

    @property
    def size_bytes(self) -> int:
        return _ENTRY_BYTES if self.answer is None else self.answer.size_bytes


class Recording:
    """The right to work on a key, and the duty to say how it ended: `keep` the answer or `release` the key.

    Both are idempotent, the first wins. As a context manager it releases on the way out, whatever happened, unless
    the answer was kept.
    """

    def __init__(self, store: IdempotencyStore, slot: _Slot) -> None:
        self._store = store
        self._slot = slot
        self._open = True

    def keep(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Whoever comes with this key gets this answer."""
        if self._open:
            self._open = False
            self._store._end(self._slot, Replay(status, tuple(headers), body))

    def release(self) -> None:
        """Nothing was paid, or nothing complete can be given back: the key may be used afresh."""
        if self._open:
            self._open = False
            self._store._end(self._slot, None)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class IdempotencyStore:
    """Answers by (tenant, key). `now_s` is a monotonic clock; one event loop."""

    def __init__(
        self,
        *,
        now_s: Callable[[], float],
        ttl_s: float = DAY_S,
        max_entries: int = 10_000,
        max_total_bytes: int = 64_000_000,
        max_answer_bytes: int = 4_000_000,
    ) -> None:
        self._now_s = now_s
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._max_total_bytes = max_total_bytes
        self._max_answer_bytes = max_answer_bytes
        self._running: dict[_Slot, _Running] = {}
        self._kept: OrderedDict[_Slot, _Kept] = OrderedDict()  # oldest first
        self._answers: OrderedDict[_Slot, None] = OrderedDict()  # those of `_kept` that still have their answer
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        """What the kept entries take, roughly."""
        return self._total_bytes

    def __len__(self) -> int:
        return len(self._kept) + len(self._running)

    async def begin(self, tenant: str, key: str, digest: str) -> Recording | Replay:
        """The answer given before, or the right to make it. Waits while the same request is being worked on.

        `digest` tells one body from another. Raises `BadRequest` for a key that is none, `IdempotencyConflict` when
        the key was used for another request or its answer is no longer there.
        """
        _check_key(key)
        slot = (tenant, key)
        while True:
            self._forget_expired()
            running = self._running.get(slot)
            if running is None:
                break
            _same(running.digest, digest)
            await running.ended.wait()
        kept = self._kept.get(slot)
        if kept is None:
            self._running[slot] = _Running(digest)
            return Recording(self, slot)
        _same(kept.digest, digest)
        if kept.answer is None:
            raise IdempotencyConflict(
                "this Idempotency-Key was answered, but the answer was too large to keep or had to make room; "
                "use a new key to ask again",
                code="idempotency_answer_gone",
                param="Idempotency-Key",
            )
        return kept.answer

    def _end(self, slot: _Slot, answer: Replay | None) -> None:
        running = self._running.pop(slot)
        if answer is not None:
            fits = answer.size_bytes <= self._max_answer_bytes
            kept = _Kept(running.digest, self._now_s(), answer if fits else None)
            self._kept[slot] = kept
            self._total_bytes += kept.size_bytes
            if fits:
                self._answers[slot] = None
            self._make_room()
        running.ended.set()

    def _make_room(self) -> None:
        while len(self._kept) > self._max_entries:
            self._forget(next(iter(self._kept)))
        while self._total_bytes > self._max_total_bytes and self._answers:
            slot, _ = self._answers.popitem(last=False)
            kept = self._kept[slot]
            self._total_bytes -= kept.size_bytes
            kept.answer = None
            self._total_bytes += kept.size_bytes

    def _forget_expired(self) -> None:
        oldest_s = self._now_s() - self._ttl_s
        while self._kept:
            slot, kept = next(iter(self._kept.items()))
            if kept.kept_at_s > oldest_s:
                return
            self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        self._total_bytes -= self._kept.pop(slot).size_bytes
        self._answers.pop(slot, None)


def _check_key(key: str) -> None:
    if not 0 < len(key) <= MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise BadRequest(
            f"Idempotency-Key must be 1 to {MAX_KEY_CHARS} printable ASCII characters",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
        )


def _same(known: str, digest: str) -> None:
    if known != digest:
        raise IdempotencyConflict(
            "this Idempotency-Key was used for another request; use a new key", param="Idempotency-Key"
        )
