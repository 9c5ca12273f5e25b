"""Rules of thumb that gateways in the field decide by: what the product is compared with.

A policy is asked once a request whether it may run locally. Those here see the engine as gateways see it, through a
scrape of its gauges once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.simulation.traces import TraceRequest


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a scrape tells. `utilization_ratio` is NVML's: the share of the last second with a kernel running."""

    running: int = 0
    waiting: int = 0
    kv_usage_ratio: float = 0.0
    utilization_ratio: float = 0.0


class Running(Protocol):
    """One request that was admitted, as its policy keeps track of it."""

    def first_token(self, now_s: float, /) -> None:
        """Its first token has come."""
        ...

    def token(self, count: int, now_s: float | None, /) -> None:
        """`count` more have come; `now_s` when only the last one is told of."""
        ...

    def end(self, now_s: float, output_tokens: int, /) -> None:
        """It is done."""
        ...


class Policy(Protocol):
    """Who decides. `watches_tokens` asks for `Running.token` after every step."""

    watches_tokens: bool

    def admit(self, request: TraceRequest, now_s: float, /) -> Running | None:
        """Local, and who keeps track of it; `None` sends it to the API."""
        ...

    def scraped(self, gauges: Gauges, now_s: float, /) -> None:
        """A scrape has been made."""
        ...

    def answered_elsewhere(self, request: TraceRequest) -> None:
        """The API has answered a request that was not admitted."""
        ...


class Untracked:
    """Keeps no count of what it admits."""

    watches_tokens = False

    def first_token(self, now_s: float, /) -> None:
        """Changes no count."""

    def token(self, count: int, now_s: float | None, /) -> None:
        """Changes no count."""

    def end(self, now_s: float, output_tokens: int, /) -> None:
        """Changes no count."""

    def answered_elsewhere(self, request: TraceRequest) -> None:
        """Nothing to learn."""


class GaugePolicy(Untracked):
    """Local while the gauges of the last scrape pass a test, whatever has been sent since."""

    def __init__(self, passes: Callable[[Gauges], bool]) -> None:
        self._passes = passes
        self._gauges = Gauges()

    def admit(self, _request: TraceRequest, _now_s: float) -> Running | None:
        """By the last scrape."""
        return self if self._passes(self._gauges) else None

    def scraped(self, gauges: Gauges, _now_s: float) -> None:
        """From now on these count."""
        self._gauges = gauges


class CountCap(Untracked):
    """Local while fewer than `cap` requests of our own are in flight."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._in_flight = 0

    def admit(self, _request: TraceRequest, _now_s: float) -> Running | None:
        """By our own count."""
        if self._in_flight >= self._cap:
            return None
        self._in_flight += 1
        return self

    def end(self, _now_s: float, _output_tokens: int) -> None:
        """One less."""
        self._in_flight -= 1

    def scraped(self, gauges: Gauges, now_s: float, /) -> None:
        """Not looked at."""


RULES: dict[str, Callable[[], Policy]] = {
    "nvml80": lambda: GaugePolicy(lambda g: g.utilization_ratio < 0.80),
    "waiting0": lambda: GaugePolicy(lambda g: g.waiting == 0),
    "llmd": lambda: GaugePolicy(lambda g: max(g.waiting / 5.0, g.kv_usage_ratio / 0.8) < 1.0),
    "always_local": lambda: GaugePolicy(lambda _: True),
    "always_api": lambda: GaugePolicy(lambda _: False),
}
"""By name: NVML utilisation below 80 %; nobody waiting; max(waiting/5, KV/0.8) below 1; everything; nothing."""
DEFAULT_NAMES: Sequence[str] = ("product", "nvml80", "waiting0", "llmd", "always_local")
_COUNT_PREFIX = "count"


def rule(name: str) -> Policy | None:
    """A rule of thumb by name, `count64` being a cap of 64 requests in flight; `None` if there is none."""
    if name in RULES:
        return RULES[name]()
    digits = name.removeprefix(_COUNT_PREFIX)
    if digits != name and digits.isascii() and digits.isdigit() and int(digits) > 0:
        return CountCap(int(digits))
    return None
