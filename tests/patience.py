"""How long tests wait for what must come, and how they wait: a bound against hanging, never a promise of speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")
PATIENCE_S = 90.0  # a machine with other work may take ten times what a quiet one does


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait until `condition()` holds; AssertionError after `timeout_s`."""
    ends_at_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at_s, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def until_seen(
    look: Callable[[], Awaitable[_T]], wanted: Callable[[_T], object], timeout_s: float = PATIENCE_S
) -> _T:
    """Look again and again until it is as `wanted`; that look. AssertionError with the last one after `timeout_s`."""
    ends_at_s = time.monotonic() + timeout_s
    while not wanted(seen := await look()):
        assert time.monotonic() < ends_at_s, f"it did not come to this in time: {seen!r}"
        await asyncio.sleep(0.05)
    return seen


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """The same where no event loop runs."""
    ends_at_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at_s, "the condition did not come true in time"
        time.sleep(0.01)
