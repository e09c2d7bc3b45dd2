"""Copies for a shadow: who gets one, when it is sent, what is compared; and that they cost nobody anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from broker_builders import Bench, model, profile

from broker.core import Send
from broker.devices import Worker
from broker.shadows import COPIES_MAX, FAILURES_MAX, WAIT_MS_MAX
from modelless import frames
from modelless.messages import Labels, Served

V1, V2 = "m:1/onnx-fp32", "m:2/onnx-fp32"
LABELS = Labels("m", stable=1, shadow="2", shadow_weight=1.0, changed_ms=5.0)


def bench(labels: Labels = LABELS, shape: tuple[int, ...] = (-1, 4)) -> Bench:
    one, two = model(version=1), model(version=2, shape=shape)
    made = Bench((one, [profile(one)]), (two, [profile(two)]))
    made.core.labels("m", labels, 0.0)
    return made


def sent(bench: Bench, now_ms: float = 0.0) -> list[frames.Batch]:
    return [each.batch for each in bench.poll(now_ms) if isinstance(each, Send)]


def answer(bench: Bench, worker: Worker, batch: frames.Batch, *predictions: int, now_ms: float = 0.0) -> None:
    rows = sum(item.rows for item in batch.items)
    bench.core.frame(worker, frames.Outcome(batch.batch, True, 2.0 * rows, rows, (), True, predictions), now_ms)


def shadow_of(bench: Bench, worker: Worker, *predictions: int, rows: int = 1) -> frames.Batch:
    """Ask, answer with these predictions, and take the copy."""
    bench.admit(task="t", rows=rows)
    (real,) = sent(bench)
    assert (real.variant, real.predicts, real.shadow) == (V1, True, False)
    answer(bench, worker, real, *predictions)
    (copy,) = sent(bench)
    return copy


def test_a_copy_is_sent_after_the_answer_and_compared() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    for mine, its in (((3,), (3,)), ((3,), (4,))):
        copy = shadow_of(one, worker, *mine)
        assert (copy.variant, copy.predicts, copy.shadow, len(copy.items)) == (V2, True, True, 1)
        assert copy.inputs[0].data == b"\0" * 16
        answer(one, worker, copy, *its)
    assert one.core.counts.served()[1] == Served("m:2/onnx-fp32", 2, 0, 4.0, 2, 1, since_ms=5.0)
    assert one.core.ledger.queries == 0


def test_a_query_of_several_rows_agrees_when_all_of_them_do() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    answer(one, worker, shadow_of(one, worker, 1, 2, 3, rows=3), 1, 2, 3)
    answer(one, worker, shadow_of(one, worker, 1, 2, 3, rows=3), 1, 2, 4)
    assert (one.core.counts.served()[1].shadowed, one.core.counts.served()[1].agreed) == (2, 1)


def test_it_waits_while_anything_real_waits_or_runs() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=5.0)
    one.admit(task="t")
    (first,) = sent(one)
    one.admit(task="t")
    answer(one, worker, first, 1)
    (second,) = sent(one)
    assert not second.shadow, "the query that waits, not the copy"
    answer(one, worker, second, 2)
    (copies,) = sent(one)
    assert copies.shadow
    assert len(copies.items) == 2, "together"
    one.admit(task="t")
    (real,) = sent(one)
    assert not real.shadow, "a copy takes no credit and is not waited for"


def test_one_batch_of_copies_at_a_time_and_the_loss_of_a_worker_ends_it() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    shadow_of(one, worker, 1)
    one.admit(task="t")
    (real,) = sent(one)
    answer(one, worker, real, 1)
    assert sent(one) == []
    one.core.lost(worker, 0.0)
    other = one.worker(V1, V2, window_ms=1e6)
    (copy,) = sent(one)
    answer(one, other, copy, 1)
    assert one.core.counts.served()[1].shadowed == 1


def test_copies_that_found_no_idle_worker_in_time_are_dropped() -> None:
    one = bench()
    busy, shadows = one.worker(V1, window_ms=1e6), one.worker(V2, window_ms=1e6)
    one.admit(model="m:2")
    (occupying,) = sent(one)
    one.admit(task="t")
    (real,) = sent(one)
    answer(one, busy, real, 1)
    assert sent(one) == [], "its worker is busy"
    answer(one, shadows, occupying, now_ms=WAIT_MS_MAX)
    assert sent(one, WAIT_MS_MAX) == []


def test_they_are_bounded() -> None:
    one = bench()
    busy, _ = one.worker(V1, window_ms=1e6), one.worker(V2, window_ms=1e6)
    one.admit(model="m:2")
    sent(one)
    for _ in range(COPIES_MAX + 50):
        one.admit(task="t")
    while batches := sent(one):
        for batch in batches:
            answer(one, busy, batch, *[1] * len(batch.items))
    assert len(one.core._shadows) == COPIES_MAX


@pytest.mark.parametrize(
    "labels",
    [
        replace(LABELS, shadow=None),
        replace(LABELS, shadow_weight=0.0),
        replace(LABELS, shadow="1"),
        replace(LABELS, shadow=V1),
        replace(LABELS, shadow="7"),
    ],
)
def test_who_gets_no_copy_is_asked_for_nothing(labels: Labels) -> None:
    one = bench(labels)
    worker = one.worker(V1, V2, window_ms=1e6)
    one.admit(task="t")
    (real,) = sent(one)
    assert not real.predicts
    answer(one, worker, real)
    assert sent(one) == []


def test_nothing_is_sampled_while_the_shadow_is_loaded_nowhere() -> None:
    one = bench()
    one.worker(V1, window_ms=1e6)
    one.admit(task="t")
    (real,) = sent(one)
    assert not real.predicts


def test_a_shadow_with_other_inputs_gets_nothing() -> None:
    one = bench(shape=(-1, 9))
    worker = one.worker(V1, V2, window_ms=1e6)
    one.admit(task="t")
    (real,) = sent(one)
    answer(one, worker, real, 1)
    assert sent(one) == []


def test_trouble_is_counted_and_a_shadow_that_fails_often_gets_no_more() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    for _ in range(FAILURES_MAX):
        copy = shadow_of(one, worker, 1)
        item = frames.ItemOutcome(copy.items[0].record, "returned", "INTERNAL", "it failed")
        one.core.frame(worker, frames.Outcome(copy.batch, True, 1.0, 0, (item,)), 0.0)
    one.admit(task="t")
    (real,) = sent(one)
    assert not real.predicts
    assert one.core.counts.served()[1] == Served(V2, 0, FAILURES_MAX, 0.0, since_ms=5.0)
    one.core.labels("m", replace(LABELS, changed_ms=6.0), 0.0)
    answer(one, worker, real)
    shadow_of(one, worker, 1)


def test_other_labels_forget_what_was_sampled_for_the_ones_before() -> None:
    one = bench()
    worker = one.worker(V1, V2, window_ms=1e6)
    copy = shadow_of(one, worker, 1)
    one.core.labels("m", replace(LABELS, changed_ms=6.0), 0.0)
    answer(one, worker, copy, 1)
    assert one.core.counts.served() == ()


def test_one_variant_may_shadow_its_own_model() -> None:
    one = model()
    other = replace(profile(one), variant="m:1/onnx-int8", accuracy=0.5)
    made = Bench((one, [profile(one), other]))
    made.core.labels("m", Labels("m", shadow="m:1/onnx-int8", shadow_weight=1.0), 0.0)
    worker = made.worker(V1, "m:1/onnx-int8", window_ms=1e6)
    assert shadow_of(made, worker, 1).variant == "m:1/onnx-int8"
