"""lat(b): what a profile says between its points, and how it is kept alive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.profiles import LatencyTable
from modelless.messages import BatchTime


def table(*points: tuple[int, float]) -> LatencyTable:
    return LatencyTable(tuple(BatchTime(size, ms, 2 * ms) for size, ms in points))


def test_between_its_points_it_is_linear_below_flat_and_above_in_proportion() -> None:
    lat = table((2, 4.0), (4, 6.0), (8, 6.0))
    assert [lat.p50_ms(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [4, 4, 5, 6, 6, 6, 12]
    assert [lat.p99_ms(rows) for rows in (1, 16)] == [8, 24]


def test_more_rows_are_never_faster_whatever_was_measured() -> None:
    lat = table((1, 5.0), (2, 3.0), (4, 4.0))
    times = [lat.p50_ms(rows) for rows in range(1, 12)]
    assert times == sorted(times)


def test_what_is_observed_moves_the_scale_and_no_single_batch_moves_it_far() -> None:
    lat = table((1, 10.0), (8, 20.0))
    lat.observe(1, 1e9)
    assert 1 < lat.scale < 1.5
    for _ in range(200):
        lat.observe(8, 60.0)
    assert lat.p50_ms(8) == pytest.approx(60, rel=0.01)
    assert lat.p50_ms(1) == pytest.approx(30, rel=0.01)
    before = lat.scale
    lat.observe(8, 0.0)
    assert lat.scale == before


def test_a_queue_is_worked_off_in_the_largest_useful_batches() -> None:
    lat = table((1, 10.0), (10, 20.0))
    assert lat.rows_useful == 10
    assert lat.queue_ms(0) == 0
    assert lat.queue_ms(25) == 20 + 20 + lat.p50_ms(5)


curves = st.lists(st.floats(0.01, 1000), min_size=1, max_size=8).map(
    lambda times: table(*[(2**index, ms) for index, ms in enumerate(times)])
)


@given(curves, st.floats(0, 2000), st.integers(1, 300))
def test_rows_within_fit_the_budget_or_are_the_least(lat: LatencyTable, budget_ms: float, rows_min: int) -> None:
    rows = lat.rows_within(budget_ms, rows_min)
    assert rows >= rows_min
    assert rows == rows_min or lat.p50_ms(rows) <= budget_ms
    assert rows <= max(rows_min, lat.rows_useful)
