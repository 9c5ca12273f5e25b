"""Files that are written beside the place they are for and put there when they are whole."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast


@contextmanager
def whole_file(out: Path, *, private: bool = True) -> Iterator[TextIO]:
    """A text file that takes the place of `out` if all went well; else what was there stays. Packed if it ends in .gz.

    `private`: it holds prompts, and only its owner may read it. A pipe or a device is written to as it is. Raises
    OSError where it cannot be written: no such place, no right, no room.
    """
    if out.exists() and not out.is_file():
        with out.open("w", encoding="utf-8") as file:
            yield file
        return
    out = out.resolve()  # a link stays one
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    out.parent.mkdir(parents=True, exist_ok=True)
    raw = os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666), "wb")
    try:
        with raw:
            if out.suffix == ".gz":
                with gzip.open(raw, "wt", encoding="utf-8") as packed:
                    yield cast(TextIO, packed)
            else:
                with io.TextIOWrapper(raw, encoding="utf-8") as plain:
                    yield plain
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
