"""Traffic to simulate: Azure's published CSV columns, and what the ledger has seen."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from router.core.attempts import RoutingRecord
from router.core.judgements import OVERHEAD_TENANTS
from router.core.vocabulary import Reject, Tier
from router.errors import RouterError

MAX_REQUESTS = 1_000_000
"""As many as a what-if plays in some minutes."""
_MOST_TOKENS = 10_000_000
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# What keeps a prompt from the local tier whatever is in the engine; how full it was is what is simulated anew.
_NEVER_LOCAL = frozenset(
    {
        Reject.NOT_ALLOWED,
        Reject.CONTEXT_TOO_LONG,
        Reject.CAPABILITY_MISSING,
        Reject.QUALITY_BELOW_FLOOR,
    }
)


class TraceError(RouterError):
    """A trace that cannot be read; the message says where and why."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace: when it comes (seconds from the start) and how long its prompt and its answer are."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    request_class: str = "chat"


def read_csv(path: Path, most: int | None = None, *, limit: int = MAX_REQUESTS) -> tuple[TraceRequest, ...]:
    """The requests of a CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens, in order of time.

    TIMESTAMP is a date and time or a number of seconds; rows may come in any order. With `most` only so many are read,
    the first in the file. Raises `TraceError` with the line and the value of the first mistake, and for a file of more
    than `limit` requests of which no part was asked for.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(
                    f"{path}: has no column {', '.join(missing)}; the first line names the columns {', '.join(COLUMNS)}"
                )
            read = (_row(path, reader.line_num, row) for row in reader if any(row.values()))
            rows = list(islice(read, limit + 1 if most is None else most))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise TraceError(f"{path}: holds no request")
    if most is None and len(rows) > limit:
        raise TraceError(f"{path}: holds more than {limit:,} requests; play a part of it with --requests")
    return from_zero(rows)


def _row(path: Path, line: int, row: dict[str, str | None]) -> TraceRequest:
    when, prompt, output = (row.get(name) for name in COLUMNS)
    try:
        at_s = _seconds(when or "")
    except ValueError:
        at_s = math.nan
    if not math.isfinite(at_s):
        raise TraceError(f"{path}:{line}: TIMESTAMP is {_quoted(when)}; write a date and time, or seconds")
    return TraceRequest(at_s, _tokens(path, line, COLUMNS[1], prompt), _tokens(path, line, COLUMNS[2], output))


def _tokens(path: Path, line: int, name: str, text: str | None) -> int:
    """A number of tokens, also one that a spreadsheet has written as 396.0; 0 counts as 1."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= _MOST_TOKENS or not value.is_integer():
        raise TraceError(
            f"{path}:{line}: {name} is {_quoted(text)}; write a whole number of tokens, 0 to {_MOST_TOKENS}"
        )
    return max(1, int(value))


def _quoted(text: str | None) -> str:
    return "missing" if not text else repr(text[:40])


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        date, dot, fraction = text.strip().partition(".")
        digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
        moment = datetime.fromisoformat(date + fraction[len(digits) :])
        whole = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        return whole + (float(f"0.{digits}") if dot and digits else 0.0)


def from_zero(requests: Iterable[TraceRequest]) -> tuple[TraceRequest, ...]:
    """In order of time, the first at 0."""
    ordered = sorted(requests, key=lambda request: request.at_s)
    start_s = ordered[0].at_s if ordered else 0.0
    return tuple(replace(request, at_s=request.at_s - start_s) for request in ordered)


def from_records(records: Iterable[RoutingRecord]) -> tuple[tuple[TraceRequest, ...], int]:
    """What the ledger has seen, and how many were left out: no usage, or never to be answered by the local tier."""
    found: list[TraceRequest] = []
    left_out = 0
    for record in records:
        usage = record.usage
        if record.tenant in OVERHEAD_TENANTS:
            continue  # nobody asked for it
        if usage is None or usage.output_tokens < 1 or not _may_be_local(record):
            left_out += 1
            continue
        at_s = record.received_at_utc.timestamp()
        found.append(TraceRequest(at_s, max(1, usage.input_tokens), usage.output_tokens))
    return from_zero(found), left_out


def _may_be_local(record: RoutingRecord) -> bool:
    if record.decision is None:
        return True
    locals_ = [a for a in record.decision.alternatives if a.tier is Tier.LOCAL]
    return not locals_ or any(_NEVER_LOCAL.isdisjoint(a.reasons) for a in locals_)


def faster(requests: Sequence[TraceRequest], factor: float) -> tuple[TraceRequest, ...]:
    """The same requests, `factor` times as many a second."""
    if not 0.0 < factor < math.inf:
        raise TraceError(f"cannot play a trace {factor} times as fast")
    return tuple(replace(request, at_s=request.at_s / factor) for request in requests)


def mean_rate_rps(requests: Sequence[TraceRequest]) -> float:
    """Requests a second from the first to the last; 0 for fewer than two."""
    span_s = requests[-1].at_s - requests[0].at_s if len(requests) > 1 else 0.0
    return len(requests) / span_s if span_s > 0.0 else 0.0


def at_rate(requests: Sequence[TraceRequest], rate_rps: float) -> tuple[TraceRequest, ...]:
    """The same requests, time-scaled to a mean of `rate_rps`."""
    mean = mean_rate_rps(requests)
    if mean <= 0.0:
        raise TraceError("a trace whose requests come all at once has no rate to scale")
    return faster(requests, rate_rps / mean)
