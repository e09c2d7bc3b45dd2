from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from modelless.clock import DRIFT_MAX, WINDOW_MS, KafkaClock

HOUR_MS = 3_600_000.0
OFFSETS = st.floats(-HOUR_MS, HOUR_MS)
DELAYS = st.floats(0, 500)


class Local:
    """A clock in the test's hand."""

    def __init__(self, now_ms: float = 1_700_000_000_000.0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> float:
        return self.now_ms


def observe(clock: KafkaClock, local: Local, offset_ms: float, there_ms: float, back_ms: float) -> None:
    """One record: stamped ``there_ms`` after it was sent, acknowledged ``back_ms`` after that."""
    sent_ms = local.now_ms
    log_ms = math.floor(sent_ms + there_ms + offset_ms)
    local.now_ms += there_ms + back_ms
    clock.observe(sent_ms, log_ms, local.now_ms)


def test_before_anything_was_observed_kafka_time_is_local_time_with_an_infinite_allowance() -> None:
    local = Local()
    clock = KafkaClock(local)
    assert (clock.now_ms(), clock.allowance_ms, clock.synchronized) == (local.now_ms, math.inf, False)


@given(OFFSETS, st.lists(st.tuples(DELAYS, DELAYS, st.floats(0, 20_000)), min_size=1, max_size=100))
def test_kafka_time_is_within_the_allowance_whatever_the_skew(
    offset_ms: float, records: list[tuple[float, float, float]]
) -> None:
    local = Local()
    clock = KafkaClock(local)
    for there_ms, back_ms, pause_ms in records:
        observe(clock, local, offset_ms, there_ms, back_ms)
        local.now_ms += pause_ms
        error_ms = abs(clock.now_ms() - (local.now_ms + offset_ms))
        assert error_ms <= clock.allowance_ms + 0.01


@example(-1.21875, 9.662786459486933e-05, [(0, 0), (0, 0), (0, 390)])
@given(OFFSETS, st.floats(-1e-4, 1e-4), st.lists(st.tuples(DELAYS, DELAYS), min_size=1, max_size=200))
def test_clocks_that_drift_apart_stay_within_the_allowance(
    offset_ms: float, drift: float, records: list[tuple[float, float]]
) -> None:
    local = Local()
    start_ms = local.now_ms
    clock = KafkaClock(local)
    for there_ms, back_ms in records:
        observe(clock, local, offset_ms + drift * (local.now_ms + there_ms - start_ms), there_ms, back_ms)
        local.now_ms += 1000 - there_ms - back_ms
        truth_ms = local.now_ms + offset_ms + drift * (local.now_ms - start_ms)
        assert abs(clock.now_ms() - truth_ms) <= clock.allowance_ms + 0.01


@given(OFFSETS, st.lists(st.tuples(DELAYS, DELAYS), max_size=50))
def test_one_quick_acknowledgement_among_slow_ones_sets_the_allowance(
    offset_ms: float, slow: list[tuple[float, float]]
) -> None:
    local = Local()
    clock = KafkaClock(local)
    observe(clock, local, offset_ms, 0.4, 0.6)
    for there_ms, back_ms in slow:
        observe(clock, local, offset_ms, there_ms, back_ms)
    drift_ms = 2 * 1e-4 * 50 * 1000
    assert clock.allowance_ms <= (0.4 + 0.6 + 1) / 2 + drift_ms


@example(0.0, 7.0, 1)
@given(OFFSETS, OFFSETS, st.integers(1, 80))
def test_a_step_of_kafkas_clock_is_followed_at_once(before_ms: float, after_ms: float, records: int) -> None:
    local = Local()
    clock = KafkaClock(local)
    for _ in range(records):
        observe(clock, local, before_ms, 5, 5)
        local.now_ms += 1000
    observe(clock, local, after_ms, 5, 5)
    error_ms = abs(clock.now_ms() - (local.now_ms + after_ms))
    width_ms = 5 + 5 + 1 + 2 * DRIFT_MAX * 1000 * 81  # what one observation leaves open, and the drift of the others
    seen = abs(after_ms - before_ms) > width_ms  # a smaller step contradicts nothing yet
    assert error_ms <= (clock.allowance_ms + 0.01 if seen else width_ms)


def test_a_wrong_timestamp_is_forgotten_with_the_next_right_one() -> None:
    local = Local()
    clock = KafkaClock(local)
    for offset_ms in (0, 0, HOUR_MS, 0):
        observe(clock, local, offset_ms, 1, 1)
        local.now_ms += 1000
    assert abs(clock.offset_ms) <= clock.allowance_ms


def test_an_acknowledgement_before_its_send_says_nothing() -> None:
    clock = KafkaClock(Local())
    clock.observe(sent_ms=1000, log_ms=999, acked_ms=990)
    assert not clock.synchronized


def test_the_window_is_bounded_at_any_rate_and_forgets_what_is_old() -> None:
    local = Local()
    clock = KafkaClock(local)
    for _ in range(20_000):
        observe(clock, local, 0.0, 5, 5)
    assert len(clock._seen) <= WINDOW_MS / 1000 + 1
    assert local.now_ms - clock._seen[0].at_ms <= WINDOW_MS


def test_the_allowance_grows_while_nothing_is_heard() -> None:
    local = Local()
    clock = KafkaClock(local)
    observe(clock, local, 0.0, 1, 1)
    fresh_ms = clock.allowance_ms
    local.now_ms += 600_000
    assert clock.allowance_ms > fresh_ms + 50


def test_the_default_local_clock_does_not_step_with_the_wall_clock() -> None:
    clock = KafkaClock()
    first_ms = clock.local_ms()
    assert 0 <= clock.local_ms() - first_ms < 60_000
