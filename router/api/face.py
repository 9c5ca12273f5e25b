"""What the HTTP face needs beside the flow; built by `bootstrap`, by hand in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

from router.api.auth import Authenticator
from router.api.idempotency import IdempotencyStore
from router.core.decision import Candidate
from router.ports import Deps


class Books(Protocol):
    """What the routes read from and note in the ledger."""

    async def costs(self, from_utc: datetime | None, to_utc: datetime | None, tenant: str | None) -> Any:
        """Rows and totals; has `as_dict()`."""
        ...

    async def add_feedback(self, request_id: str, tenant: str | None, score_ratio: float, comment: str | None) -> bool:
        """False if there is no such request of this tenant."""
        ...


class InFlight:
    """Counts requests being handled; a context manager around each."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1


@dataclass(slots=True)
class Face:
    """One gateway as HTTP sees it. `readiness` gives (status, details) without any paid call."""

    deps: Deps
    authenticator: Authenticator
    idempotency: IdempotencyStore
    books: Books
    readiness: Callable[[], tuple[str, Mapping[str, Any]]]
    candidate_state: Callable[[Candidate], tuple[str, str | None]]
    price_estimate: Callable[[str, int, int], Mapping[str, Any]]
    metrics: Callable[[], bytes]
    max_body_bytes: int = 20_000_000
    body_timeout_s: float = 30.0
    draining: Callable[[], bool] = lambda: False
    in_flight: InFlight = field(default_factory=InFlight)
