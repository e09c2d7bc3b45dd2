"""Workers as a broker sees them: room within the credit, and what is predicted to be unfinished."""

from __future__ import annotations

from broker_builders import Bench, model, profile

from broker.devices import Worker
from modelless import frames

M = "m:1/onnx-fp32"


def with_batches(count: int, window_ms: float) -> Worker:
    """A worker that was sent as many batches of 10 ms as its window allows, at most ``count``."""
    bench = Bench((model(), [profile(model(), curve=((1, 10.0),))]))
    worker = bench.worker(M, window_ms=window_ms)
    for _ in range(count):
        bench.admit()
    bench.poll()
    return worker


def test_with_nothing_outstanding_one_batch_may_always_be_sent() -> None:
    assert len(with_batches(5, window_ms=0).sent) == 1


def test_the_window_is_passed_by_less_than_one_batch() -> None:
    assert len(with_batches(5, window_ms=20).sent) == 2
    assert len(with_batches(5, window_ms=21).sent) == 3
    worker = with_batches(2, window_ms=25)
    assert worker.has_room
    worker.draining = True
    assert not worker.has_room


def test_outstanding_work_shrinks_once_it_has_started_and_not_below_nothing() -> None:
    worker = with_batches(2, window_ms=25)
    assert worker.outstanding_ms(100) == 20
    worker.sent[1].started_ms = 100
    assert worker.outstanding_ms(104) == 16
    assert worker.outstanding_ms(500) == 10


def test_frames_of_a_batch_that_is_settled_change_nothing() -> None:
    bench = Bench((model(), [profile(model())]))
    worker = bench.worker(M)
    bench.core.frame(worker, frames.Started(99), 0)
    bench.core.frame(worker, frames.Outcome(99, True, 1.0, 1, ()), 0)
    assert not worker.sent
