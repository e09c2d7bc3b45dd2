"""lat(b): what a profile says between its points, and how it is kept alive."""

from __future__ import annotations

import random
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.profiles import QUIET_MS, RELAX_MS, LatencyTable
from modelless.messages import BatchTime


def table(*points: tuple[int, float]) -> LatencyTable:
    return LatencyTable(tuple(BatchTime(size, ms, 2 * ms) for size, ms in points))


def test_between_its_points_it_is_that_of_the_next_larger_below_flat_and_above_in_proportion() -> None:
    lat = table((2, 4.0), (4, 6.0), (8, 6.0))
    assert [lat.p50_ms(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [4, 4, 6, 6, 6, 6, 12]
    assert [lat.p99_ms(rows) for rows in (1, 16)] == [8, 24]


def test_more_rows_are_never_faster_whatever_was_measured() -> None:
    lat = table((1, 5.0), (2, 3.0), (4, 4.0))
    times = [lat.p50_ms(rows) for rows in range(1, 12)]
    assert times == sorted(times)


def test_what_is_observed_moves_the_scale_and_no_single_batch_moves_it_far() -> None:
    lat = table((1, 10.0), (8, 20.0))
    lat.observe(1, 1e9, 0)
    assert 1 < lat.scale < 1.05
    assert 1 < lat.tail < 1.2
    for _ in range(200):
        lat.observe(8, 60.0, 0)
    assert lat.p50_ms(8) == pytest.approx(60, rel=0.01)
    assert lat.p50_ms(1) == pytest.approx(30, rel=0.01)
    before = lat.scale
    lat.observe(8, 0.0, 0)
    assert lat.scale == before


def test_a_slowdown_is_believed_within_tens_of_batches_and_so_is_its_end() -> None:
    lat = table((1, 10.0))
    for _ in range(30):
        lat.observe(1, 30.0, 0)
    assert 2.0 < lat.scale < 3.0
    assert 27 < lat.p99_ms(1) < 33
    for _ in range(30):
        lat.observe(1, 10.0, 0)
    assert lat.scale < 1.3


def test_rare_outliers_move_the_tail_and_hardly_the_median() -> None:
    lat = table((1, 10.0))
    draw = random.Random(1)
    for _ in range(3000):
        lat.observe(1, 100.0 if draw.random() < 0.05 else 10.0, 0)
    assert lat.scale == pytest.approx(1.0, abs=0.06)
    assert lat.p99_ms(1) == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_median_and_tail_are_found_whatever_the_noise(factor: float, spread: float) -> None:
    lat = table((1, 10.0), (8, 40.0))
    draw = random.Random(2)
    p50s, p99s = [], []
    for _ in range(6000):
        lat.observe(8, 40 * factor * exp(spread * draw.gauss(0, 1)), 0)
        p50s.append(lat.p50_ms(8))
        p99s.append(lat.p99_ms(8))
    assert sum(p50s[1000:]) / 5000 == pytest.approx(40 * factor, rel=0.05)
    assert sum(p99s[1000:]) / 5000 == pytest.approx(40 * factor * exp(2.326 * spread), rel=0.12)


def test_what_was_learned_is_forgotten_when_nothing_is_observed() -> None:
    lat = table((1, 10.0))
    for _ in range(200):
        lat.observe(1, 30.0, 1000)
    lat.relax(1000 + QUIET_MS)
    assert lat.scale == pytest.approx(3, rel=0.01)
    lat.relax(1000 + QUIET_MS + RELAX_MS / 2)
    lat.relax(1000 + QUIET_MS + RELAX_MS)
    assert lat.scale == pytest.approx(3 ** exp(-1), rel=0.01), "in two steps as in one"
    lat.relax(1000 + QUIET_MS + 10 * RELAX_MS)
    assert (lat.scale, lat.tail) == (1.0, 1.0)


def test_observing_again_begins_where_forgetting_has_come_to() -> None:
    lat = table((1, 10.0))
    for _ in range(200):
        lat.observe(1, 30.0, 0)
    lat.observe(1, 10.0, 10 * RELAX_MS)
    assert lat.scale == 1.0


def test_a_table_begins_with_a_snapshot_but_believes_what_it_saw_itself() -> None:
    lat = table((1, 10.0))
    lat.restore(3.0, 4.0, 500)
    assert (lat.p50_ms(1), lat.p99_ms(1)) == (pytest.approx(30), pytest.approx(80))
    lat.observe(1, 30.0, 1000)
    lat.restore(1.0, 1.0, 900)
    assert lat.scale == pytest.approx(3.0)


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 1e12), st.floats(0, 1e6)), max_size=200))
def test_factors_stay_bounded_whatever_is_observed(batches: list[tuple[int, float, float]]) -> None:
    lat = table((1, 10.0), (8, 20.0))
    for rows, execute_ms, now_ms in batches:
        lat.observe(rows, execute_ms, now_ms)
        assert 0.1 <= lat.scale <= 20
        assert 0.1 <= lat.tail <= 20


def test_a_queue_is_worked_off_in_the_largest_useful_batches() -> None:
    lat = table((1, 10.0), (10, 20.0))
    assert lat.rows_useful == 10
    assert lat.queue_ms(0) == 0
    assert lat.queue_ms(25) == 50
    assert lat.queue_ms(25, 1) == 250


curves = st.lists(st.floats(0.01, 1000), min_size=1, max_size=8).map(
    lambda times: table(*[(2**index, ms) for index, ms in enumerate(times)])
)


@given(curves, st.floats(0, 2000), st.integers(1, 300))
def test_rows_within_fit_the_budget_or_are_the_least(lat: LatencyTable, budget_ms: float, rows_min: int) -> None:
    rows = lat.rows_within(budget_ms, rows_min)
    assert rows >= rows_min
    assert rows == rows_min or lat.sure_ms(rows) <= budget_ms
    assert lat.p50_ms(rows) <= lat.sure_ms(rows) <= max(lat.p50_ms(rows), lat.p99_ms(rows))
    assert rows <= max(rows_min, lat.rows_useful)
