"""Rows of the batch that a query joins, and slowness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.usual import QUIET_MS, UsualOfGroup, company


def rows_of(usual: UsualOfGroup, now_ms: float) -> float | None:
    found = usual.at(now_ms)
    return None if found is None else found.rows


def test_queries_count_not_batches() -> None:
    usual = UsualOfGroup()
    for _ in range(9):
        usual.ran(1, 1.0, 0.0)
    usual.ran(9, 1.0, 0.0)
    assert rows_of(usual, 0.0) == pytest.approx(5.0)


def test_nothing_is_usual_while_nothing_runs() -> None:
    usual = UsualOfGroup()
    assert rows_of(usual, 0.0) is None
    usual.ran(4, 1.0, 0.0)
    assert rows_of(usual, QUIET_MS) == 4.0
    assert rows_of(usual, QUIET_MS + 1) is None
    usual.ran(2, 1.0, QUIET_MS + 1)
    assert rows_of(usual, QUIET_MS + 1) == 2.0


def test_what_was_usual_is_forgotten() -> None:
    usual = UsualOfGroup()
    for _ in range(1000):
        usual.ran(1, 1.0, 0.0)
    for _ in range(100):
        usual.ran(10, 1.0, 0.0)
    assert rows_of(usual, 0.0) == pytest.approx(10.0, rel=0.01)


@given(st.lists(st.integers(1, 1000), min_size=1))
def test_it_lies_among_what_ran(batches: list[int]) -> None:
    usual = UsualOfGroup()
    for rows in batches:
        usual.ran(rows, 1.0, 0.0)
    assert min(batches) - 1e-6 <= (rows_of(usual, 0.0) or 0.0) <= max(batches) + 1e-6


def test_slowness_is_a_mean_of_logarithms() -> None:
    usual = UsualOfGroup()
    usual.ran(1, 4.0, 0.0)
    usual.ran(1, 1.0, 0.0)
    found = usual.at(0.0)
    assert found is not None
    assert found.slowness == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("rows_per_ms", "block_ms", "rows"),
    [(0.01, 1e9, 1), (0.04, 1e9, 2), (0.07, 1e9, 6), (0.2, 1e9, 8), (0.2, 80.0, 5), (0.2, 10.0, 1)],
)
def test_company_is_what_comes_while_a_batch_runs(rows_per_ms: float, block_ms: float, rows: int) -> None:
    assert company(rows_per_ms, lambda rows: 30.0 + 10.0 * rows, 8, block_ms) == rows
