"""Ranges of whole UTC days, as reports take them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from router.core.days import midnight, midnight_after


@dataclass(frozen=True, slots=True)
class Range:
    """Whole UTC days, both included; `None` is no bound."""

    start: date | None = None
    end: date | None = None

    @property
    def from_utc(self) -> datetime | None:
        """The first moment in it."""
        return midnight(self.start)

    @property
    def to_utc(self) -> datetime | None:
        """The first moment after it."""
        return midnight_after(self.end)

    def as_dict(self) -> dict[str, str | None]:
        """As JSON shows it."""
        return {
            "from": self.start.isoformat() if self.start is not None else None,
            "to": self.end.isoformat() if self.end is not None else None,
        }
