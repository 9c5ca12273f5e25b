"""What can go wrong in the learning loop, as two errors whose text is meant for people."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from classifier.registry import FolderTaken


class UsageError(ValueError):
    """The call makes no sense as it is: a missing file, a value out of range. Exit code 2."""


class LearningError(RuntimeError):
    """The work itself failed: bad labels, a refused model, a closed gate. Exit code 1."""


@contextmanager
def told() -> Iterator[None]:
    """What can go wrong, as the two errors above."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename}: no such file") from error
    except (UsageError, LearningError):
        raise
    except FolderTaken as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise LearningError(of_the_disk(error)) from error
    except ValueError as error:  # DatasetError, TrainingError, NoOverlap, ModelRefused are ValueErrors
        raise LearningError(str(error)) from error
    except ModuleNotFoundError as error:
        raise LearningError(
            f"{str(error.name).partition('.')[0]} is not installed: the learning commands need the extra `learn` "
            "(in a checkout `make dev`, else pip install 'hybrid-llm-router[learn]')"
        ) from error


def of_the_disk(error: OSError) -> str:
    """What the system refused, where, and what helps."""
    cure = {
        errno.ENOSPC: "free some room, or name another place",
        errno.EDQUOT: "free some room, or name another place",
        errno.EROFS: "name a place that can be written",
        errno.EACCES: "run this as its owner, or name another place",
        errno.EPERM: "run this as its owner, or name another place",
    }.get(error.errno or 0)
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}" + (f": {cure}" if cure else "")
