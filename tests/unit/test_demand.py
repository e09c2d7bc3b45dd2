"""Demand: exact for what is constant, forgotten when it is over, bounded, never stricter than what was asked."""

from __future__ import annotations

from itertools import pairwise
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.demand import (
    ACCURACY_STEPS,
    CLASSES_MAX,
    COUNTED_MAX,
    FIRST_LOOK_MS,
    LATENCY_STEP,
    MEMORY_MS,
    RISE_MS_MIN,
    DemandMeter,
    total,
)
from modelless.codec import encode_record
from modelless.messages import Demanded, Member, Query

INF = float("inf")
COST = Query("q", (), task="t")


def only(told: tuple[Demanded, ...]) -> Demanded:
    (one,) = told
    return one


@pytest.mark.parametrize("looks", [1, 2, 3, 60])
def test_a_constant_rate_is_exact_from_the_first_look_on(looks: int) -> None:
    meter, now_ms = DemandMeter(), 0.0
    for look in range(looks):
        passed_ms = FIRST_LOOK_MS if look == 0 else 1000.0
        now_ms += passed_ms
        for _ in range(int(passed_ms / 100)):
            meter.add(COST, 100.0, 0.9, 4)
        told = meter.rates(now_ms)
    assert told == (Demanded("t", 100.0, 0.9, "cost", False, pytest.approx(40.0)),)
    assert meter.rates(now_ms) == told, "no time has passed"


def test_a_surge_is_told_of_and_believed_at_once() -> None:
    meter, now_ms = DemandMeter(), 0.0
    for second in range(20):
        now_ms += 1000
        for _ in range(50):
            meter.add(COST, 100.0, 0.9, 1)
        assert meter.surges(now_ms) == (second == 0)
        meter.rates(now_ms)
    for _ in range(40):
        meter.add(COST, 100.0, 0.9, 1)
    assert meter.surges(now_ms + 200)
    assert only(meter.rates(now_ms + 200)).rows_per_second == pytest.approx(200.0), "what was before is over"
    assert not meter.surges(now_ms + 200)
    for _ in range(300):
        meter.add(COST, 100.0, 0.9, 1)
    weights = 1 - exp(-200 / MEMORY_MS), 1 - exp(-1000 / MEMORY_MS)
    expected = (200 * weights[0] * (1 - weights[1]) + 300 * weights[1]) / (weights[0] * (1 - weights[1]) + weights[1])
    assert only(meter.rates(now_ms + 1200)).rows_per_second == pytest.approx(expected), "it began anew"


@pytest.mark.parametrize("since_look_ms", [0, 300, 800])
def test_a_surge_is_told_as_soon_whenever_it_begins(since_look_ms: int) -> None:
    meter = DemandMeter()
    meter.rates(0.0)
    for at_ms in range(10, 20_000 + since_look_ms, 10):  # 20 rows a second
        if at_ms % 50 == 0:
            meter.add(COST, 100.0, 0.9, 1)
        if at_ms % 100 == 0:
            assert at_ms <= 1000 or not meter.surges(at_ms)
        if at_ms % 1000 == 0:
            meter.rates(at_ms)
    began_ms = at_ms = 20_000 + since_look_ms
    while not meter.surges(at_ms):  # 200
        at_ms += 100
        for _ in range(20):
            meter.add(COST, 100.0, 0.9, 1)
    assert at_ms - began_ms <= 100
    assert only(meter.rates(at_ms)).rows_per_second == pytest.approx(20 * 1000 / RISE_MS_MIN), "not of before"


def test_a_clump_says_little_of_how_much_comes() -> None:
    meter = DemandMeter()
    meter.rates(0.0)
    meter.surges(990.0)
    for _ in range(50):
        meter.add(COST, 100.0, 0.9, 1)
    assert meter.surges(1000.0)
    assert only(meter.rates(1000.0)).rows_per_second <= 50 * 1000 / RISE_MS_MIN


def test_what_may_be_chance_is_no_surge() -> None:
    meter = DemandMeter()
    for number in range(10):
        meter.rates(1000.0 * number)
    for _ in range(8):
        meter.add(COST, 100.0, 0.9, 64)
    assert not meter.surges(9200.0), "eight queries, however large"


def test_a_step_is_followed_and_what_is_over_is_forgotten() -> None:
    meter, now_ms = DemandMeter(), 0.0

    def second(rows: int) -> tuple[Demanded, ...]:
        nonlocal now_ms
        now_ms += 1000
        if rows:
            meter.add(COST, 100.0, 0.9, rows)
        return meter.rates(now_ms)

    for _ in range(30):
        told = second(10)
    for _ in range(int(MEMORY_MS / 1000)):
        told = second(50)
    assert only(told).rows_per_second == pytest.approx(50 - 40 / 2.718, rel=0.01)
    for _ in range(int(MEMORY_MS / 1000)):
        told = second(0)
    assert only(told).rows_per_second == pytest.approx((50 - 40 / 2.718) / 2.718, rel=0.01)
    for _ in range(60):
        told = second(0)
    assert told == ()
    meter.add(COST, 100.0, 0.9, 100)
    assert only(meter.rates(now_ms + 1000)).rows_per_second == pytest.approx(100 * (1 - 0.8187), rel=0.01), "from 0"


def test_what_asks_for_the_same_is_told_as_it_was_asked() -> None:
    meter = DemandMeter()
    for latency_ms, floor in ((99.0, 0.9475), (13.0, 1 / 3), (INF, 0.0)):
        meter.add(COST, latency_ms, floor, 1)
    meter.add(COST._replace(prefer="accuracy", on_miss="degrade"), 99.0, 0.9475, 1)
    meter.add(COST._replace(on_miss="late"), 99.0, 0.9475, 1)  # may be late, not less accurate
    assert meter.rates(1000.0) == (
        Demanded("t", 99.0, 0.9475, "cost", False, pytest.approx(4.0)),
        Demanded("t", 13.0, 1 / 3, "cost", False, pytest.approx(2.0)),
        Demanded("t", None, 0.0, "cost", False, pytest.approx(2.0)),
        Demanded("t", 99.0, 0.9475, "accuracy", True, pytest.approx(2.0)),
    )


asked = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.one_of(st.just(INF), st.floats(0.01, 1e5)),
        st.floats(0, 1),
        st.booleans(),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=60,
)


@given(asked, st.lists(st.booleans(), min_size=60, max_size=60))
def test_a_class_suits_each_of_its_queries_and_asks_for_no_more_than_one_of_them_did(
    queries: list[tuple[str, float, float, bool, int]], looks: list[bool]
) -> None:
    meter, now_ms = DemandMeter(), FIRST_LOOK_MS
    meter.rates(now_ms)
    for (task, latency_ms, floor, degrades, rows), look in zip(queries, looks, strict=False):
        query = COST._replace(task=task, on_miss="degrade" if degrades else "reject")
        meter.add(query, latency_ms, floor, rows)
        if look:
            now_ms += 10.0
            meter.rates(now_ms)
    told = meter.rates(now_ms + 10.0)
    for each in told:
        mine = [q for q in queries if (q[0], q[3]) == (each.task, each.degrades)]
        assert (INF if each.latency_ms is None else each.latency_ms) in [q[1] for q in mine]
        assert each.accuracy_min in [q[2] for q in mine]
    last = next((n for n, look in reversed(list(enumerate(looks[: len(queries)]))) if look), -1)
    for task, latency_ms, floor, degrades, _ in queries[last + 1 :]:
        assert [
            d
            for d in told
            if (d.task, d.degrades) == (task, degrades)
            and latency_ms / LATENCY_STEP * 0.999 <= (INF if d.latency_ms is None else d.latency_ms) <= latency_ms
            and floor <= d.accuracy_min <= floor + 1.001 / ACCURACY_STEPS
        ], "since the last look each query has a class that is at least as strict, and little more"


def test_one_strict_query_is_not_remembered_for_ever() -> None:
    meter = DemandMeter()
    told = []
    for second in range(1, 5):
        meter.add(COST, 107.0, 0.9001, 10)
        if second == 1:
            meter.add(COST, 90.0, 0.9009, 1)
            meter.add(COST, 107.0, 0.9001, 1)
        each = only(meter.rates(second * 1000.0))
        told.append((each.latency_ms, each.accuracy_min))
    assert told == [(90.0, 0.9009), (90.0, 0.9009), (107.0, 0.9001), (107.0, 0.9001)]


def test_the_most_asked_for_are_told_and_the_volume_is_kept() -> None:
    meter = DemandMeter()
    number, rows = 3 * CLASSES_MAX, 0
    for index in range(number):
        meter.add(COST, 100.0, index / number, 1 + index % 7)
        rows += 1 + index % 7
    told = meter.rates(0.0)
    assert len(told) == CLASSES_MAX
    rates = [each.rows_per_second for each in told]
    assert all(first >= second for first, second in pairwise(rates))
    assert sum(rates) == pytest.approx(rows * 1000 / FIRST_LOOK_MS)
    record = encode_record(Member("broker", "broker-0", "1", "ready", demand=told))
    assert len(record) < 30_000


def test_no_task_is_forgotten_for_the_many_classes_of_others() -> None:
    meter = DemandMeter()
    for index in range(2 * CLASSES_MAX):
        meter.add(COST, 100.0, index / CLASSES_MAX / 2, 10)
    for accuracy in (0.1, 0.9):
        meter.add(COST._replace(task="rare"), 100.0, accuracy, 1)
    told = meter.rates(0.0)
    assert len(told) == CLASSES_MAX
    (rare,) = [each for each in told if each.task == "rare"]
    assert rare.rows_per_second == pytest.approx(2 * 1000 / FIRST_LOOK_MS), "both classes' volume"


def test_what_is_too_much_to_count_is_volume_of_its_task() -> None:
    meter = DemandMeter()
    for index in range(2 * COUNTED_MAX):
        meter.add(COST, 1.3 ** (index % 50), index / COUNTED_MAX / 2, 1)
    meter.add(COST._replace(task="late"), 100.0, 0.9, 1)
    told = meter.rates(0.0)
    assert len(told) == CLASSES_MAX
    assert sum(each.rows_per_second for each in told) == pytest.approx(2 * COUNTED_MAX * 1000 / FIRST_LOOK_MS)
    for second in range(1, 20):
        meter.add(COST, 100.0, 0.5, 10)
        told = meter.rates(second * 1000.0)
    assert max(told, key=lambda each: each.rows_per_second).accuracy_min == 0.5, "a new class gets its place"


def test_brokers_classes_add_up_even_where_one_saw_stricter_queries() -> None:
    def told(latency_ms: float | None, accuracy: float, rate: float, task: str = "t") -> Demanded:
        return Demanded(task, latency_ms, accuracy, "cost", False, rate)

    assert total([]) == ()
    assert total([told(100.0, 0.9, 3.0), told(95.0, 0.9004, 1.0)]) == (told(95.0, 0.9004, 4.0),)
    apart = (
        told(100.0, 0.9, 1.0),
        told(80.0, 0.9, 1.0),
        told(100.0, 0.902, 1.0),
        told(None, 0.9, 1.0),
        told(100.0, 0.9, 1.0, "other"),
        Demanded("t", 100.0, 0.9, "accuracy", False, 1.0),
        Demanded("t", 100.0, 0.9, "cost", True, 1.0),
    )
    assert total(apart) == apart
    assert total([*apart, *apart]) == tuple(
        Demanded(d.task, d.latency_ms, d.accuracy_min, d.prefer, d.degrades, 2.0) for d in apart
    )
