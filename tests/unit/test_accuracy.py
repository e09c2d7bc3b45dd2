"""The interval against published values, and against the test that it inverts."""

from __future__ import annotations

from math import comb, sqrt

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelless.accuracy import Z_95, declared, wilson


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [  # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17, 1998, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(right: int, rows: int, low: float, high: float) -> None:
    assert wilson(right, rows) == pytest.approx((low, high), abs=5e-5)


def test_of_nothing_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert declared(0.93) == (0.93, 0.93)


counts = st.floats(0, 1e6).flatmap(lambda rows: st.tuples(st.floats(0, rows), st.just(rows)))


@given(counts)
def test_it_holds_the_share_and_stays_in_range(count: tuple[float, float]) -> None:
    right, rows = count
    low, high = wilson(right, rows)
    assert 0 <= low <= high <= 1
    if rows:
        assert low <= right / rows <= high


@given(st.integers(1, 10_000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_its_ends_are_just_rejected_by_the_score_test(count: tuple[int, int]) -> None:
    right, rows = count
    for end in wilson(right, rows):
        assume(0 < end < 1)
        assert abs(right / rows - end) / sqrt(end * (1 - end) / rows) == pytest.approx(Z_95, rel=1e-6)


@given(st.integers(1, 1000), st.floats(0, 1))
def test_more_rows_narrow_it_and_the_mirror_image_mirrors_it(rows: int, share: float) -> None:
    low, high = wilson(share * rows, rows)
    assert high - low > (lambda i: i.high - i.low)(wilson(share * 4 * rows, 4 * rows))
    assert wilson(rows - share * rows, rows) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_it_covers_the_truth_about_as_often_as_it_says(share: float) -> None:
    rows = 349
    covered = sum(
        comb(rows, right) * share**right * (1 - share) ** (rows - right)
        for right in range(rows + 1)
        if wilson(right, rows).low <= share <= wilson(right, rows).high
    )
    assert 0.93 < covered < 0.97
