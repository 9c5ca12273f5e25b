"""What has been learnt survives a restart, and a damaged file harms nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from router import learned


def test_what_was_saved_is_loaded(tmp_path: Path):
    learned.save(tmp_path / "new", {"output_lengths": {"chat/short": {"count": 3}}})
    assert learned.load(tmp_path / "new") == {"output_lengths": {"chat/short": {"count": 3}}}
    assert [p.name for p in (tmp_path / "new").iterdir()] == [learned.FILE_NAME]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes):
    (tmp_path / learned.FILE_NAME).write_bytes(content)
    assert learned.load(tmp_path) == {}


def test_no_file_and_no_place_to_write_are_no_errors(tmp_path: Path):
    assert learned.load(tmp_path / "nowhere") == {}
    (tmp_path / "file").write_text("")
    learned.save(tmp_path / "file", {"a": 1})
