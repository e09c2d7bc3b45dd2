from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from message_strategies import mutations, replies

from modelless.codec import decode_query, decode_reply, encode_reply
from modelless.errors import DecodeError
from modelless.headers import Headers
from modelless.messages import Query, Reply
from modelless.tensors import NUMPY_DTYPES, Tensor

TENSOR: dict[str, Any] = {"name": "pixels", "datatype": "FP32", "shape": [2, 2], "data": [0, 0.5, -1, 2]}
REQUEST: dict[str, Any] = {
    "id": "q-1",
    "inputs": [TENSOR],
    "parameters": {"task": "digits", "latency_ms_max": 50, "accuracy_min": 0.95, "metadata": {"k": "v"}},
}


def decode(document: object) -> Query:
    query, form = decode_query(json.dumps(document).encode())
    assert form == "json"
    return query


def test_a_request() -> None:
    assert decode(REQUEST) == Query(
        id="q-1",
        inputs=(Tensor.from_numpy("pixels", np.array([[0, 0.5], [-1, 2]], np.float32)),),
        task="digits",
        latency_ms_max=50.0,
        accuracy_min=0.95,
        metadata={"k": "v"},
    )


def test_nested_data_is_the_same() -> None:
    assert decode(REQUEST | {"inputs": [TENSOR | {"data": [[0, 0.5], [-1, 2]]}]}) == decode(REQUEST)
    cube = {"name": "x", "datatype": "INT8", "shape": [1, 2, 2], "data": [[[1, 2], [3, 4]]]}
    assert decode(REQUEST | {"inputs": [cube]}).inputs[0].data == bytes([1, 2, 3, 4])


def test_by_content_type_or_by_the_first_byte() -> None:
    text = b" \n" + json.dumps(REQUEST).encode()
    assert decode_query(text, Headers(content_type="application/json"))[0] == decode(REQUEST)
    with pytest.raises(DecodeError, match="not MessagePack"):
        decode_query(text)
    with pytest.raises(DecodeError, match="not JSON"):
        decode_query(b"\x80", Headers(content_type="application/json"))


@given(replies())
def test_reply_round_trip(reply: Reply) -> None:
    assume(all(np.isfinite(t.to_numpy()).all() for t in reply.outputs if t.datatype.startswith("FP")))
    value = encode_reply(reply, "json")
    assert decode_reply(value) == reply
    assert ("error" in json.loads(value)) == (reply.status != "OK")


def test_a_reply_looks_like_v2() -> None:
    reply = Reply(
        id="q-1",
        query="modelless.queries/0/12",
        status="OK",
        outputs=(Tensor.from_numpy("logits", np.array([[0.5, np.nan]], np.float32)),),
        model="digits-cnn",
        version=3,
        missed=("latency",),
    )
    assert json.loads(encode_reply(reply, "json")) == {
        "model_name": "digits-cnn",
        "model_version": "3",
        "id": "q-1",
        "parameters": {"query": "modelless.queries/0/12", "status": "OK", "missed": ["latency"]},
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, None]}],
    }
    assert np.isnan(decode_reply(encode_reply(reply, "json")).outputs[0].to_numpy()[0, 1])


def test_an_error_reply_names_its_error() -> None:
    refused = Reply(id="q-1", query="t/0/1", status="NOT_FOUND", message="no such task")
    assert json.loads(encode_reply(refused, "json"))["error"] == "no such task"
    assert decode_reply(encode_reply(Reply(id="q-1", query="t/0/1", status="INTERNAL"), "json")).message is None


RANGES = {name: (np.iinfo(d).min, np.iinfo(d).max) for name, d in NUMPY_DTYPES.items() if d.kind in "iu"}


@pytest.mark.parametrize("datatype", RANGES)
def test_integers_at_their_limits(datatype: str) -> None:
    low, high = RANGES[datatype]
    tensor = {"name": "x", "datatype": datatype, "shape": [2], "data": [low, high]}
    assert decode(REQUEST | {"inputs": [tensor]}).inputs[0].to_numpy().tolist() == [low, high]
    for outside in (low - 1, high + 1):
        with pytest.raises(DecodeError, match="does not fit"):
            decode(REQUEST | {"inputs": [tensor | {"data": [0, outside]}]})


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "too few elements": ({"data": [1, 2, 3]}, "takes 4 elements, but data has 3"),
    "a huge shape": ({"shape": [2**40, 2**40]}, "but data has 4"),
    "a negative dimension": ({"shape": [2, -2]}, "above 0"),
    "a boolean dimension": ({"shape": [2, True]}, "above 0"),
    "no shape": ({"shape": None}, "shape must be a list"),
    "ragged": ({"data": [[1, 2], [3]]}, "nested as its shape"),
    "nested too deeply": ({"data": [[[1], [2]], [[3], [4]]]}, "must be numbers"),
    "half nested": ({"data": [[1, 2], 3, 4]}, "2 rows|nested as its shape|shape says 2"),
    "wrong rows": ({"data": [[1, 2]]}, "data has 1 rows, shape says 2"),
    "text": ({"data": ["1", "2", "3", "4"]}, "must be numbers"),
    "null": ({"data": [1, 2, 3, None]}, "must be numbers"),
    "boolean": ({"data": [1, 2, 3, True]}, "must be numbers"),
    "overflow to infinity": ({"data": [1, 2, 3, 1e39]}, "does not fit float32"),
    "half overflow": ({"datatype": "FP16", "data": [1, 2, 3, 65520]}, "does not fit float16"),
    "fraction": ({"datatype": "INT32"}, "must be integers"),
    "number for boolean": ({"datatype": "BOOL", "data": [1, 0, 1, 0]}, "true and false"),
    "bytes datatype": ({"datatype": "BYTES"}, "is not one of BOOL"),
    "no datatype": ({"datatype": None}, "is not one of BOOL"),
    "claim check": ({"data": {"uri": "s3://x"}}, "reserved and not accepted"),
    "base64": ({"data": "AAAA"}, "data must be a list"),
    "number": ({"data": 3}, "data must be a list"),
    "unknown field": ({"dtype": 1}, "did you mean 'datatype'"),
}


@pytest.mark.parametrize(("change", "reason"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_bad_tensor_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(REQUEST | {"inputs": [TENSOR | change]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latency_ms_max": 5}, "go under parameters"),
        ({"parameters": {"task": "a", "latency": 5}}, "did you mean 'latency_ms_max'"),
        ({"parameters": {"task": "a", "id": "b"}}, "beside parameters"),
        ({"parameters": [1]}, "must be an object"),
        ({"parameters": None}, "exactly one of"),
        ({"inputs": None}, "inputs: is required"),
        ({"inputs": {}}, "array of 1 to 32"),
        ({"inputs": [1]}, "a tensor must be a map"),
        ({"id": 5}, "query.id: must be a string"),
    ],
)
def test_a_bad_request_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(REQUEST | change)


TEXTS = {
    "NaN": (b'{"id":NaN}', "JSON has no NaN"),
    "Infinity": (b'{"id":[-Infinity]}', "JSON has no -Infinity"),
    "key twice": (b'{"id":"a","id":"b"}', "'id' appears twice"),
    "key twice inside": (b'{"parameters":{"task":"a","task":"b"}}', "'task' appears twice"),
    "trailing text": (b'{"id":"a"} x', "not JSON"),
    "cut off": (b'{"id":"a', "not JSON"),
    "not UTF-8": (b'{"id":"\xff"}', "not UTF-8"),
    "half a surrogate pair": (b'{"id":"\\ud800"}', "surrogate"),
    "deep lists": (b'{"id":' + b"[" * 100_000, "nested deeper"),
    "deep objects": (b'{"a":' * 100_000, "nested deeper"),
    "21 levels": (b'{"id":' + b"[" * 20 + b"]" * 20 + b"}", "nested deeper than 20"),
    "many containers": (b'{"id":[' + b"{}," * 349_000 + b"{}]}", "more than 262144 lists"),
    "digits without end": (b'{"id":' + b"9" * 10_000 + b"}", "not JSON: malformed"),
    "a number beyond all floats": (b'{"id":"a","parameters":{"latency_ms_max":1e999}}', "latency_ms_max: must be"),
    "too large": (b'{"id":"' + b"x" * (4 << 20) + b'"}', "larger than the limit"),
}


@pytest.mark.parametrize(("value", "reason"), TEXTS.values(), ids=TEXTS)
def test_hostile_text_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_query(value)


def test_brackets_in_strings_are_no_nesting() -> None:
    metadata = {"k": "[" * 100 + '\\"{' * 100, '"[': "\\"}
    parameters = {"task": "a", "metadata": metadata}
    assert decode(REQUEST | {"parameters": parameters}).metadata == metadata


@pytest.mark.parametrize(
    "value",
    [
        b'{"id":"a","parameters":{"query":"t/0/1","status":"OK"},"model_version":"x"}',
        b'{"id":"a","parameters":{"query":"t/0/1","status":"OK"},"model_version":3}',
        b'{"id":"a","parameters":{"query":"t/0/1","status":"OK"},"model":"m"}',
        b'{"id":"a","parameters":{"query":"t/0/1"}}',
    ],
)
def test_a_bad_reply_is_refused(value: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_reply(value)


@given(mutations(json.dumps(REQUEST).encode()))
def test_a_broken_request_is_one_error(value: bytes) -> None:
    with suppress(DecodeError):
        decode_query(value, Headers(content_type="application/json"))


elements = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2)


@given(
    st.sampled_from(["FP16", "FP32", "FP64", "INT8", "UINT64", "BOOL"]),
    st.lists(st.integers(-1, 3), max_size=3),
    st.recursive(elements, lambda inner: st.lists(inner, max_size=3), max_leaves=9),
)
def test_any_data_is_one_error(datatype: str, shape: list[int], data: Any) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    with suppress(DecodeError):
        (decoded,) = decode(REQUEST | {"inputs": [tensor]}).inputs
        assert decoded.to_numpy().shape == tuple(shape)
