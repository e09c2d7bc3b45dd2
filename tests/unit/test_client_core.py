"""The client's core: whose reply it is, which one counts, and when to stop waiting."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelless.client_core import (
    TICK_MS,
    Outstanding,
    check_query,
    make_error,
    make_feedback,
    make_result,
    make_tensors,
    reply_id,
    reply_partition,
    wait_ms,
)
from modelless.codec import FEEDBACK_ROWS_MAX
from modelless.errors import InvalidArgumentError, ResourceExhaustedError
from modelless.messages import Feedback, Query, Reply
from modelless.tensors import Tensor


@dataclass
class Ask:
    id: str
    size_bytes: int = 10


def outstanding(outstanding_max: int = 100, bytes_max: int = 1000) -> Outstanding[Ask]:
    return Outstanding("me", outstanding_max, bytes_max)


def add(queries: Outstanding[Ask], expires_ms: float = 1000.0, size_bytes: int = 10) -> Ask:
    item = Ask(queries.next_id(), size_bytes)
    queries.add(item, expires_ms)
    return item


def test_first_reply_wins() -> None:
    queries = outstanding()
    item = add(queries)

    assert queries.match(item.id.encode()) is item
    assert queries.match(item.id.encode()) is None
    assert queries.statistics().answered == 1
    assert queries.statistics().duplicates == 1
    assert len(queries) == 0


@pytest.mark.parametrize("foreign", [None, b"", b"you-1", b"me", b"\xff\xfe", b"meme-1"])
def test_replies_of_others_are_skipped(foreign: bytes | None) -> None:
    queries = outstanding()
    add(queries)

    assert queries.match(foreign) is None
    assert queries.statistics().foreign == 1
    assert len(queries) == 1


def test_expires_at_its_time_and_late_replies_are_duplicates() -> None:
    queries = outstanding()
    soon, later = add(queries, 100.0), add(queries, 5000.0)

    assert queries.wake_at_ms() == pytest.approx(100.0, abs=TICK_MS)
    assert queries.expire(99.0) == []
    assert queries.expire(100.0 + TICK_MS) == [soon]
    assert queries.match(soon.id.encode()) is None
    assert queries.statistics().duplicates == 1
    assert queries.wake_at_ms() == pytest.approx(5000.0, abs=TICK_MS)
    assert queries.expire(10_000.0) == [later]
    assert queries.wake_at_ms() is None


def test_cancelled_is_forgotten() -> None:
    queries = outstanding()
    item = add(queries, 100.0)

    assert queries.cancel(item.id)
    assert not queries.cancel(item.id)
    assert queries.expire(1000.0) == []
    assert queries.match(item.id.encode()) is None


def test_full_by_count_and_by_bytes() -> None:
    by_count, by_bytes = outstanding(outstanding_max=2), outstanding(bytes_max=100)
    first = add(by_count)
    assert not by_count.is_full
    add(by_count)
    assert by_count.is_full
    by_count.match(first.id.encode())
    assert not by_count.is_full

    add(by_bytes, 50.0, size_bytes=100)
    assert by_bytes.is_full
    by_bytes.expire(1000.0)
    assert not by_bytes.is_full


def test_drain_returns_everything() -> None:
    queries = outstanding()
    items = [add(queries) for _ in range(3)]

    assert queries.drain() == items
    assert len(queries) == 0
    assert queries.expire(1e9) == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.floats(0, 2000)),
            st.tuples(st.just("match"), st.integers(0, 30)),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
            st.tuples(st.just("pass"), st.floats(0, 500)),
        )
    )
)
def test_every_query_is_settled_exactly_once(steps: list[tuple[str, float]]) -> None:
    queries, now_ms, settled = outstanding(), 0.0, Counter[str]()
    limits: dict[str, float] = {}
    for step, value in steps:
        if step == "add":
            limits[add(queries, now_ms + value).id] = now_ms + value
        elif step == "match":
            item = queries.match(f"me-{value}".encode())
            settled.update([item.id] if item else [])
        elif step == "cancel":
            settled.update([f"me-{value}"] * queries.cancel(f"me-{value}"))
        else:
            now_ms += value
            expired = queries.expire(now_ms)
            assert all(limits[item.id] <= now_ms for item in expired)
            settled.update(item.id for item in expired)
            wake_at_ms = queries.wake_at_ms()
            assert wake_at_ms is None or wake_at_ms > now_ms
        assert len(queries) == len(limits) - len(settled)
        assert queries.statistics().outstanding_bytes == 10 * len(queries)
    settled.update(item.id for item in queries.expire(1e9))
    assert settled == Counter(limits.keys())


def test_how_long_to_wait() -> None:
    assert wait_ms(50.0, "reject") == 5_050.0
    assert wait_ms(None, "reject") == 35_000.0
    assert wait_ms(50.0, "late") == 35_000.0
    assert wait_ms(60_000.0, "late") == 65_000.0


def test_reply_partitions_are_stable_and_spread() -> None:
    counts = Counter(reply_partition(f"client-{n}", 4) for n in range(400))
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 50
    assert reply_partition("client-1", 4) == reply_partition("client-1", 4)


def test_reply_id() -> None:
    assert reply_id([("traceparent", b"x"), ("modelless-id", b"me-1")]) == b"me-1"
    assert reply_id([]) is None


def test_tensors() -> None:
    pixels, flags = make_tensors({"pixels": np.zeros((2, 3), np.float32), "flags": [True, False]})
    assert (pixels.datatype, pixels.shape) == ("FP32", (2, 3))
    assert (flags.datatype, flags.shape) == ("BOOL", (2,))


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, "mapping"),
        (np.zeros(3), "mapping"),
        ({"x": np.zeros(())}, "shape"),
        ({"x": np.zeros((0, 3))}, "at least 1"),
        ({"x": np.array([object()])}, "dtype"),
        ({"x": ["text"]}, "dtype"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "disagree"),
    ],
)
def test_bad_inputs_are_refused_at_the_caller(inputs: object, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        make_tensors(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ask",
    [
        {},
        {"task": "a", "model": "b"},
        {"task": "a", "latency_ms_max": 0},
        {"task": "a", "latency_ms_max": float("nan")},
        {"task": "a", "accuracy_min": 1.1},
        {"task": "a", "cost_max": -1},
        {"task": "a", "prefer": "speed"},
        {"task": "a", "on_miss": "retry"},
    ],
)
def test_bad_constraints_are_refused_at_the_caller(ask: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        check_query(Query("me-1", (), **ask))  # type: ignore[arg-type]


def test_result_and_error() -> None:
    logits = np.arange(4, dtype=np.float32).reshape(2, 2)
    reply = Reply("me-1", "q/0/1", "OK", outputs=(Tensor.from_numpy("logits", logits),), model="m", version=2, cost=0.5)
    result = make_result(reply, 12.5)
    assert np.array_equal(result.output, logits)
    assert np.array_equal(result.outputs["logits"], logits)
    assert (result.model, result.version, result.cost, result.latency_ms) == ("m", 2, 0.5, 12.5)

    error = make_error(Reply("me-1", "q/0/1", "RESOURCE_EXHAUSTED", message="too busy", retry_after_ms=40))
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after_ms == 40
    assert error.reply is not None
    assert error.reply.query == "q/0/1"


def answer(logits: np.ndarray, variant: str | None = "m:1/onnx-fp32") -> Reply:
    return Reply("a", "t/0/7", "OK", outputs=(Tensor.from_numpy("logits", logits),), variant=variant)


LOGITS = np.array([[0.1, 0.9, 0.0], [0.7, 0.2, 0.1]], np.float32)


def test_feedback_says_what_was_answered_and_what_is_right() -> None:
    result = make_result(answer(LOGITS), 1.0)
    expected = Feedback("t/0/7", "m:1/onnx-fp32", (1, 0), (1, 2))
    assert make_feedback(result, np.array([1, 2])) == expected
    assert make_feedback(result, [1, 2]) == expected


@pytest.mark.parametrize("labels", [[1], [1, 2, 3], [[1, 2]], [1.0, 2.0], ["a", "b"], [True, False], 1])
def test_labels_that_do_not_fit_are_refused(labels: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"integers of shape \[2\]"):
        make_feedback(make_result(answer(LOGITS), 1.0), labels)  # type: ignore[arg-type]


def test_feedback_needs_an_answer_with_classes() -> None:
    for reply in (answer(LOGITS[0]), answer(LOGITS, None), Reply("a", "t/0/7", "OK", variant="m:1/x")):
        with pytest.raises(InvalidArgumentError, match="rows, classes"):
            make_feedback(make_result(reply, 1.0), [1, 2])
    large = np.zeros((FEEDBACK_ROWS_MAX + 1, 2), np.float32)
    with pytest.raises(InvalidArgumentError, match="takes at most 4096"):
        make_feedback(make_result(answer(large), 1.0), np.zeros(len(large), int))
