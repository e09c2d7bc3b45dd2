"""The core by hand: instructions that come out for what goes in, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from broker_builders import FLAT, TOPIC, Bench, entry, model, profile, put

from broker.batcher import VariantQueue
from broker.core import Bury, CancelSent, Reply, Send
from broker.ledger import Entry, State
from modelless import frames
from modelless.messages import Cancel

M, A, B = "m:1/onnx-fp32", "a:1/onnx-fp32", "b:1/onnx-fp32"
SLOW = ((1, 100.0), (8, 100.0))


def one(curve: Any = FLAT, **settings: Any) -> Bench:
    return Bench((model(), [profile(model(), curve=curve)]), **settings)


def two(curve_a: Any = FLAT, curve_b: Any = FLAT, **of_b: Any) -> Bench:
    a, b = model("a"), model("b")
    return Bench((a, [profile(a, curve=curve_a)]), (b, [profile(b, curve=curve_b, **{"price_per_hour": 7.2, **of_b})]))


def replies(instructions: list[Any]) -> list[tuple[str, str]]:
    return [(each.entry.query.id, each.status) for each in instructions if isinstance(each, Reply)]


def state(of: Entry) -> State:
    return of.state


def sends(instructions: list[Any]) -> list[Send]:
    return [each for each in instructions if isinstance(each, Send)]


# --- the way of a query -----------------------------------------------------------------------------------------------


def test_a_query_is_sent_answered_and_finished() -> None:
    bench = one()
    worker = bench.worker(M)
    admitted = bench.admit(id="a", latency_ms_max=100)
    (send,) = sends(bench.poll(1))
    assert (send.worker, send.batch.variant, send.batch.cost_ms) == (worker, M, 10.0)
    assert [item.id for item in send.batch.items] == ["a"]
    assert state(admitted) is State.SENT
    bench.answer(worker, send.batch, 12)
    assert state(admitted) is State.DONE
    assert (bench.core.ledger.queries, bench.core.ledger.bytes) == (0, 0)
    assert bench.core.statistics.outcomes == {("OK", "t"): 1}
    assert bench.core.statistics.in_time == {"t": 1}
    assert [(c.offset, c.metadata) for c in bench.core.ledger.commits()] == [(1, "")]


def test_a_batch_counts_each_of_its_queries() -> None:
    bench = one()
    worker = bench.worker(M)
    for arrival_ms, asked in ((0, {"task": "t"}), (0, {"model": "m"}), (4000, {"task": "t", "latency_ms_max": 1000})):
        bench.admit(4000, arrival_ms=arrival_ms, **asked)
    (send,) = sends(bench.poll(4000))
    whole = frames.Outcome(send.batch.batch, True, 1.0, 3, (), rest_ok=True)
    bench.core.frame(worker, whole, 6000)
    statistics = bench.core.statistics
    assert (sum(statistics.queue_seconds.counts), statistics.queue_seconds.sum) == (3, 8.0)
    assert (sum(statistics.worker_seconds.counts), statistics.worker_seconds.sum) == (3, 6.0)
    assert statistics.outcomes == {("OK", "t"): 2, ("OK", "m"): 1}
    assert statistics.in_time == {"t": 1, "": 1}


def test_a_batch_grows_while_the_device_is_busy_and_holds_its_inputs_in_order() -> None:
    bench = one()
    worker = bench.worker(M, window_ms=5)
    bench.admit(rows=2)
    (first,) = sends(bench.poll())
    late = bench.admit(rows=3, latency_ms_max=900)
    soon = bench.admit(rows=1, latency_ms_max=500)
    assert bench.poll(1) == []
    bench.answer(worker, first.batch, 11)
    (second,) = sends(bench.poll(11))
    assert [item.record for item in second.batch.items] == [soon.record, late.record]
    assert [(i.name, i.shape, len(i.data)) for i in second.batch.inputs] == [("x", (4, 4), 64)]


def test_rows_of_another_shape_travel_in_another_batch() -> None:
    free = model(shape=(-1, -1))
    bench = Bench((free, [profile(free)]))
    bench.worker(M, window_ms=100)
    bench.admit(width=4)
    bench.admit(width=5)
    assert [[len(send.batch.items) for send in sends(bench.poll(now_ms))] for now_ms in (0, 9)] == [[1], [1]]


def test_inputs_that_do_not_fit_the_model_are_refused() -> None:
    bench = one()
    bench.worker(M)
    bench.admit(id="a", width=5)
    (reply,) = bench.poll()
    assert isinstance(reply, Reply)
    assert reply.status == "INVALID_ARGUMENT"
    assert "x: FP32 [-1, 4]" in reply.message


def test_what_does_not_exist_is_not_found() -> None:
    bench = one()
    bench.admit(id="a", task="none")
    bench.admit(id="b", model="../../etc/passwd")
    assert replies(bench.poll()) == [("a", "NOT_FOUND"), ("b", "NOT_FOUND")]


def test_malformed_records_are_answered_or_buried_and_finish() -> None:
    bench = one()
    refused, dead = entry(0), entry(1)
    for each in (refused, dead):
        bench.core.ledger.arrived(each.record)
    bench.core.refuse(refused, "INVALID_ARGUMENT", "no")
    bench.core.dead(dead, "INVALID_ARGUMENT", "nobody to tell")
    assert bench.poll() == [
        Reply(refused, "INVALID_ARGUMENT", "no"),
        Bury(dead, "INVALID_ARGUMENT", "nobody to tell"),
    ]
    bench.core.replied(refused, "INVALID_ARGUMENT")
    bench.core.buried(dead)
    bench.core.buried(dead)
    assert bench.core.ledger.queries == 0


def test_a_reply_that_cannot_be_written_becomes_a_dead_letter() -> None:
    bench = one()
    admitted = bench.admit(task="none")
    bench.poll()
    bench.core.undeliverable(admitted, "the topic is gone")
    assert bench.poll() == [Bury(admitted, "UNDELIVERABLE", "the topic is gone")]
    bench.core.buried(admitted)
    bench.core.undeliverable(admitted, "again")
    assert bench.poll() == []


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_an_expired_query_is_answered_at_its_deadline_while_a_batch_runs() -> None:
    bench = one(SLOW)
    worker = bench.worker(M, window_ms=1)
    bench.admit(latency_ms_max=1000)
    bench.poll()
    worker.sent[1].candidate.table.scale = 0.01  # believed fast when it was admitted
    bench.admit(id="a", latency_ms_max=300)
    assert bench.poll(1) == []
    assert bench.core.wake_at_ms() == 300
    assert replies(bench.poll(300)) == [("a", "DEADLINE_EXCEEDED")]
    assert bench.core.wake_at_ms() == float("inf")


def test_a_deadline_that_passed_before_it_was_read_is_exceeded() -> None:
    bench = one()
    bench.worker(M)
    bench.admit(1000, id="a", deadline_ms=900)
    assert replies(bench.poll(1000)) == [("a", "DEADLINE_EXCEEDED")]


def test_late_runs_after_its_deadline() -> None:
    bench = one()
    worker = bench.worker(M, window_ms=1)
    bench.admit()
    (first,) = sends(bench.poll())
    bench.admit(id="a", latency_ms_max=15, on_miss="late")
    assert bench.poll(100) == []
    bench.answer(worker, first.batch, 100)
    (send,) = sends(bench.poll(100))
    (item,) = send.batch.items
    assert (item.id, item.deadline_ms, item.latency_deadline_ms) == ("a", None, 15)


def test_what_is_late_gives_way_to_what_is_in_time_but_not_for_ever() -> None:
    bench = one(((1, 10.0),))
    worker = bench.worker(M, window_ms=1)
    bench.admit()
    bench.admit(id="late", latency_ms_max=15, on_miss="late")
    (send,) = sends(bench.poll())
    waited_ms = 0.0
    while send.batch.items[0].id != "late":
        waited_ms += 20_000  # the worker is slow, and there is always somebody who is in time
        bench.admit(waited_ms, id="in time", latency_ms_max=25_000)
        bench.admit(waited_ms, id="in time", latency_ms_max=25_000)
        bench.poll(waited_ms)
        bench.answer(worker, send.batch, waited_ms)
        (send,) = sends(bench.poll(waited_ms))
        assert waited_ms < 120_000


def test_a_batch_stays_small_enough_for_a_late_head_that_is_still_in_time() -> None:
    bench = one(((1, 1.0), (100, 100.0)))
    bench.worker(M)
    for _ in range(100):
        bench.admit(latency_ms_max=50, on_miss="late")
    (send, *_) = sends(bench.poll())
    assert send.batch.cost_ms <= 50


def test_a_head_that_cannot_be_in_time_any_more_is_refused_with_advice() -> None:
    bench = one(SLOW)
    worker = bench.worker(M, window_ms=1)
    bench.admit()
    (send,) = sends(bench.poll())
    bench.admit(id="a", latency_ms_max=250)
    assert bench.poll(1) == []
    bench.answer(worker, send.batch, 200)
    (reply,) = bench.poll(200)
    assert isinstance(reply, Reply)
    assert reply.status == "RESOURCE_EXHAUSTED"
    assert reply.retry_after_ms == pytest.approx(100, abs=60)


def test_a_head_that_cannot_be_in_time_moves_to_what_can() -> None:
    bench = two(SLOW, FLAT, price_per_hour=360.0)
    worker = bench.worker(A, B, window_ms=1)
    bench.admit(latency_ms_max=1000)
    (send,) = sends(bench.poll())
    assert send.batch.variant == A
    bench.admit(id="a", latency_ms_max=250)
    assert bench.poll(1) == []
    bench.answer(worker, send.batch, 200)
    (send,) = sends(bench.poll(200))
    assert (send.batch.variant, send.batch.items[0].id) == (B, "a")


def test_a_head_that_none_of_its_candidates_can_take_in_time_any_more_is_refused() -> None:
    of_c = model("c", task="c")
    bench = two(((1, 60.0),), ((1, 60.0),))
    put(bench.core.catalog, of_c, profile(of_c, curve=((1, 200.0),)))
    long = bench.worker("c:1/onnx-fp32", window_ms=0)
    bench.worker(A, B, window_ms=0)
    bench.admit(task="c")
    bench.admit(model="a")
    bench.poll()
    bench.ready(long, A, B)
    bench.admit(model="a")
    bench.admit(model="b")
    bench.admit(id="victim", latency_ms_max=240)
    assert bench.poll(60) == []
    bench.core.frame(long, frames.Credit(1000), 60)  # has room shortly before it is free at 200
    assert bench.poll(60) == []
    assert bench.core.wake_at_ms() == 140, "the other one is overdue, and gives back nothing"
    bench.poll(140)
    assert bench.core.wake_at_ms() == 160, "a fifth of the batch before it is predicted to end"
    assert replies(bench.poll(199)) == [("victim", "RESOURCE_EXHAUSTED")]


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_cancel_does_not_reach_a_later_query_of_the_same_id() -> None:
    bench = one()
    bench.worker(M, window_ms=1000)
    bench.core.cancel(Cancel(id="a"), logged_ms=100)
    bench.admit(50, id="a")
    bench.admit(150, id="a")
    out = bench.poll(150)
    assert replies(out) == [("a", "CANCELLED")]
    assert [item.arrival_ms for send in sends(out) for item in send.batch.items] == [150]


def test_cancel_what_waits_by_id_and_by_record() -> None:
    bench = one()
    worker = bench.worker(M, window_ms=1)
    bench.admit()
    bench.poll()
    bench.admit(id="a")
    by_record = bench.admit(id="b")
    bench.core.cancel(Cancel(id="a"))
    bench.core.cancel(Cancel(query=str(by_record.record)))
    assert replies(bench.poll(1)) == [("a", "CANCELLED"), ("b", "CANCELLED")]
    assert bench.core.waiting()[0] == 0
    assert len(worker.sent) == 1


def test_cancel_what_is_parked() -> None:
    bench = one()
    bench.admit(id="a")
    bench.core.cancel(Cancel(id="a"))
    assert replies(bench.poll()) == [("a", "CANCELLED")]
    assert bench.core.waiting()[0] == 0


def test_cancel_what_was_sent_asks_the_worker() -> None:
    bench = one()
    worker = bench.worker(M)
    admitted = bench.admit(id="a")
    bench.poll()
    bench.core.cancel(Cancel(id="a"))
    assert bench.poll() == [CancelSent(worker, frames.CancelItems(1, (admitted.record,)))]


def test_nothing_is_said_to_a_worker_that_is_gone() -> None:
    bench = one()
    worker = bench.worker(M)
    bench.admit(id="a")
    bench.poll()
    bench.core.cancel(Cancel(id="a"))
    bench.core.lost(worker, 1)
    instructions = bench.poll(1)
    assert replies(instructions) == [("a", "CANCELLED")]
    assert len(instructions) == 1


@pytest.mark.parametrize("how", ["returned", "lost"])
def test_what_was_cancelled_while_it_was_sent_is_not_sent_again(how: str) -> None:
    bench = one()
    worker = bench.worker(M)
    bench.admit(id="a")
    (send,) = sends(bench.poll())
    bench.core.cancel(Cancel(id="a"))
    bench.poll()
    bench.worker(M)
    if how == "lost":
        bench.core.lost(worker, 1)
    else:
        bench.answer(worker, send.batch, 1, "returned")
    assert replies(bench.poll(1)) == [("a", "CANCELLED")]


def test_cancel_of_what_is_being_answered_or_is_done_changes_nothing() -> None:
    bench = one()
    admitted = bench.admit(id="a", task="none")
    bench.poll()
    bench.core.cancel(Cancel(id="a"))
    assert bench.poll() == []
    bench.core.replied(admitted, "NOT_FOUND")
    bench.core.cancel(Cancel(query=str(admitted.record)))
    assert bench.poll() == []


def test_cancel_before_arrival_by_id_and_by_record() -> None:
    bench = one()
    bench.worker(M)
    bench.core.cancel(Cancel(id="a"))
    bench.core.cancel(Cancel(query=f"{TOPIC}/0/1"))
    bench.admit(id="a")
    bench.admit(id="b")
    assert replies(bench.poll()) == [("a", "CANCELLED"), ("b", "CANCELLED")]


# --- workers come and go ----------------------------------------------------------------------------------------------


def test_what_no_worker_can_run_is_parked_until_one_can_or_its_time_is_over() -> None:
    bench = one()
    bench.admit(id="a", latency_ms_max=100)
    bench.admit(id="b", latency_ms_max=200)
    bench.admit(id="late", latency_ms_max=50, on_miss="late")
    assert bench.poll() == []
    assert bench.core.waiting()[0] == 3
    assert bench.core.wake_at_ms() == 100
    assert replies(bench.poll(100)) == [("a", "UNAVAILABLE")]
    bench.worker(M, now_ms=150)
    (send,) = sends(bench.poll(150))
    assert sorted(item.id for item in send.batch.items) == ["b", "late"]


def test_late_without_workers_is_unavailable_after_the_default_bound() -> None:
    bench = one()
    bench.admit(id="a", latency_ms_max=50, on_miss="late")
    assert bench.poll(29_999) == []
    assert replies(bench.poll(30_000)) == [("a", "UNAVAILABLE")]


def test_a_registered_model_that_is_not_measured_yet_is_waited_for() -> None:
    bench = one()
    put(bench.core.catalog, model("new", task="new"))
    bench.admit(id="a", task="new")
    assert bench.poll() == []
    put(bench.core.catalog, model("new", task="new"), profile(model("new", task="new")))
    bench.core.catalog_changed(1)
    bench.worker("new:1/onnx-fp32", now_ms=2)
    assert len(sends(bench.poll(2))) == 1


def test_a_lost_worker_costs_an_attempt_of_what_it_ran() -> None:
    bench = one(attempts_max=3)
    admitted = bench.admit()
    for attempt in range(3):
        worker = bench.worker(M)
        (send,) = sends(bench.poll())
        assert send.batch.items[0].attempt == attempt
        bench.core.lost(worker, 2)
    (bury,) = bench.poll(2)
    assert isinstance(bury, Bury)
    assert (bury.entry, bury.code) == (admitted, "INTERNAL")
    assert (bench.core.statistics.lost_workers, bench.core.statistics.retried) == (3, 3)


def test_a_lost_worker_costs_nothing_of_what_waited_behind_what_it_ran() -> None:
    bench = one(attempts_max=5)
    worker = bench.worker(M, window_ms=1000)
    for now_ms in (0, 9):
        bench.admit()
        assert len(sends(bench.poll(now_ms))) == 1
    bench.core.lost(worker, 9)
    bench.worker(M, window_ms=1000)
    items = [item for send in sends(bench.poll(9)) for item in send.batch.items]
    assert sorted(item.attempt for item in items) == [0, 1]


def test_returned_is_sent_again_without_an_attempt() -> None:
    bench = one()
    worker = bench.worker(M)
    bench.admit()
    (send,) = sends(bench.poll())
    bench.answer(worker, send.batch, 1, "returned")
    (again,) = sends(bench.poll(1))
    assert again.batch.items == send.batch.items
    assert again.batch.batch != send.batch.batch


@pytest.mark.parametrize(("disposition", "code"), [("poisoned", "OK"), ("undeliverable", "UNDELIVERABLE")])
def test_poisoned_and_undeliverable_become_dead_letters(disposition: str, code: str) -> None:
    bench = one()
    worker = bench.worker(M)
    admitted = bench.admit()
    (send,) = sends(bench.poll())
    bench.answer(worker, send.batch, 1, disposition)
    (bury,) = bench.poll(1)
    assert isinstance(bury, Bury)
    assert (bury.entry, bury.code) == (admitted, code)
    assert bench.core.ledger.commits()[0].offset == 0
    bench.core.buried(admitted)
    assert bench.core.ledger.commits()[0].offset == 1


def test_what_a_worker_forgets_goes_elsewhere_and_duplicated_outcomes_change_nothing() -> None:
    bench = one()
    worker = bench.worker(M)
    first, second = bench.admit(), bench.admit()
    (send,) = sends(bench.poll())
    outcome = frames.Outcome(1, True, 1.0, 2, (frames.ItemOutcome(first.record, "answered", "OK"),))
    for _ in range(2):
        bench.core.frame(worker, outcome, 1)
    assert (state(first), state(second), second.attempts) == (State.DONE, State.WAITING, 1)
    bench.answer(worker, send.batch, 2)
    assert state(second) is State.WAITING


def test_a_draining_worker_gets_nothing_new_and_those_who_wait_for_it_go_elsewhere() -> None:
    a = model("a")
    bench = Bench((a, [profile(a), profile(a, "gpu", price_per_hour=7.2)]))
    leaving = bench.worker(A, window_ms=1)
    bench.admit()
    bench.poll()
    bench.admit(id="moves")
    assert bench.poll() == []
    other = bench.worker(A, group="gpu")
    bench.core.frame(leaving, frames.Drain("going"), 1)
    (send,) = sends(bench.poll(1))
    assert (send.worker, send.batch.items[0].id) == (other, "moves")
    bench.core.lost(leaving, 2)
    assert bench.core.statistics.lost_workers == 0


@pytest.mark.parametrize("group", ["cpu", "gpu"])
def test_those_who_wait_for_a_lost_variant_move_to_one_that_nobody_waited_for_yet(group: str) -> None:
    a, b = model("a"), model("b")
    bench = Bench((a, [profile(a)]), (b, [profile(b, group, price_per_hour=7.2)]))
    worker = bench.worker(A, window_ms=1)
    bench.worker(B, group=group)
    bench.admit()
    bench.poll()
    for _ in range(3):
        bench.admit()
    bench.ready(worker)
    (send,) = sends(bench.poll())
    assert (send.batch.variant, len(send.batch.items)) == (B, 3)


def test_a_worker_that_has_room_but_not_the_variant_is_no_reason_to_wake() -> None:
    bench = two()
    bench.worker(A, window_ms=1)
    bench.worker(B)
    bench.admit(model="a")
    bench.poll()
    bench.admit(model="a")
    assert bench.poll(1) == []
    assert bench.core.wake_at_ms() == 30_000


def test_an_old_link_of_the_same_incarnation_does_not_take_the_new_one_with_it() -> None:
    bench = one()
    old = bench.worker(M)
    new = type(old)(old.name, old.incarnation, old.group, 1.0, 1, ())
    bench.core.joined(new)
    bench.ready(new, M)
    bench.core.lost(old, 1)
    assert bench.core.workers() == [new]


# --- the catalog changes ----------------------------------------------------------------------------------------------


def test_those_who_wait_are_placed_anew_when_the_catalog_changes() -> None:
    bench = two()
    bench.worker(A, B, window_ms=1)
    bench.admit()
    bench.poll()
    waiting = bench.admit(id="moves")
    bench.admit(id="gone", model="a")
    bench.core.catalog.put_model("a:1", None)
    bench.core.catalog_changed(1)
    assert replies(bench.poll(1)) == [("gone", "NOT_FOUND")]
    assert isinstance(waiting.place, VariantQueue)
    assert waiting.place.candidate.variant == B


# --- ownership --------------------------------------------------------------------------------------------------------


def test_what_a_worker_answered_for_an_earlier_broker_needs_no_second_run() -> None:
    bench = one()
    waiting = bench.admit()
    worker = bench.worker()
    bench.core.frame(worker, frames.Answered(((TOPIC, 0, (0, 1)), ("other", 7, (3,)))), 1)
    assert state(waiting) is State.DONE
    assert not bench.core.ledger.arrived(entry(1).record)
    assert bench.core.statistics.skipped == 1
    assert bench.core.ledger.commits()[0].offset == 2
    assert bench.core.waiting()[0] == 0


def test_nothing_of_a_withdrawn_partition_is_sent_even_when_a_worker_gives_it_back() -> None:
    bench = one()
    worker = bench.worker(M, window_ms=1)
    sent, waiting = bench.admit(), None
    (send,) = sends(bench.poll())
    waiting = bench.admit()
    bench.core.withdraw([(TOPIC, 0)])
    bench.answer(worker, send.batch, 1, "returned")
    assert bench.poll(1) == []
    assert (state(sent), state(waiting)) == (State.WAITING, State.WAITING)
    assert bench.core.ledger.unsettled([(TOPIC, 0)]) == 0
    assert bench.core.waiting()[0] == 0


@pytest.mark.parametrize("parked", [False, True])
def test_what_waits_of_a_partition_lost_without_warning_is_never_sent(parked: bool) -> None:
    bench = one()
    worker = bench.worker(*[] if parked else [M], window_ms=1)
    bench.admit()
    bench.poll()
    bench.admit()
    bench.core.ledger.revoke(TOPIC, 0)
    bench.core.ledger.assign(TOPIC, 0, 0, "")
    bench.ready(worker, M)
    if not parked:
        outcome = frames.Outcome(1, True, 1.0, 1, (frames.ItemOutcome(entry(0).record, "answered", "OK"),))
        bench.core.frame(worker, outcome, 1)
    assert bench.poll(1) == []
    assert bench.core.waiting()[0] == 0
    assert bench.core.ledger.commits()[0].offset == 0


def test_leaving_parks_nothing_any_more() -> None:
    bench = one()
    bench.admit()
    bench.core.withdraw_parked()
    assert bench.core.waiting()[0] == 0
    worker = bench.worker(M)
    bench.admit()
    bench.poll()
    bench.core.lost(worker, 1)
    assert bench.core.waiting()[0] == 0
    assert bench.poll(99_999) == []


# --- what is not loaded -----------------------------------------------------------------------------------------------


def test_a_lone_query_that_waits_for_a_variant_wants_it() -> None:
    bench = two()
    bench.worker(B)
    waiting = bench.admit(model="a", rows=3)
    assert bench.poll() == []
    assert bench.core.wants(1000) == {f"{A}@cpu": pytest.approx(0.285, rel=0.01)}
    bench.worker(A)
    assert [send.batch.items[0].record for send in sends(bench.poll())] == [waiting.record]


def test_what_would_be_better_is_wanted_as_often_as_it_would_be() -> None:
    bench = two()
    bench.worker(B, window_ms=10_000)
    for second in range(1, 100):
        for _ in range(20):
            bench.admit(1000 * second)
        bench.poll(1000 * second)
        rates = bench.core.wants(1000 * second)
    assert rates == {f"{A}@cpu": pytest.approx(20, rel=0.01)}


def test_many_shapes_leave_no_empty_queues_behind() -> None:
    free = model(shape=(-1, -1))
    bench = Bench((free, [profile(free)]))
    bench.worker(M, window_ms=100_000)
    for width in range(1, 600):
        bench.admit(width=width)
    assert sum(len(sends(bench.poll(10.0 * number))) for number in range(599)) == 599
    assert not any(group.queues for group in bench.core.groups.values())


def test_demand_is_told_when_it_begins_changes_and_has_ended_for_a_while() -> None:
    bench = one(((1, 10.0), (2, 11.0), (8, 40.0)))
    worker = bench.worker(M, window_ms=1.0)

    def told(now_ms: float) -> list[frames.Demand]:
        bench.demands.clear()
        bench.poll(now_ms)
        return [each.demand for each in bench.demands]

    bench.admit(0.0, latency_ms_max=1000.0)
    (sent,) = bench.poll(0.0)
    assert isinstance(sent, Send)
    assert not bench.demands, "what was sent is no demand"
    bench.admit(1.0, latency_ms_max=1000.0)
    assert [each.deadline_ms for each in told(1.0)] == [1001.0]
    bench.admit(2.0, latency_ms_max=500.0)
    assert told(2.0) == [], "not more often than every 10 ms"
    assert [each.deadline_ms for each in told(12.0)] == [502.0]
    bench.answer(worker, sent.batch, 13.0)
    assert told(13.0) == [], "it comes in waves"
    assert [each.backlog_ms for each in told(513.0)] == [0.0]


def test_where_several_brokers_wait_for_the_most_urgent_demand_is_told_soon_and_taken_back_soon() -> None:
    bench = one(((1, 10.0),))
    worker = bench.worker(M, window_ms=1.0)
    bench.core.frame(worker, frames.Backlog(100.0, 0, 0.0, True), 0.0)
    for arrival_ms in (0.0, 1.0):
        bench.admit(arrival_ms, latency_ms_max=1000.0)
    bench.poll(1.0)
    bench.admit(2.0, latency_ms_max=500.0)
    bench.demands.clear()
    bench.poll(5.0)
    assert [each.demand.deadline_ms for each in bench.demands] == []
    bench.poll(6.0)
    assert [each.demand.deadline_ms for each in bench.demands] == [502.0]
    bench.admit(990.0, latency_ms_max=15.0)
    bench.poll(990.0)
    assert bench.demands[-1].demand.backlog_ms > 0
    bench.poll(1006.0)
    assert bench.demands[-1].demand.backlog_ms == 0, "all that waited has expired"


# --- gathering --------------------------------------------------------------------------------------------------------


def family(**of_better: Any) -> tuple[Bench, Any]:
    """Two models of a task on one busy worker: ``a`` takes 10 ms, the better ``b`` 12; up to eight rows each."""
    a, b = model("a"), model("b")
    curve_a, curve_b = ((1, 10.0), (8, 10.0)), ((1, 12.0), (8, 12.0))
    better = {"accuracy": 0.95, **of_better}
    bench = Bench((a, [profile(a, curve=curve_a, accuracy=0.9)]), (b, [profile(b, curve=curve_b, **better)]))
    worker = bench.worker(A, B, window_ms=1e6)
    bench.admit(model="a", latency_ms_max=900)
    (busy,) = sends(bench.poll())
    return bench, (worker, busy.batch)


A, B = "a:1/onnx-fp32", "b:1/onnx-fp32"


def next_batch(bench: Bench, running: Any) -> Any:
    worker, batch = running
    bench.answer(worker, batch, 10.0)
    (send,) = sends(bench.poll(10.0))
    return send.batch


def wait(bench: Bench, number: int, **asked: Any) -> list[Entry]:
    return [bench.admit(1.0, latency_ms_max=400, **asked) for _ in range(number)]


def test_what_waits_for_nearly_equal_variants_is_run_as_one_batch() -> None:
    bench, running = family()
    cheap = wait(bench, 2, task="t", accuracy_min=0.8, on_miss="degrade")
    good = wait(bench, 2, task="t", accuracy_min=0.94, on_miss="degrade", prefer="accuracy")
    batch = next_batch(bench, running)
    assert len(batch.items) == 4
    assert {item.record for item in batch.items} == {each.record for each in (*cheap, *good)}
    assert all(("accuracy" in each.missed) == (batch.variant == A and each in good) for each in (*cheap, *good))


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"model": "a", "prefer": "accuracy"}, "it named a model"),
        ({"variant": A, "prefer": "accuracy"}, "it named a variant"),
        ({"task": "t", "accuracy_min": 0.8, "cost_max": 0.011, "prefer": "accuracy"}, "the other one costs too much"),
        ({"task": "t", "accuracy_min": 0.8}, "it wants the cheapest"),
        ({"task": "t", "accuracy_min": 0.8, "prefer": "latency"}, "it wants the soonest"),
    ],
)
def test_nobody_joins_a_batch_of_what_was_not_asked_for(others: dict[str, Any], why: str) -> None:
    bench, running = family(price_per_hour=36.0)
    accurate = wait(bench, 3, task="t", accuracy_min=0.94)
    wait(bench, 2, **others)
    batch = next_batch(bench, running)
    named = {item.record for item in batch.items}
    assert not (batch.variant == B and len(named) > 3), why
    assert batch.variant == B or not named & {each.record for each in accurate}, "below the floor"


def test_the_most_urgent_come_first_of_those_that_gather() -> None:
    bench, running = family()
    late = [bench.admit(1.0, task="t", accuracy_min=0.8, on_miss="degrade", latency_ms_max=900) for _ in range(7)]
    soon = [
        bench.admit(2.0, task="t", accuracy_min=0.94, prefer="accuracy", on_miss="degrade", latency_ms_max=300)
        for _ in range(4)
    ]
    batch = next_batch(bench, running)
    assert {each.record for each in soon} <= {item.record for item in batch.items}
    assert len(batch.items) == 8
    assert sum(each.record in {item.record for item in batch.items} for each in late) == 4


@pytest.mark.parametrize(("waiting", "gives_way"), [(16, False), (150, True)])
def test_a_head_that_would_make_the_batch_small_gives_way_to_a_full_one_at_the_price(
    waiting: int, gives_way: bool
) -> None:
    bench = Bench((model(), [profile(model(), curve=((1, 10.0), (8, 40.0)))]))
    worker = bench.worker(M, window_ms=1e6)
    bench.admit(latency_ms_max=900)
    (busy,) = sends(bench.poll())
    hurried = bench.admit(1.0, latency_ms_max=400)
    others = {bench.admit(1.0, latency_ms_max=800).record for _ in range(waiting)}
    now_ms = 375.0
    bench.answer(worker, busy.batch, now_ms)
    instructions = bench.poll(now_ms)
    (send,) = sends(instructions)
    batch = {item.record for item in send.batch.items}
    if gives_way:
        assert replies(instructions) == [(hurried.query.id, "RESOURCE_EXHAUSTED")]
        assert len(batch) == 8
        assert batch <= others
    else:
        assert hurried.record in batch
        assert len(batch) < 8


def test_whom_another_group_has_time_for_gives_way_to_there() -> None:
    of, curve = model(), ((1, 10.0), (8, 40.0))
    bench = Bench((of, [profile(of, curve=curve), profile(of, "gpu", curve=curve)]))
    worker = bench.worker(M, window_ms=1e6)
    bench.admit(latency_ms_max=900)
    (busy,) = sends(bench.poll())
    hurried = bench.admit(1.0, latency_ms_max=400)
    for _ in range(150):
        bench.admit(1.0, latency_ms_max=800)
    bench.worker(M, group="gpu", now_ms=375.0)
    bench.answer(worker, busy.batch, 375.0)
    batches = {send.worker.group: {item.record for item in send.batch.items} for send in sends(bench.poll(375.0))}
    assert len(batches["cpu"]) == 8
    assert batches["gpu"] == {hurried.record}


def busy(bench: Bench, *variants: str) -> Any:
    """A worker that is busy with another broker's work for 100 ms."""
    worker = bench.worker(*variants, window_ms=500)
    bench.core.frame(worker, frames.Backlog(100.0, 0, 0.0, True), 0.0)
    return worker


def test_what_waits_joins_another_brokers_batch_when_it_is_called() -> None:
    bench = one(SLOW)
    worker = busy(bench, M)
    for _ in range(5):
        bench.admit()
    assert bench.poll() == []
    bench.core.frame(worker, frames.Call(M, 3), 1.0)
    (send,) = sends(bench.poll(1.0))
    assert len(send.batch.items) == 3
    bench.core.frame(worker, frames.Call("other:1/onnx-fp32", 3), 1.0)
    assert sends(bench.poll(1.0)) == []
    bench.core.frame(worker, frames.Call(M, 8), 1.0)
    assert len(sends(bench.poll(1.0))[0].batch.items) == 2


def test_what_waits_for_another_variant_of_the_task_joins_only_if_it_may() -> None:
    bench = two(accuracy=0.99)
    worker = busy(bench, A, B)
    bench.admit(task="t", on_miss="degrade", prefer="accuracy", latency_ms_max=500.0)
    bench.admit(task="t", accuracy_min=0.98, latency_ms_max=500.0)
    bench.admit(variant=B, latency_ms_max=500.0)
    assert bench.poll() == []
    bench.core.frame(worker, frames.Call(A, 8), 1.0)
    (send,) = sends(bench.poll(1.0))
    assert (send.batch.variant, [item.record.offset for item in send.batch.items]) == (A, [0])


def test_what_others_have_queued_counts_as_ahead() -> None:
    bench = one()
    worker = bench.worker(M)
    bench.core.frame(worker, frames.Backlog(0.0, 0, 400.0, True), 0.0)
    bench.admit(latency_ms_max=300.0)
    assert [status for _, status in replies(bench.poll())] == ["RESOURCE_EXHAUSTED"]


def test_to_a_worker_of_several_brokers_a_batch_says_how_long_larger_ones_take_that_are_useful() -> None:
    bench = one(((1, 10.0), (2, 11.0), (4, 12.0)))
    worker = bench.worker(M)
    bench.admit()
    (send,) = sends(bench.poll())
    assert not send.batch.times, "alone, it puts together what runs itself"
    bench.answer(worker, send.batch, 10.0)
    bench.core.frame(worker, frames.Backlog(0.0, 0, 0.0, True), 11.0)
    bench.admit()
    (send,) = sends(bench.poll(11.0))
    assert [rows for rows, _ in send.batch.times] == [1, 2, 4]
    assert [ms for _, ms in send.batch.times] == sorted(ms for _, ms in send.batch.times)
