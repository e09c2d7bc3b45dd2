"""What stays of a load is told from what comes and goes."""

from __future__ import annotations

import pytest

from broker.bursts import MEMORY_MS, NEW, Bursts, Usual

WINDOW_MS = 60_000.0


def heard(loads: list[float], period_ms: float = 1000.0) -> Usual | None:
    bursts = Bursts(WINDOW_MS)
    for number, load in enumerate(loads):
        bursts.hear(load, number * period_ms)
    return bursts.usual()


def is_even(usual: Usual | None, load: float) -> bool:
    return usual is not None and (usual.mean, usual.ordinary) == (load, NEW * load) and not usual.excess.any()


def test_nothing_is_known_of_less_than_a_window() -> None:
    assert heard([1.0] * 60) is None
    assert is_even(heard([1.0] * 61), 1.0)


def test_short_peaks_are_excess_and_no_level() -> None:
    calm, peak = [10.0] * 90, [30.0] * 10
    usual = heard((calm + peak) * 5 + calm)
    assert usual is not None
    assert 10 < usual.mean < 13, "what lasts, and what the peaks bring on the mean"
    assert usual.mean + usual.excess.max() == pytest.approx(30.0)
    assert usual.excess.mean() == pytest.approx(0.0)
    assert usual.ordinary == NEW * 30.0


def test_a_step_that_lasts_is_level_and_no_excess() -> None:
    usual = heard([10.0] * 300 + [40.0] * 120)
    assert usual is not None
    assert usual.mean == pytest.approx(40.0, rel=0.01)
    assert usual.excess.max() < 0.5


def test_a_step_down_is_level_after_a_window() -> None:
    usual = heard([40.0] * 300 + [10.0] * 125)
    assert usual is not None
    assert usual.mean == pytest.approx(10.0, rel=0.01)
    assert usual.excess.max() < 1.0


def test_a_slow_rise_is_no_excess() -> None:
    usual = heard([10.0 + 0.01 * second for second in range(600)])
    assert usual is not None
    assert usual.excess.max() < 0.1 * usual.mean


def test_what_came_once_is_not_ordinary() -> None:
    once = heard([10.0] * 100 + [30.0] * 10 + [10.0] * 60)
    assert once is not None
    assert once.ordinary < NEW * 13.0
    twice = heard([10.0] * 100 + [30.0] * 10 + [10.0] * 60 + [25.0] * 10 + [10.0] * 60)
    assert twice is not None
    assert twice.ordinary == NEW * 25.0, "what was exceeded twice"


def test_a_peak_that_is_not_over_yet_is_not_ordinary() -> None:
    usual = heard([10.0] * 100 + [30.0] * 10 + [10.0] * 60 + [30.0] * 10)
    assert usual is not None
    assert usual.ordinary < NEW * 13.0


def test_what_lasts_longer_than_any_peak_did_is_not_ordinary() -> None:
    peaks = ([10.0] * 100 + [30.0] * 10) * 3 + [10.0] * 100
    short, long = heard(peaks + [25.0] * 12), heard(peaks + [25.0] * 13)
    assert short is not None
    assert long is not None
    assert short.ordinary == NEW * 30.0
    assert long.ordinary < 25.0


def test_looks_may_be_rare_or_frequent_and_old_ones_are_forgotten() -> None:
    assert is_even(heard([10.0] * 30, period_ms=5000.0), 10.0)
    assert is_even(heard([10.0] * 400, period_ms=300.0), 10.0)
    bursts = Bursts(WINDOW_MS)
    bursts.hear(500.0, 0.0)
    bursts.hear(10.0, 1e9)
    assert is_even(bursts.usual(), 10.0)
    for second in range(int(MEMORY_MS / 1000)):
        bursts.hear(20.0, 1e9 + 1000.0 * second)
    assert is_even(bursts.usual(), 20.0)
