"""The Pareto frontier of variants: those that nothing beats in accuracy, latency and cost at once. Pure.

One point **dominates** another when it is at least as accurate, at most as slow and at most as dear, and better in one
of the three. Whatever constraints a query has, and whatever it prefers, its best choice on an idle system is on the
frontier.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One variant on one group; more accuracy is better, less of the others."""

    accuracy: float
    latency_ms: float
    cost: float = 0.0
    """USD per 1,000 rows; the same for all leaves it out of account."""


def frontier(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, ascending; equal points are all kept. O(n log n), no NaN.

    From the most accurate down, a point is dominated if one before it is neither slower nor dearer (the maxima of a set
    of vectors in three dimensions: Kung, Luccio and Preparata 1975). Of those before it only a *staircase* matters:
    ascending latency, strictly descending cost.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i].accuracy, points[i].latency_ms, points[i].cost))
    stairs: list[Point] = []
    latencies_ms: list[float] = []
    kept = []
    for index in order:
        point = points[index]
        step = bisect_right(latencies_ms, point.latency_ms) - 1
        if step >= 0 and stairs[step].cost <= point.cost and stairs[step] != point:
            continue
        kept.append(index)
        first = last = bisect_left(latencies_ms, point.latency_ms)
        while last < len(stairs) and stairs[last].cost >= point.cost:
            last += 1
        stairs[first:last] = [point]
        latencies_ms[first:last] = [point.latency_ms]
    return sorted(kept)
