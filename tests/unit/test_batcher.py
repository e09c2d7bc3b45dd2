"""Queues and batches: order by deadline against brute force, limits by rows and by time."""

from __future__ import annotations

import pytest
from broker_builders import Curve, entry, model, profile
from hypothesis import given
from hypothesis import strategies as st

from broker.batcher import NEVER, Tightness, VariantQueue, batch_rows
from broker.catalog import Candidate
from broker.ledger import Entry
from broker.profiles import LatencyTable

LINEAR = tuple((rows, 10 + rows / 2) for rows in (1, 2, 4, 8, 16, 32, 64, 100))
"""10 ms and half a millisecond for each row; the p99 is twice that."""


def queue(curve: Curve = LINEAR) -> VariantQueue:
    of = model()
    table = LatencyTable(profile(of, curve=curve).batches)
    return VariantQueue(Candidate("m:1/onnx-fp32", "cpu", of, 0.9, 0.9, table, 1.0))


def test_a_batch_fits_the_deadline_at_the_head() -> None:
    waiting = queue()
    waiting.add(entry(0, latency_ms_max=50))
    for _ in range(80):
        waiting.add(entry(0, latency_ms_max=500))
    rows = batch_rows(waiting, 20)
    assert rows == 16, "26 ms for 32, and a quarter more to be sure, would be too long"
    assert len(waiting.take(rows)) == rows


def test_heads_wait_on_while_those_behind_them_run() -> None:
    waiting = queue()
    hurried = [entry(number, latency_ms_max=50) for number in range(3)]
    patient = [entry(number, latency_ms_max=500) for number in range(3, 30)]
    for each in (*patient, *hurried):
        waiting.add(each)
    assert waiting.take_heads(1) == hurried[:1]
    assert waiting.take(20, heads=2) == patient[:20]
    assert waiting.take(100) == hurried[1:] + patient[20:]


def test_a_head_that_would_miss_its_deadline_makes_no_batch() -> None:
    waiting = queue()
    waiting.add(entry(0, latency_ms_max=50))
    assert batch_rows(waiting, 39.5) == 1
    assert batch_rows(waiting, 39.6) == 0


def test_a_head_without_a_deadline_makes_the_largest_batch() -> None:
    waiting = queue()
    waiting.add(entry(0, topic="modelless.queries.offline"))
    assert batch_rows(waiting, 0) == 100


def test_a_late_head_makes_a_small_batch_while_it_is_in_time_and_the_largest_after() -> None:
    waiting = queue()
    waiting.add(entry(0, latency_ms_max=50, on_miss="late"))
    assert batch_rows(waiting, 0) == 32
    assert batch_rows(waiting, 60) == 100


def test_one_entry_larger_than_every_batch_travels_alone() -> None:
    waiting = queue()
    waiting.add(entry(0, rows=150, latency_ms_max=200))
    waiting.add(entry(0, latency_ms_max=300))
    assert [e.rows for e in waiting.take(batch_rows(waiting, 0))] == [150]


def test_rows_limit_and_order_are_kept() -> None:
    waiting = queue()
    for rows in (3, 3, 3):
        waiting.add(entry(0, rows=rows))
    assert len(waiting.take(8)) == 2
    assert (len(waiting), waiting.rows) == (1, 3)


def test_due_takes_what_has_reached_its_place_in_time() -> None:
    waiting = queue()
    for latency_ms in (30, 10, 20):
        waiting.add(entry(0, latency_ms_max=latency_ms))
    assert waiting.due(9.9) == []
    assert [e.latency_deadline_ms for e in waiting.due(20)] == [10, 20]
    assert waiting.head_deadline_ms == 30


def test_an_empty_queue_has_nothing_ahead() -> None:
    assert queue().ahead_ms(NEVER) == 0
    assert queue().head_deadline_ms == NEVER


def test_what_is_ahead_is_what_would_run_before() -> None:
    waiting = queue()
    for latency_ms in (100, 200, 300, 400):
        waiting.add(entry(0, rows=10, latency_ms_max=latency_ms))
    assert waiting.ahead_ms(50) == 0
    assert waiting.ahead_ms(250) == pytest.approx(12)
    assert waiting.ahead_ms(NEVER) == pytest.approx(24)
    assert waiting.ahead_ms(NEVER, block_ms=40) == pytest.approx(32.5), "in batches of 32"


def test_no_batch_blocks_the_device_for_longer_than_it_may_unless_smaller_ones_cost_much_more() -> None:
    waiting = queue()
    waiting.add(entry(0, rows=2, latency_ms_max=500))
    assert batch_rows(waiting, 0, block_ms=40) == 32
    assert batch_rows(waiting, 0, block_ms=1) == 16, "the first with half of the best throughput"


def test_a_batch_is_no_larger_than_is_useful() -> None:
    waiting = queue(((1, 1.0), (10, 10.0), (100, 100.0)))
    waiting.add(entry(0, rows=2))
    assert batch_rows(waiting, 0) == 2


def test_tightness_is_the_shortest_latency_of_this_period_and_the_one_before() -> None:
    tightness = Tightness()
    assert tightness.latency_ms(0) == NEVER
    tightness.observe(50, 0)
    tightness.observe(80, 1)
    assert tightness.latency_ms(2) == 50
    assert tightness.latency_ms(1e9) == NEVER


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([None, 5.0, 10.0, 20.0, 40.0]), st.integers(1, 9)),
        st.tuples(st.just("take"), st.none(), st.integers(1, 30)),
        st.tuples(st.just("remove"), st.none(), st.integers(0, 100)),
        st.tuples(st.just("due"), st.sampled_from([4.0, 10.0, 39.0]), st.just(0)),
    ),
    max_size=40,
)


@given(operations)
def test_against_brute_force(steps: list[tuple[str, float | None, int]]) -> None:
    waiting, model_of_it = queue(), list[tuple[float, int, Entry]]()
    for number, (what, latency_ms, amount) in enumerate(steps):
        if what == "add":
            of = {"topic": "modelless.queries.offline"} if latency_ms is None else {"latency_ms_max": latency_ms}
            added = entry(0, rows=amount, **of)
            waiting.add(added)
            model_of_it.append((latency_ms or NEVER, number, added))
            model_of_it.sort(key=lambda each: each[:2])
        elif what == "take":
            expected: list[Entry] = []
            for _, _, each in model_of_it:
                if expected and sum(e.rows for e in expected) + each.rows > amount:
                    break
                expected.append(each)
            assert waiting.take(amount) == expected
            del model_of_it[: len(expected)]
        elif what == "remove" and model_of_it:
            _, _, gone = model_of_it.pop(amount % len(model_of_it))
            waiting.remove(gone)
            assert gone.place is None
        elif what == "due":
            assert latency_ms is not None
            assert waiting.due(latency_ms) == [e for deadline_ms, _, e in model_of_it if deadline_ms <= latency_ms]
            model_of_it = [each for each in model_of_it if each[0] > latency_ms]
        assert len(waiting) == len(model_of_it)
        assert waiting.rows == sum(each.rows for _, _, each in model_of_it)
        assert waiting.head_deadline_ms == (model_of_it[0][0] if model_of_it else NEVER)
        assert all(each.place is waiting for _, _, each in model_of_it)
