"""How long answers are, by class of request. Pure.

Prompt length says nothing about answer length, so nothing is derived from it. The mean decides (a decaying average),
the p90 reserves (exact over the last observations); the client's max_tokens only caps. Until a class has shown enough,
both figures are defaults and say so.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Mapping
from math import ceil
from typing import Any

from router.core.request import TokenEstimate

DEFAULT_MEAN_TOKENS = 256
DEFAULT_P90_TOKENS = 1024
MIN_OBSERVATIONS = 20
WINDOW = 128
"""Observations over which the p90 is taken."""
MEAN_WEIGHT = 0.02
"""Weight of the newest observation in the mean, once there are 50."""
MAX_CLASSES = 256
MAX_OBSERVED_TOKENS = 10_000_000
_P90 = 0.9
_NORMAL_P90_SIGMAS = 1.2816


def output_variance(estimate: TokenEstimate, n: int = 1) -> float:
    """Variance (tokens squared) of the output of `n` independent answers, as mean and p90 tell it.

    0 where nothing of the class has been seen: a guess has no distribution, so what is expected is reserved in full.
    """
    if estimate.source == "default":
        return 0.0
    sigma = (estimate.output_p90_tokens - estimate.output_mean_tokens) / _NORMAL_P90_SIGMAS
    return n * sigma * sigma


class _Class:
    """Lengths seen of one class: a mean, the last ones in order of arrival, and the same sorted."""

    __slots__ = ("count", "mean", "recent", "sorted")

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.recent: deque[int] = deque()
        self.sorted: list[int] = []

    def observe(self, tokens: int) -> None:
        self.count += 1
        # a plain average first, so that the start does not weigh for ever
        self.mean += max(MEAN_WEIGHT, 1.0 / self.count) * (tokens - self.mean)
        self.recent.append(tokens)
        insort(self.sorted, tokens)
        if len(self.recent) > WINDOW:
            del self.sorted[bisect_left(self.sorted, self.recent.popleft())]

    @property
    def p90(self) -> int:
        return self.sorted[ceil(_P90 * len(self.sorted)) - 1]


class LengthTable:
    """Output lengths by request class; at most `max_classes`, the one not seen for longest gives way."""

    def __init__(
        self,
        *,
        default_mean_tokens: int = DEFAULT_MEAN_TOKENS,
        default_p90_tokens: int = DEFAULT_P90_TOKENS,
        min_observations: int = MIN_OBSERVATIONS,
        max_classes: int = MAX_CLASSES,
    ) -> None:
        self._default = (default_mean_tokens, default_p90_tokens)
        self._min_observations = min_observations
        self._max_classes = max_classes
        self._classes: OrderedDict[str, _Class] = OrderedDict()

    def estimate(self, request_class: str, input_tokens: int, *, estimated: bool, cap: int | None) -> TokenEstimate:
        """Mean and p90 of the output of `request_class`, neither above `cap`.

        `source` is `max_tokens` where the cap binds, else `class_mean`, or `default` for a class too little seen.
        `input_tokens` and `estimated` are passed on.
        """
        seen = self._classes.get(request_class)
        if seen is None or seen.count < self._min_observations:
            (mean, p90), source = self._default, "default"
        else:
            # the mean of a heavy tail may lie above its p90; the reservation must hold the expectation
            mean, source = round(seen.mean), "class_mean"
            p90 = max(mean, seen.p90)
        if cap is not None and cap < p90:
            cap = max(0, cap)
            mean, p90, source = min(mean, cap), cap, "max_tokens"
        return TokenEstimate(
            input_tokens=input_tokens,
            output_mean_tokens=mean,
            output_p90_tokens=p90,
            source=source,
            input_estimated=estimated,
        )

    def observe(self, request_class: str, output_tokens: int) -> None:
        """Learn from a finished request. What cannot be a length (negative, absurd) is passed over."""
        if not 0 <= output_tokens <= MAX_OBSERVED_TOKENS:
            return
        seen = self._classes.get(request_class)
        if seen is None:
            if len(self._classes) >= self._max_classes:
                self._classes.popitem(last=False)
            seen = self._classes[request_class] = _Class()
        else:
            self._classes.move_to_end(request_class)
        seen.observe(output_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Everything learnt, as plain JSON values, the class not seen for longest first."""
        return {
            name: {"count": seen.count, "mean": seen.mean, "recent": list(seen.recent)}
            for name, seen in self._classes.items()
        }

    def restore(self, learnt: Mapping[str, Any]) -> None:
        """Take up what `to_dict` gave; classes that are malformed are passed over, being only estimates."""
        for name, value in learnt.items():
            if (seen := _restored(value)) is not None:
                self._classes[str(name)] = seen
                self._classes.move_to_end(str(name))
        while len(self._classes) > self._max_classes:
            self._classes.popitem(last=False)


def _restored(value: Any) -> _Class | None:
    if not isinstance(value, Mapping):
        return None
    count, mean, recent = value.get("count"), value.get("mean"), value.get("recent")
    if not isinstance(count, int) or not isinstance(mean, int | float) or not isinstance(recent, list):
        return None
    if not recent or count < len(recent) or not 0.0 <= mean <= MAX_OBSERVED_TOKENS:
        return None
    if not all(isinstance(tokens, int) and 0 <= tokens <= MAX_OBSERVED_TOKENS for tokens in recent):
        return None
    seen = _Class()
    seen.count, seen.mean = count, float(mean)
    seen.recent = deque(recent[-WINDOW:])
    seen.sorted = sorted(seen.recent)
    return seen
