"""The real clock; tests bring their own."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """Implements `ports.Clock`."""

    def now_s(self) -> float:
        """Monotonic seconds: they never jump, whatever happens to the wall clock."""
        return time.monotonic()

    def now_utc(self) -> datetime:
        """Wall-clock time, aware."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
