"""Counters and histograms of our own look on the page like prometheus_client's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from router.series import Counters, Histograms

BOUNDS = (0.005, 0.05, 1.0, 2.5)


def page(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5000).map(lambda ms: ms / 1000))),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**12))),
)
def test_the_page_is_that_of_the_librarys_own_metrics(seen: list[tuple[str, float]], counted: list[tuple[str, int]]):
    ours, theirs = CollectorRegistry(auto_describe=False), CollectorRegistry()
    timings = Histograms("took_seconds", "How long", BOUNDS, ["tier"])
    tallies = Counters("done_total", "Done", ["tier"])
    ours.register(timings)
    ours.register(tallies)
    histogram = Histogram("took_seconds", "How long", ["tier"], buckets=BOUNDS, registry=theirs)
    counter = Counter("done_total", "Done", ["tier"], registry=theirs)
    for tier, seconds in (("a", 0.005), ("b", 2.5), *seen):
        timings.labels(tier).observe(seconds)
        histogram.labels(tier).observe(seconds)
    for tier, amount in counted:
        tallies.labels(tier).inc(amount)
        counter.labels(tier).inc(amount)
    assert page(ours) == page(theirs)


def test_values_for_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="tier"):
        Counters("done_total", "Done", ["tier"]).labels("a", "b")
    with pytest.raises(ValueError, match="tier"):
        Histograms("took_seconds", "How long", BOUNDS, ["tier"]).labels()
