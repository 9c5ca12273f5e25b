"""What one key may use: requests and tokens in sliding windows, and requests at once. Pure: time is passed in.

A window is counted in slots, and a slot counts until all of it has left the window. So no window of `window_s` seconds,
wherever it begins, ever holds more than the limit (a burst over the edge of a minute included), and room comes back at
most one slot late, half a second of a minute. Everything is an integer, O(1) per request and O(slots) per key.

A request takes its room when it comes in, tokens by what it is expected to use: the prompt, and an answer as long as
those of its class seldom exceed (p90). When it has ended, the tokens are set right: what was not used is given back to
the slot it was taken from, and to none once that has left the window, so that giving back never makes room that was not
taken; what was used beyond the expectation counts from then on, and the next ones wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, inf
from types import TracebackType

from router.core.nouns import Noun
from router.core.vocabulary import Limit
from router.errors import RateLimited

SLOTS = 120
"""Slots of a window: how finely room comes back."""
MINUTE_S = 60.0
HOUR_S = 3_600.0
CONCURRENCY_RETRY_S = 1.0
"""When to come again where all seats are taken: nobody knows when one of them falls free."""


@dataclass(frozen=True, slots=True)
class LimitTerms:
    """What a key may use at one gateway, its part where there are several; `None`: as much as it likes."""

    requests_per_min: int | None = None
    requests_per_hour: int | None = None
    tokens_per_min: int | None = None
    concurrency_max: int | None = None
    gateways: int = 1

    def any(self) -> bool:
        """Whether anything is limited."""
        return any(getattr(self, limit.value) is not None for limit in Limit)


NO_LIMITS = LimitTerms()


class Standing(Noun, frozen=True):
    """How one limit stands: `left` of `most` units, and in how many seconds all of them are free (`None`: unknown)."""

    limit: Limit
    most: int
    left: int
    reset_s: float | None


class _Slot:
    """Units taken in one slot. Emptied when it leaves the window, so that nothing can be given back to it."""

    __slots__ = ("number", "units")

    def __init__(self, number: int, units: int) -> None:
        self.number = number
        self.units = units


_Taken = tuple[_Slot, int]  # where, and how many units


class SlidingWindow:
    """At most `most` units in any `window_s` seconds. `now_s` is monotonic; a clock that steps back gives no room."""

    __slots__ = ("_slot_s", "_slots", "limit", "most", "used")

    def __init__(self, limit: Limit, most: int, window_s: float) -> None:
        if most < 1:
            raise ValueError(f"a limit must be at least 1: {limit.value} {most}")
        self.limit = limit
        self.most = most
        self.used = 0  # in the window, as of the last look
        self._slot_s = window_s / SLOTS
        self._slots: deque[_Slot] = deque()  # those that hold units, oldest first

    def _slot_at(self, now_s: float) -> int:
        slots = self._slots
        number = int(now_s // self._slot_s)
        while slots and slots[0].number < number - SLOTS:
            gone = slots.popleft()
            self.used -= gone.units
            gone.units = 0
        return max(number, slots[-1].number) if slots else number

    def wait_s(self, units: int, now_s: float) -> float:
        """Seconds until `units` fit, 0 if they do now; infinite for more than the limit itself."""
        self._slot_at(now_s)
        over = self.used + units - self.most
        if over <= 0:
            return 0.0
        for slot in self._slots:
            over -= slot.units
            if over <= 0:
                return self._leaves_at_s(slot) - now_s
        return inf

    def take(self, units: int, now_s: float) -> _Slot:
        """Count `units` from now on, whether they fit or not; the slot to give some of them back to."""
        number = self._slot_at(now_s)
        slots = self._slots
        if not slots or slots[-1].number != number:
            slots.append(_Slot(number, 0))
        slot = slots[-1]
        slot.units += units
        self.used += units
        return slot

    def give_back(self, slot: _Slot, units: int) -> None:
        """Units that were taken in `slot` and not used; of a slot that has left the window, nothing."""
        units = min(units, slot.units)
        slot.units -= units
        self.used -= units

    def standing(self, now_s: float) -> Standing:
        """How it stands now."""
        self._slot_at(now_s)
        reset_s = 0.0
        if self.used:
            at = -1
            while not self._slots[at].units:
                at -= 1
            reset_s = self._leaves_at_s(self._slots[at]) - now_s
        return Standing(self.limit, self.most, max(0, self.most - self.used), reset_s)

    def _leaves_at_s(self, slot: _Slot) -> float:
        return (slot.number + SLOTS + 1) * self._slot_s


class KeyLimiter:
    """The limits of one key, exact as long as one event loop (or thread) uses it: no call gives way half-done.

    `now_s` is a monotonic clock; `on_refused` is told of every refusal. Only for terms that limit anything.
    """

    def __init__(
        self, terms: LimitTerms, *, now_s: Callable[[], float], on_refused: Callable[[Limit], None] = lambda _: None
    ) -> None:
        self.terms = terms
        self.running = 0
        self._now_s = now_s
        self._on_refused = on_refused
        self._requests = tuple(_windows(terms, (Limit.REQUESTS_PER_MIN, Limit.REQUESTS_PER_HOUR)))
        self._tokens = next(_windows(terms, (Limit.TOKENS_PER_MIN,)), None)

    def standings(self) -> tuple[Standing, ...]:
        """Every limit of the key as it stands now."""
        now_s = self._now_s()
        found = [window.standing(now_s) for window in self._requests]
        if self._tokens is not None:
            found.append(self._tokens.standing(now_s))
        seats = self.terms.concurrency_max
        if seats is not None:
            found.append(Standing(Limit.CONCURRENCY_MAX, seats, seats - self.running, None))
        return tuple(found)

    def _refuse(self, limit: Limit, message: str, retry_after_s: float | None) -> RateLimited:
        self._on_refused(limit)
        return RateLimited(message, retry_after_s=retry_after_s)

    def _where(self, limit: Limit) -> str:
        """Where a limit is set, and which part of it holds here."""
        part = "" if self.terms.gateways == 1 else f", of which this gateway gives out 1/{self.terms.gateways}"
        return f"({limit.value} in the gateway's server.auth{part})"

    def _named(self, window: SlidingWindow) -> str:
        return f"{window.most} tokens {_PER[window.limit]} {self._where(window.limit)}"

    def enter(self) -> list[_Slot]:
        """Take a request and a seat, or raise `RateLimited` and take nothing."""
        seats = self.terms.concurrency_max
        if seats is not None and self.running >= seats:
            raise self._refuse(
                Limit.CONCURRENCY_MAX,
                f"This key may have {seats} requests under way at once {self._where(Limit.CONCURRENCY_MAX)}, and has "
                f"{self.running}. Wait for one of them to end, or have the limit raised.",
                CONCURRENCY_RETRY_S,
            )
        now_s = self._now_s()
        for window in self._requests:
            if window.wait_s(1, now_s) > 0.0:
                raise self._too_many_requests(now_s)
        self.running += 1
        return [window.take(1, now_s) for window in self._requests]

    def _too_many_requests(self, now_s: float) -> RateLimited:
        """The refusal of the limit that takes longest to have room again."""
        waits_s = [(window.wait_s(1, now_s), window) for window in self._requests]
        wait_s, window = max(waits_s, key=lambda found: found[0])
        return self._refuse(
            window.limit,
            f"This key may make {window.most} requests {_PER[window.limit]} {self._where(window.limit)}, and has made "
            f"{window.used}. Try again in {ceil(wait_s)} s, or have the limit raised.",
            wait_s,
        )

    def leave(self) -> None:
        """Give the seat back."""
        self.running -= 1

    def forget(self, requests: list[_Slot]) -> None:
        """A request that was refused after all counts nowhere."""
        for window, slot in zip(self._requests, requests, strict=True):
            window.give_back(slot, 1)

    def take_tokens(self, input_tokens: int, output_tokens: int) -> _Taken | None:
        """Take what a request will probably use, or raise `RateLimited` and take nothing.

        The answer's part is a guess, so it never keeps out a request whose prompt has room by itself in an empty
        window: no more than the whole limit is taken. A prompt that is larger than the limit never fits.
        """
        window = self._tokens
        if window is None:
            return None
        if input_tokens > window.most:
            message = (
                f"The prompt has about {input_tokens} tokens, and this key may use {self._named(window)}. Send a "
                "shorter prompt, or have the limit raised."
            )
            raise self._refuse(window.limit, message, None)
        now_s = self._now_s()
        units = min(window.most, input_tokens + output_tokens)
        wait_s = window.wait_s(units, now_s)
        if wait_s > 0.0:
            message = (
                f"This key may use {self._named(window)}, and has used or reserved {window.used}; this request needs "
                f"about {units}, {input_tokens} of them for its prompt. Try again in {ceil(wait_s)} s, ask for less "
                "with max_tokens, or have the limit raised."
            )
            raise self._refuse(window.limit, message, wait_s)
        return window.take(units, now_s), units

    def correct_tokens(self, taken: _Taken, used: int) -> None:
        """Replace what was taken by what was `used`."""
        window = self._tokens
        if window is None:
            return
        slot, units = taken
        if used <= units:
            window.give_back(slot, units - used)
        else:
            window.take(used - units, self._now_s())


class Allowance:
    """What one request takes of its key's limits. A context manager around all of it, however it ends.

    `settle` may be called by whoever knows the true usage, before the last byte goes out: a caller who sends one
    request after the other must find the seat free. The first call counts; leaving settles with nothing used.
    """

    __slots__ = ("_open", "_requests", "_tokens", "limiter")

    def __init__(self, limiter: KeyLimiter) -> None:
        self.limiter = limiter
        self._open = False
        self._requests: list[_Slot] = []
        self._tokens: _Taken | None = None

    def __enter__(self) -> Allowance:
        self._requests = self.limiter.enter()
        self._open = True
        return self

    def take_tokens(self, input_tokens: int, output_tokens: int) -> None:
        """Reserve the tokens of the request. Raises `RateLimited`; then the request counts nowhere."""
        try:
            self._tokens = self.limiter.take_tokens(input_tokens, output_tokens)
        except RateLimited:
            self.limiter.forget(self._requests)
            raise

    def settle(self, used_tokens: int) -> None:
        """The request has ended and has used so many tokens, input and output, all its attempts together."""
        if self._open:
            self._open = False
            self.limiter.leave()
            if self._tokens is not None:
                self.limiter.correct_tokens(self._tokens, used_tokens)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle(0)


_WINDOW_S = {Limit.REQUESTS_PER_MIN: MINUTE_S, Limit.REQUESTS_PER_HOUR: HOUR_S, Limit.TOKENS_PER_MIN: MINUTE_S}
_PER = {
    Limit.REQUESTS_PER_MIN: "per minute",
    Limit.REQUESTS_PER_HOUR: "per hour",
    Limit.TOKENS_PER_MIN: "per minute",
}


def _windows(terms: LimitTerms, limits: tuple[Limit, ...]) -> Iterator[SlidingWindow]:
    for limit in limits:
        most = getattr(terms, limit.value)
        if most is not None:
            yield SlidingWindow(limit, most, _WINDOW_S[limit])
