"""Dataclasses from plain values and back, by their type hints.

A dataclass becomes an array of its fields in their order (frames of the link, compact) or a map of its fields
(records of a topic, readable by anybody; a field that has its default value does not travel). Converters are
compiled once per type. What comes in has to match exactly: a float may be written as an integer, numbers must be
finite, nothing else is coerced.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache, partial
from math import isfinite
from operator import attrgetter
from typing import Any, Literal

import msgpack

from modelless.errors import DecodeError
from modelless.fields import Check, choice, shown, unknown

Shape = Literal["array", "map"]

_ANY = object  # what no value's type is: always ask the check


def decoder(hint: Any, shape: Shape) -> Check:
    """A function from a plain value to an instance of ``hint``. It raises DecodeError with the path of a misfit."""
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast("Any", hint), shape)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, shape)
    if origin is Literal:
        return choice(arguments)
    if origin is tuple:
        return _tuple(arguments, shape)
    if origin is collections.abc.Mapping:
        return _mapping(decoder(arguments[1], shape))
    if isinstance(hint, type) and issubclass(hint, tuple):  # a NamedTuple
        return _tuple(tuple(typing.get_type_hints(hint).values()), shape, partial(tuple.__new__, hint))
    if hint is float:
        return _float
    if hint in (str, int, bool, bytes):
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


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@cache
def _dataclass(cls: Any, shape: Shape) -> Check:
    return _array_decoder(cls) if shape == "array" else _map_decoder(cls)


def _array_decoder(cls: type[Any]) -> Check:
    hints = typing.get_type_hints(cls)
    names = _names(cls)
    checks = [decoder(hints[name], "array") for name in names]
    direct = [_direct(hints[name]) for name in names]
    title = cls.__name__

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
            return cls(
                *[
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
        if option in (str, int, bool, bytes) and typing.get_origin(hint) in (None, typing.Union, types.UnionType):
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


def _tuple(arguments: tuple[Any, ...], shape: Shape, make: Callable[[list[Any]], tuple[Any, ...]] = tuple) -> Check:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _many(decoder(arguments[0], shape), _direct(arguments[0]))
    checks = [decoder(argument, shape) for argument in arguments]
    direct = [_direct(argument) for argument in arguments]

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(checks):
            raise DecodeError(f"must be an array of {len(checks)} values, got {_counted(value)}")
        if [*map(type, value)] == direct:
            return make(value)
        return make([check(item) for item, check in zip(value, checks, strict=True)])

    return check


def _many(check_item: Check, kind: type[Any]) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise DecodeError(f"must be an array, got {shown(value)}")
        if not value:
            return ()
        return tuple([item if type(item) is kind else check_item(item) for item in value])

    return check


def _mapping(check_item: Check) -> Check:
    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise DecodeError(f"must be a map, got {shown(value)}")
        return {key: check_item(item) for key, item in value.items()} if value else value

    return check


def _counted(value: Any) -> str:
    return f"{len(value)}" if type(value) is list else shown(value)
