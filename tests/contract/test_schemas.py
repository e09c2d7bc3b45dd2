"""The contract for every language, ``schemas/``, against its Python form, in both directions."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import golden_vectors
import pytest
from golden_vectors import RECORDS, VECTORS, Vector
from jsonschema import Draft202012Validator

from modelless import wire
from modelless.codec import decode_cancel, decode_feedback, decode_query, decode_record, decode_reply
from modelless.errors import STATUSES, DecodeError
from modelless.messages import Cancel, Feedback, Query, Reply
from modelless.tensors import ITEM_BYTES, Tensor

SCHEMAS = Path(__file__).parents[2] / "schemas"
LOADED: dict[str, dict[str, Any]] = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text()) for path in SCHEMAS.glob("*.schema.json")
}
MESSAGES: dict[str, type[Any]] = {"query": Query, "reply": Reply, "cancel": Cancel, "feedback": Feedback, **RECORDS}
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def test_there_is_a_schema_for_every_message_and_no_python() -> None:
    assert set(LOADED) == {*MESSAGES, "query.v2", "reply.v2"}
    assert not [*SCHEMAS.rglob("*.py")]


@pytest.mark.parametrize("name", LOADED)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(LOADED[name])
    assert LOADED[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert LOADED[name]["$id"] == f"urn:modelless:1:{name}"


# --- fields, types, required, enums: from the dataclasses ---------------------------------------------------


def outline(hint: Any, *, nullable: bool = False) -> Any:
    """What matters of a type hint, in the terms of :func:`outline_of_schema`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        real = [option for option in arguments if option not in (types.NoneType, memoryview)]
        return outline(real[0], nullable=nullable or types.NoneType in arguments)
    none = ["null"] if nullable else []
    if is_structure(hint):
        return hint.__name__
    if origin is Literal:
        return ["string", *none], frozenset(arguments) | ({None} if nullable else set())
    if origin is tuple:
        return ["array", *none], outline(arguments[0])
    if origin is collections.abc.Mapping:
        return ["object", *none], outline(arguments[1])
    return None if hint is bytes else ([NAMES[hint], *none], None)


def outline_of_schema(schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return schema["$ref"].removeprefix("#/$defs/")
    if "type" not in schema:
        return None
    kind = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "enum" in schema:
        return kind, frozenset(schema["enum"])
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            return kind, outline_of_schema(schema[inner])
    return kind, None


def is_structure(hint: Any) -> bool:
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"))


def required_of(cls: type[Any]) -> set[str]:
    if not dataclasses.is_dataclass(cls):
        return set(cls._fields) - set(cls._field_defaults)
    nothing = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(cls) if f.default is nothing and f.default_factory is nothing}


def compare(schema: dict[str, Any], cls: type[Any], *, null_is_absent: bool, headers: frozenset[str]) -> None:
    required = required_of(cls) - headers
    hints = typing.get_type_hints(cls)
    expected = {n: outline(h, nullable=null_is_absent and n not in required) for n, h in hints.items()}
    actual = {name: outline_of_schema(part) for name, part in schema["properties"].items()}
    if cls is Reply:
        expected["status"] = (["string"], STATUSES)
    if cls is Tensor:
        expected["datatype"] = (["string"], frozenset(ITEM_BYTES))
    assert actual == expected
    assert set(schema["required"]) == required
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_are_those_of_the_dataclass(name: str) -> None:
    schema, cls = LOADED[name], MESSAGES[name]
    loose = cls in (Query, Reply, Cancel)  # theirs may be written as null
    compare(schema, cls, null_is_absent=loose, headers=frozenset({"id"} if cls is Query else ()))
    nested = {part.__name__: part for part in _nested(cls)}
    assert set(schema.get("$defs", {})) == set(nested)
    for inner, part in nested.items():
        compare(schema["$defs"][inner], part, null_is_absent=False, headers=frozenset())


def _nested(hint: Any) -> list[type[Any]]:
    if is_structure(hint):
        inner = [part for item in typing.get_type_hints(hint).values() for part in _nested(item)]
        return [*inner, *[part for item in typing.get_type_hints(hint).values() for part in _direct(item)]]
    return [part for item in typing.get_args(hint) for part in _nested(item)]


def _direct(hint: Any) -> list[type[Any]]:
    if is_structure(hint):
        return [hint]
    return [part for item in typing.get_args(hint) for part in _direct(item)]


def test_the_v2_form_has_the_same_fields() -> None:
    query, query_v2 = LOADED["query"]["properties"], LOADED["query.v2"]["properties"]
    assert query_v2["parameters"]["properties"] == {n: p for n, p in query.items() if n not in ("id", "inputs")}
    assert {name: query_v2[name] for name in ("id", "inputs")} == {name: query[name] for name in ("id", "inputs")}
    reply, reply_v2 = LOADED["reply"]["properties"], LOADED["reply.v2"]["properties"]
    moved = ("id", "outputs", "model", "version")
    assert reply_v2["parameters"]["properties"] == {n: p for n, p in reply.items() if n not in moved}
    assert reply_v2["model_name"] == reply["model"]
    assert reply_v2["outputs"] == reply["outputs"]


# --- ranges: schema and decoder agree on every probe --------------------------------------------------------

TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": b"\0\0\0\0"}
BODIES: dict[str, dict[str, Any]] = {
    "query": {"id": "q-1", "task": "digits", "inputs": [TENSOR]},
    "reply": {"id": "q-1", "query": "t/0/1", "status": "OK"},
    "cancel": {"id": "q-1"},
    "feedback": {"query": "t/0/1", "variant": "m:1/onnx-fp32", "predictions": [7], "labels": [7]},
    **{name: wire.unpack(v.value, bytes_max=9999) for v in VECTORS for name in RECORDS if v.name == name},
}
PROBES: list[Any] = [
    *[None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1.5],
    *[2**31 - 1, 2**31, 2**63 - 1, 2**63, 32_503_679_999_999, 32_503_680_000_000],
    *["", "cost", "late", "OK", "FINE", "ready", "broker", "t/0/1", "t/0", "t/0/1/", "a b/0/1"],
    *["x" * length for length in (128, 129, 256, 257, 1024, 1025, 4096, 4097)],
    *[[], {}, ["latency"], [1], [""], ["x"] * 8, ["x"] * 9, {"k": "v"}, {"k": 1}, {"": "v"}, {"k": None}],
    *[{"k" * 128: ""}, {"k" * 129: ""}, {"k": "v" * 1024}, {"k": "v" * 1025}],
    *[{str(i): "" for i in range(count)} for count in (32, 33)],
    *[[TENSOR], [TENSOR | {"extra": 1}], [TENSOR | {"name": ""}], [TENSOR | {"datatype": "OBJECT"}]],
    *[[TENSOR | {"shape": shape}] for shape in ([], [1] * 16, [1] * 17, [0], [1.5])],
    *[[{**TENSOR, "name": str(i)} for i in range(count)] for count in (32, 33)],
]


def decodes(name: str, body: dict[str, Any]) -> bool:
    value = wire.pack(body)
    try:
        match name:
            case "query":
                decode_query(value)
            case "reply":
                decode_reply(value)
            case "cancel":
                decode_cancel(value)
            case "feedback":
                decode_feedback(value)
            case _:
                decode_record(RECORDS[name], value)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize(("name", "field"), [(n, f) for n in MESSAGES for f in LOADED[n]["properties"]])
def test_schema_and_decoder_agree(name: str, field: str) -> None:
    validator = Draft202012Validator(LOADED[name])
    others = {key: value for key, value in BODIES[name].items() if key != field}
    candidates = [others, *[others | {field: probe} for probe in PROBES]]
    if field == "id" and name == "query":
        candidates.remove(others)  # good if a header has the id
        candidates = [body for body in candidates if body["id"] is not None]
    disagreed = [body.get(field, "absent") for body in candidates if validator.is_valid(body) != decodes(name, body)]
    assert disagreed == []


# --- golden vectors -----------------------------------------------------------------------------------------


def test_the_folder_holds_exactly_the_vectors() -> None:
    assert {path.name: path.read_bytes() for path in golden_vectors.FOLDER.iterdir()} == golden_vectors.files()


@pytest.mark.parametrize("vector", [v for v in VECTORS if v.reason is None], ids=lambda vector: vector.name)
def test_a_good_vector_decodes_and_fits_its_schema(vector: Vector) -> None:
    assert vector.description()["decoded"]
    v2 = vector.file.endswith(".v2.json") and vector.message not in ("cancel", "feedback")
    body = json.loads(vector.value) if vector.file.endswith(".v2.json") else wire.unpack(vector.value, bytes_max=9999)
    Draft202012Validator(LOADED[f"{vector.message}.v2" if v2 else vector.message]).validate(body)


@pytest.mark.parametrize("vector", [v for v in VECTORS if v.reason is not None], ids=lambda vector: vector.name)
def test_a_bad_vector_is_refused_for_its_reason(vector: Vector) -> None:
    with pytest.raises(DecodeError) as caught:
        vector.decode()
    assert vector.reason is not None
    assert vector.reason in caught.value.message


def test_every_message_has_a_good_vector() -> None:
    assert {vector.message for vector in VECTORS if vector.reason is None} == set(MESSAGES)


def test_the_examples_of_the_contract_page_are_messages() -> None:
    page = (SCHEMAS.parent / "docs" / "contract.md").read_text()
    query, ok, refused, feedback = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (shell,) = re.findall(r"^echo '(.*)'", page, re.MULTILINE)
    for text in (query, shell):
        assert decode_query(text.encode())[0].task == "digits"
    assert decode_reply(ok.encode()).status == "OK"
    assert decode_reply(refused.encode()).retry_after_ms == 120.0
    assert decode_feedback(feedback.encode()).query == decode_reply(ok.encode()).query


@pytest.mark.parametrize("cls", [Query, Reply, Feedback])
def test_the_contract_page_has_every_field(cls: type[Any]) -> None:
    page = (SCHEMAS.parent / "docs" / "contract.md").read_text()
    section = page.split(f"## {cls.__name__}\n")[1].split("\n## ")[0]
    assert [name for name in typing.get_type_hints(cls) if f"`{name}`" not in section] == []
