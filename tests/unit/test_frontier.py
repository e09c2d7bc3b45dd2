from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelless.frontier import Point, frontier

_few = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
"""Few values, so that ties are many."""


def dominates(one: Point, other: Point) -> bool:
    return (
        one.accuracy >= other.accuracy
        and one.latency_ms <= other.latency_ms
        and one.cost <= other.cost
        and one != other
    )


@given(st.lists(st.builds(Point, _few, _few, _few), max_size=40))
def test_is_what_nothing_dominates(points: list[Point]) -> None:
    expected = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert frontier(points) == expected


@given(st.lists(st.builds(Point, st.floats(0, 1), st.floats(0.1, 100), st.floats(0, 10)), max_size=40))
def test_is_what_nothing_dominates_without_ties(points: list[Point]) -> None:
    expected = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert frontier(points) == expected


def test_without_cost_it_is_of_two_dimensions() -> None:
    points = [Point(0.9, 10), Point(0.8, 12), Point(0.95, 20), Point(0.9, 10), Point(0.7, 1)]
    assert frontier(points) == [0, 2, 3, 4]


def test_ten_thousand_take_a_moment() -> None:
    """All of them on the frontier, which is the worst case."""
    draw = np.random.default_rng(0)
    accuracy = np.sort(draw.random(10_000))
    points = [Point(float(a), float(a), float(b)) for a, b in zip(accuracy, draw.random(10_000), strict=True)]
    started_s = time.process_time()
    assert len(frontier(points)) == 10_000
    assert time.process_time() - started_s < 1.0
