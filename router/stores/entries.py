"""What travels between the event loop and the ledger's two threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from router.errors import Unavailable
from router.stores.events import Event


@dataclass(frozen=True, slots=True)
class WriterConfig:
    """Bounds in time and space.

    `stall_s`: how long an event waits for the database before it is spooled; longer than a starved machine lets its
    threads wait, since nobody waits but those whom the journal has not served. `give_up_s`: how long before it is
    refused when nothing answers at all. `linger_s`: how long events may wait for company. `retry_s` doubles up to
    `max_retry_s` between tries to reach the database.
    """

    stall_s: float = 1.0
    give_up_s: float = 5.0
    linger_s: float = 0.02
    retry_s: float = 0.25
    max_retry_s: float = 2.0
    max_batch_events: int = 512
    max_queued_events: int = 10_000
    max_spool_bytes: int = 256 * 2**20
    max_journal_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class LedgerState:
    """How the books are doing. `spooled_events` wait on disk, `held_events` in memory for the database to return.

    `dropped_events` found room nowhere: each may cost a booking, and an alert was raised.
    """

    healthy: bool
    reason: str | None
    spooled_events: int = 0
    held_events: int = 0
    dropped_events: int = 0


class Entry:
    """An event on its way; without an event it is a mark that travels along.

    `spends` says that money hangs on its being durable. `refused` says that its caller has been told no: nobody needs
    to write it any more. `handed` says that the spooler has been given it. `segment` is the file of the journal that
    holds it already.
    """

    __slots__ = ("at_s", "event", "future", "handed", "known", "refused", "segment", "spends")

    def __init__(
        self,
        event: Event | None,
        future: asyncio.Future[bool] | None,
        at_s: float,
        *,
        spends: bool = False,
        segment: object = None,
    ) -> None:
        self.event = event
        self.future = future
        self.at_s = at_s
        self.spends = spends
        self.known = True
        self.handed = False
        self.refused = False
        self.segment = segment


class Callers:
    """Those who wait. Told from any thread, in one hop to the loop for a whole batch."""

    def __init__(self, warn: Callable[[str, dict[str, str]], None], release: Callable[[Sequence[Entry]], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._warn = warn
        self._release = release

    def durable(self, entries: Sequence[Entry]) -> None:
        """Their events are in the database, or in the spool: the journal need not keep them, nobody need wait."""
        self._release(entries)
        self.done(entries)

    def done(self, entries: Iterable[Entry]) -> None:
        """They need not wait any longer."""
        waiting = [e for e in entries if e.future is not None]
        if waiting:
            self._call(_resolve, waiting)

    def refuse(self, entries: Iterable[Entry]) -> None:
        """Their events are not, and cannot be made so."""
        waiting = [e for e in entries if e.future is not None]
        for entry in waiting:
            entry.refused = True
        if waiting:
            self._call(_refuse, waiting)

    def warn(self, event: str, **labels: str) -> None:
        """Raise an alert, on the loop's thread."""
        self._call(self._warn, event, labels)

    def call(self, function: Callable[[], object]) -> None:
        """Run `function` on the loop's thread."""
        self._call(function)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)


def _resolve(entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.future is not None and not entry.future.done():
            entry.future.set_result(entry.known)


def _refuse(entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.future is not None and not entry.future.done():
            entry.future.set_exception(
                Unavailable(
                    "Neither the database nor the spool in server.data_dir can record this request.",
                    code="ledger_unavailable",
                )
            )
