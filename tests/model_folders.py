"""Model folders for tests that need no training: copies of the shipped model, under another version or spoilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from classifier import registry


def version_of(folder: Path) -> str:
    """The version in its manifest."""
    return registry.read_manifest(folder).version


def copy_of_shipped(target: Path, *, letter: str | None = None) -> Path:
    """The shipped model in `target`; with `letter` as a version of its own, made of that letter."""
    shutil.copytree(registry.shipped_folder(), target)
    if letter is not None:
        version = version_of(target)
        other = letter * len(version)
        serving = target / registry.SERVING
        serving.write_bytes(serving.read_bytes().replace(version.encode(), other.encode(), 1))
        edit_manifest(target, version=other)
        edit_manifest(target, files=registry.file_hashes(target))
    return target


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Write other values into a manifest."""
    path = folder / registry.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
