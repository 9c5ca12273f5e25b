"""The files of the spool on a disk that is full for a while."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.stores.events import Released
from router.stores.lines import read
from router.stores.liveness import LifeFolder
from router.stores.spool import Spool


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process may grow by a byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_not_filled_with_empty_files_and_takes_everything_once_it_has_room(tmp_path: Path) -> None:
    spool = Spool(LifeFolder(tmp_path, "here"), max_bytes=10**6)
    spool.append([Released("r0", "t")])
    with no_room():
        for _ in range(20):
            with pytest.raises(OSError, match="too large"):
                spool.append([Released("refused", "t")])
    spool.append([Released("r1", "t")])
    assert spool.events == 2
    paths = spool.segments()
    assert [event for path in paths for _, event in read(path)] == [Released("r0", "t"), Released("r1", "t")]
    assert len(paths) == 2
    for path in paths:
        spool.drop(path)
    assert (spool.events, spool.pending) == (0, False)
    spool.close()
    assert list(tmp_path.iterdir()) == []
