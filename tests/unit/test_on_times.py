"""When hardware was on, kept in a file over the death of the gateway, or of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.on_times import BEAT_US, FILE, SYNC_US, OnTime, OnTimes

NOW = 1_795_435_200_000_000
RUNNING = OnTime("gpu0", NOW - 3_600_000_000, NOW, running=True)
ENDED = OnTime("gpu1", NOW - 7_200_000_000, NOW - 5_000_000_000, running=False)


def test_the_end_of_what_ran_is_the_latest_moment_it_may_have_had(tmp_path: Path) -> None:
    OnTimes(tmp_path, "boot1").write([ENDED, RUNNING], sync=True)
    ended, ran = OnTimes(tmp_path, "boot1").left(NOW + 60_000_000)
    assert ended == ENDED
    assert ran == OnTime("gpu0", RUNNING.from_us, NOW + BEAT_US, running=False)


@pytest.mark.parametrize("boot", ["boot2", ""])
def test_after_a_death_of_the_machine_what_was_not_synced_counts_too(tmp_path: Path, boot: str) -> None:
    OnTimes(tmp_path, boot and "boot1").write([RUNNING], sync=True)
    (ran,) = OnTimes(tmp_path, boot).left(NOW + 600_000_000)
    assert ran.to_us == NOW + BEAT_US + SYNC_US


def test_it_was_not_on_in_the_future_and_no_told_second_is_taken_back(tmp_path: Path) -> None:
    OnTimes(tmp_path, "b").write([RUNNING], sync=False)
    assert OnTimes(tmp_path, "b").left(NOW + 1)[0].to_us == NOW + 1
    assert OnTimes(tmp_path, "b").left(NOW - 1)[0].to_us == NOW


def test_with_nothing_to_tell_there_is_no_file(tmp_path: Path) -> None:
    times = OnTimes(tmp_path, "b")
    times.write([], sync=False)
    times.write([RUNNING], sync=False)
    assert (tmp_path / FILE).exists()
    times.write([], sync=False)
    assert not (tmp_path / FILE).exists()
    assert times.left(NOW) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"on": 3, "boot": "b"}', b'{"on": [["gpu0", 1]], "boot": "b"}', b"\xff"]
)
def test_a_damaged_file_tells_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert OnTimes(tmp_path, "b").left(NOW) == []


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    OnTimes(tmp_path / "file" / "folder", "b").write([RUNNING], sync=True)
