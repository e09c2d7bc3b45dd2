"""The golden vectors of ``schemas/vectors``: bytes and what they mean, for codecs in other languages.

``python tests/support/golden_vectors.py`` writes them anew; the difference is to be read before it is committed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import msgpack

from modelless import codec
from modelless.errors import DecodeError
from modelless.headers import read_headers
from modelless.messages import (
    Assignment,
    BatchTime,
    Cancel,
    Condition,
    Correction,
    Demanded,
    Evaluation,
    Feedback,
    GroupTarget,
    Labels,
    Member,
    ModelVersion,
    Plan,
    Profile,
    Query,
    Reply,
    Served,
    Usage,
    Used,
)
from modelless.structure import to_map
from modelless.tensors import Tensor, TensorSpec

FOLDER = Path(__file__).parents[2] / "schemas" / "vectors"
RECORDS = {
    "model-version": ModelVersion,
    "labels": Labels,
    "profile": Profile,
    "condition": Condition,
    "correction": Correction,
    "plan": Plan,
    "member": Member,
    "usage": Usage,
}


@dataclass(frozen=True)
class Vector:
    """``value`` is a record's value; ``reason`` is part of the error where it is refused."""

    name: str
    message: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    reason: str | None = None

    @property
    def file(self) -> str:
        return f"{self.name}.{'v2.json' if self.value[:1] == b'{' else 'msgpack'}"

    def decode(self) -> Any:
        """The message in it. Raises DecodeError."""
        if self.message == "query":
            return codec.decode_query(self.value, read_headers(self.headers))[0]
        if self.message == "reply":
            return codec.decode_reply(self.value)
        if self.message == "cancel":
            return codec.decode_cancel(self.value)
        if self.message == "feedback":
            return codec.decode_feedback(self.value)
        return codec.decode_record(RECORDS[self.message], self.value)

    def description(self) -> dict[str, Any]:
        """What stands in ``<name>.json``; bytes are written as hexadecimal digits."""
        described: dict[str, Any] = {"message": self.message, "value": self.file}
        if self.headers:
            described["headers"] = {name: value.hex() for name, value in self.headers}
        if self.reason is not None:
            return described | {"error": DecodeError.code, "reason": self.reason}
        return described | {"decoded": _readable(self.decode())}


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value):
        return {name: _readable(getattr(value, name)) for name in to_map(value)}
    if hasattr(value, "_field_defaults"):  # a named tuple
        usual = value._field_defaults
        return {n: _readable(item) for n, item in value._asdict().items() if n not in usual or item != usual[n]}
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _changed(**change: Any) -> bytes:
    """The minimal query with fields replaced; None removes one."""
    body = {"id": "q-1", "task": "digits", "inputs": [_TENSOR]} | change
    packed: bytes = msgpack.packb({name: value for name, value in body.items() if value is not None})
    return packed


def _input(**change: Any) -> bytes:
    return _changed(inputs=[_TENSOR | change])


_PIXELS = Tensor("pixels", "FP32", (1, 4), struct.pack("<4f", 0.0, 0.5, -1.0, 2.0))
_TENSOR = {"name": "pixels", "datatype": "FP32", "shape": [1, 4], "data": _PIXELS.data}
_QUERY = Query(id="q-1", inputs=(_PIXELS,), task="digits")
_FULL = Query(
    id="q-2",
    inputs=(_PIXELS, Tensor("mask", "BOOL", (1, 2), b"\x01\x00")),
    model="digits-cnn:3",
    latency_ms_max=50.0,
    deadline_ms=1_900_000_000_000.0,
    accuracy_min=0.95,
    cost_max=0.25,
    prefer="accuracy",
    on_miss="degrade",
    reply_topic="modelless.replies.shop",
    reply_partition=3,
    tenant="shop",
    metadata={"order": "A-17", "città": "Zürich"},
)
_REPLY = Reply(
    id="q-2",
    query="modelless.queries/0/12345",
    status="OK",
    outputs=(Tensor("logits", "FP32", (1, 2), struct.pack("<2f", -0.25, 4.0)),),
    model="digits-cnn",
    version=3,
    variant="digits-cnn:3/onnx-fp32",
    group="cpu-small",
    accuracy=0.9875,
    cost=2.5e-07,
    batch_size=8,
    queue_ms=3.5,
    execute_ms=1.25,
    missed=("latency",),
    metadata={"order": "A-17"},
)
_REFUSED = Reply(
    id="q-3",
    query="modelless.queries/0/12346",
    status="RESOURCE_EXHAUSTED",
    message="all workers are busy for the next 120 ms; try later, or allow more latency",
    retry_after_ms=120.0,
)
_V2 = {
    "id": "q-1",
    "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 4], "data": [0, 0.5, -1, 2]}],
    "parameters": {"task": "digits", "latency_ms_max": 50, "accuracy_min": 0.95},
}
_MODEL = ModelVersion(
    name="digits-cnn",
    version=3,
    task="digits",
    format="onnx",
    artifact_url="store/0a1b/digits_cnn.onnx",
    artifact_sha256="0a1b" * 16,
    artifact_bytes=123_456,
    inputs=(TensorSpec("pixels", "FP32", (-1, 1, 8, 8)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
    evaluation=Evaluation(data_url="store/2c3d/digits_eval.npz", data_sha256="2c3d" * 16),
    digest="4e5f" * 16,
    registered_ms=1_800_000_000_000.0,
)
_PROFILE = Profile(
    variant="digits-cnn:3/onnx-fp32",
    group="cpu-small",
    status="ready",
    digest="4e5f" * 16,
    load_ms=85.5,
    load_warm_ms=20.25,
    memory_bytes=41_943_040,
    accuracy=0.9875,
    accuracy_low=0.970703125,
    accuracy_high=0.9951171875,
    accuracy_rows=400,
    batches=(BatchTime(1, 0.5, 0.75), BatchTime(2, 0.625, 1.0)),
    price_per_hour=0.17,
    measured_ms=1_800_000_060_000.0,
    build_ms=1250.0,
    build_url="store/6a7b/model.onnx",
    build_sha256="6a7b" * 16,
    build_key="8c9d" * 16,
)
_LABELS = Labels(
    name="digits-cnn",
    stable=2,
    canary=3,
    canary_weight=0.125,
    shadow="digits-cnn:3/onnx-int8",
    shadow_weight=0.5,
    changed_ms=1_800_000_060_000.0,
)
_CONDITION = Condition(
    variant="digits-cnn:3/onnx-fp32",
    group="cpu-small",
    digest="4e5f" * 16,
    state="interfered",
    p50_scale=1.75,
    p99_scale=2.5,
    rows_per_second=120.5,
    changed_ms=1_800_000_060_000.0,
)
_CORRECTION = Correction(
    variant="digits-cnn:3/onnx-fp32",
    digest="4e5f" * 16,
    rows=1000.0,
    right=900.0,
    accuracy=0.90625,
    accuracy_low=0.8828125,
    accuracy_high=0.92578125,
    drifted=True,
    changed_ms=1_800_000_060_000.0,
)
_FEEDBACK = Feedback(
    query="modelless.queries/0/12345", variant="digits-cnn:3/onnx-fp32", predictions=(7, 1), labels=(7, 2)
)
_PLAN = Plan(
    epoch=7,
    leader="broker-0",
    created_ms=1_800_000_120_000.0,
    workers={
        "cpu-small-0": Assignment(load=("digits-cnn:3/onnx-fp32",)),
        "cpu-small-1": Assignment(outdated={"digits-cnn:3/onnx-fp32": 1_800_000_060_000.0}),
    },
    reasons=("everything fits",),
    fleet={"cpu-small": GroupTarget(3, ("cpu-small-1",), "2 serve the demand, 1 is for bursts")},
)
_MEMBER = Member(
    kind="worker",
    name="cpu-small-0",
    incarnation="5d41",
    state="ready",
    group="cpu-small",
    metrics="127.0.0.1:9564",
    statistics={"backlog_ms": 12.5},
    variants=("digits-cnn:3/onnx-fp32",),
    errors={"digits-big:1/torch-fp32": "needs 3,000 MB, the group allows 2,048"},
    wants={"digits-cnn:3/onnx-int8@cpu-small": 12.5},
    served=(Served("digits-cnn:3", 100, 1, 50.0, 10, 9, 20, 2, 1_800_000_060_000.0),),
    demand=(
        Demanded("digits", 50.0, 0.95, "accuracy", True, 120.5),
        Demanded("digits", None, 0.9375, "cost", False, 0.25),
    ),
    used=(Used("shop", "digits", "cpu-small", 100, 120, 1500.5),),
)
_USAGE = Usage(
    start_ms=1_800_000_060_000.0,
    period_ms=60_000.0,
    tenant="shop",
    task="digits",
    group="cpu-small",
    queries=1000,
    rows=1200,
    busy_ms=15_000.0,
    cost_usd=0.0625,
    idle_usd=0.125,
)
_NIL = msgpack.packb({"id": "q-1", "task": "digits", "model": None, "inputs": [_TENSOR]})
_NESTED = {"name": "pixels", "datatype": "FP32", "shape": [2, 2], "data": [[0, 0.5], [-1, 2]]}
_TOO_LARGE = {"name": "x", "datatype": "UINT8", "shape": [1], "data": [256]}
_TIMESTAMP = msgpack.packb({"id": "q-1", "task": "digits", "deadline_ms": msgpack.Timestamp(1_900_000_000)})

VECTORS = (
    Vector("query-minimal", "query", codec.encode_query(_QUERY)),
    Vector("query-full", "query", codec.encode_query(_FULL)),
    Vector("query-nil-is-absent", "query", _NIL),
    Vector("query-integers-for-numbers", "query", _changed(latency_ms_max=50, accuracy_min=1, cost_max=0)),
    Vector(
        "query-headers-win",
        "query",
        codec.encode_query(_FULL),
        (
            ("modelless-id", b"h-1"),
            ("modelless-reply-topic", b"modelless.replies.other"),
            ("modelless-reply-partition", b"1"),
            ("modelless-deadline-ms", b"1800000000000"),
        ),
    ),
    Vector(
        "query-id-from-spring",
        "query",
        _changed(id=None),
        (
            ("kafka_correlationId", bytes(range(0xF0, 0x100))),
            ("kafka_replyTopic", b"modelless.replies.spring"),
            ("kafka_replyPartition", b"\x00\x00\x00\x02"),
        ),
    ),
    Vector("query-v2", "query", json.dumps(_V2).encode()),
    Vector("query-v2-nested", "query", json.dumps(_V2 | {"inputs": [_NESTED]}).encode()),
    Vector("reply-ok", "reply", codec.encode_reply(_REPLY)),
    Vector("reply-refused", "reply", codec.encode_reply(_REFUSED)),
    Vector("reply-v2-ok", "reply", codec.encode_reply(_REPLY, "json")),
    Vector("reply-v2-refused", "reply", codec.encode_reply(_REFUSED, "json")),
    Vector("cancel-by-id", "cancel", codec.encode_cancel(Cancel(id="q-1"))),
    Vector("cancel-by-record", "cancel", codec.encode_cancel(Cancel(query="modelless.queries/0/12345"))),
    Vector("cancel-json", "cancel", b'{"id": "q-1"}'),
    Vector("model-version", "model-version", codec.encode_record(_MODEL)),
    Vector("profile", "profile", codec.encode_record(_PROFILE)),
    Vector("labels", "labels", codec.encode_record(_LABELS)),
    Vector("condition", "condition", codec.encode_record(_CONDITION)),
    Vector("correction", "correction", codec.encode_record(_CORRECTION)),
    Vector("feedback", "feedback", codec.encode_feedback(_FEEDBACK)),
    Vector("feedback-json", "feedback", json.dumps(to_map(_FEEDBACK)).encode()),
    Vector("plan", "plan", codec.encode_record(_PLAN)),
    Vector("member", "member", codec.encode_record(_MEMBER)),
    Vector("usage", "usage", codec.encode_record(_USAGE)),
    Vector("bad-truncated", "query", codec.encode_query(_QUERY)[:-1], reason="truncated"),
    Vector("bad-trailing-bytes", "query", codec.encode_query(_QUERY) + b"\x00", reason="bytes follow after the value"),
    Vector("bad-reserved-byte", "query", b"\xc1", reason="reserved byte 0xc1"),
    Vector("bad-timestamp", "query", _TIMESTAMP, reason="it has no extension types"),
    Vector("bad-array-of-4-billion", "query", b"\xdd\xff\xff\xff\xff", reason="announces more than the message"),
    Vector("bad-duplicate-key", "query", b"\x82\xa2id\xa1a\xa2id\xa1b", reason="key 'id' appears twice"),
    Vector("bad-key-of-bytes", "query", b"\x81\xc4\x02id\xa1a", reason="map keys must be strings"),
    Vector("bad-utf8", "query", b"\x81\xa2id\xa1\xff", reason="a string is not UTF-8"),
    Vector("bad-not-a-map", "query", b"\x93\x01\x02\x03", reason="must be a map"),
    Vector("bad-unknown-field", "query", _changed(latency_max_ms=50), reason="did you mean 'latency_ms_max'?"),
    Vector("bad-no-id", "query", _changed(id=None), reason="id: is required"),
    Vector("bad-two-targets", "query", _changed(model="digits-cnn"), reason="exactly one of task, model and variant"),
    Vector("bad-nan", "query", _changed(latency_ms_max=float("nan")), reason="latency_ms_max: must be a finite number"),
    Vector("bad-deadline-in-microseconds", "query", _changed(deadline_ms=1.9e15), reason="deadline_ms: must be"),
    Vector("bad-accuracy-in-percent", "query", _changed(accuracy_min=95), reason="accuracy_min: must be"),
    Vector("bad-version", "query", _changed(v=2), reason="version 2 of the contract is not supported"),
    Vector("bad-no-inputs", "query", _changed(inputs=[]), reason="1 to 32 tensors"),
    Vector("bad-bytes-for-shape", "query", _input(shape=[1, 5]), reason="takes 20 bytes, but data has 16"),
    Vector("bad-negative-shape", "query", _input(shape=[-1, -4]), reason="at least 1"),
    Vector("bad-overflowing-shape", "query", _input(shape=[2**32, 2**32]), reason="but data has 16"),
    Vector("bad-datatype", "query", _input(datatype="OBJECT"), reason="is not one of BOOL"),
    Vector("bad-data-of-text", "query", _input(data="AAAA"), reason="must be raw little-endian bytes"),
    Vector("bad-claim-check", "query", _input(data={"uri": "s3://a/b", "sha256": "00", "size": 16}), reason="reserved"),
    Vector(
        "bad-partition-header",
        "query",
        codec.encode_query(_QUERY),
        (("modelless-reply-partition", b"one"),),
        "modelless-reply-partition must be",
    ),
    Vector("bad-v2-nan", "query", b'{"id": NaN}', reason="JSON has no NaN"),
    Vector("bad-v2-misplaced-field", "query", b'{"id": "q-1", "task": "digits"}', reason="go under parameters"),
    Vector("bad-v2-range", "query", json.dumps(_V2 | {"inputs": [_TOO_LARGE]}).encode(), reason="does not fit uint8"),
    Vector("bad-cancel-of-nothing", "cancel", b"\x80", reason="exactly one of id and query"),
    Vector(
        "bad-feedback-of-probabilities",
        "feedback",
        json.dumps(to_map(_FEEDBACK) | {"predictions": [0.9, 0.1]}).encode(),
        reason="predictions: must be an array of 1 to 4096 integers",
    ),
    Vector(
        "bad-reply-status",
        "reply",
        msgpack.packb({"id": "a", "query": "t/0/1", "status": "FINE"}),
        reason="status: must be one of",
    ),
    Vector(
        "bad-plan-without-workers",
        "plan",
        msgpack.packb({"epoch": 1, "leader": "a", "created_ms": 0.0}),
        reason="workers: is required",
    ),
)


def files() -> dict[str, bytes]:
    """Every file of the folder and its content."""
    written: dict[str, bytes] = {}
    for vector in VECTORS:
        written[vector.file] = vector.value
        text = json.dumps(vector.description(), indent=2, ensure_ascii=False)
        written[f"{vector.name}.json"] = f"{text}\n".encode()
    return written


if __name__ == "__main__":
    for path in FOLDER.iterdir():
        path.unlink()
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)
