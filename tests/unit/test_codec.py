from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import instances, mutations, queries, replies

from modelless import wire
from modelless.codec import (
    FEEDBACK_ROWS_MAX,
    QUERY_ITEMS_MAX,
    decode_cancel,
    decode_feedback,
    decode_query,
    decode_record,
    decode_reply,
    encode_cancel,
    encode_feedback,
    encode_query,
    encode_record,
    encode_reply,
    salvage,
)
from modelless.errors import DecodeError
from modelless.frames import Form
from modelless.headers import Headers
from modelless.messages import Cancel, Feedback, Member, ModelVersion, Plan, Profile, Query, Reply
from modelless.reply_template import OWN, ReplyTemplate
from modelless.tensors import Tensor

PIXELS = Tensor.from_numpy("pixels", np.arange(4, dtype=np.float32).reshape(2, 2))
QUERY = Query(id="q-1", inputs=(PIXELS,), task="digits", latency_ms_max=50.0, accuracy_min=0.95)
TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": b"\0\0\0\0"}
BODY: dict[str, Any] = {"id": "q-1", "task": "digits", "inputs": [TENSOR]}


def decode(body: object, headers: Headers | None = None) -> Query:
    return decode_query(wire.pack(body), headers or Headers())[0]


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


# --- round trips --------------------------------------------------------------------------------------------


@given(queries())
def test_query_round_trip(query: Query) -> None:
    assert decode_query(encode_query(query)) == (query, "msgpack")


@given(replies())
def test_reply_round_trip(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@given(replies(), replies(), st.sampled_from(["msgpack", "json"]))
def test_a_reply_of_a_template_says_what_it_says_alone(example: Reply, own: Reply, form: Form) -> None:
    of_json = form == "json"
    data = [bytes(len(tensor.data)) for tensor in example.outputs]
    outputs = tuple(tensor._replace(data=each) for tensor, each in zip(example.outputs, data, strict=True))
    fields: dict[str, Any] = {name: getattr(own, name) for name in OWN}
    whole = replace(example, outputs=outputs, **fields)
    value = ReplyTemplate(example).encode(**fields, data=data, form=form)
    assert value == encode_reply(whole, form) if of_json else decode_reply(value) == whole
    assert of_json or wire.unpack(value, bytes_max=10_000) == wire.unpack(encode_reply(whole), bytes_max=10_000)


@pytest.mark.parametrize("cancel", [Cancel(id="q-1"), Cancel(query="modelless.queries/0/12")])
def test_cancel_round_trip(cancel: Cancel) -> None:
    assert decode_cancel(encode_cancel(cancel)) == cancel


@pytest.mark.parametrize("cls", [ModelVersion, Profile, Plan, Member])
@given(data=st.data())
def test_record_round_trip(cls: type[Any], data: st.DataObject) -> None:
    record = data.draw(instances(cls))
    assert decode_record(cls, encode_record(record)) == record


def test_defaults_and_none_do_not_travel() -> None:
    body = wire.unpack(encode_query(QUERY._replace(latency_ms_max=None, accuracy_min=None)), bytes_max=1000)
    assert body.keys() == {"id", "task", "inputs"}
    reply = wire.unpack(encode_reply(Reply("q-1", "t/0/1", "OK")), bytes_max=1000)
    assert reply == {"id": "q-1", "query": "t/0/1", "status": "OK"}


def test_a_long_message_is_cut() -> None:
    reply = Reply("q-1", "t/0/1", "INTERNAL", message="x" * 10_000)
    assert len(decode_reply(encode_reply(reply)).message or "") == 4096


def test_nil_counts_as_absent() -> None:
    assert decode(BODY | {"model": None, "prefer": None, "latency_ms_max": None}) == decode(BODY)


def test_integers_are_taken_for_numbers() -> None:
    query = decode(BODY | {"latency_ms_max": 50, "accuracy_min": 1})
    assert (query.latency_ms_max, type(query.latency_ms_max)) == (50.0, float)


# --- what is refused ----------------------------------------------------------------------------------------

ACCEPTED: dict[str, list[Any]] = {
    "id": ["x", "x" * 128, "é" * 128],
    "latency_ms_max": [1e-9, 1e300],
    "deadline_ms": [1, 32_503_679_999_999],
    "accuracy_min": [0, 1, 0.5],
    "cost_max": [0, 1e9],
    "prefer": ["cost", "accuracy", "latency"],
    "on_miss": ["reject", "late", "degrade"],
    "reply_topic": ["__consumer_offsets", "../x", "x" * 300],  # whether it is allowed is not the codec's business
    "reply_partition": [0, 2**31 - 1],
    "tenant": ["a"],
    "metadata": [{}, {"k": ""}, {str(i): "v" * 1024 for i in range(32)}],
    "v": [1],
}
REFUSED: dict[str, list[Any]] = {
    "id": ["", "x" * 129, 7, b"x"],
    "task": ["", "x" * 257, 1],
    "latency_ms_max": [0, -1, math.nan, math.inf, "50", True, [], "1e400"],
    "deadline_ms": [0, -1, math.nan, math.inf, 253_402_300_800_000, 32_503_680_000_000],
    "accuracy_min": [-0.01, 1.01, math.nan, False],
    "cost_max": [-1, math.nan, math.inf],
    "prefer": ["speed", 1, ["cost"], {}],
    "on_miss": ["drop", 0],
    "reply_topic": ["", "x" * 1025, 1],
    "reply_partition": [-1, 2**31, 1.0, True, "1"],
    "tenant": ["", 3],
    "metadata": [
        [],
        {"k": 1},
        {"k": None},
        {"": "v"},
        {"k" * 129: "v"},
        {"k": "v" * 1025},
        {str(i): "" for i in range(33)},
    ],
    "v": [0, 2, "1", 1.0, True, [1]],
    "inputs": [[], {}, "x", [1], [TENSOR | {"name": str(i)} for i in range(33)], [TENSOR, TENSOR]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in ACCEPTED for value in ACCEPTED[name]])
def test_a_value_at_its_limits_is_taken(name: str, value: Any) -> None:
    assert getattr(decode(BODY | {name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=rf"^(query\.)?{name}\b"):
        decode(BODY | {name: value})


@pytest.mark.parametrize("name", ["id", "inputs"])
def test_required_fields(name: str) -> None:
    for body in (without(BODY, name), BODY | {name: None}):
        with pytest.raises(DecodeError, match=rf"query\.{name}: is required"):
            decode(body)


@pytest.mark.parametrize("targets", [{}, {"task": "a", "model": "b"}, {"model": "b", "variant": "c"}])
def test_exactly_one_target(targets: dict[str, str]) -> None:
    with pytest.raises(DecodeError, match="exactly one of task, model and variant"):
        decode(without(BODY, "task") | targets)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("latency_max_ms", "did you mean 'latency_ms_max'"),
        ("accuracy", "did you mean 'accuracy_min'"),
        ("zzz", "known are: id, inputs"),
        ("x" * 100_000, "known are: id, inputs"),
    ],
)
def test_an_unknown_field_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(DecodeError, match=hint) as caught:
        decode(BODY | {name: 1})
    assert len(caught.value.message) < 400


def test_another_version_is_named_before_its_fields() -> None:
    with pytest.raises(DecodeError, match="version 2 of the contract is not supported; supported: 1"):
        decode(BODY | {"v": 2, "new_field": 1})


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "too few bytes": ({"data": b"\0\0\0"}, "takes 4 bytes, but data has 3"),
    "too many bytes": ({"data": b"\0" * 8}, "takes 4 bytes, but data has 8"),
    "negative dimension": ({"shape": [1, -1]}, "at least 1"),
    "two negative dimensions": ({"shape": [-1, -1]}, "at least 1"),
    "no rows": ({"shape": [0, 1], "data": b""}, "at least 1"),
    "overflowing product": ({"shape": [2**63, 2**63]}, "but data has 4"),
    "product that overflows to the right size": ({"shape": [2**32, 2**32], "data": b""}, "but data has 0"),
    "no dimension": ({"shape": []}, "1 to 16 dimensions"),
    "17 dimensions": ({"shape": [1] * 17}, "1 to 16"),
    "fractional dimension": ({"shape": [1.0, 1]}, "integers"),
    "boolean dimension": ({"shape": [True, 1]}, "integers"),
    "shape of text": ({"shape": "11"}, "array"),
    "object datatype": ({"datatype": "OBJECT"}, "is not one of BOOL"),
    "bytes datatype": ({"datatype": "BYTES"}, "is not one of BOOL"),
    "numeric datatype": ({"datatype": 1}, "datatype must be a string"),
    "list datatype": ({"datatype": []}, "datatype must be a string"),
    "claim check": ({"data": {"uri": "s3://x", "sha256": "0", "size": 1}}, "reserved and not accepted"),
    "list data": ({"data": [0.0]}, "MessagePack bin"),
    "text data": ({"data": "AAAA"}, "MessagePack bin"),
    "nil data": ({"data": None}, "MessagePack bin"),
    "no name": ({"name": ""}, "1 to 256 characters"),
    "long name": ({"name": "x" * 257}, "1 to 256 characters"),
    "numeric name": ({"name": 5}, "1 to 256 characters"),
    "unknown field": ({"dtype": "FP32"}, "did you mean 'datatype'"),
    "not a boolean": ({"datatype": "BOOL", "data": b"\2"}, "must be 0 or 1"),
}


@pytest.mark.parametrize(("change", "reason"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_bad_tensor_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(BODY | {"inputs": [TENSOR | change]})


@pytest.mark.parametrize("name", TENSOR)
def test_tensor_fields_are_required(name: str) -> None:
    with pytest.raises(DecodeError, match=f"{name} is required"):
        decode(BODY | {"inputs": [without(TENSOR, name)]})


def test_inputs_agree_on_the_batch() -> None:
    with pytest.raises(DecodeError, match="'x' has 1 rows, 'y' has 2"):
        decode(BODY | {"inputs": [TENSOR, TENSOR | {"name": "y", "shape": [2, 1], "data": b"\0" * 8}]})


@pytest.mark.parametrize("value", [None, b"", b"\xc1", b"abc", b"\x93\x01\x02\x03", wire.pack(1), b"{", b"{}x", b"[]"])
def test_no_message_at_all(value: bytes | None) -> None:
    for decode_any in (decode_query, decode_reply, decode_cancel, decode_feedback):
        with pytest.raises(DecodeError):
            decode_any(value)
    with pytest.raises(DecodeError):
        decode_record(Plan, value)


def test_size_limit() -> None:
    with pytest.raises(DecodeError, match="larger than the limit of 10"):
        decode_query(encode_query(QUERY), bytes_max=10)


def test_everything_at_its_limit_is_few_elements() -> None:
    tensors = [TENSOR | {"name": str(i), "shape": [1] * 16} for i in range(32)]
    metadata = {str(i): "v" * 1024 for i in range(32)}
    assert decode(BODY | {"inputs": tensors, "metadata": metadata}).id == "q-1"
    with pytest.raises(DecodeError, match=f"more than {QUERY_ITEMS_MAX} elements"):
        decode(BODY | {"more": [[]] * 1000, "metadata": {"k": "v" * 1024}})


def test_decoded_data_is_usable_without_a_copy() -> None:
    query, _ = decode_query(encode_query(QUERY))
    np.testing.assert_array_equal(query.inputs[0].to_numpy(), PIXELS.to_numpy())


# --- headers and salvage ------------------------------------------------------------------------------------


def test_headers_win_over_the_body() -> None:
    headers = Headers(id="h", reply_topic="modelless.replies.h", reply_partition=2, deadline_ms=1000.0)
    body = BODY | {"reply_topic": "modelless.replies.b", "reply_partition": 9}
    query = decode(body, headers)
    assert (query.id, query.reply_topic, query.reply_partition) == ("h", "modelless.replies.h", 2)
    assert decode(without(BODY, "id"), headers).id == "h"
    assert decode(body, Headers(reply_partition=0)).reply_partition == 0


@pytest.mark.parametrize(("in_body", "expected"), [(None, 1000.0), (900, 900.0), (1100, 1000.0)])
def test_the_earlier_deadline_holds(in_body: float | None, expected: float) -> None:
    assert decode(BODY | {"deadline_ms": in_body}, Headers(deadline_ms=1000.0)).deadline_ms == expected


def test_salvage_finds_the_reply_address() -> None:
    body = BODY | {"reply_topic": "modelless.replies.b", "reply_partition": -1, "latency": 1}
    assert salvage(wire.pack(body)) == (Headers(id="q-1", reply_topic="modelless.replies.b"), "msgpack")
    headers = Headers(id="h", reply_partition=4)
    assert salvage(wire.pack(body), headers)[0] == headers._replace(reply_topic="modelless.replies.b")
    json = b'{"id":"q-1","inputs":[{"data":5}],"parameters":{"reply_topic":"r"},"foo":1}'
    assert salvage(json) == (Headers(id="q-1", reply_topic="r"), "json")


@pytest.mark.parametrize("value", [None, b"", b"\xc1", b"\x91\x01", b"{", b'{"id":', b'{"parameters":3}'])
def test_salvage_of_nothing(value: bytes | None) -> None:
    assert salvage(value, Headers(id="h"))[0] == Headers(id="h")


# --- replies, cancels and records ---------------------------------------------------------------------------

REPLY_BODY: dict[str, Any] = {"id": "q-1", "query": "t/0/1", "status": "OK"}


@pytest.mark.parametrize(
    "change",
    [
        {"status": "FINE"},
        {"query": "t/0"},
        {"query": "t/x/1"},
        {"version": "1"},
        {"cost": math.nan},
        {"missed": "latency"},
        {"missed": [1]},
        {"missed": ["x"] * 9},
        {"outputs": [TENSOR, TENSOR]},
        {"outputs": TENSOR},
        {"statu": 1},
        {"v": 2},
        {"id": None},
    ],
)
def test_a_bad_reply_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_reply(wire.pack(REPLY_BODY | change))


def test_cancel_in_json() -> None:
    assert decode_cancel(b'{"query":"modelless.queries/0/12"}') == Cancel(query="modelless.queries/0/12")


@pytest.mark.parametrize(
    "body", [{}, {"id": "a", "query": "t/0/1"}, {"query": "t"}, {"query": "t/0/1x"}, {"ID": "a"}, {"id": 3}]
)
def test_a_bad_cancel_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_cancel(wire.pack(body))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"epoch": 1, "leader": "a", "created_ms": 0.0}, "Plan.workers: is required"),
        ({"epoch": 1.5, "leader": "a", "created_ms": 0.0, "workers": {}}, "Plan.epoch: must be an integer"),
        ({"epoch": True, "leader": "a", "created_ms": 0.0, "workers": {}}, "Plan.epoch: must be an integer"),
        ({"epoch": 1, "leader": "a", "created_ms": math.nan, "workers": {}}, "Plan.created_ms: must be a finite"),
        (
            {"epoch": 1, "leader": "a", "created_ms": 0.0, "workers": {"w": {"loads": []}}},
            "Plan.workers: Assignment: unknown field 'loads'; did you mean 'load'",
        ),
        ({"epoch": 1, "leader": "a", "created_ms": 0.0, "workers": {}, "reasons": [1]}, "Plan.reasons: must be a str"),
    ],
)
def test_a_bad_record_is_refused_with_its_path(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_record(Plan, wire.pack(body))


# --- fuzz: a message or one error, nothing else -------------------------------------------------------------

GOOD_QUERY = encode_query(QUERY._replace(metadata={"k": "v"}, reply_topic="r", deadline_ms=1e12))
GOOD_REPLY = encode_reply(Reply("q-1", "t/0/1", "OK", outputs=(PIXELS,), model="m", version=1, missed=("latency",)))
GOOD_PLAN = encode_record(Plan(1, "b", 1.0, {}, ("why",)))


@given(st.binary(max_size=80) | mutations(GOOD_QUERY))
def test_a_broken_query_is_one_error(value: bytes) -> None:
    with suppress(DecodeError):
        query, form = decode_query(value, Headers(id="h"))
        assert form != "msgpack" or decode_query(encode_query(query))[0] == query
    salvage(value)


@given(mutations(GOOD_REPLY))
def test_a_broken_reply_is_one_error(value: bytes) -> None:
    with suppress(DecodeError):
        decode_reply(value)


@given(mutations(GOOD_PLAN))
def test_a_broken_record_is_one_error(value: bytes) -> None:
    with suppress(DecodeError):
        decode_record(Plan, value)


bodies = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*BODY, *TENSOR, *REFUSED]), inner),
    max_leaves=8,
)


@given(st.sampled_from([*BODY, *REFUSED]), bodies, st.booleans())
def test_any_value_in_any_field_is_one_error(name: str, value: Any, in_tensor: bool) -> None:
    body = BODY | {"inputs": [TENSOR | {name: value}]} if in_tensor else BODY | {name: value}
    with suppress(DecodeError):
        decode(body)


# --- feedback -----------------------------------------------------------------------------------------------

FEEDBACK = Feedback("modelless.queries/0/12", "digits-cnn:3/onnx-fp32", (7, 1), (7, -2))


def test_feedback_round_trip() -> None:
    assert decode_feedback(encode_feedback(FEEDBACK)) == FEEDBACK


def test_feedback_in_json() -> None:
    text = (
        b'{"query": "modelless.queries/0/12", "variant": "digits-cnn:3/onnx-fp32", '
        b'"predictions": [7, 1], "labels": [7, -2]}'
    )
    assert decode_feedback(text) == FEEDBACK


def test_the_largest_feedback_decodes_and_a_larger_one_does_not() -> None:
    classes = tuple(range(FEEDBACK_ROWS_MAX))
    largest = Feedback("modelless.queries/0/12", "m:1/x", classes, classes)
    assert decode_feedback(encode_feedback(largest)) == largest
    with pytest.raises(DecodeError, match="predictions: must be an array of 1 to"):
        decode_feedback(encode_feedback(replace(largest, predictions=(*classes, 1))))


@pytest.mark.parametrize(
    "change",
    [
        {"query": "q-1"},
        {"query": None},
        {"variant": ""},
        {"predictions": []},
        {"predictions": [True]},
        {"predictions": [0.5]},
        {"predictions": [[1]]},
        {"labels": 7},
        {"labels": "77"},
        {"label": [7]},
    ],
)
def test_bad_feedback_is_refused(change: dict[str, Any]) -> None:
    body = {"query": "t/0/1", "variant": "m:1/x", "predictions": [7], "labels": [7]} | change
    with pytest.raises(DecodeError):
        decode_feedback(wire.pack(body))
    with pytest.raises(DecodeError):
        decode_feedback(json.dumps(body).encode())
