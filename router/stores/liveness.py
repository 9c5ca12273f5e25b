"""Who is alive: a lock held for life, so that a crash is noticed without a heartbeat or a clock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from hashlib import blake2b
from pathlib import Path

from router.errors import RouterError


class LedgerInUse(RouterError):
    """Another gateway writes to the same SQLite file."""

    code = "ledger_in_use"


class FileLock:
    """An exclusive `flock`, freed by the kernel when its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take it, or tell at once that somebody else has it. Raises OSError when the file cannot be made."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let it go; idempotent. The file stays: removing it would let two holders lock two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class LifeFolder:
    """Where one life of a gateway keeps what must outlive it: `ROOT/INSTANCE/`, locked while it lives.

    Made when it is first needed. A folder whose lock is free belongs to a dead gateway.
    """

    LOCK = "lock"

    def __init__(self, root: Path, instance: str) -> None:
        self.root = root
        self.path = root / instance
        self._alive: FileLock | None = None
        self._mutex = threading.Lock()

    @property
    def made(self) -> bool:
        """Is it there?"""
        return self._alive is not None

    def ready(self) -> Path:
        """The folder, made and locked before anybody can see it under its name. Raises OSError. Any thread."""
        with self._mutex:
            if self._alive is None:
                self.root.mkdir(parents=True, exist_ok=True)
                hidden = self.root / f".{self.path.name}"
                hidden.mkdir(exist_ok=True)
                lock = FileLock(hidden / self.LOCK)
                if not lock.acquire():
                    raise OSError(f"{hidden} is locked by another process")
                hidden.rename(self.path)
                self._alive = lock
            return self.path

    def release(self) -> None:
        """Let it go; away with it if it tells of nothing."""
        with self._mutex, contextlib.suppress(OSError):
            if self._alive is not None:
                if not any(self.path.glob("*.jsonl")):
                    shutil.rmtree(self.path, ignore_errors=True)
                self._alive.release()
                self._alive = None


def advisory_key(instance: str) -> int:
    """The Postgres advisory lock that `instance` holds for as long as its session lives: a signed 64-bit number."""
    return int.from_bytes(blake2b(instance.encode(), digest_size=8).digest(), "big", signed=True)
