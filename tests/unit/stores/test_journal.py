"""The journal's files: what they tell, when they are used again, and that nothing is told that has been settled."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.stores.entries import Entry
from router.stores.events import Released
from router.stores.journal import Journal, JournalFull
from router.stores.lines import read
from router.stores.liveness import LifeFolder

_LINE_BYTES = 80
_SEGMENT_BYTES = 4 * _LINE_BYTES


def journal(root: Path, *, segments: int = 8) -> Journal:
    return Journal(LifeFolder(root, "here"), max_bytes=segments * _SEGMENT_BYTES, segment_bytes=_SEGMENT_BYTES)


def files(root: Path) -> list[Path]:
    return sorted(root.glob("here/journal-*.jsonl"))


def told(root: Path) -> set[str]:
    """Ids that a gateway would find which starts now; a line that is no event is a failure."""
    found = set()
    for path in files(root):
        for _, event in read(path):
            assert isinstance(event, Released)
            found.add(event.request_id)
    return found


def test_steady_traffic_wears_two_files_and_makes_no_more(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    names = set()
    waiting: list[Entry] = []
    for i in range(200):
        waiting.append(kept.append(Released(f"r{i}", "t"), 0.0))
        names.update(files(tmp_path))
        assert {f"r{j}" for j in range(i + 1 - len(waiting), i + 1)} <= told(tmp_path)
        if len(waiting) == 3:
            kept.release(waiting)
            waiting = []
    assert len(names) == 2
    kept.release(waiting)
    kept.close()
    assert files(tmp_path) == []


def test_what_is_nowhere_else_outlives_closing_and_what_is_comes_back_never(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    entries = [kept.append(Released(f"r{i}", "t"), 0.0) for i in range(30)]
    kept.release(e for e in entries if e.event != Released("r17", "t"))
    kept.close()
    assert "r17" in told(tmp_path)
    assert len(files(tmp_path)) == 1


def test_a_file_kept_for_later_is_room_that_is_taken(tmp_path: Path) -> None:
    kept = journal(tmp_path, segments=4)
    with pytest.raises(JournalFull):
        for i in range(100):
            kept.append(Released(f"r{i}", "t"), 0.0)
    assert len(files(tmp_path)) == 4


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.one_of(st.integers(1, 150), st.just(0)), max_size=60))
def test_at_every_moment_the_files_tell_all_that_is_not_released(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    """A number appends an event with a name so long; 0 releases the oldest half of what is open."""
    root = tmp_path_factory.mktemp("journal")
    kept, waiting = journal(root, segments=64), list[Entry]()
    for i, step in enumerate(steps):
        if step:
            waiting.append(kept.append(Released(f"{i}-" + "x" * step, "t"), 0.0))
        else:
            half = (len(waiting) + 1) // 2
            kept.release(waiting[:half])
            waiting = waiting[half:]
        open_ids = {e.event.request_id for e in waiting if isinstance(e.event, Released)}
        assert open_ids <= told(root)
    kept.close()
    assert {e.event.request_id for e in waiting if isinstance(e.event, Released)} <= told(root)
