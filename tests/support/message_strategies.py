"""Hypothesis strategies for the contract's messages, made from their type hints."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from typing import Any, Literal

from hypothesis import strategies as st

from modelless.errors import STATUSES
from modelless.headers import DEADLINE_MS_MAX
from modelless.messages import ON_MISS, PREFERENCES, Query, Reply
from modelless.tensors import ITEM_BYTES, Tensor

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
floats = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63), 2**64 - 1)


def instances(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type hint as the messages use them."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        make: Any = hint
        return st.builds(make, **{field.name: instances(hints[field.name]) for field in dataclasses.fields(hint)})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([instances(option) for option in arguments if option is not memoryview])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is collections.abc.Mapping:
        return st.dictionaries(texts, instances(arguments[1]), max_size=3)
    if origin is tuple and arguments[1] is Ellipsis:
        return st.lists(instances(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(instances, arguments))
    if isinstance(hint, type) and issubclass(hint, tuple):
        return st.builds(hint, *map(instances, typing.get_type_hints(hint).values()))
    plain = {str: texts, float: floats, int: integers, bool: st.booleans(), bytes: st.binary(max_size=12)}
    return st.none() if hint is types.NoneType else plain[hint]


@st.composite
def tensor_lists(draw: st.DrawFn, *, size_min: int = 1) -> tuple[Tensor, ...]:
    """Tensors with one batch dimension, unique names and fitting data."""
    rows = draw(st.integers(1, 3))
    chosen = draw(st.lists(names, min_size=size_min, max_size=3, unique=True))
    return tuple(draw(_tensor(name, rows)) for name in chosen)


@st.composite
def _tensor(draw: st.DrawFn, name: str, rows: int) -> Tensor:
    datatype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = (rows, *draw(st.lists(st.integers(1, 3), max_size=2)))
    size = math.prod(shape) * ITEM_BYTES[datatype]
    data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(name, datatype, shape, bytes(byte & 1 for byte in data) if datatype == "BOOL" else data)


def _optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def queries(draw: st.DrawFn) -> Query:
    target: dict[str, Any] = {draw(st.sampled_from(["task", "model", "variant"])): draw(names)}
    return Query(
        id=draw(names),
        inputs=draw(tensor_lists()),
        latency_ms_max=draw(_optional(st.floats(0, 1e300, exclude_min=True))),
        deadline_ms=draw(_optional(st.floats(0, DEADLINE_MS_MAX, exclude_min=True, exclude_max=True))),
        accuracy_min=draw(_optional(st.floats(0, 1))),
        cost_max=draw(_optional(st.floats(0, 1e300))),
        prefer=draw(st.sampled_from(PREFERENCES)),
        on_miss=draw(st.sampled_from(ON_MISS)),
        reply_topic=draw(_optional(names)),
        reply_partition=draw(_optional(st.integers(0, 2**31 - 1))),
        tenant=draw(_optional(names)),
        metadata=draw(st.dictionaries(names, texts, max_size=3)),
        **target,
    )


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    amounts = _optional(st.floats(0, 1e300))
    return Reply(
        id=draw(names),
        query=f"modelless.queries/{draw(st.integers(0, 99))}/{draw(st.integers(0, 2**63 - 1))}",
        status=draw(st.sampled_from(sorted(STATUSES))),
        message=draw(_optional(names.filter(lambda text: text not in STATUSES))),
        outputs=draw(tensor_lists(size_min=0)),
        model=draw(_optional(names)),
        version=draw(_optional(st.integers(0, 10**17))),
        variant=draw(_optional(names)),
        group=draw(_optional(names)),
        accuracy=draw(_optional(st.floats(0, 1))),
        cost=draw(amounts),
        batch_size=draw(_optional(st.integers(0, 2**31 - 1))),
        queue_ms=draw(_optional(floats)),
        execute_ms=draw(amounts),
        missed=tuple(draw(st.lists(st.sampled_from(["latency", "accuracy"]), max_size=2, unique=True))),
        retry_after_ms=draw(amounts),
        metadata=draw(st.dictionaries(names, texts, max_size=3)),
    )


def mutations(good: bytes) -> st.SearchStrategy[bytes]:
    """``good`` with a few bytes replaced, cut out, or put in."""
    edit = st.tuples(st.integers(0, len(good)), st.integers(0, 4), st.binary(max_size=6))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        value = good
        for start, length, insert in edits:
            value = value[:start] + insert + value[start + length :]
        return value

    return st.lists(edit, min_size=1, max_size=4).map(apply)
