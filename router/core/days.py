"""Days of UTC as half-open intervals of time."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta


def midnight(day: date | None) -> datetime | None:
    """When `day` begins; `None` for `None`."""
    return None if day is None else datetime.combine(day, time(), UTC)


def midnight_after(day: date | None) -> datetime | None:
    """When `day` has ended; `None`, no bound, for `None` and for the last day there is."""
    return None if day is None or day == date.max else midnight(day + timedelta(days=1))
