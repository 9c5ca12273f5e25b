"""Tells a database that does not answer from a process that gets no CPU. Pure; clock values are passed in.

The watchdog runs on the event loop, the committer in a thread. On a starved machine both come late, and the age of what
waits says nothing about the database. So time counts only as far as the loop itself came around in time (a tick that is
late counts as one tick), and what is asked is whether the database has answered *anything* since: a commit is several
statements, and one that gets through them, however slowly, is no hung one.
"""

from __future__ import annotations

TICKS_PER_STALL = 4
_SLOW_STALLS = 4
"""A database that answers each statement but needs this many stall times for one entry is as good as away."""


class StallClock:
    """The time of those who wait for the database: it stands still while the process does not get to run.

    `tick` is to be called every `tick_s` (`stall_s` / TICKS_PER_STALL) while something waits, `arm` before the first.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self.tick_s = stall_s / TICKS_PER_STALL
        self._lost_s = 0.0
        self._ticked_at_s = 0.0
        self._steps = 0
        self._answered_at_s = 0.0

    def now_s(self, loop_s: float) -> float:
        """This clock's time when the loop's says `loop_s`."""
        return loop_s - self._lost_s

    def arm(self, loop_s: float, steps: int) -> None:
        """Something begins to wait; `steps` is how often the database has answered so far."""
        self._ticked_at_s, self._steps = loop_s, steps
        self._answered_at_s = self.now_s(loop_s)

    def tick(self, loop_s: float, steps: int) -> None:
        """The loop has come around: what it is late is nobody's fault and does not count."""
        self._lost_s += max(0.0, loop_s - self._ticked_at_s - self.tick_s)
        self._ticked_at_s = loop_s
        if steps != self._steps:
            self._steps, self._answered_at_s = steps, self.now_s(loop_s)

    def stalled(self, oldest_s: float) -> bool:
        """At the last tick: has the database kept waiting what waits since `oldest_s` (of this clock) for too long?"""
        now_s, enough_s = self.now_s(self._ticked_at_s), self._stall_s - 1e-6  # ticks are floats, added up
        return now_s - max(oldest_s, self._answered_at_s) >= enough_s or now_s - oldest_s >= _SLOW_STALLS * enough_s
