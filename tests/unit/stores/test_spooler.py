"""What the spooling thread has in its hands is in sight at every moment."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from router.stores.entries import Callers, Entry, WriterConfig
from router.stores.events import Event, Released
from router.stores.liveness import LifeFolder
from router.stores.spool import Spool
from router.stores.spooler import Spooler
from tests.patience import PATIENCE_S, wait_until

CONFIG = WriterConfig(max_retry_s=0.02)


class SlowDisk(Spool):
    """A real spool whose disk takes its time, or says no."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LifeFolder(folder, "here"), max_bytes=10**6)
        self.writing, self.go_on = threading.Event(), threading.Event()
        self.full = False

    def append(self, events: Sequence[Event]) -> None:
        self.writing.set()
        assert self.go_on.wait(PATIENCE_S)
        if self.full:
            raise OSError("No space left on device")
        super().append(events)


@pytest.mark.parametrize("full", [False, True])
def test_an_event_on_its_way_to_the_disk_is_counted_as_waiting(tmp_path: Path, full: bool) -> None:
    disk, told = SlowDisk(tmp_path), threading.Event()
    spooler = Spooler(disk, CONFIG, Callers(lambda _event, _labels: None, lambda _entries: None), told.set)
    spooler.start()
    spooler.put(Entry(Released("r1", "t"), None, 0.0))
    assert disk.writing.wait(PATIENCE_S)
    assert spooler.waiting_events == 1
    disk.full = full
    disk.go_on.set()
    assert told.wait(PATIENCE_S)
    if full:
        wait_until(lambda: spooler.holds)
        disk.full = False
    spooler.stop()
    assert spooler.join(PATIENCE_S)
    assert (disk.events, spooler.waiting_events) == (1, 0)
    disk.close()


def test_a_mark_without_an_event_is_nothing_that_waits(tmp_path: Path) -> None:
    spooler = Spooler(
        SlowDisk(tmp_path), CONFIG, Callers(lambda _event, _labels: None, lambda _entries: None), lambda: None
    )
    spooler.put(Entry(None, None, 0.0))  # not started: it stays in the queue
    assert spooler.waiting_events == 0
