"""The registry of versions when things go wrong: what is in force stays, or an older one that works comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from classifier import cli, registry
from classifier.registry import ModelRefused
from classifier.told import LearningError
from classifier.versions import HISTORY, POINTER, SHIPPED, Registry
from tests.model_folders import copy_of_shipped, edit_manifest, spoil, version_of

NOW = datetime(2026, 2, 1, tzinfo=UTC)
A = "A" * len(version_of(registry.shipped_folder()))
ODD_POINTERS = (
    "{",
    "[]",
    '{"version": 3}',
    '{"history": []}',
    '{"version": "x", "canary_share": 7}',
    '{"version": "x", "history": "ab"}',
)


@pytest.fixture
def books(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def version(tmp_path: Path, books: Registry) -> Callable[[str], str]:
    """`version("A")` promotes a model of that letter and gives its version."""

    def promote(letter: str, **options: Any) -> str:
        folder = copy_of_shipped(tmp_path / letter, letter=letter)
        books.promote(folder, now_utc=NOW, reason=letter, **options)
        return version_of(folder)

    return promote


def lines(books: Registry) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (books.root / HISTORY).read_text().splitlines()]


def test_a_rollback_passes_over_versions_that_can_no_longer_be_loaded(
    books: Registry, version: Callable[[str], str]
) -> None:
    first, second, third = version("A"), version("B"), version("C")
    spoil(books.root / second / registry.SERVING)
    back = books.rollback(now_utc=NOW)
    assert (back.version, back.history) == (first, ())
    assert f"rollback from {third}; passed over: {second}: serving.bin is not the file" in back.reason
    spoil(books.root / first / registry.SERVING)
    version("D")
    assert books.rollback(now_utc=NOW).version == SHIPPED
    assert books.pointer() is None
    assert [line["version"] for line in lines(books)][-2:] == ["D" * len(first), SHIPPED]


@pytest.mark.parametrize("text", ODD_POINTERS)
def test_a_pointer_that_cannot_be_read_names_its_cure_which_works(
    books: Registry, version: Callable[[str], str], tmp_path: Path, text: str
) -> None:
    version("A")
    (books.root / POINTER).write_text(text)
    with pytest.raises(LearningError, match="rollback"):
        cli.promote(tmp_path / "A", registry_root=books.root, now_utc=NOW, force=True)
    assert cli.rollback(registry_root=books.root, now_utc=NOW)["version"] == SHIPPED
    assert cli.promote(tmp_path / "A", registry_root=books.root, now_utc=NOW, force=True)["version"] == A


def test_a_forced_canary_is_recorded_and_its_end_too(books: Registry, tmp_path: Path) -> None:
    folder = copy_of_shipped(tmp_path / "A", letter="A")
    told = cli.promote(folder, registry_root=books.root, now_utc=NOW, force=True, canary_share=0.1)
    assert told["forced"] and told["canary_version"] == A
    assert cli.rollback(registry_root=books.root, now_utc=NOW) == {
        "version": SHIPPED,
        "reason": f"rollback of canary {A}",
    }
    first, second = lines(books)
    assert first["forced"] and first["reason"].startswith(f"canary {A}: forced: ")
    assert (second["version"], second["forced"]) == (SHIPPED, False)


def test_a_version_that_was_damaged_in_the_registry_is_cured_by_promoting_it_again(
    books: Registry, version: Callable[[str], str], tmp_path: Path
) -> None:
    version("A")
    with pytest.raises(LearningError, match="in force already"):
        cli.promote(tmp_path / "A", registry_root=books.root, now_utc=NOW, force=True)
    for name in (registry.SERVING, registry.MANIFEST):
        spoil(books.root / A / name)
        assert cli.promote(tmp_path / "A", registry_root=books.root, now_utc=NOW, force=True)["version"] == A
        assert registry.load_scorer(books.root / A).version == A
    other = copy_of_shipped(tmp_path / "other", letter="A")
    (other / registry.CALIBRATION).write_text('{"tiers": ["local"], "rows": []}')
    edit_manifest(other, files=registry.file_hashes(other))
    with pytest.raises(ModelRefused, match=r"already in .* with other files"):
        books.promote(other, now_utc=NOW, reason="")


def test_what_else_lies_in_a_model_folder_is_not_taken_along(books: Registry, tmp_path: Path) -> None:
    folder = copy_of_shipped(tmp_path / "A", letter="A")
    (folder / "notes.txt").write_text("mine")
    (folder / "link").symlink_to("/etc")
    books.promote(folder, now_utc=NOW, reason="")
    assert {p.name for p in (books.root / (A)).iterdir()} <= set(registry.MODEL_FILES)


def test_what_a_killed_command_has_left_is_gone_with_the_next_one(
    books: Registry, version: Callable[[str], str]
) -> None:
    version("A")
    (books.root / ".draft-killed").mkdir()
    (books.root / ".draft-killed" / registry.SERVING).write_text("half")
    (books.root / ".pointer-killed").write_text("{")
    version("B")
    assert not [p for p in books.root.iterdir() if p.name.startswith((".draft", ".pointer"))]


def test_of_promotions_at_the_same_time_none_is_lost(books: Registry, tmp_path: Path) -> None:
    folders = [copy_of_shipped(tmp_path / letter, letter=letter) for letter in "ABCDEF"]
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(books.promote, folder, now_utc=NOW, reason="") for folder in folders]
    pointer = books.pointer()
    assert pointer is not None and not any(d.exception() for d in done)
    assert sorted([*pointer.history, pointer.version]) == sorted(version_of(folder) for folder in folders)


def test_a_model_that_was_judged_against_another_one_is_not_promoted(
    books: Registry, version: Callable[[str], str], tmp_path: Path
) -> None:
    version("A")
    judged_against = books.pointer()
    now = version("B")
    with pytest.raises(ModelRefused, match=r"promoted meanwhile.*promote again"):
        version("C", judged_against=judged_against)
    assert getattr(books.pointer(), "version", None) == now and not (books.root / ("C" * len(A))).exists()


def test_a_full_disk_or_an_unwritable_registry_changes_nothing_and_says_where(
    books: Registry, version: Callable[[str], str], tmp_path: Path
) -> None:
    before = version("A")
    (books.root / HISTORY).unlink()
    (books.root / HISTORY).symlink_to("/dev/full")
    folder = copy_of_shipped(tmp_path / "B", letter="B")
    for act in (
        lambda: cli.promote(folder, registry_root=books.root, now_utc=NOW, force=True),
        lambda: cli.rollback(registry_root=books.root, now_utc=NOW),
    ):
        with pytest.raises(LearningError, match="No space left on device: free some"):
            act()
        assert getattr(books.pointer(), "version", None) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(LearningError, match=r"file.*Not a directory"):
        cli.promote(folder, registry_root=tmp_path / "file" / "registry", now_utc=NOW, force=True)


def test_a_model_in_force_that_is_too_old_does_not_bar_the_way(
    books: Registry, version: Callable[[str], str], model: Path
) -> None:
    old = version("A")
    edit_manifest(books.root / old, feature_version=1)
    told = cli.promote(model, registry_root=books.root, now_utc=NOW)
    assert told["version"] == version_of(model)
    assert "made for feature version 1" in told["warnings"][0] and "the heuristic was" in told["warnings"][0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (registry.MANIFEST, {"golden_scores": [{"local": None}] * 10}),
        (registry.MANIFEST, {"golden_scores": [{"local": 10**400}] * 10}),
        (registry.MANIFEST, {"files": ["serving.bin"]}),
        (registry.MANIFEST, {"created_at_utc": "yesterday"}),
        (registry.CALIBRATION, {"rows": None}),
        (registry.CALIBRATION, {"rows": [[1.0]]}),
        (registry.CALIBRATION, {"rows": [[[0.5], [1.0], 10, [1.0], 1.0]]}),
        (registry.SERVING, {"slopes": [[[1.0, 1.0]]]}),
        (registry.SERVING, {"gate_intercept": [10**400]}),
    ],
)
def test_a_folder_made_by_somebody_else_is_refused_however_odd_it_is(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    folder = copy_of_shipped(tmp_path / "odd")
    if name == registry.SERVING:
        head, rest = (folder / name).read_bytes().split(b"\n", 1)
        raw = json.loads(head)
        raw["model"] |= change
        (folder / name).write_bytes(json.dumps(raw).encode() + b"\n" + rest)
    else:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    if name != registry.MANIFEST:
        edit_manifest(folder, files=registry.file_hashes(folder))
    with pytest.raises(ModelRefused, match=f"odd: .*{name}"):
        registry.load_scorer(folder)
        registry.load_sample(folder)
