from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import instances, mutations

from modelless import wire
from modelless.codec import decode_frame, encode_frame
from modelless.errors import DecodeError
from modelless.frames import (
    FRAME_TYPES,
    Answered,
    Batch,
    BatchTensor,
    Credit,
    Demand,
    Frame,
    Hello,
    Item,
    ItemOutcome,
    Outcome,
    State,
)
from modelless.messages import RecordId
from modelless.structure import decoder

ITEM = Item(
    RecordId("modelless.queries", 3, 12345), "q-1", 1, 1.0, 2.0, None, "modelless.replies", None, b"key", "msgpack",
    (("traceparent", b"00"),), {"k": "v"}, ("accuracy",), 0,
)  # fmt: skip
BATCH = Batch(7, "m:1/onnx-fp32", 0.97, 3.0, (ITEM,), (BatchTensor("x", "FP32", (1, 2), b"\0" * 8),))


def test_types_are_pinned() -> None:
    assert " ".join(kind.__name__ for kind in FRAME_TYPES) == (
        "Hello State Credit Demand Batch Outcome Answered CancelItems Ping Drain Backlog Call Recall"
    )
    assert set(FRAME_TYPES) == set(typing.get_args(Frame))


@pytest.mark.parametrize("kind", FRAME_TYPES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_round_trip(kind: type[Frame], data: st.DataObject) -> None:
    frame = data.draw(instances(kind))
    decoded = decode_frame(encode_frame(frame))
    assert decoded == frame
    assert type(decoded) is kind


def test_on_the_wire_it_is_an_array_in_field_order() -> None:
    assert wire.unpack(encode_frame(Demand(5.0, None)), bytes_max=100) == [3, 5.0, None]
    outcome = Outcome(7, True, 1.0, 1, (ItemOutcome(RecordId("t", 0, 9), "answered", "OK"),))
    assert wire.unpack(encode_frame(outcome), bytes_max=100) == [
        5, 7, True, 1.0, 1, [[["t", 0, 9], "answered", "OK", None]], False, [],
    ]  # fmt: skip


def test_views_and_other_mappings_travel() -> None:
    inputs = (BatchTensor("x", "FP32", (1, 2), memoryview(b"\0" * 8)),)
    assert decode_frame(encode_frame(dataclasses.replace(BATCH, inputs=inputs))) == BATCH


def test_integers_are_taken_for_numbers_and_records_are_records() -> None:
    assert decode_frame(wire.pack([2, 5])) == Credit(5.0)
    decoded = decode_frame(encode_frame(BATCH))
    assert isinstance(decoded, Batch)
    assert str(decoded.items[0].record) == "modelless.queries/3/12345"


def altered(path: tuple[int, ...], value: Any) -> bytes:
    """BATCH with the value at a path of indices replaced."""
    body = wire.unpack(encode_frame(BATCH), bytes_max=10_000)
    target = body
    for index in path[:-1]:
        target = target[index]
    target[path[-1]] = value
    return wire.pack(body)


BAD_VALUES: dict[str, tuple[tuple[int, ...], Any, str]] = {
    "text for a number": ((3,), "x", "Batch.accuracy: must be a finite number"),
    "NaN": ((3,), math.nan, "Batch.accuracy: must be a finite number"),
    "infinity": ((4,), math.inf, "Batch.cost_ms: must be a finite number"),
    "a boolean for an integer": ((1,), True, "Batch.batch: must be an integer"),
    "a number for items": ((5,), 3, "Batch.items: must be an array"),
    "an item of text": ((5, 0), "x", "Batch.items: Item: must be an array of 15 fields"),
    "an item with a field less": ((5, 0), [1], "Item: must be an array of 15 fields, got 1"),
    "a record of two": ((5, 0, 0), ["t", 1], "Item.record: RecordId: must be an array of 3 fields, got 2"),
    "a record with a textual partition": ((5, 0, 0), ["t", "1", 2], "RecordId.partition: must be an integer"),
    "nil for a required text": ((5, 0, 1), None, "Item.id: must be a string"),
    "bytes for text": ((5, 0, 1), b"q", "Item.id: must be a string"),
    "NaN in an item": ((5, 0, 3), math.nan, "Item.arrival_ms: must be a finite number"),
    "an unknown form": ((5, 0, 9), "xml", "Item.form: must be one of msgpack, json"),
    "a header of text": ((5, 0, 10), [["a", "b"]], "Item.headers: must be bytes"),
    "metadata of numbers": ((5, 0, 11), {"k": 1}, "Item.metadata: must be a string"),
    "metadata in an array": ((5, 0, 11), [], "Item.metadata: must be a map"),
    "data of text": ((6, 0, 3), "x", "BatchTensor.data: must be bytes"),
    "a shape of fractions": ((6, 0, 2), [1.5], "BatchTensor.shape: must be an integer"),
    "a frame type beyond": ((0,), len(FRAME_TYPES), "frame type 13 is not one of 0 to 12"),
    "a negative frame type": ((0,), -1, "frame type -1"),
    "a textual frame type": ((0,), "Batch", "frame type 'Batch'"),
    "a boolean frame type": ((0,), True, "frame type True"),
    "another frame's type": ((0,), 2, "Credit: must be an array of 1 fields, got 11"),
}


@pytest.mark.parametrize(("path", "value", "reason"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_refused_with_its_path(path: tuple[int, ...], value: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_frame(altered(path, value))


ODD_VALUES: tuple[Any, ...] = (
    None,
    1,
    2**63,
    1.5,
    math.nan,
    math.inf,
    True,
    "json",
    b"x",
    [],
    [["a", b"b"]],
    {},
    {"k": "v"},
)
changed_fields = st.dictionaries(st.integers(0, 13), st.sampled_from(ODD_VALUES), max_size=2)


def outcome(decode: Callable[[], Any]) -> Any:
    """What is decoded, or why not."""
    try:
        return decode()
    except DecodeError as error:
        return error.message


@given(st.lists(changed_fields, max_size=4), st.booleans())
def test_items_are_judged_together_as_each_alone(changes: list[dict[int, Any]], shorter: bool) -> None:
    good = wire.unpack(encode_frame(BATCH), bytes_max=10_000)[5][0]
    items = [[changed.get(index, value) for index, value in enumerate(good)] for changed in changes]
    if shorter and items:
        del items[-1][-1]
    alone = [outcome(partial(decoder(Item, "array"), item)) for item in items]
    refused = [f"Batch.items: {reason}" for reason in alone if isinstance(reason, str)]
    together = outcome(lambda: cast(Batch, decode_frame(altered((5,), items))).items)
    assert together == (refused[0] if refused else tuple(alone))
    assert refused or all(type(value) is float for item in together for value in item[3:6] if value is not None)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x90", b"\x80", b"\x01", b"\x92\x02", b"\x92\x02\x01\x01", b"\x93\x02\x01\x01"]
)
def test_no_frame_at_all(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_frame(data)


@pytest.mark.parametrize(
    "frame",
    [
        BATCH,
        Hello(1, "broker-0", "i-1", builders=(("onnx", "onnx-fp32"),)),
        State((), 0, 1.0, 3),
        Answered((("t", 0, (1, 2, 3)),)),
    ],
    ids=lambda frame: type(frame).__name__,
)
@given(data=st.data())
def test_a_broken_frame_is_one_error(frame: Frame, data: st.DataObject) -> None:
    with suppress(DecodeError):
        decoded = decode_frame(data.draw(mutations(encode_frame(frame))))
        assert decode_frame(encode_frame(decoded)) == decoded
