"""Promises that outlive the process, made before money can be spent, with no thread and no database between.

    reserve ── copy a line into a mapped file ──► promised: the kernel has it, whatever becomes of us
            └─ the same event goes to the database beside the request, with the next group
    a file is wiped and used again, or removed, once the database, or the spool, holds all that it tells

A mapped file because a `write` gives up the interpreter lock: while the committer works the loop would wait for it
with every reservation. Its space is taken when it is made, so that a full disk is an error there and no fault later.
It lies in the gateway's spool folder: whoever adopts that folder after a crash reads both.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from router.stores.entries import Entry
from router.stores.events import Event
from router.stores.lines import to_line
from router.stores.liveness import LifeFolder

_SEGMENT_BYTES = 256 * 1024


class JournalFull(OSError):
    """What is not yet in the database has reached the size the journal may have."""


class _Segment:
    """One file: where its next line goes, how many of its events are nowhere else yet."""

    __slots__ = ("closed", "end", "outstanding", "path", "room")

    def __init__(self, path: Path, room: mmap.mmap) -> None:
        self.path = path
        self.room = room
        self.end = 0
        self.outstanding = 0
        self.closed = False

    def wipe(self) -> None:
        """As it was when it was made."""
        self.room[: self.end] = bytes(self.end)
        self.end, self.closed = 0, False


class Journal:
    """`append` is the loop's, `release` may be called from any thread."""

    def __init__(self, folder: LifeFolder, *, max_bytes: int, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = min(segment_bytes, max_bytes // 4)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._active: _Segment | None = None
        self._spare: _Segment | None = None
        self._closed = False
        self._count = 0
        self._bytes = 0

    def append(self, event: Event, at_s: float) -> Entry:
        """Make `event` durable against the death of the process; OSError when that cannot be, and it does not count.

        As with SQLite in its default mode and with the spool a power cut may take the last lines. The entry that comes
        back is to be written to the database and then released.
        """
        line = to_line(event)
        with self._lock:
            segment = self._active
            if segment is None or segment.end + len(line) > len(segment.room):
                segment = self._begin(len(line))
            end = segment.end + len(line)
            segment.room[segment.end : end] = line
            segment.end = end
            segment.outstanding += 1
            return Entry(event, None, at_s, segment=segment)

    def _begin(self, line_bytes: int) -> _Segment:
        active = self._active
        if active is not None:
            if active.outstanding == 0 and line_bytes <= len(active.room):
                active.wipe()
                return active
            self._end(active)
        spare = self._spare
        if spare is not None and line_bytes <= len(spare.room):
            self._spare, self._active = None, spare
            return spare
        size = max(line_bytes, self._segment_bytes)
        if self._bytes + size > self._max_bytes:
            raise JournalFull(f"the journal would grow past {self._max_bytes} bytes")
        self._count += 1
        path = self._folder.ready() / f"journal-{self._count:06d}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Written, since not every system can reserve room: a page without a block behind it would be a fault later.
            if os.write(descriptor, bytes(size)) != size:
                raise JournalFull(f"there is no room for {size} bytes of journal")
            room = mmap.mmap(descriptor, size)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        self._bytes += size
        self._active = _Segment(path, room)
        return self._active

    def _end(self, segment: _Segment) -> None:
        """No more lines for this one."""
        self._active = None
        segment.closed = True
        if segment.outstanding == 0:
            self._clear(segment)

    def _clear(self, segment: _Segment) -> None:
        """All that it tells is elsewhere: one such file is kept, since making one takes longer than a reservation."""
        if self._spare is None and not self._closed and len(segment.room) == self._segment_bytes:
            segment.wipe()
            self._spare = segment
            return
        self._bytes -= len(segment.room)
        segment.room.close()
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def release(self, entries: Iterable[Entry]) -> None:
        """These are durable elsewhere. Telling it twice of one changes nothing."""
        mine = [e for e in entries if e.segment is not None]
        if not mine:
            return
        with self._lock:
            for entry in mine:
                segment, entry.segment = entry.segment, None
                if isinstance(segment, _Segment):
                    segment.outstanding -= 1
                    if segment.closed and segment.outstanding == 0:
                        self._clear(segment)

    def close(self) -> None:
        """Let go of the file; it stays for the next start if it tells of something that is nowhere else."""
        with self._lock:
            self._closed = True
            for segment in (self._active, self._spare):
                if segment is not None:
                    self._end(segment)
            self._spare = None
