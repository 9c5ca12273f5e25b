"""Counters and histograms for the event loop alone: no lock, no checks, nothing looked up but where it is shown.

prometheus_client's own take a lock and several calls for each of the dozen numbers that a request moves. These are
changed by one thread and read by whoever renders the page: a number read is at most one event old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Tally:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count `amount` more, not below 0."""
        self.value += amount


class Counters:
    """A family of counters by the values of `labels`: a collector. `name` ends in `_total`."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._about = (name.removesuffix("_total"), text)
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Tally] = {}

    def labels(self, *values: str) -> Tally:
        """The counter of these values: to be kept, since looking it up costs more than counting."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._about[0]} has the labels {', '.join(self._labels)}")
        return self._children.setdefault(values, Tally())

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for values, tally in tuple(self._children.items()):
            family.add_metric(values, tally.value)
        yield family


class Timings:
    """One histogram over `bounds`, ascending, in seconds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one; a bound itself belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def shown(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, count up to it) for every bucket, and the sum."""
        names = (*map(floatToGoString, self._bounds), "+Inf")
        return list(zip(names, map(float, accumulate(self._counts)), strict=True)), self._sum


class Histograms:
    """A family of histograms by the values of `labels`: a collector."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str]) -> None:
        self._about = (name, text)
        self._bounds = bounds
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Timings] = {}

    def labels(self, *values: str) -> Timings:
        """The histogram of these values: to be kept."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._about[0]} has the labels {', '.join(self._labels)}")
        return self._children.setdefault(values, Timings(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        for values, timings in tuple(self._children.items()):
            buckets, total = timings.shown()
            family.add_metric(values, buckets, total)
        yield family
