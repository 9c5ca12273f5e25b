"""When hardware was on, in a file: what the database has not been told yet outlives the gateway.

Written every second while something is on, and synced twice a minute. Of an interval that was running at the death of
the gateway the end is known to the second (its engine is taken down with it); after a death of the machine to half a
minute. It is booked up to the latest moment at which it may have ended: hardware is not on for nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

FILE = "on-times.json"
BEAT_US = 2_000_000
"""A gateway that lives writes at least this often."""
SYNC_US = 30_000_000


@dataclass(frozen=True, slots=True)
class OnTime:
    """`asset` was on from `from_us` to `to_us`; `running`: and still was when this was written."""

    asset: str
    from_us: int
    to_us: int
    running: bool


class OnTimes:
    """The file. Synchronous: call it off the event loop. A disk that does not take it costs precision, nothing else."""

    def __init__(self, folder: Path, boot: str) -> None:
        self._path = folder / FILE
        self._boot = boot
        self._written: tuple[OnTime, ...] | None = None

    def write(self, times: Sequence[OnTime], *, sync: bool) -> None:
        """Replace what is in the file; nothing left to tell removes it."""
        if tuple(times) == self._written and not sync:
            return
        with contextlib.suppress(OSError):
            if not times:
                self._path.unlink(missing_ok=True)
            else:
                self._replace({"boot": self._boot, "on": [astuple(one) for one in times]}, sync=sync)
            self._written = tuple(times)

    def _replace(self, content: object, *, sync: bool) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        new.replace(self._path)

    def left(self, now_us: int) -> list[OnTime]:
        """What an earlier life has left, each with the latest end it may have had; nothing from an unreadable file."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            found = [OnTime(str(name), int(a), int(b), bool(running)) for name, a, b, running in content["on"]]
            slack_us = BEAT_US + (0 if content["boot"] == self._boot and self._boot else SYNC_US)
        except (OSError, ValueError, TypeError, KeyError):
            return []
        return [
            OnTime(one.asset, one.from_us, _latest_end(one, slack_us, now_us) if one.running else one.to_us, False)
            for one in found
        ]


def _latest_end(one: OnTime, slack_us: int, now_us: int) -> int:
    return max(one.to_us, min(one.to_us + slack_us, now_us))
