"""Messages of the contract as bytes and back: MessagePack maps, and the V2 JSON form of queries and replies.

Every failure to decode is a :class:`~modelless.errors.DecodeError` whose message says what to change. A field that
the contract does not know is an error that names the nearest known one, since a misspelt constraint must not
vanish. Limits hold before anything is allocated. ``data`` of a decoded tensor is the unpacked bytes, not a copy.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from math import inf
from operator import attrgetter
from typing import Any, TypeVar

from modelless import json_form, wire
from modelless.errors import STATUSES, DecodeError, InvalidArgumentError
from modelless.fields import checked, choice, integer, number, shown, string_map, text, unknown
from modelless.frame_codec import decode_frame, encode_frame
from modelless.frames import Form
from modelless.headers import (
    DEADLINE_MS_MAX,
    ID_LENGTH_MAX,
    NO_HEADERS,
    PARTITION_MAX,
    TOPIC_LENGTH_MAX,
    Headers,
)
from modelless.messages import (
    CONTRACT_VERSION,
    ON_MISS,
    PREFERENCES,
    Cancel,
    Condition,
    Correction,
    Feedback,
    Labels,
    Member,
    ModelVersion,
    Plan,
    Profile,
    Query,
    Reply,
    Usage,
)
from modelless.structure import decoder, to_map
from modelless.tensors import DIMENSIONS_MAX, Tensor, rows

__all__ = [
    "BYTES_MAX",
    "complete_query",
    "decode_cancel",
    "decode_feedback",
    "decode_frame",
    "decode_query",
    "decode_record",
    "decode_reply",
    "encode_cancel",
    "encode_feedback",
    "encode_frame",
    "encode_query",
    "encode_record",
    "encode_reply",
    "query_fields",
    "reply_body",
    "salvage",
]

BYTES_MAX = 8 * 1024 * 1024
"""Of a query, a reply or a record, unless the caller says otherwise."""
TENSORS_MAX = 32
NAME_LENGTH_MAX = 256
METADATA_ENTRIES_MAX = 32
METADATA_KEY_MAX = 128
METADATA_VALUE_MAX = 1024
MESSAGE_LENGTH_MAX = 4096
MISSED_MAX = 8
QUERY_ITEMS_MAX = 1024
"""Elements of all containers of a query or a reply; everything at its limit takes about 800."""

FEEDBACK_BYTES_MAX = 128 * 1024
FEEDBACK_ROWS_MAX = 4_096

Record = ModelVersion | Labels | Profile | Condition | Correction | Plan | Member | Usage
RecordT = TypeVar("RecordT", ModelVersion, Labels, Profile, Condition, Correction, Plan, Member, Usage)

_RECORD_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}/[0-9]{1,10}/[0-9]{1,19}")
_TENSOR_FIELDS = ("name", "datatype", "shape", "data")


def decode_query(
    value: bytes | None, headers: Headers = NO_HEADERS, *, bytes_max: int = BYTES_MAX
) -> tuple[Query, Form]:
    """The query in a record's value, completed by its headers, and the form that its reply takes.

    Raises:
        DecodeError: :func:`salvage` tells where to send it.
    """
    form = _form(value, headers)
    fields = _query_fields(_body(value, form, bytes_max))
    if "id" not in fields and headers.id is None:
        raise DecodeError("query.id: is required, here or in the header modelless-id")
    return complete_query(Query(**{"id": ""} | fields), headers), form


def query_fields(value: bytes, *, bytes_max: int = BYTES_MAX) -> dict[str, Any]:
    """What a MessagePack query's body says, by name, its headers left aside. Raises DecodeError."""
    return _query_fields(_body(value, "msgpack", bytes_max))


def complete_query(query: Query, headers: Headers) -> Query:
    """The query of a body as its headers have it: they win, and of two deadlines the earlier holds."""
    changed: dict[str, Any] = {}
    if headers.id is not None and headers.id != query.id:
        changed["id"] = headers.id
    if headers.reply_topic is not None:
        changed["reply_topic"] = headers.reply_topic
    if headers.reply_partition is not None:
        changed["reply_partition"] = headers.reply_partition
    if headers.deadline_ms is not None:
        changed["deadline_ms"] = min(headers.deadline_ms, inf if query.deadline_ms is None else query.deadline_ms)
    return query._replace(**changed) if changed else query


def encode_query(query: Query) -> bytes:
    """As MessagePack. What is None or the default does not travel. Nothing is checked: :func:`decode_query` does."""
    return wire.pack(_query_body(query))


def salvage(value: bytes | None, headers: Headers = NO_HEADERS, *, bytes_max: int = BYTES_MAX) -> tuple[Headers, Form]:
    """Where to answer a query that :func:`decode_query` refused: ``headers``, completed by what of the body is good."""
    form: Form = "msgpack"
    try:
        form = _form(value, headers)
        if form == "json":
            body = json_form.query_address(value or b"", bytes_max=bytes_max)
        else:
            body = _body(value, form, bytes_max)
    except DecodeError:
        return headers, form
    found: dict[str, Any] = {}
    for name in ("id", "reply_topic", "reply_partition") if type(body) is dict else ():
        if getattr(headers, name) is None and name in body:
            with suppress(DecodeError):
                found[name] = _QUERY_CHECKS[name](body[name])
    return headers._replace(**found) if found else headers, form


def encode_reply(reply: Reply, form: Form = "msgpack") -> bytes:
    """In the form that its query came in. What is None or empty does not travel; a long message is cut."""
    if form == "json":
        return json_form.encode_reply(reply)
    return wire.pack(reply_body(reply))


def decode_reply(value: bytes | None, *, bytes_max: int = BYTES_MAX) -> Reply:
    """Either form, told apart by the first byte. Raises DecodeError."""
    if value is None:
        raise DecodeError("reply: the value is null")
    if value[:1] == b"{":
        body = json_form.reply_body(value, bytes_max=bytes_max)
    else:
        body = wire.unpack(value, bytes_max=bytes_max, depth_max=None, items_max=QUERY_ITEMS_MAX)
    return Reply(**checked("reply", body, _REPLY_CHECKS, ("id", "query", "status")))


def encode_cancel(cancel: Cancel) -> bytes:
    """As MessagePack."""
    return wire.pack(to_map(cancel))


def decode_cancel(value: bytes | None) -> Cancel:
    """MessagePack or JSON. Raises DecodeError."""
    if value is None:
        raise DecodeError("cancel: the value is null")
    if value[:1] == b"{":
        body = json_form.load(value, bytes_max=4096, depth_max=1)
    else:
        body = wire.unpack(value, bytes_max=4096)
    cancel = Cancel(**checked("cancel", body, _CANCEL_CHECKS, ()))
    if (cancel.id is None) == (cancel.query is None):
        raise DecodeError("cancel: exactly one of id and query must be given")
    return cancel


def encode_feedback(feedback: Feedback) -> bytes:
    """As MessagePack. Nothing is checked: :func:`decode_feedback` does."""
    return wire.pack(to_map(feedback))


def decode_feedback(value: bytes | None) -> Feedback:
    """MessagePack or JSON. That predictions and labels are equally many is the reader's to see. Raises DecodeError."""
    if value is None:
        raise DecodeError("feedback: the value is null")
    if value[:1] == b"{":
        body = json_form.load(value, bytes_max=FEEDBACK_BYTES_MAX, depth_max=2)
    else:
        body = wire.unpack(value, bytes_max=FEEDBACK_BYTES_MAX)
    return Feedback(**checked("feedback", body, _FEEDBACK_CHECKS, tuple(_FEEDBACK_CHECKS)))


def encode_record(message: Record) -> bytes:
    """Any other message as a MessagePack map; fields with their default value do not travel."""
    return wire.pack(to_map(message))


def decode_record(cls: type[RecordT], value: bytes | None, *, bytes_max: int = BYTES_MAX) -> RecordT:
    """Any other message. A null value, which deletes a key, is the caller's to see. Raises DecodeError."""
    if value is None:
        raise DecodeError(f"{cls.__name__}: the value is null")
    record: RecordT = decoder(cls, "map")(wire.unpack(value, bytes_max=bytes_max, depth_max=None))
    return record


# --- bodies: maps with the contract's field names ---------------------------------------------------------------


def _form(value: bytes | None, headers: Headers) -> Form:
    if value is None:
        raise DecodeError("query: the value is null")
    return "json" if value[:1] == b"{" or headers.content_type == "application/json" else "msgpack"


def _body(value: bytes | None, form: Form, bytes_max: int) -> Any:
    if value is None:
        raise DecodeError("query: the value is null")
    if form == "json":
        return json_form.query_body(value, bytes_max=bytes_max)
    return wire.unpack(value, bytes_max=bytes_max, depth_max=None, items_max=QUERY_ITEMS_MAX)


def _query_fields(body: Any) -> dict[str, Any]:
    if type(body) is dict and body.get("v") is not None:
        _version(body["v"])  # first: another version may have other fields
    fields = checked("query", body, _QUERY_CHECKS, ("inputs",))
    if ("task" in fields) + ("model" in fields) + ("variant" in fields) != 1:
        raise DecodeError("query: exactly one of task, model and variant must be given")
    return fields


def _inputs(value: Any) -> tuple[Tensor, ...]:
    if type(value) is not list or not 1 <= len(value) <= TENSORS_MAX:
        raise DecodeError(f"must be an array of 1 to {TENSORS_MAX} tensors, got {_counted(value)}")
    tensors = _tensors(value)
    if len(tensors) > 1:
        try:
            rows(tensors)
        except InvalidArgumentError as error:
            raise DecodeError(error.message) from None
    return tensors


def _outputs(value: Any) -> tuple[Tensor, ...]:
    if type(value) is not list or len(value) > TENSORS_MAX:
        raise DecodeError(f"must be an array of at most {TENSORS_MAX} tensors, got {_counted(value)}")
    return _tensors(value)


def _tensors(bodies: list[Any]) -> tuple[Tensor, ...]:
    tensors = tuple([_tensor(body) for body in bodies])
    if len(tensors) > 1 and len({tensor.name for tensor in tensors}) < len(tensors):
        raise DecodeError("two tensors have the same name")
    return tensors


def _tensor(body: Any) -> Tensor:
    if type(body) is not dict:
        raise DecodeError(f"a tensor must be a map of {', '.join(_TENSOR_FIELDS)}, got {shown(body)}")
    try:
        name, datatype, shape, data = body["name"], body["datatype"], body["shape"], body["data"]
    except KeyError as missing:
        raise _misfit(body) or DecodeError(f"tensor: {missing.args[0]} is required") from None
    if len(body) > 4:
        raise _misfit(body) or AssertionError(body)
    if type(name) is not str or not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise DecodeError(f"a tensor's name must be a string of 1 to {NAME_LENGTH_MAX} characters, got {shown(name)}")
    if type(datatype) is not str:
        raise DecodeError(f"tensor {name!r}: datatype must be a string, got {shown(datatype)}")
    if type(shape) is not list or len(shape) > DIMENSIONS_MAX or not _INTEGERS.issuperset(map(type, shape)):
        raise DecodeError(f"tensor {name!r}: shape must be an array of 1 to {DIMENSIONS_MAX} integers")
    if type(data) is not bytes:
        raise DecodeError(f"tensor {name!r}: {_data_misfit(data)}")
    if datatype == "BOOL" and data.translate(None, b"\0\1"):
        raise DecodeError(f"tensor {name!r}: bytes of BOOL must be 0 or 1")
    try:
        return Tensor(name, datatype, tuple(shape), data).check()
    except InvalidArgumentError as error:
        raise DecodeError(error.message) from None


_INTEGERS = frozenset([int])


def _misfit(body: dict[str, Any]) -> DecodeError | None:
    for name in body:
        if name not in _TENSOR_FIELDS:
            return unknown("tensor", name, _TENSOR_FIELDS)
    return None


def _data_misfit(data: object) -> str:
    if type(data) is dict:
        return "data by reference (uri, sha256, size) is reserved and not accepted; send the bytes"
    return f"data must be raw little-endian bytes (MessagePack bin), got {shown(data)}"


def _tensor_body(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": tensor.data}


def _counted(value: Any) -> str:
    return f"{len(value)}" if type(value) is list else shown(value)


def _version(value: Any) -> int:
    if type(value) is not int or value != CONTRACT_VERSION:
        raise DecodeError(f"v: version {shown(value)} of the contract is not supported; supported: {CONTRACT_VERSION}")
    return value


def _record_name(value: Any) -> str:
    if type(value) is not str or not _RECORD_NAME.fullmatch(value):
        raise DecodeError(f"must be topic/partition/offset, got {shown(value)}")
    return value


def _missed(value: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MISSED_MAX:
        raise DecodeError(f"must be an array of at most {MISSED_MAX} names, got {_counted(value)}")
    return tuple([_name(item) for item in value])


def _classes(value: Any) -> tuple[int, ...]:
    if (
        type(value) is not list
        or not 1 <= len(value) <= FEEDBACK_ROWS_MAX
        or not _INTEGERS.issuperset(map(type, value))
    ):
        raise DecodeError(f"must be an array of 1 to {FEEDBACK_ROWS_MAX} integers, got {_counted(value)}")
    return tuple(value)


_name = text(NAME_LENGTH_MAX)
_metadata = string_map(METADATA_ENTRIES_MAX, METADATA_KEY_MAX, METADATA_VALUE_MAX)
_milliseconds = number(at_least=0, unit="of milliseconds")

_QUERY_CHECKS = {
    "id": text(ID_LENGTH_MAX),
    "inputs": _inputs,
    "task": _name,
    "model": _name,
    "variant": _name,
    "latency_ms_max": number(above=0, unit="of milliseconds"),
    "deadline_ms": number(above=0, below=DEADLINE_MS_MAX, unit="of Unix milliseconds"),
    "accuracy_min": number(at_least=0, at_most=1),
    "cost_max": number(at_least=0, unit="of USD per 1,000 rows"),
    "prefer": choice(PREFERENCES),
    "on_miss": choice(ON_MISS),
    "reply_topic": text(TOPIC_LENGTH_MAX),
    "reply_partition": integer(0, PARTITION_MAX),
    "tenant": _name,
    "metadata": _metadata,
    "v": _version,
}
_REPLY_CHECKS = {
    "id": text(ID_LENGTH_MAX),
    "query": _record_name,
    "status": choice(sorted(STATUSES)),
    "message": text(MESSAGE_LENGTH_MAX, 0),
    "outputs": _outputs,
    "model": _name,
    "version": integer(0, 2**63 - 1),
    "variant": _name,
    "group": _name,
    "accuracy": number(at_least=0, at_most=1),
    "cost": number(at_least=0, unit="of USD"),
    "batch_size": integer(0, 2**31 - 1),
    "queue_ms": number(unit="of milliseconds"),
    "execute_ms": _milliseconds,
    "missed": _missed,
    "retry_after_ms": _milliseconds,
    "metadata": _metadata,
    "v": _version,
}
_CANCEL_CHECKS = {"id": text(ID_LENGTH_MAX), "query": _record_name}
_FEEDBACK_CHECKS = {"query": _record_name, "variant": _name, "predictions": _classes, "labels": _classes}


_QUERY_NAMES = tuple(name for name in Query._fields if name != "inputs")
_REPLY_NAMES = tuple(field.name for field in dataclass_fields(Reply) if field.name != "outputs")
_query_values = attrgetter(*_QUERY_NAMES)
_reply_values = attrgetter(*_REPLY_NAMES)
_QUERY_DEFAULTS = {"prefer": "cost", "on_miss": "reject", "metadata": {}, "v": CONTRACT_VERSION}


def _query_body(query: Query) -> dict[str, Any]:
    body = {
        name: value
        for name, value in zip(_QUERY_NAMES, _query_values(query), strict=True)
        if value is not None and value != _QUERY_DEFAULTS.get(name)
    }
    if "metadata" in body:
        body["metadata"] = dict(query.metadata)
    body["inputs"] = [_tensor_body(tensor) for tensor in query.inputs]
    return body


def reply_body(reply: Reply) -> dict[str, Any]:
    """What of a reply travels, ``data`` last of each of its outputs."""
    body = {name: value for name, value in zip(_REPLY_NAMES, _reply_values(reply), strict=True) if value is not None}
    if not reply.missed:
        del body["missed"]
    if reply.message is not None:
        body["message"] = reply.message[:MESSAGE_LENGTH_MAX]
    if reply.metadata:
        body["metadata"] = dict(reply.metadata)
    else:
        del body["metadata"]
    if reply.v == CONTRACT_VERSION:
        del body["v"]
    if reply.outputs:
        body["outputs"] = [_tensor_body(tensor) for tensor in reply.outputs]
    return body
