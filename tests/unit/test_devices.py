"""Workers as a broker sees them: room within the credit, and what is predicted to be unfinished."""

from __future__ import annotations

from broker_builders import Bench, model, profile

from broker.core import Send
from broker.devices import LEAD_MS, Worker
from modelless import frames

M = "m:1/onnx-fp32"


def with_batches(count: int, window_ms: float) -> Worker:
    """A worker that was sent as many batches of 10 ms one by one as its window allows, at most ``count``."""
    bench = Bench((model(), [profile(model(), curve=((1, 10.0),))]))
    worker = bench.worker(M, window_ms=window_ms)
    for _ in range(count):
        bench.admit()
    for number in range(count):
        bench.poll(max(0.0, 10.0 * number - LEAD_MS))
    return worker


def test_with_nothing_outstanding_one_batch_may_always_be_sent() -> None:
    assert len(with_batches(5, window_ms=0).sent) == 1


def test_the_window_is_passed_by_less_than_one_batch() -> None:
    assert len(with_batches(5, window_ms=20).sent) == 2
    assert len(with_batches(5, window_ms=21).sent) == 3
    worker = with_batches(2, window_ms=25)
    assert not worker.has_room(17.9)
    assert worker.has_room(18), "shortly before the device is idle"
    worker.draining = True
    assert not worker.has_room(18)


def test_outstanding_work_shrinks_as_the_device_works_and_not_below_nothing() -> None:
    worker = with_batches(2, window_ms=25)
    assert worker.outstanding_ms(0) == 20
    assert worker.outstanding_ms(4) == 16
    assert worker.outstanding_ms(500) == 0


def test_a_batch_that_is_settled_early_shortens_the_rest() -> None:
    worker = with_batches(2, window_ms=25)
    worker.settle(1, 3, 3)
    assert worker.outstanding_ms(3) == 10
    worker.settle(2, 1, 4)
    assert worker.outstanding_ms(4) == 0
    assert worker.unsettled_ms == 0


def test_a_batch_that_takes_longer_delays_the_rest() -> None:
    worker = with_batches(3, window_ms=100)
    worker.settle(1, 14, 14)
    assert worker.outstanding_ms(14) == 20
    worker.settle(2, 13, 27)
    assert worker.outstanding_ms(27) == 10, "errors do not add up while the device is never idle"


def test_what_follows_does_not_wait_for_replies_to_be_written() -> None:
    worker = with_batches(3, window_ms=100)
    worker.settle(1, 10, 16)  # 6 ms after its end
    assert worker.outstanding_ms(16) == 14
    worker.settle(2, 12, 28)
    assert worker.outstanding_ms(28) == 4
    worker.settle(3, 10, 31)  # sooner than usual
    assert worker.outstanding_ms(31) == 0


def test_the_next_batch_leaves_as_long_before_the_end_as_outcomes_take() -> None:
    bench = Bench((model(), [profile(model(), curve=((1, 100.0),))]))
    worker = bench.worker(M, window_ms=150)

    def lead_ms(lag_ms: float | None, margin_ms: float) -> float:
        """Once outcomes have taken so long, behind a batch that may take so much longer."""
        bench.admit()
        bench.poll(0.0)
        worker.lag_ms, worker.front.margin_ms = lag_ms, margin_ms
        worker.delay(worker.ends_ms)
        found_ms = worker.ends_ms - worker.room_ms
        worker.settle(worker.front.batch, 0.0, 0.0)
        return found_ms

    assert lead_ms(None, 10.0) == 20.0, "nobody knows yet"
    assert lead_ms(12.0, 10.0) == 12.0
    assert lead_ms(8.0, 10.0) == 6.0
    assert lead_ms(0.0, 10.0) == -10.0, "the outcome is there as soon as the device is free"
    assert lead_ms(500.0, 10.0) == 20.0, "something else was slow"


def test_a_device_may_be_blocked_for_longer_where_it_has_long_been_in_demand() -> None:
    lat_ms = {1: 10.0, 2: 12.0, 4: 16.0, 8: 24.0, 16: 40.0}
    bench = Bench((model(), [profile(model(), curve=tuple(lat_ms.items()))]))
    worker = bench.worker(M, window_ms=150)
    rows: list[tuple[float, int]] = []
    ends: list[tuple[float, frames.Batch]] = []
    for now_ms in range(8000):
        bench.admit(now_ms, latency_ms_max=50 if now_ms % 20 == 0 else 1000)
        while ends and ends[0][0] <= now_ms:
            bench.answer(worker, ends.pop(0)[1], now_ms)
        for each in bench.poll(now_ms):
            if isinstance(each, Send):
                number = len(each.batch.items)
                rows.append((now_ms, number))
                size = next(size for size in lat_ms if size >= number)
                ends.append((max(now_ms, ends[-1][0] if ends else 0.0) + lat_ms[size], each.batch))
    early, late = ([number for at_ms, number in rows if low <= at_ms < high] for low, high in ((0, 500), (7000, 8000)))
    assert max(early) == 8, "those in a hurry can wait for 33 ms"
    assert sorted(late)[len(late) // 2] == 16, "0.4 rows a ms are all that it can do, and 1 is asked for"


def test_what_was_lost_in_between_is_noticed() -> None:
    worker = with_batches(3, window_ms=100)
    worker.settle(1, 10, 11)
    worker.settle(2, 10, 40)  # something else ran for 19 ms
    assert worker.outstanding_ms(40) == 9


def test_a_batch_that_was_given_back_says_nothing_about_when_outcomes_come() -> None:
    worker = with_batches(2, window_ms=100)
    worker.settle(1, 0, 500)
    assert (worker.lag_ms, worker.outstanding_ms(500)) == (None, 10)


def test_frames_of_a_batch_that_is_settled_change_nothing() -> None:
    bench = Bench((model(), [profile(model())]))
    worker = bench.worker(M)
    bench.core.frame(worker, frames.Outcome(99, True, 1.0, 1, ()), 0)
    assert not worker.sent


def test_of_a_worker_that_others_send_to_too_it_is_known_when_it_will_be_free() -> None:
    bench = Bench((model(), [profile(model(), curve=((1, 10.0),))]))
    worker = bench.worker(M, window_ms=50)
    bench.core.frame(worker, frames.Backlog(100.0, 0, 0.0, True), 0.0)
    assert worker.outstanding_ms(0) == 100
    bench.admit()
    assert bench.poll(70.0) == [], "its turn comes when the device is about to be free"
    assert bench.core.wake_at_ms() == 80.0
    bench.poll(80.0)
    assert worker.outstanding_ms(80.0) == 30, "what was sent comes on top"
    bench.core.frame(worker, frames.Backlog(60.0, 0, 0.0, True), 80.0)
    assert worker.outstanding_ms(80.0) == 70, "the worker had not got it yet"
    bench.core.frame(worker, frames.Backlog(60.0, next(iter(worker.sent)), 0.0, True), 80.0)
    assert worker.outstanding_ms(80.0) == 60, "now it has"
    worker.settle(next(iter(worker.sent)), 0.0, 80.0)
    assert worker.outstanding_ms(80.0) == 60, "the rest is of others"


def test_while_another_broker_has_more_urgent_work_nothing_is_sent_before_the_device_has_nothing_to_do() -> None:
    bench = Bench((model(), [profile(model(), curve=((1, 10.0),))]))
    worker = bench.worker(M, window_ms=50)
    bench.core.frame(worker, frames.Backlog(100.0, 0, 0.0, False), 0.0)
    bench.admit()
    assert bench.poll(90.0) == []
    assert bench.core.wake_at_ms() == 100.0
    bench.core.frame(worker, frames.Backlog(10.0, 0, 0.0, True), 90.0)
    bench.admit(90.0)
    assert len(bench.poll(98.0)) == 1, "it is the most urgent now"
    bench.core.frame(worker, frames.Backlog(10.0, next(iter(worker.sent)), 0.0, False), 98.0)
    assert worker.room_ms == 108.0, "behind its own too"
