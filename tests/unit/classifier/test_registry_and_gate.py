"""Model folders: refused when they are not what they say; promoted when better; rolled back."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from classifier import cli, registry
from classifier.registry import ModelRefused
from classifier.told import LearningError
from classifier.versions import Registry
from tests.learning_data import rows, write

NOW = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / registry.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rehash(folder: Path) -> None:
    edit_manifest(folder, files=registry.file_hashes(folder))


@pytest.mark.parametrize(
    "name", [registry.SERVING, registry.ESTIMATOR, registry.CALIBRATION, registry.STEMS, registry.HELD_OUT]
)
def test_a_changed_byte_is_refused_whoever_needs_the_file(name: str, copy: Path, tmp_path: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-9] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(ModelRefused, match=f"{name} is not the file the manifest names"):
        registry.load_scorer(copy)
    with pytest.raises(ModelRefused, match=name):
        Registry(tmp_path / "registry").promote(copy, now_utc=NOW, reason="never")


def test_golden_scores_that_are_no_numbers_are_refused(copy: Path) -> None:
    golden = [dict.fromkeys(scores, float("nan")) for scores in registry.read_manifest(copy).golden_scores]
    edit_manifest(copy, golden_scores=golden)
    with pytest.raises(ModelRefused, match="golden input 0"):
        registry.load_scorer(copy)


def test_a_changed_weight_with_a_matching_hash_fails_its_golden_scores(copy: Path) -> None:
    data = (copy / registry.SERVING).read_bytes()
    head, rest = data.split(b"\n", 1)
    raw = json.loads(head)
    raw["model"]["offsets"] = [[x + 0.5 for x in row] for row in raw["model"]["offsets"]]
    (copy / registry.SERVING).write_bytes(json.dumps(raw).encode() + b"\n" + rest)
    rehash(copy)
    with pytest.raises(ModelRefused, match="golden input"):
        registry.load_scorer(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feature_version": 99}, "feature version 99"),
        ({"format": 7}, "manifest format 7"),
        ({"version": "another"}, "is of version"),
        ({"surprise": 1}, "not one of ours"),
        ({"golden_scores": []}, "other golden inputs"),
    ],
)
def test_a_stale_or_foreign_manifest_is_refused(copy: Path, changes: dict[str, object], says: str) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(ModelRefused, match=says):
        registry.load_scorer(copy)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ModelRefused, match="not a model folder"):
        registry.load_scorer(tmp_path)
    (copy / registry.SERVING).unlink()
    with pytest.raises(ModelRefused, match="is missing"):
        registry.load_scorer(copy)


def test_an_estimator_of_another_library_version_or_with_foreign_types_is_refused(copy: Path) -> None:
    from sklearn.tree import DecisionTreeClassifier
    from skops.io import dump

    class Mine(DecisionTreeClassifier):  # type: ignore[misc]
        """Not one of the types we trust."""

    dump(Mine().fit([[0.0], [1.0]], [0, 1]), copy / registry.ESTIMATOR)
    rehash(copy)
    with pytest.raises(ModelRefused, match="types we do not trust"):
        registry.load_estimator(copy)
    edit_manifest(copy, sklearn_version="0.1")
    with pytest.raises(ModelRefused, match=r"scikit-learn 0\.1"):
        registry.load_estimator(copy)


def test_the_same_labels_give_the_same_scores(labels: Path, model: Path, tmp_path: Path) -> None:
    cli.train(labels, tmp_path / "again", now_utc=NOW, with_card=False)
    first, second = (registry.read_manifest(f).golden_scores for f in (model, tmp_path / "again"))
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, abs=1e-9)


def test_promote_reload_and_roll_back(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    books = Registry(root)
    assert books.stamp() is None
    books.promote(model, now_utc=NOW, reason="first")
    stamp = books.stamp()
    version = registry.read_manifest(model).version
    assert cli.load_serving_scorer(None, root).version == version
    other = Path(shutil.copytree(model, tmp_path / "other"))
    data = (other / registry.SERVING).read_bytes().replace(version.encode(), b"X" * len(version), 1)
    (other / registry.SERVING).write_bytes(data)
    edit_manifest(other, version="X" * len(version))
    rehash(other)
    assert books.promote(other, now_utc=NOW, reason="second").history == (version,)
    assert books.stamp() != stamp
    assert cli.load_serving_scorer(None, root).version == "X" * len(version)
    assert cli.rollback(registry_root=root, now_utc=NOW)["version"] == version
    assert cli.load_serving_scorer(None, root).version == version
    assert cli.rollback(registry_root=root, now_utc=NOW)["version"] == "shipped"
    with pytest.raises(LearningError, match="shipped model is in force"):
        cli.rollback(registry_root=root, now_utc=NOW)
    assert len((root / "history.jsonl").read_text().splitlines()) == 4


def test_a_canary_leaves_the_current_version_in_force(model: Path, tmp_path: Path) -> None:
    books = Registry(tmp_path)
    books.promote(model, now_utc=NOW, reason="first")
    pointer = books.promote(model, now_utc=NOW, reason="try", canary_share=0.1)
    assert (pointer.version, pointer.canary_version, pointer.canary_share) == (pointer.version, pointer.version, 0.1)
    assert books.rollback(now_utc=NOW).canary_version is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        books.promote(model, now_utc=NOW, reason="try", canary_share=2.0)


def test_a_version_name_cannot_leave_the_registry(tmp_path: Path) -> None:
    for name in ("../x", "", ".", "a/b"):
        with pytest.raises(ModelRefused, match="not a version"):
            Registry(tmp_path).folder(name)


def test_a_model_of_real_labels_passes_the_gate_and_one_of_noise_does_not(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    assert "better" in cli.promote(model, registry_root=root, now_utc=NOW)["reason"]
    made = rows(300, seed=9)
    rng = np.random.default_rng(0)
    for r in made:
        r["outcomes"] = {t: float(rng.random() < 0.5) for t in r["outcomes"]}
    noise = tmp_path / "noise"
    cli.train(write(tmp_path / "noise.jsonl", made), noise, now_utc=NOW, with_card=False)
    fresh = write(tmp_path / "fresh.jsonl", rows(300, seed=10))
    with pytest.raises(LearningError, match="not promoted: not better"):
        cli.promote(noise, registry_root=root, now_utc=NOW, labels=fresh)
    assert cli.load_serving_scorer(None, root).version == registry.read_manifest(model).version
    forced = cli.promote(noise, registry_root=root, now_utc=NOW, labels=fresh, force=True)
    assert forced["forced"]
    assert forced["reason"].startswith("forced: not better")


def test_the_gate_needs_rows_that_neither_model_was_fitted_on(model: Path, labels: Path) -> None:
    verdict = cli.gate(model, model, labels)
    assert not verdict.passed
    assert "at least 50 are needed" in verdict.reason
