"""The thread that spools: takes what the database does not, group by group, and keeps what even the disk refuses."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from router.stores.entries import Callers, Entry, WriterConfig
from router.stores.spool import Spool


class Spooler:
    """Owns the spool's writing side. `put` is called from any thread."""

    def __init__(self, spool: Spool, config: WriterConfig, callers: Callers, appended: Callable[[], None]) -> None:
        self._spool = spool
        self._config = config
        self._callers = callers
        self._appended = appended
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        self._held: deque[Entry] = deque()
        self._refusing = False
        self._unwritten = 0  # given to us and not yet on disk, held or dropped: no moment at which an event is unseen
        self._counting = threading.Lock()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="ledger-spool", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Spool `entry` if nobody has asked for that before; refused when too many wait."""
        if entry.handed:
            return
        entry.handed = True
        if self._queue.qsize() < self._config.max_queued_events:
            self._count(entry.event is not None)
            self._queue.put(entry)
        else:
            self._drop(entry)

    def stop(self) -> None:
        """Finish what is queued, then end."""
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; has it come?"""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def waiting_events(self) -> int:
        """Events in memory that are neither on disk nor in the database."""
        return len(self._held) + self._unwritten

    @property
    def holds(self) -> bool:
        """Is anything kept in memory because the disk refused it?"""
        return bool(self._held)

    def take_held(self) -> list[Entry]:
        """What the disk refused, for the database to take; `hold` gives it back."""
        entries = []
        while self._held:
            try:
                entries.append(self._held.popleft())
            except IndexError:  # the other thread was quicker
                break
        return entries

    def hold(self, entry: Entry) -> None:
        """Keep an event in memory, within bounds."""
        if len(self._held) < self._config.max_queued_events:
            self._held.append(entry)
        else:
            self._drop(entry)

    def _count(self, change: int) -> None:
        with self._counting:
            self._unwritten += change

    def _drop(self, entry: Entry) -> None:
        self.dropped += 1
        self._callers.warn("ledger_event_dropped", cause="queue_full")
        self._callers.refuse([entry])

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch: list[Entry] = []
            try:
                # While something is held the disk is tried again and again; else there is nothing to do.
                item = self._queue.get(timeout=self._config.max_retry_s if self._held else None)
                while True:
                    if item is None:
                        stopping = True
                    else:
                        batch.append(item)
                    if len(batch) >= self._config.max_batch_events:
                        break
                    item = self._queue.get_nowait()
            except Empty:
                pass
            if stopping and not self._queue.empty():
                stopping = False
                self._queue.put(None)
            self._write(batch)
        self.dropped += len(self._held)
        if self._held:
            self._callers.warn("ledger_event_dropped", cause="closing")

    def _write(self, batch: list[Entry]) -> None:
        held = self.take_held()
        in_hand = sum(e.event is not None for e in batch)
        self._count(len(held))
        try:
            self._put_away(held, batch)
        finally:
            self._count(-len(held) - in_hand)

    def _put_away(self, held: list[Entry], batch: list[Entry]) -> None:
        entries = held + [e for e in batch if not e.refused]
        events = [e.event for e in entries if e.event is not None]
        if events:
            try:
                self._spool.append(events)
            except UnicodeEncodeError:
                self._write_singly(entries)
                return
            except OSError as error:
                self._refused(held, batch, error)
                return
            self._refusing = False
            self._appended()
        self._callers.durable(entries)
        self._callers.done(batch)

    def _write_singly(self, entries: list[Entry]) -> None:
        """One of them cannot be written as text; the others shall not suffer."""
        for entry in entries:
            try:
                if entry.event is not None:
                    self._spool.append([entry.event])
                self._callers.durable([entry])
            except UnicodeEncodeError:
                self.dropped += 1
                self._callers.warn("ledger_event_rejected", cause="encoding")
                self._callers.refuse([entry])
            except OSError:
                self.hold(entry)
        self._appended()

    def _refused(self, held: list[Entry], batch: list[Entry], error: OSError) -> None:
        if not self._refusing:
            self._refusing = True
            self._callers.warn("ledger_spool_failed", cause=type(error).__name__)
        for entry in held:
            self.hold(entry)
        for entry in batch:
            if entry.refused:
                continue
            # Money is only spent on what is durable. What costs nothing, or is over, waits in memory.
            if entry.spends:
                self._callers.refuse([entry])
            elif entry.event is not None:
                self.hold(entry)
        self._callers.done([e for e in batch if not e.refused])
        self._appended()  # the database may have come back
