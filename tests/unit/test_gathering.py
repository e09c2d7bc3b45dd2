"""The batch that makes the most of a device, against trying all of them; and whom it passes over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from broker_builders import entry, model
from hypothesis import given
from hypothesis import strategies as st

from broker.batcher import NEVER, VariantQueue
from broker.catalog import Candidate
from broker.gathering import LEAST_GAIN, Cut, best_cut
from broker.profiles import LatencyTable
from modelless.messages import BatchTime

CURVE = ((1, 10.0), (2, 12.0), (4, 16.0), (8, 24.0), (16, 40.0))
"""At most 0.4 rows a ms, 0.1 alone."""
ACCURACY = 0.9
SCARCE = ACCURACY * 0.4
"""Price of a device-ms of which each might give 0.4 answers."""


FLAT = ((1, 0.1), (8, 0.2), (128, 0.45))
"""That of a small network: a batch costs what one row does, nearly."""


def queue(*latencies_ms: float, curve: Sequence[tuple[int, float]] = CURVE, **asked: str) -> VariantQueue:
    table = LatencyTable(tuple(BatchTime(rows, ms, ms) for rows, ms in curve))
    candidate = Candidate("m:1/onnx-fp32", "cpu", model(), ACCURACY, ACCURACY, table, 1.0)
    waiting = VariantQueue(candidate)
    for number, latency_ms in enumerate(latencies_ms):
        waiting.add(entry(number, latency_ms_max=latency_ms, **asked))
    return waiting


def test_an_idle_device_gives_up_nobody() -> None:
    waiting = queue(12, *[500] * 16)
    assert best_cut(waiting, 0, NEVER, NEVER, 0.0) == Cut(0, 0, 2)


def test_a_device_in_demand_gives_up_the_one_that_all_others_would_have_to_wait_for() -> None:
    waiting = queue(12, *[500] * 16)
    assert best_cut(waiting, 0, NEVER, NEVER, SCARCE) == Cut(1, 0, 16)


def test_whom_the_next_device_has_time_for_waits_for_it() -> None:
    waiting = queue(22, *[500] * 16)
    assert best_cut(waiting, 0, NEVER, 6.0, SCARCE / 10) == Cut(0, 1, 16), "it would be ready after 22 ms"
    assert best_cut(waiting, 0, NEVER, 6.1, SCARCE / 10) == Cut(0, 0, 4)
    assert best_cut(waiting, 0, NEVER, 6.1, SCARCE) == Cut(0, 1, 16), "alone it might be"


def test_nobody_is_given_up_for_a_batch_that_would_be_as_small() -> None:
    assert best_cut(queue(12, 500), 0, NEVER, NEVER, SCARCE) == Cut(0, 0, 2)


def test_one_more_is_not_worth_a_batch_of_the_next_size() -> None:
    waiting = queue(*[500] * 9)
    assert best_cut(waiting, 0, NEVER, NEVER, SCARCE) == Cut(0, 0, 8)


def test_who_waits_runs_together_however_many_more_would_fit() -> None:
    waiting = queue(*[500] * 40, curve=FLAT)
    cut = best_cut(waiting, 0, NEVER, NEVER, SCARCE)
    assert cut.rows >= 40, "alone each would waste less of the device, and forty times"


def test_no_batch_blocks_the_device_for_longer_than_it_should() -> None:
    assert best_cut(queue(*[500] * 30), 0, 30.0, NEVER, SCARCE) == Cut(0, 0, 8)


def test_a_head_that_cannot_be_in_time_makes_no_batch() -> None:
    assert best_cut(queue(9, *[500] * 16), 0, NEVER, NEVER, 0.0) == Cut(1, 0, 0)


def test_a_head_that_gives_up_its_latency_is_not_passed_over() -> None:
    waiting = queue(12, *[500] * 16, on_miss="late")
    assert best_cut(waiting, 0, NEVER, NEVER, SCARCE) == Cut(0, 0, 2)


@given(
    st.lists(st.integers(10, 120), min_size=2, max_size=40),
    st.floats(0.0, 1.2),
    st.floats(0.0, 100.0),
    st.sampled_from((20.0, NEVER)),
)
def test_it_costs_the_least_of_all(latencies_ms: list[int], scarcity: float, next_ms: float, block_ms: float) -> None:
    waiting = queue(*latencies_ms)
    cut = best_cut(waiting, 0, block_ms, next_ms, scarcity * SCARCE if block_ms == NEVER else scarcity * ACCURACY / 4)
    deadlines_ms, lat = sorted(latencies_ms), dict(CURVE)
    lat |= {rows: lat[min(size for size in lat if size >= rows)] for rows in range(1, 17)}
    scarcity = min(scarcity, 1.0)
    sizes = [size for size, ms in CURVE if ms <= block_ms]
    rate = max(min(size, len(deadlines_ms)) / lat[size] for size in sizes)
    with_head = max(size for size in sizes if lat[size] <= deadlines_ms[0])

    def cost(passed: int, size: int) -> float:
        left = deadlines_ms[:passed] + deadlines_ms[passed + size :]
        taken = len(deadlines_ms) - len(left)
        lost = sum(deadline_ms < min(next_ms, lat[size]) + lat[with_head] for deadline_ms in left)
        return scarcity * (rate * lat[size] - taken) + (1 - scarcity) * lost

    in_time = {
        size: passed
        for size in sizes
        if (passed := sum(deadline_ms < lat[size] for deadline_ms in deadlines_ms)) < len(deadlines_ms)
    }
    least = min(cost(in_time[size], size) for size in in_time)
    assert cost(cut.late + cut.heads, cut.rows) == pytest.approx(least, abs=LEAST_GAIN)
    assert (cut.late + cut.heads, cut.rows) in [(passed, size) for size, passed in in_time.items()]
    run = deadlines_ms[cut.late + cut.heads :][: cut.rows]
    assert all(deadline_ms >= lat[cut.rows] for deadline_ms in run), "nobody runs to be late"
    free_ms = min(next_ms, lat[cut.rows])
    assert all(deadline_ms < free_ms + lat[1] for deadline_ms in deadlines_ms[: cut.late])
