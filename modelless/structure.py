"""Dataclasses and named tuples from plain values and back, by their type hints.

A dataclass becomes an array of its fields in their order (frames of the link, compact) or a map of its fields
(records of a topic, readable by anybody; a field that has its default value does not travel). A named tuple is an
array always. Converters are compiled once per type. What comes in has to match exactly: a float may be written as
an integer, numbers must be finite, nothing else is coerced.

Many named tuples are checked **column** by column, which takes a few calls per field instead of a few per value.
A column that is not plainly good is looked at again one by one, where the words for what is wrong are.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import isfinite
from operator import attrgetter
from typing import Any, Literal

import msgpack

from modelless.errors import DecodeError
from modelless.fields import Check, choice, shown, unknown

Shape = Literal["array", "map"]
Column = Callable[[Sequence[Any]], Sequence[Any] | None]
"""From many plain values to as many instances, or None when they have to be looked at one by one."""

_ANY = object  # what no value's type is: always ask the check
_NONE = type(None)
_PLAIN = (str, int, bool, bytes)


def decoder(hint: Any, shape: Shape) -> Check:
    """A function from a plain value to an instance of ``hint``. It raises DecodeError with the path of a misfit."""
    if dataclasses.is_dataclass(hint) or _is_named_tuple(hint):
        return _structure(typing.cast("Any", hint), shape)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, shape)
    if origin is Literal:
        return choice(arguments)
    if origin is tuple:
        return _tuple(arguments, shape)
    if origin is collections.abc.Mapping:
        return _mapping(decoder(arguments[1], shape))
    if hint is float:
        return _float
    if hint in _PLAIN:
        return _exactly(hint)
    raise TypeError(f"no wire form for {hint!r}")


def array_fields(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """A function from an instance of the dataclass ``kind`` to the tuple of its fields."""
    names = _names(kind)
    getter: Callable[[Any], Any] = attrgetter(*names)
    return getter if len(names) > 1 else lambda value: (getter(value),)


def array_packer(*kinds: type[Any]) -> Callable[[Any], bytes]:
    """Packs values that may contain instances of the dataclasses ``kinds``, each as the array of its fields."""
    getters = {kind: array_fields(kind) for kind in kinds}

    def plain(value: Any) -> Any:
        getter = getters.get(type(value))
        return dict(value) if getter is None else getter(value)

    def pack(value: Any) -> bytes:
        packed: bytes = msgpack.packb(value, default=plain)
        return packed

    return pack


def to_map(message: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, ready to be packed."""
    return {
        field.name: _plain(value)
        for field in dataclasses.fields(message)
        if (value := getattr(message, field.name)) != _default(field)
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_map(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, collections.abc.Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default value; for a required field something that no value equals."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _names(kind: type[Any]) -> list[str]:
    return list(kind._fields) if _is_named_tuple(kind) else [field.name for field in dataclasses.fields(kind)]


@cache
def _structure(cls: Any, shape: Shape) -> Check:
    return _array_decoder(cls) if shape == "array" or _is_named_tuple(cls) else _map_decoder(cls)


def _array_decoder(cls: type[Any]) -> Check:
    hints = typing.get_type_hints(cls)
    names = _names(cls)
    checks = [decoder(hints[name], "array") for name in names]
    direct = [_direct(hints[name]) for name in names]
    title = cls.__name__
    make: Callable[[Any], Any] = partial(tuple.__new__, cls) if _is_named_tuple(cls) else lambda values: cls(*values)

    def explain(value: list[Any]) -> None:
        for name, check, item in zip(names, checks, value, strict=True):
            try:
                check(item)
            except DecodeError as error:
                raise DecodeError(f"{title}.{name}: {error.message}") from None

    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) != len(names):
            raise DecodeError(f"{title}: must be an array of {len(names)} fields, got {_counted(value)}")
        try:
            return make(
                [
                    item if type(item) is kind else check(item)
                    for item, kind, check in zip(value, direct, checks, strict=True)
                ]
            )
        except DecodeError:
            explain(value)
            raise

    return decode


def _map_decoder(cls: type[Any]) -> Check:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    checks = {field.name: decoder(hints[field.name], "map") for field in fields}
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    kind = cls.__name__

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise DecodeError(f"{kind}: must be a map, got {shown(value)}")
        fields = {}
        for name, item in value.items():
            if name not in checks:
                raise unknown(kind, name, checks)
            try:
                fields[name] = checks[name](item)
            except DecodeError as error:
                raise DecodeError(f"{kind}.{name}: {error.message}") from None
        if missing := required - fields.keys():
            raise DecodeError(f"{kind}.{min(missing)}: is required")
        return cls(**fields)

    return decode


def _direct(hint: Any) -> type[Any]:
    """The type whose values need no check, tried before the check is called."""
    for option in (hint, *typing.get_args(hint)):
        if option in _PLAIN and typing.get_origin(hint) in (None, typing.Union, types.UnionType):
            return typing.cast("type[Any]", option)
    return _ANY


def _exactly(kind: type[Any]) -> Check:
    words = {str: "a string", int: "an integer", bool: "a boolean", bytes: "bytes"}[kind]

    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise DecodeError(f"must be {words}, got {shown(value)}")
        return value

    return check


def _float(value: Any) -> float:
    kind = type(value)
    if kind is float and isfinite(value):
        number: float = value
        return number
    if kind is int:
        return float(value)
    raise DecodeError(f"must be a finite number, got {shown(value)}")


def _union(options: tuple[Any, ...], shape: Shape) -> Check:
    """``X | None``, or ``bytes | memoryview``, which comes in as bytes."""
    real = [option for option in options if option not in (types.NoneType, memoryview)]
    if len(real) != 1:
        raise TypeError(f"no wire form for a union of {real!r}")
    check = decoder(real[0], shape)
    if types.NoneType not in options:
        return check
    return lambda value: None if value is None else check(value)


def _tuple(arguments: tuple[Any, ...], shape: Shape) -> Check:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _many(decoder(arguments[0], shape), _column(arguments[0], shape))
    checks = [decoder(argument, shape) for argument in arguments]
    direct = [_direct(argument) for argument in arguments]

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(checks):
            raise DecodeError(f"must be an array of {len(checks)} values, got {_counted(value)}")
        if [*map(type, value)] == direct:
            return tuple(value)
        return tuple([check(item) for item, check in zip(value, checks, strict=True)])

    return check


def _many(check_item: Check, column: Column) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise DecodeError(f"must be an array, got {shown(value)}")
        if not value:
            return ()
        items = column(value)
        return tuple(map(check_item, value) if items is None else items)

    return check


def _mapping(check_item: Check) -> Check:
    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise DecodeError(f"must be a map, got {shown(value)}")
        return {key: check_item(item) for key, item in value.items()} if value else value

    return check


# --- columns --------------------------------------------------------------------------------------------------------


def _column(hint: Any, shape: Shape) -> Column:
    if _is_named_tuple(hint):
        return _table(hint, shape)
    options = frozenset(typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint])
    if options <= {*_PLAIN, _NONE}:
        return _values_of(options)
    if options <= {float, _NONE}:
        return _numbers(options | {int})
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _choices(frozenset(typing.get_args(hint)))
    one_by_one = _one_by_one(decoder(hint, shape))
    if origin is tuple:
        return _empty_or(list, tuple, one_by_one)
    return _empty_or(dict, dict, one_by_one) if origin is collections.abc.Mapping else one_by_one


def _table(cls: Any, shape: Shape) -> Column:
    hints = typing.get_type_hints(cls)
    converters = [_column(hints[name], shape) for name in cls._fields]
    make: Callable[[Any], Any] = partial(tuple.__new__, cls)

    def convert(rows: Sequence[Any]) -> Sequence[Any] | None:
        if {*map(type, rows)} != {list} or {*map(len, rows)} != {len(converters)}:
            return None
        columns = []
        for converter, values in zip(converters, zip(*rows, strict=True), strict=True):
            column = converter(values)
            if column is None:
                return None
            columns.append(column)
        return [*map(make, zip(*columns, strict=True))]

    return convert


def _values_of(kinds: frozenset[Any]) -> Column:
    return lambda values: values if kinds.issuperset(map(type, values)) else None


def _numbers(kinds: frozenset[Any]) -> Column:
    def convert(values: Sequence[Any]) -> Sequence[Any] | None:
        found = {*map(type, values)}
        if not found <= kinds or not all(map(isfinite, filter(None, values))):
            return None
        return [value if value is None else float(value) for value in values] if int in found else values

    return convert


def _choices(allowed: frozenset[Any]) -> Column:
    return lambda values: values if {str}.issuperset(map(type, values)) and allowed.issuperset(values) else None


def _empty_or(kind: type[Any], make: Callable[[Any], Any], otherwise: Column) -> Column:
    """Containers of which most often all are empty."""

    def convert(values: Sequence[Any]) -> Sequence[Any] | None:
        if {*map(type, values)} == {kind} and not any(values):
            return [*map(make, values)]
        return otherwise(values)

    return convert


def _one_by_one(check: Check) -> Column:
    def convert(values: Sequence[Any]) -> Sequence[Any] | None:
        try:
            return [*map(check, values)]
        except DecodeError:
            return None

    return convert


def _counted(value: Any) -> str:
    return f"{len(value)}" if type(value) is list else shown(value)
