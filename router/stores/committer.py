"""The thread that commits: everything queued becomes one transaction; while that runs, the next group gathers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import monotonic

from router.errors import RouterError
from router.stores.database import Store
from router.stores.engines import describe
from router.stores.entries import Callers, Entry, WriterConfig
from router.stores.events import Event, FeedbackGiven
from router.stores.lines import read
from router.stores.spool import Spool
from router.stores.spooler import Spooler

_STOP = object()
_NUDGE = None


class Committer:
    """Owns the store. `direct` says that events may be queued here; else they go to the spooler."""

    def __init__(
        self,
        store: Store,
        spool: Spool,
        spooler: Spooler,
        config: WriterConfig,
        callers: Callers,
        ready: Callable[[], None],
    ) -> None:
        self._store = store
        self._spool = spool
        self._spooler = spooler
        self._config = config
        self._callers = callers
        self._ready = ready
        self.urgent: SimpleQueue[object] = SimpleQueue()
        self.settled: deque[Entry] = deque()
        self.in_flight: Sequence[Entry] = ()
        self.direct = False
        self.reason: str | None = "the database has not been reached yet"
        self.fatal: RouterError | None = None
        self._connected = False
        self._tried = False  # to reach the database, ever
        self._born = False  # what we found at the start has been replayed and resolved
        self._missed = False  # the database has been away since it was last in order
        self._told = False
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)

    # -- from the loop's thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def nudge(self) -> None:
        """Look around: there may be something without a waiter. Called from any thread."""
        if self._connected:
            self.urgent.put(_NUDGE)

    def stop(self) -> None:
        """Commit what is queued, if the database is there, then end."""
        self.urgent.put(_STOP)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; has it come?"""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def hand_over(self, reason: str | None = None) -> None:
        """Give the spooler everything that is here, in flight or queued. Called from any thread."""
        self.direct = False
        if reason is not None:
            self.reason, self._missed = reason, True
        for entry in list(self.in_flight):
            self._spooler.put(entry)
        # As above: settled ones before the marks that may stand behind them.
        while self.settled:
            try:
                self._spooler.put(self.settled.popleft())
            except IndexError:  # the other thread was quicker
                break
        stop = False
        while True:
            try:
                item = self.urgent.get_nowait()
            except Empty:
                break
            if isinstance(item, Entry):
                self._spooler.put(item)
            stop = stop or item is _STOP
        if stop:
            self.urgent.put(_STOP)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = self._config.retry_s
        while self.fatal is None:
            if (self._connected or self._connect()) and self._caught_up():
                retry_s = self._config.retry_s
                if not self._commit_next():
                    return
                continue
            if self._stopped_within(retry_s):
                return
            retry_s = min(retry_s * 2, self._config.max_retry_s)

    def _connect(self) -> bool:
        first, self._tried = not self._tried, True
        try:
            self._store.connect()
            if not self._born:
                self._spool.adopt()
        except Exception as error:  # noqa: BLE001 - whatever it is, the gateway serves on
            if first and isinstance(error, RouterError):
                self.fatal = error  # no waiting cures it, and nothing has been promised yet
                self._callers.call(self._ready)
            else:
                self._outage(error)
            return False
        self._connected = True
        return True

    def _caught_up(self) -> bool:
        """Replay what was spooled and held; then events may come directly. False when the database fails or crawls."""
        if self.direct and not self._spool.pending and not self._spooler.holds:
            return True
        held = self._spooler.take_held()
        try:
            self._replay_spool()
            self._book([e.event for e in held if e.event is not None])
            self._callers.durable(held)
            held = []
            if not self._born:
                # After the spool: what it tells of is not lost.
                resolved = self._store.resolve_dead()
                self._born = True
                if resolved:
                    self._callers.warn("ledger_holds_resolved", count=str(resolved))
            started_s = monotonic()
            self._store.apply(())
        except Exception as error:  # noqa: BLE001 - see _connect
            for entry in held:
                self._spooler.hold(entry)
            self._outage(error)
            return False
        if monotonic() - started_s > self._config.stall_s / 2:
            self.direct, self.reason = False, "the database is slow"
            return False
        if not self.direct:
            if self._missed:
                self._callers.warn("ledger_recovered")
            self.direct, self._missed, self.reason = True, False, None
            self._callers.call(self._ready)
        return True

    def _replay_spool(self) -> None:
        if not self._spool.pending:
            return
        for path in self._spool.segments():
            events: list[Event] = []
            damaged: list[bytes] = []
            for line, event in read(path):
                if event is None:
                    damaged.append(line)
                    continue
                events.append(event)
                if len(events) >= self._config.max_batch_events:
                    self._book(events)
                    events = []
            self._book(events)
            if damaged:
                self._spool.set_aside_lines(damaged)
                self._callers.warn("ledger_spool_damaged", count=str(len(damaged)))
            self._spool.drop(path)
        self._spool.release_adopted()

    def _book(self, events: Sequence[Event]) -> tuple[list[bool], list[Event]]:
        """Apply `events`; one that the database refuses for its own sake is set aside so that the others pass.

        What the database said of the feedback among them, and what was set aside.
        """
        if not events:
            return [], []
        try:
            return self._store.apply(events), []
        except Exception as error:
            if not self._store.blames_event(error):
                raise
            if len(events) == 1:
                self._spool.set_aside(events)
                self._callers.warn("ledger_event_rejected", cause=type(error).__name__)
                return [False] if isinstance(events[0], FeedbackGiven) else [], [events[0]]
        known: list[bool] = []
        rejected: list[Event] = []
        for event in events:
            answers, bad = self._book([event])
            known += answers
            rejected += bad
        return known, rejected

    def _commit_next(self) -> bool:
        """Wait for something and commit it with all that has gathered. False when asked to stop and done."""
        batch: list[Entry] = []
        self.in_flight = batch
        stopping = False
        item = self.urgent.get()
        # First what nobody waits for: a mark behind it promises that it is durable.
        self._take_settled(batch)
        while True:
            if item is _STOP:
                stopping = True
            elif isinstance(item, Entry) and not item.refused:
                if item.event is None and (self.settled or self._spool.pending):
                    self.urgent.put(item)  # a mark: what came before it goes before it, what was spooled too
                    break
                batch.append(item)
            if len(batch) >= self._config.max_batch_events:
                break
            try:
                item = self.urgent.get_nowait()
            except Empty:
                break
        if batch:
            self._commit(batch)
        self.in_flight = ()
        if self.settled:
            self.nudge()
        if stopping and self._connected and (self.settled or not self.urgent.empty()):
            self.urgent.put(_STOP)
            return True
        return not stopping

    def _take_settled(self, batch: list[Entry]) -> None:
        while self.settled and len(batch) < self._config.max_batch_events:
            try:
                batch.append(self.settled.popleft())
            except IndexError:  # the watchdog was quicker
                return

    def _commit(self, batch: list[Entry]) -> None:
        try:
            known, rejected = self._book([e.event for e in batch if e.event is not None])
        except Exception as error:  # noqa: BLE001 - see _connect
            self._outage(error)
            return
        if known:
            asked = (e for e in batch if isinstance(e.event, FeedbackGiven))
            for entry, answer in zip(asked, known, strict=True):
                entry.known = answer
        if rejected:
            names = {id(event) for event in rejected}
            self._callers.refuse(e for e in batch if id(e.event) in names)
        self._callers.durable([e for e in batch if not e.refused])

    def _outage(self, error: Exception) -> None:
        """The database does not take it: everything here goes to the spool, and we try to reach it again."""
        was_direct, self._connected, self._missed = self.direct, False, True
        self.hand_over(describe(error))
        if was_direct or not self._told:
            self._told = True
            self._callers.warn("ledger_degraded", cause=type(error).__name__)
        self._store.disconnect()
        self._callers.call(self._ready)

    def _stopped_within(self, seconds: float) -> bool:
        """Wait; strays go to the spool. True when asked to stop."""
        until_s = monotonic() + seconds
        while (left_s := until_s - monotonic()) > 0:
            try:
                item = self.urgent.get(timeout=left_s)
            except Empty:
                break
            if item is _STOP:
                return True
            if isinstance(item, Entry):
                self._spooler.put(item)
        return False
