"""What a topic would ask for: rates, burstiness, and records that are no queries of ours."""

from __future__ import annotations

from random import Random

import pytest
from broker_builders import tensor

from broker.placement_model import INF
from broker.quote import Asked
from broker.watching import CLASSES_MAX, Watch
from modelless.messages import Query


def query(rows: int = 1, task: str | None = "t", **asked: object) -> Query:
    return Query("q", (tensor(rows),), task, **asked)  # type: ignore[arg-type]


def watch(foreign: Asked | None = None) -> Watch:
    return Watch(0.0, foreign, 30_000.0)


def test_rates_are_means_by_class() -> None:
    seen = watch()
    for second in range(10):
        at_ms = 1000.0 * second
        seen.query(query(4, latency_ms_max=50.0), at_ms, at_ms)
        seen.query(query(1, latency_ms_max=51.0, accuracy_min=0.9, prefer="accuracy"), at_ms, at_ms)
        seen.query(query(1), at_ms, at_ms)
    found = seen.asked(10_000.0)
    assert [(a.rows_per_s, a.latency_ms, a.accuracy_min, a.prefer) for a in found] == [
        (4.0, 50.0, None, "cost"),
        (1.0, 51.0, 0.9, "accuracy"),
        (1.0, 30_000.0, None, "cost"),
    ]


def test_alike_queries_are_one_class_with_what_suits_all() -> None:
    seen = watch()
    for latency_ms, accuracy_min in ((52.0, 0.9001), (50.0, 0.9005)):
        seen.query(query(latency_ms_max=latency_ms, accuracy_min=accuracy_min), 0.0, 0.0)
    (only,) = seen.asked(1000.0)
    assert (only.rows_per_s, only.latency_ms, only.accuracy_min) == (2.0, 50.0, 0.9005)


def test_a_deadline_is_a_latency_from_the_log_time() -> None:
    seen = watch()
    seen.query(query(deadline_ms=1500.0), 1000.0, 1000.0)
    seen.query(query(deadline_ms=9000.0, latency_ms_max=100.0), 1000.0, 1000.0)
    assert sorted(each.latency_ms for each in seen.asked(2000.0)) == [100.0, 500.0]


def dispersion(clump: int, seconds: int = 600) -> float:
    """Of about 20 rows a second, that come so many at a time."""
    seen, random, at_ms = watch(), Random(1), 0.0
    while at_ms < 1000.0 * seconds:
        at_ms += random.expovariate(20 / clump / 1000)
        for _ in range(clump):
            seen.query(query(latency_ms_max=200.0), at_ms, at_ms)
    (only,) = seen.asked(1000.0 * seconds)
    assert only.rows_per_s == pytest.approx(20.0, rel=0.1)
    return only.burst


def test_independent_rows_have_a_burst_of_one_and_clumps_their_size() -> None:
    assert dispersion(1) == pytest.approx(1.0, rel=0.15)
    assert dispersion(8) == pytest.approx(8.0, rel=0.2)


def test_rows_at_even_times_do_not_burst_and_few_slots_say_nothing() -> None:
    seen = watch()
    for number in range(20):
        seen.query(query(latency_ms_max=1000.0), 1000.0 * number, 1000.0 * number)
        if number == 5:
            assert seen.asked(1000.0 * number)[0].burst == 1.0
    assert seen.asked(20_000.0)[0].burst == pytest.approx(0.0)


def test_records_that_are_no_queries_stand_for_rows_of_a_task() -> None:
    seen = watch(Asked("t", 0.0, 100.0, 0.9))
    for _ in range(5):
        seen.foreign(0.0, 500.0)
    (only,) = seen.asked(1000.0)
    assert only == Asked("t", 5.0, 100.0, 0.9)
    unknown = watch()
    unknown.foreign(0.0, 0.0)
    unknown.query(query(task=None, model="m"), 0.0, 0.0)
    assert unknown.asked(1000.0) == []
    assert unknown.counted() == {"queries": 0, "named": 1, "others": 1}


def test_a_log_that_keeps_other_times_is_counted_by_ours() -> None:
    seen = Watch(1e12, None, 30_000.0)
    seen.query(query(latency_ms_max=INF), 5.0, 1e12 + 100)
    assert seen.asked(1e12 + 1000)[0].rows_per_s == 1.0


def test_classes_are_bounded() -> None:
    seen = watch()
    for number in range(CLASSES_MAX + 50):
        seen.query(query(latency_ms_max=50.0, accuracy_min=number / (CLASSES_MAX + 50)), 0.0, 0.0)
    found = seen.asked(1000.0)
    assert len(found) <= CLASSES_MAX
    assert sum(each.rows_per_s for each in found) == CLASSES_MAX + 50
