"""Makes events durable: one thread commits to the database in groups, another spools while that is away.

    loop ── reservation: one line in the journal, durable at once ─┐
         ── settlement (nobody waits) ─────────────────────────────┼─ committer: BEGIN … COMMIT ─ ok ─► forget, wake
         ── feedback, and what the journal could not take ─────────┘    └─ error, or no answer in time ─► spooler: write
                                                                                               replayed by the committer

While the database is away events go straight to the spooler. Since every event can be applied any number of times, in
any order, nobody has to know whether a commit that went wrong had happened: the events are spooled and replayed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from router.errors import Unavailable
from router.stores.committer import Committer
from router.stores.database import Store
from router.stores.entries import Callers, Entry, LedgerState, WriterConfig
from router.stores.events import Event
from router.stores.journal import Journal
from router.stores.spool import Spool
from router.stores.spooler import Spooler
from router.stores.stalls import StallClock

Warn = Callable[[str, dict[str, str]], None]


class Writer:
    """The loop's side: queues events, watches over those who wait. Every method is called on the loop's thread."""

    def __init__(self, store: Store, spool: Spool, journal: Journal, config: WriterConfig, warn: Warn) -> None:
        self._config = config
        self._store = store
        self._spool = spool
        self._journal = journal
        self._journal_again_at_s = 0.0
        self._callers = Callers(warn, journal.release)
        self._ready = asyncio.Event()
        self._spooler = Spooler(spool, config, self._callers, self._look_around)
        self._committer = Committer(store, spool, self._spooler, config, self._callers, self._ready.set)
        self._waiting: deque[Entry] = deque()
        self._outbox: list[Entry] = []
        self._stalls = StallClock(config.stall_s)
        self._watch: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._closed = False

    async def start(self, timeout_s: float) -> None:
        """Connect; after `timeout_s`, or at the first failure, go on without the database.

        Raises what no waiting can cure: LedgerInUse, SchemaError.
        """
        self._callers.loop = asyncio.get_running_loop()
        self._committer.start()
        self._spooler.start()
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            self._committer.reason = "the database does not answer"
            self._callers.warn("ledger_degraded", cause="timeout")
        if self._committer.fatal is not None:
            await self.close(timeout_s)
            raise self._committer.fatal

    def state(self) -> LedgerState:
        """A look, for readiness and metrics."""
        committer, spooler = self._committer, self._spooler
        spooled, held = self._spool.events, spooler.waiting_events
        healthy = committer.direct and not self._spool.pending and not held and not self._closed
        reason = None if healthy else (committer.reason or "what was spooled is being replayed")
        return LedgerState(healthy, reason, spooled, held, spooler.dropped)

    async def flush(self) -> None:
        """Wait until all that was queued before is durable, or in memory for want of anything better."""
        if self._callers.loop is None or self._closed:
            return
        # A mark on each way, since what was queued may have taken either.
        spooled = Entry(None, self._callers.loop.create_future(), self._callers.loop.time())
        self._spooler.put(spooled)
        await self.submit(None, spends=False)
        assert spooled.future is not None  # noqa: S101 - just made
        await spooled.future

    def promise(self, event: Event) -> bool:
        """Make `event` durable at once, in the journal. False when that cannot be: `submit` it then."""
        loop = self._callers.loop
        if loop is None or self._closed:
            return False
        now_s = loop.time()
        if now_s < self._journal_again_at_s:
            return False
        try:
            entry = self._journal.append(event, self._stalls.now_s(now_s))
        except (OSError, UnicodeEncodeError):
            self._journal_again_at_s = now_s + self._config.retry_s
            return False
        self._queue(entry)
        return True

    async def submit(self, event: Event | None, *, spends: bool) -> bool:
        """Wait until `event` is durable. Raises Unavailable when nothing takes it and money hangs on it.

        Without money it stays in memory then. The bool is what the database said of a FeedbackGiven, else True.
        """
        loop = self._callers.loop
        if loop is None or self._closed:
            raise Unavailable("The ledger is closed.", code="ledger_unavailable", closing=True)
        entry = Entry(event, loop.create_future(), self._stalls.now_s(loop.time()), spends=spends)
        self._waiting.append(entry)
        # Those of one turn of the loop go together: waking the committer costs more than what it then does for one.
        if not self._outbox:
            loop.call_soon(self._send_outbox)
        self._outbox.append(entry)
        self._keep_watch(loop)
        assert entry.future is not None  # noqa: S101 - just made
        return await entry.future

    def _send_outbox(self) -> None:
        outbox, self._outbox = self._outbox, []
        committer = self._committer
        for entry in outbox:
            if committer.direct and committer.urgent.qsize() < self._config.max_queued_events:
                committer.urgent.put(entry)
            else:
                self._spooler.put(entry)

    def post(self, event: Event) -> None:
        """Make `event` durable soon; nobody waits. Never blocks, never raises."""
        loop = self._callers.loop
        if self._closed:
            self._callers.warn("ledger_event_dropped", cause="closed")
            return
        self._queue(Entry(event, None, self._stalls.now_s(loop.time()) if loop is not None else 0.0))

    def _queue(self, entry: Entry) -> None:
        """On its way to the database, or to the spool; nobody waits."""
        loop, committer = self._callers.loop, self._committer
        if not committer.direct or len(committer.settled) >= self._config.max_queued_events:
            self._spooler.put(entry)
            return
        committer.settled.append(entry)
        # Those of a while go together: a request that begins and ends within it costs no row for its beginning.
        if self._linger is None and loop is not None:
            self._linger = loop.call_later(self._config.linger_s, self._nudge)

    def withdraw(self, event: Event) -> None:
        """`post` an event that undoes one whose way is unknown: it follows on both ways."""
        self.post(event)
        if self._committer.direct and (self._spool.pending or self._spooler.waiting_events):
            self._spooler.put(Entry(event, None, 0.0))

    def _nudge(self) -> None:
        """Nobody has come along for a while: the committer is woken for what has been settled."""
        self._linger = None
        loop, settled = self._callers.loop, self._committer.settled
        if loop is None or not settled:
            return
        try:
            left_s = settled[0].at_s + self._config.linger_s - self._stalls.now_s(loop.time())
        except IndexError:  # the committer was quicker
            return
        if left_s > 0.0:
            self._linger = loop.call_later(left_s, self._nudge)
            return
        self._committer.nudge()
        self._keep_watch(loop)

    def _keep_watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watch is None:
            self._stalls.arm(loop.time(), self._store.steps)
            self._watch = loop.call_later(self._stalls.tick_s, self._check)

    def _check(self) -> None:
        """Notice that the database does not answer; armed for as long as something is on its way."""
        loop, waiting = self._callers.loop, self._waiting
        assert loop is not None  # noqa: S101 - armed by those who know it
        self._stalls.tick(loop.time(), self._store.steps)
        now_s = self._stalls.now_s(loop.time())
        while waiting and (waiting[0].future is None or waiting[0].future.done()):
            waiting.popleft()
        oldest_s = self._oldest_s()
        if oldest_s is None:
            self._watch = None
            return
        if self._stalls.stalled(oldest_s):
            if self._committer.direct:
                self._callers.warn("ledger_degraded", cause="stalled")
                self._committer.hand_over("the database does not answer")
            else:
                self._committer.hand_over()
            self._look_around()
        late = [e for e in waiting if now_s - e.at_s >= self._config.give_up_s]
        # Not even the spool answers. What costs nothing goes on, its event stays in memory.
        self._callers.refuse(e for e in late if e.spends)
        self._callers.done(e for e in late if not e.spends)
        self._watch = loop.call_later(self._stalls.tick_s, self._check)

    def _oldest_s(self) -> float | None:
        """When the oldest event that the database has not answered for began to wait."""
        at_s: list[float] = []
        for queue in (self._waiting, self._committer.settled, self._committer.in_flight):
            with contextlib.suppress(IndexError):  # the committer was quicker
                at_s.append(queue[0].at_s)
        return min(at_s, default=None)

    def _look_around(self) -> None:
        self._committer.nudge()

    async def close(self, timeout_s: float) -> None:
        """Drain, to the database or else to the spool, and stop both threads; idempotent."""
        if self._closed:
            return
        self._closed = True
        for handle in (self._watch, self._linger):
            if handle is not None:
                handle.cancel()
        self._watch = self._linger = None
        self._send_outbox()
        self._committer.stop()
        committed = await asyncio.to_thread(self._committer.join, timeout_s)
        self._committer.hand_over()
        self._spooler.stop()
        spooled = await asyncio.to_thread(self._spooler.join, timeout_s)
        if committed:
            self._store.close()
        self._journal.close()
        if spooled:
            self._spool.close()
