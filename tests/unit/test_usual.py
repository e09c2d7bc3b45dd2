"""Rows of the batch that a query joins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.usual import QUIET_MS, UsualRows


def test_queries_count_not_batches() -> None:
    usual = UsualRows()
    for _ in range(9):
        usual.ran(1, 0.0)
    usual.ran(9, 0.0)
    assert usual.rows(0.0) == pytest.approx(5.0)


def test_nothing_is_usual_while_nothing_runs() -> None:
    usual = UsualRows()
    assert usual.rows(0.0) is None
    usual.ran(4, 0.0)
    assert usual.rows(QUIET_MS) == 4.0
    assert usual.rows(QUIET_MS + 1) is None
    usual.ran(2, QUIET_MS + 1)
    assert usual.rows(QUIET_MS + 1) == 2.0


def test_what_was_usual_is_forgotten() -> None:
    usual = UsualRows()
    for _ in range(1000):
        usual.ran(1, 0.0)
    for _ in range(100):
        usual.ran(10, 0.0)
    assert usual.rows(0.0) == pytest.approx(10.0, rel=0.01)


@given(st.lists(st.integers(1, 1000), min_size=1))
def test_it_lies_among_what_ran(batches: list[int]) -> None:
    usual = UsualRows()
    for rows in batches:
        usual.ran(rows, 0.0)
    assert min(batches) - 1e-6 <= (usual.rows(0.0) or 0.0) <= max(batches) + 1e-6
