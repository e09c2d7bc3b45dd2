"""The worker's other pure rooms: credit, what was answered lately, rows, bisecting, messages to the child, replies."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_builders import batch, item, tensor

from modelless.codec import decode_reply
from modelless.frames import BatchTensor, Demand
from modelless.messages import RecordId
from workers import channel, replies, rows
from workers.answered import AnsweredLately
from workers.bisect import Culprit, Retry, after_bad_end
from workers.credit import Cap, divide
from workers.device_queue import Answer, Part, Run

demands = st.dictionaries(
    st.integers(0, 9),
    st.none() | st.builds(Demand, st.floats(0, 1e6), st.none() | st.floats(0, 1e9)),
    max_size=8,
)


@given(st.floats(0, 1e5), demands, st.floats(0, 1e9))
def test_windows_add_up_to_the_cap_and_nobody_starves(
    cap_ms: float, announced: dict[int, Demand | None], now_ms: float
) -> None:
    windows = divide(cap_ms, announced, now_ms)
    assert windows.keys() == announced.keys()
    if windows:
        assert isclose(sum(windows.values()), cap_ms, rel_tol=1e-9, abs_tol=1e-9)
        assert min(windows.values()) >= 0.0999 * cap_ms / len(windows)


def test_the_cap_follows_large_batches_at_once_and_forgets_them_slowly() -> None:
    cap = Cap(4.0)
    before_ms = cap.cap_ms
    cap.observe_cost(100.0)
    assert cap.cap_ms == pytest.approx(before_ms + 100)
    for _ in range(100):
        cap.observe_cost(1.0)
    assert cap.cap_ms < before_ms + 3


def test_lately_is_bounded_in_time_and_names_each_record_once() -> None:
    lately = AnsweredLately(kept_ms=30_000)
    lately.add([RecordId("q", 0, 5), RecordId("q", 1, 5)], 0)
    lately.add([RecordId("q", 0, 5), RecordId("q", 0, 4)], 2_000)
    assert {r[:2]: r[2] for r in lately.frame(2_000).records} == {("q", 0): (4, 5), ("q", 1): (5,)}
    assert lately.frame(32_000).records == (("q", 0, (4, 5)),)
    assert lately.frame(60_000).records == ()
    assert len(lately) == 0


def test_lately_is_bounded_in_number() -> None:
    lately = AnsweredLately(records_max=100)
    for second in range(50):
        lately.add([RecordId("q", 0, second * 10 + i) for i in range(10)], second * 1000.0)
    assert len(lately) <= 110


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_gathered_inputs_are_the_rows_of_the_chosen_items(counts: list[int], data: st.DataObject) -> None:
    of = batch(1, [item(i, rows=count) for i, count in enumerate(counts)])
    chosen = sorted(data.draw(st.sets(st.integers(0, len(counts) - 1), min_size=1)))
    (gathered,) = rows.gather(of, chosen)
    array = np.frombuffer(gathered.data, "<f4").reshape(gathered.shape)
    assert array[:, 0].tolist() == [float(i) for i in chosen for _ in range(counts[i])]
    parts = rows.split([gathered], [of.items[i] for i in chosen])
    for index, (part,) in zip(chosen, parts, strict=True):
        assert np.frombuffer(part, "<f4").reshape(-1, 4)[:, 0].tolist() == [float(index)] * counts[index]


def test_a_batch_that_disagrees_with_its_inputs_is_noticed() -> None:
    good = batch(1, [item(1), item(2)])
    assert rows.check(good) is None
    short = BatchTensor("x", "FP32", (2, 4), b"\0" * 16)
    for wrong in (
        batch(1, [item(1)]).inputs,
        (short,),
        (BatchTensor("x", "NOPE", (2, 4), b"\0" * 32),),
        (),
    ):
        assert rows.check(type(good)(1, "v", 0.9, 1.0, good.items, wrong)) is not None


def test_bisecting() -> None:
    assert after_bad_end((0, 1, 2), crashed=True, quarantined=False) == Retry(((0,), (1, 2)), True)
    assert after_bad_end((0, 1), crashed=False, quarantined=False) == Retry(((0,), (1,)), False)
    assert after_bad_end((7,), crashed=True, quarantined=False) == Retry(((7,),), True)
    assert after_bad_end((7,), crashed=True, quarantined=True) == Culprit(7, poisoned=True)
    assert after_bad_end((7,), crashed=False, quarantined=False) == Culprit(7, poisoned=False)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_messages_survive_any_cut_of_the_stream(data: bytes, step: int) -> None:
    sent = [BatchTensor("a", "UINT8", (1, len(data)), data), tensor(np.ones((2, 4), "f4"))]
    stream = b"".join(bytes(b) for b in channel.encode(3, "run", {"variant": "v"}, sent)) * 2
    incoming = channel.Incoming()
    found = [m for start in range(0, len(stream), step) for m in incoming.feed(stream[start : start + step])]
    assert len(found) == 2
    assert found[0][:3] == (3, "run", {"variant": "v"})
    assert [bytes(t.data) for t in found[1].tensors] == [data, bytes(sent[1].data)]


@given(st.binary(max_size=300))
def test_what_is_no_message_is_one_error(junk: bytes) -> None:
    head = junk[: len(junk) // 2]
    try:
        channel.decode(memoryview(head), memoryview(junk)[len(head) :])
        list(channel.Incoming().feed(junk))
    except channel.ChannelError:
        return


def test_replies_share_the_cost_by_rows_and_say_what_was_missed() -> None:
    of = batch(1, [item(1, 100.0, rows=3), item(2, None)])
    run = Run((Part(1, of, (0, 1)),), started_ms=40.0)
    author = replies.Author("cpu", 3.6)
    ((first, second),) = replies.of_run(run, [tensor(np.ones((4, 2), "f4"), "y")], 8.0, author, now_ms=150.0)
    reply = decode_reply(first.value)
    assert (reply.status, reply.model, reply.version, reply.variant) == ("OK", "m", 1, "m:1/onnx-fp32")
    assert (reply.query, reply.batch_size, reply.queue_ms, reply.missed) == ("q/0/1", 4, 40.0, ("latency",))
    assert reply.cost == pytest.approx(3.6 / 3_600_000 * 8.0 * 3 / 4)
    assert reply.outputs[0].shape == (3, 2)
    assert decode_reply(second.value).missed == ()
    assert (first.headers[1], first.headers[2]) == (("modelless-status", b"OK"), ("modelless-query", b"q/0/1"))


def test_each_part_of_a_shared_run_has_its_own_rows_and_accuracy() -> None:
    of = [batch(number, [item(number)]) for number in (1, 2)]
    run = Run((Part(1, of[0], (0,)), Part(2, replace(of[1], accuracy=0.5), (0,))), started_ms=0.0)
    first, second = replies.of_run(run, [tensor(np.array([[1.0], [2.0]], "f4"), "y")], 8.0, replies.Author("g", 0), 9.0)
    told = [decode_reply(own[0].value) for own in (first, second)]
    assert [(reply.accuracy, float(reply.outputs[0].to_numpy()[0, 0]), reply.batch_size) for reply in told] == [
        (0.9, 1.0, 2),
        (0.5, 2.0, 2),
    ]


def test_times_of_other_rows_are_refused() -> None:
    two = batch(1, [item(1), item(2)])
    assert rows.check(replace(two, times=((2, 1.0), (4, 2.0)))) is None
    assert "its times are of [1]" in str(rows.check(replace(two, times=((1, 1.0),))))


def test_a_poisoned_query_is_reported_as_such() -> None:
    of = batch(1, [item(1)])
    (sent,) = replies.of_answer(Answer(1, of, of.items, "INTERNAL", "bad", True), replies.Author("g", 0), 5.0)
    assert sent.outcome().disposition == "poisoned"
    assert decode_reply(sent.value).message == "bad"


def test_predictions_are_the_argmax_along_the_last_dimension_row_by_row() -> None:
    logits = np.array([[0, 2, 1], [5, 1, 1]], np.float32)
    assert rows.predictions([tensor(logits, "y")], [item(1), item(2)]) == [(1,), (0,)]
    assert rows.predictions([tensor(logits, "y")], [item(1, rows=2)]) == [(1, 0)]
    assert rows.predictions([BatchTensor("y", "INT64", (2,), np.arange(2).tobytes())], [item(1, rows=2)]) == []
    assert rows.predictions([], [item(1)]) == []
    segments = np.zeros((2, 3, 4), np.float32)
    segments[1, 2, 3] = 1
    assert rows.predictions([tensor(segments, "y")], [item(1), item(2)]) == [(0, 0, 0), (0, 0, 3)]
