"""Queries and replies as JSON of the Open Inference Protocol (V2).

A query is a V2 inference request: ``id``, ``inputs`` whose ``data`` is a flat or nested list, and everything else
of the contract under ``parameters``. A reply is a V2 response: ``model_name``, ``model_version``, ``id``,
``outputs`` with flat ``data``, the rest under ``parameters``, and ``error`` when its status is not OK. JSON has no
NaN and no infinity: in outputs they become null.

Size, nesting and number of containers are checked on the text before it is parsed, the number of elements before
an array is made.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from math import prod
from typing import Any, Never

import numpy as np

from modelless.errors import OK, DecodeError
from modelless.fields import shown, unknown
from modelless.messages import Reply
from modelless.tensors import DIMENSIONS_MAX, NUMPY_DTYPES, Tensor
from modelless.wire import check_keys

JSON_BYTES_MAX = 4 * 1024 * 1024
"""Parsed JSON takes about ten times its size in memory."""
DEPTH_MAX = DIMENSIONS_MAX + 4
CONTAINERS_MAX = 262_144
"""Lists and objects of one message: nested data makes many."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD]")
_QUERY_FIELDS = ("id", "parameters", "inputs")
_REPLY_FIELDS = ("model_name", "model_version", "id", "parameters", "outputs", "error")
_TENSOR_FIELDS = ("name", "datatype", "shape", "data")


def load(value: bytes, *, bytes_max: int = JSON_BYTES_MAX, depth_max: int = DEPTH_MAX) -> dict[str, Any]:
    """The JSON object in ``value``. Raises DecodeError."""
    limit = min(bytes_max, JSON_BYTES_MAX)
    if len(value) > limit:
        raise DecodeError(f"JSON of {len(value)} bytes is larger than the limit of {limit}; MessagePack is smaller")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise DecodeError("not JSON: not UTF-8") from None
    _check_nesting(text, depth_max)
    try:
        body = json.loads(text, object_pairs_hook=check_keys, parse_constant=_refuse_constant)
    except DecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {_reason(error)}") from None
    if type(body) is not dict:
        raise DecodeError(f"not a JSON object, got {shown(body)}")
    if _SURROGATE.search(text):
        _check_unicode(body)
    return body


def query_body(value: bytes, *, bytes_max: int = JSON_BYTES_MAX) -> dict[str, Any]:
    """A V2 inference request as a map with the contract's field names, tensors as raw bytes. Raises DecodeError."""
    document = load(value, bytes_max=bytes_max)
    body = dict(_parameters(document))
    for name in document:
        if name not in _QUERY_FIELDS:
            raise _misplaced("query", name, _QUERY_FIELDS)
    for name in ("id", "inputs"):
        if name in body:
            raise DecodeError(f"query.parameters: {name} belongs beside parameters, not in them")
    if "id" in document:
        body["id"] = document["id"]
    if "inputs" in document:
        body["inputs"] = _tensor_bodies(document["inputs"])
    return body


def query_address(value: bytes, *, bytes_max: int = JSON_BYTES_MAX) -> dict[str, Any]:
    """What names a request and its reply address, whatever is wrong with the rest. Raises DecodeError."""
    document = load(value, bytes_max=bytes_max)
    return _parameters(document) | {"id": document.get("id")}


def reply_body(value: bytes, *, bytes_max: int = JSON_BYTES_MAX) -> dict[str, Any]:
    """A V2 response as a map with the contract's field names, tensors as raw bytes. Raises DecodeError."""
    document = load(value, bytes_max=bytes_max)
    body = dict(_parameters(document))
    for name in document:
        if name not in _REPLY_FIELDS:
            raise unknown("reply", name, _REPLY_FIELDS)
    body["id"] = document.get("id")
    body["model"] = document.get("model_name")
    if (error := document.get("error")) is not None and error != body.get("status"):
        body["message"] = error
    if (version := document.get("model_version")) is not None:
        if type(version) is not str or not re.fullmatch("[0-9]{1,18}", version):
            raise DecodeError(f"reply.model_version: must be decimal digits, got {shown(version)}")
        body["version"] = int(version)
    if "outputs" in document:
        body["outputs"] = _tensor_bodies(document["outputs"], nulls=True)
    return body


def encode_reply(reply: Reply) -> bytes:
    """A V2 response."""
    parameters = {name: value for name in _REPLY_PARAMETERS if (value := getattr(reply, name)) is not None}
    if reply.missed:
        parameters["missed"] = list(reply.missed)
    if reply.metadata:
        parameters["metadata"] = dict(reply.metadata)
    document: dict[str, Any] = {}
    if reply.model is not None:
        document["model_name"] = reply.model
    if reply.version is not None:
        document["model_version"] = str(reply.version)
    document |= {"id": reply.id, "parameters": parameters}
    if reply.outputs:
        document["outputs"] = [_tensor_document(tensor) for tensor in reply.outputs]
    if reply.status != OK:
        document["error"] = reply.message or reply.status
    elif reply.message is not None:
        parameters["message"] = reply.message
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


_REPLY_PARAMETERS = (
    "query",
    "status",
    "variant",
    "group",
    "accuracy",
    "cost",
    "batch_size",
    "queue_ms",
    "execute_ms",
    "retry_after_ms",
)


def _check_nesting(text: str, depth_max: int) -> None:
    """Refuse what is nested too deeply or has too many containers, before the parser recurses or allocates."""
    opened = text.count("[") + text.count("{")
    if opened <= depth_max:
        return
    if opened > CONTAINERS_MAX:
        raise DecodeError(f"JSON holds more than {CONTAINERS_MAX} lists and objects")
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > depth_max:
            raise DecodeError(f"JSON is nested deeper than {depth_max} levels")


def _refuse_constant(name: str) -> Never:
    raise DecodeError(f"JSON has no {name}")


def _check_unicode(body: Any) -> None:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DecodeError("not JSON: a string holds half of a surrogate pair") from None


def _reason(error: Exception) -> str:
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "malformed"


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise DecodeError(f"parameters: must be an object, got {shown(parameters)}")
    return parameters


def _misplaced(kind: str, name: str, known: tuple[str, ...]) -> DecodeError:
    error = unknown(kind, name, known)
    return DecodeError(f"{error.message}; task, latency_ms_max and the like go under parameters")


def _tensor_bodies(value: Any, *, nulls: bool = False) -> Any:
    """Each tensor's list of numbers as raw bytes; what is no list of tensors is left to the caller's check."""
    return [_tensor_body(item, nulls) for item in value] if type(value) is list else value


def _tensor_body(body: Any, nulls: bool) -> Any:
    if type(body) is not dict or type(body.get("data")) is not list:
        if type(body) is dict and type(body.get("data")) not in (dict, type(None)):
            raise DecodeError(f"tensor {shown(body.get('name'))}: data must be a list, got {shown(body['data'])}")
        return body
    where = f"tensor {shown(body.get('name'))}"
    dtype = NUMPY_DTYPES.get(body["datatype"]) if type(body.get("datatype")) is str else None
    if dtype is None:
        raise DecodeError(f"{where}: datatype {shown(body.get('datatype'))} is not one of {', '.join(NUMPY_DTYPES)}")
    shape = body.get("shape")
    if (
        type(shape) is not list
        or not 1 <= len(shape) <= DIMENSIONS_MAX
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise DecodeError(f"{where}: shape must be a list of 1 to {DIMENSIONS_MAX} integers above 0")
    try:
        elements = _flat(body["data"], shape)
        return body | {"data": _raw(elements, dtype, nulls)}
    except DecodeError as error:
        raise DecodeError(f"{where}: {error.message}") from None


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """The elements in row-major order of a flat list, or of one that is nested as ``shape`` says."""
    if len(shape) > 1 and data and type(data[0]) is list:
        for dimension, (size, inner) in enumerate(zip(shape, [*shape[1:], 0], strict=True)):
            if inner == 0:
                break
            if dimension == 0 and len(data) != size:
                raise DecodeError(f"data has {len(data)} rows, shape says {size}")
            if not all(type(item) is list and len(item) == inner for item in data):
                raise DecodeError(f"data must be flat, or nested as its shape {shape} says")
            data = list(chain.from_iterable(data))
    if len(data) != prod(shape):
        raise DecodeError(f"shape {shape} takes {prod(shape)} elements, but data has {len(data)}")
    return data


def _raw(elements: list[Any], dtype: np.dtype[Any], nulls: bool) -> bytes:
    """The elements as little-endian bytes. Raises DecodeError for one of another type or out of range."""
    kinds = set(map(type, elements))
    if dtype.kind == "f" and nulls and type(None) in kinds:
        elements = [np.nan if element is None else element for element in elements]
        kinds = set(map(type, elements))
        return np.array(elements, dtype).tobytes() if kinds <= {int, float} else _refuse_kinds(dtype)
    if dtype.kind == "b":
        return bytes(elements) if kinds <= {bool} else _refuse_kinds(dtype)
    if not kinds <= ({int, float} if dtype.kind == "f" else {int}):
        _refuse_kinds(dtype)
    low, high = _range(dtype)
    if min(elements) < low or max(elements) > high:
        raise DecodeError(f"an element does not fit {dtype}")
    return np.array(elements, dtype).tobytes()


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return dtype.type(limits.min).item(), dtype.type(limits.max).item()


def _refuse_kinds(dtype: np.dtype[Any]) -> Never:
    wanted = {"f": "numbers", "b": "true and false"}.get(dtype.kind, "integers")
    raise DecodeError(f"elements of data must be {wanted}")


def _tensor_document(tensor: Tensor) -> dict[str, Any]:
    array = tensor.to_numpy().ravel()
    data = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        data = [element if finite else None for element, finite in zip(data, np.isfinite(array), strict=True)]
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}
