"""How long a fetch waits for more than one record: never for long, and only where more will come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.pace import GATHER_MS_MAX, GATHER_RECORDS_MAX, SLACK_SHARE, Fetch, Pace

IDLE = Fetch(1, 100)
NEVER = float("inf")


def paced(records: int, every_ms: float, slack_ms: float = NEVER, record_bytes: int = 300) -> Pace:
    """After two seconds of a steady stream of reads."""
    pace = Pace(IDLE)
    for number in range(int(2_000 / every_ms)):
        pace.read(records, records * record_bytes, slack_ms, number * every_ms)
    return pace


@pytest.mark.parametrize(
    ("records", "every_ms", "wait_ms"),
    [(1, 10.0, 100), (1, 2.0, 100), (1, 1.0, 2), (3, 3.0, 2), (1, 0.3, 2), (1, 0.18, 1)],
)
def test_waits_where_several_will_come(records: int, every_ms: float, wait_ms: int) -> None:
    assert paced(records, every_ms).next.wait_ms == wait_ms


def test_waits_for_what_comes_meanwhile() -> None:
    assert paced(1, 1.0).next.bytes_min == pytest.approx(2 * 300, rel=0.05)


def test_nothing_is_waited_for_where_much_comes_anyway() -> None:
    pace = paced(20, 1.0)
    assert pace.next == IDLE
    assert not pace.gathers


def test_an_urgent_query_is_not_kept_waiting_nor_are_those_like_it() -> None:
    pace = paced(1, 1.0)
    pace.read(1, 300, 50.0, 2_001.0)
    assert pace.next == IDLE
    for now_ms in range(2_002, 2_300):
        pace.read(1, 300, NEVER, float(now_ms))
    assert pace.next == IDLE
    for now_ms in range(2_300, 6_000):
        pace.read(1, 300, NEVER, float(now_ms))
    assert pace.next.wait_ms == 2


def test_when_nothing_came_nothing_is_waited_for() -> None:
    pace = paced(1, 1.0)
    assert pace.gathers
    pace.read(0, 0, NEVER, 2_020.0)
    assert pace.next == IDLE


READS = st.lists(st.tuples(st.integers(0, 300), st.floats(0.0, 500.0), st.floats(1.0, 1e6)), max_size=50)


@given(READS)
def test_never_longer_than_it_is_worth(reads: list[tuple[int, float, float]]) -> None:
    pace, now_ms = Pace(IDLE), 0.0
    for records, later_ms, slack_ms in reads:
        now_ms += later_ms
        pace.read(records, records * 300, slack_ms, now_ms)
        if pace.gathers:
            bytes_min, wait_ms = pace.next
            assert 1 <= wait_ms <= min(GATHER_MS_MAX, slack_ms * SLACK_SHARE)
            assert 1 <= bytes_min <= GATHER_RECORDS_MAX * 300 + 1
