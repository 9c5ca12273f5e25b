"""What the gateway has learnt and should not forget on a restart: output lengths, and how tokenizers count.

One small JSON file in `data_dir`, replaced whole. Losing it costs nothing but a while of rougher estimates, so nothing
about it is ever an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

FILE_NAME = "learned.json"
SAVE_EVERY_S = 60.0


def load(data_dir: Path) -> dict[str, Any]:
    """The file's contents; empty where there is none or it cannot be read."""
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        found = msgspec.json.decode((data_dir / FILE_NAME).read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def save(data_dir: Path, learned: Mapping[str, Any]) -> None:
    """Replace the file, so that a crash leaves the old one or the new one."""
    with contextlib.suppress(OSError):
        data_dir.mkdir(parents=True, exist_ok=True)
        path = data_dir / f"{FILE_NAME}.{os.getpid()}"
        path.write_bytes(msgspec.json.encode(dict(learned)))
        path.replace(data_dir / FILE_NAME)
