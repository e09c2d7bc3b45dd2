"""Histograms count into inclusive upper bounds."""

from __future__ import annotations

from broker.statistics import Histogram, Statistics


def test_a_histogram_counts_into_inclusive_buckets() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 9):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert histogram.sum == 16


def test_counters_start_at_nothing_and_are_not_shared() -> None:
    first, second = Statistics(), Statistics()
    first.outcomes["OK", "t"] += 1
    first.cost_usd["t"] += 0.5
    assert not second.outcomes
    assert not second.cost_usd
