"""A load that comes in bursts has a quiet and a busy level."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.levels import MEMORY_MS, SAMPLE_MS, SAMPLES_MS_MAX, UNEVEN, Level, Levels
from modelless.messages import Demanded

ASKS = Demanded("t", 100.0, 0.8, "cost", False, 0.0)
OTHER = replace(ASKS, task="u", latency_ms=None)


def heard(rates: list[float], begin_ms: float = 0.0, levels: Levels | None = None) -> Levels:
    levels = levels or Levels()
    for number, rate in enumerate(rates):
        levels.hear([replace(ASKS, rows_per_second=rate)], begin_ms + number * SAMPLE_MS)
    return levels


def told(levels: Levels, present: float = 7.0) -> list[tuple[float, float]]:
    """(rows a second, share of the time) of each level."""
    found = levels.of([replace(ASKS, rows_per_second=present)])
    assert sum(level.share for level in found) == pytest.approx(1)
    return [(sum(each.rows_per_second for each in level.demand), level.share) for level in found]


def test_an_even_load_is_as_it_is_at_present() -> None:
    assert Levels().of([ASKS]) == (Level((ASKS,), 1.0),)
    assert told(heard([5.0])) == [(7.0, 1.0)]
    assert told(heard([10.0, 12.0, 14.0] * 20)) == [(7.0, 1.0)]
    assert told(heard([10.0] * 20 + [10.0 * UNEVEN] * 20)) != [(7.0, 1.0)]


def test_bursts_are_a_level_of_their_own() -> None:
    (quiet, calm), (busy, burst) = told(heard([10.0, 10.0, 10.0, 11.0, 80.0] * 18))
    assert (quiet, busy) == (pytest.approx(10.25, abs=0.02), pytest.approx(80.0))
    assert (calm, burst) == (pytest.approx(0.8, abs=0.02), pytest.approx(0.2, abs=0.02))


def test_the_two_levels_are_those_that_differ_least_within() -> None:
    (quiet, _), (busy, _) = told(heard([1.0, 2.0, 30.0, 32.0, 40.0]))
    assert (quiet, busy) == (pytest.approx(1.5, abs=0.02), pytest.approx(34.0, abs=0.3))


def test_the_last_seconds_count_most_and_old_ones_nothing() -> None:
    steps = heard([10.0] * 80 + [40.0] * 20)
    (_, before), (_, after) = told(steps)
    assert after > 0.4 > 20 / 80, "a step is soon believed"
    assert before == pytest.approx(1 - after)
    later_ms = 100 * SAMPLE_MS + SAMPLES_MS_MAX
    assert told(heard([40.0], later_ms, steps)) == [(7.0, 1.0)]
    assert MEMORY_MS < SAMPLES_MS_MAX


def test_one_sample_a_second_is_kept_and_silence_is_none() -> None:
    levels = heard([10.0, 80.0])
    levels.hear([], 5000.0)
    once = told(levels)
    levels.hear([replace(ASKS, rows_per_second=500.0)], SAMPLE_MS * 1.5)
    assert told(levels) == once


def test_each_level_tells_class_by_class_what_was_asked_in_it() -> None:
    levels = Levels()
    for number in range(10):
        asks = [replace(ASKS, rows_per_second=10.0, latency_ms=100.0 - number / 10)]
        if number % 2:
            asks.append(replace(OTHER, rows_per_second=90.0))
        levels.hear(asks, number * SAMPLE_MS)
    quiet, busy = levels.of([])
    assert [(each.task, each.latency_ms) for each in quiet.demand] == [("t", 99.2)], "as it was asked for last"
    assert {each.task: round(each.rows_per_second) for each in busy.demand} == {"t": 10, "u": 90}
    assert {each.latency_ms for each in busy.demand} == {99.1, None}
