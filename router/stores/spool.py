"""Where events go while the database is away: files of checked lines, replayed when it is back.

One folder per life of a gateway, `data_dir/ledger-spool/INSTANCE/`, locked while it lives. A folder whose lock is free
belongs to a dead gateway and is adopted by the next one that starts, with the journal that lies in it. A line that is
torn or damaged is set aside; the others stay readable.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from router.stores.events import Event, Settled, WorldSeen
from router.stores.lines import to_line
from router.stores.liveness import FileLock, LifeFolder
from router.stores.rows import Worlds

FOLDER = "ledger-spool"
_REJECTED = "rejected.jsonl"


class SpoolFull(OSError):
    """The spool has reached the size it may have."""


class Spool:
    """The files of one gateway. `append` may be called from one thread and the rest from another."""

    def __init__(self, folder: LifeFolder, *, max_bytes: int) -> None:
        self._root = folder.root
        self._life = folder
        self._folder = folder.path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._adopted: list[tuple[Path, FileLock]] = []
        self._descriptor: int | None = None
        self._active: Path | None = None
        self._active_bytes = 0
        self._active_events = 0
        self._segment = 0
        self._written: dict[Path, int] = {}  # events in each file of ours that is closed
        self._closed_bytes = 0
        self._worlds = Worlds()
        self._told_worlds: set[str] = set()
        self.events = 0  # written by us and not yet replayed

    def append(self, events: Sequence[Event]) -> None:
        """Make `events` durable against the death of the process; OSError when that is not possible, and none counts.

        As with the database in its default mode a power cut may take the last of them. Waiting for the disk here would
        refuse callers whenever the disk is slow, which is the very case the spool is for.
        """
        with self._lock:
            told = set(self._told_worlds) if self._descriptor is not None else set()
            data = b"".join(to_line(e) for event in events for e in self._stripped(event, told))
            if self._closed_bytes + self._active_bytes + len(data) > self._max_bytes:
                raise SpoolFull(f"the spool would grow past {self._max_bytes} bytes")
            descriptor = self._open()
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError:
                # What was refused must not come back: cut it off, and begin a new file in any case.
                empty = None if self._active_bytes else self._active
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, self._active_bytes)
                self._close()
                if empty is not None:  # a full disk is tried again and again, and is not to fill up with files too
                    self._written.pop(empty, None)
                    with contextlib.suppress(OSError):
                        empty.unlink()
                raise
            self._told_worlds = told
            self._active_bytes += len(data)
            self._active_events += len(events)
            self.events += len(events)

    def _stripped(self, event: Event, told: set[str]) -> Iterator[Event]:
        """Without what is told elsewhere: a world once per file, the scored text and the moment's copy never."""
        if not isinstance(event, Settled):
            yield event
            return
        record, name = event.record, event.world_hash
        if record.world:
            name = self._worlds.name(record.world)
            if name not in told:
                told.add(name)
                yield WorldSeen(name, record.world.decode())
        features, decision, moment = record.features, record.decision, record.moment
        if features is not None and features.text:
            features = replace(features, text="")
        if decision is not None and decision.moment:
            moment = moment or decision.moment
            decision = replace(decision, moment=b"")
        record = replace(record, features=features, decision=decision, moment=moment, world=None)
        yield Settled(record, event.hold_open, name)

    def _open(self) -> int:
        if self._descriptor is None:
            self._life.ready()
            self._segment += 1
            self._active = self._folder / f"{self._segment:06d}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._active, flags, 0o600)
            self._active_bytes = self._active_events = 0
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
            if self._active is not None:
                self._written[self._active] = self._active_events
            self._closed_bytes += self._active_bytes
            self._active_bytes = self._active_events = 0

    def adopt(self) -> int:
        """Take over the folders of gateways that have died; how many."""
        count = 0
        if not self._root.is_dir():
            return 0
        for folder in sorted(self._root.iterdir()):
            if not folder.is_dir() or folder == self._folder or folder in [f for f, _ in self._adopted]:
                continue
            lock = FileLock(folder / LifeFolder.LOCK)
            if lock.acquire():
                self._adopted.append((folder, lock))
                count += 1
        return count

    @property
    def pending(self) -> bool:
        """Is there anything to replay?"""
        return self.events > 0 or bool(self._adopted)

    def segments(self) -> list[Path]:
        """Every file to replay, oldest first. What is appended from now on goes to a new one."""
        with self._lock:
            # Listed under the lock: a file begun meanwhile would be replayed, and removed, while it is written to.
            self._close()
            # Of the dead the journal as well; ours tells of nothing that is not in memory.
            theirs = [path for folder, _ in self._adopted for path in sorted(folder.glob("*.jsonl"))]
            paths = theirs + (sorted(self._folder.glob("[0-9]*.jsonl")) if self._life.made else [])
            # A file that somebody has taken away is not waited for.
            self._written = {path: self._written[path] for path in paths if path in self._written}
            self.events = sum(self._written.values())
            return paths

    def drop(self, path: Path) -> None:
        """A file has been replayed, as far as it could be read: away with it."""
        size = path.stat().st_size
        path.unlink()
        with self._lock:
            if path.parent == self._folder:
                self.events -= self._written.pop(path, 0)
                self._closed_bytes = max(0, self._closed_bytes - size)

    def release_adopted(self) -> None:
        """Everything of the dead is replayed: remove their folders."""
        for folder, lock in self._adopted:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
        self._adopted.clear()

    def set_aside(self, events: Sequence[Event]) -> None:
        """Keep what no database takes where people can look at it."""
        with contextlib.suppress(UnicodeEncodeError):
            self.set_aside_lines([to_line(e) for event in events for e in self._stripped(event, set())])

    def set_aside_lines(self, lines: Sequence[bytes]) -> None:
        """The same for lines that cannot be read."""
        with contextlib.suppress(OSError), self._lock:
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / _REJECTED).open("ab") as file:
                file.writelines(lines)

    def close(self) -> None:
        """Let go of the files; an empty folder goes away."""
        with self._lock:
            self._close()
            self._life.release()
            for _, lock in self._adopted:
                lock.release()
            self._adopted.clear()
