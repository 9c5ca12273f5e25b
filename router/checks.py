"""One line of `doctor`: something that was looked at, how it is, and what cures it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """`off` is neither good nor bad: something that could be used and is not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Check:
    """`detail` says what was found (never a secret), `cure` what to do about it; empty when nothing is to be done."""

    name: str
    state: State
    detail: str
    cure: str = ""
