"""MessagePack that came from a stranger: bytes to plain values, or one DecodeError.

Only maps with string keys, arrays, strings, bytes, numbers, booleans and nil come through. What an attacker may
claim is bounded before it is allocated: a header may not announce more than ``items_max`` elements, and all
containers together may not hold more, so that neither 5 bytes that promise 4 billion elements nor a megabyte of
empty maps takes memory. Extension types (timestamps too), duplicate keys, bad UTF-8, the reserved byte 0xc1 and
bytes after the value are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Never

import msgpack

from modelless.errors import DecodeError

DEPTH_MAX = 8
ITEMS_MAX = 65_536

_STRINGS = frozenset([str])

pack: Callable[[Any], bytes] = msgpack.Packer().pack
"""``pack(obj) -> bytes`` for plain values. Shared: it runs no Python code, so that threads cannot interleave."""


def unpack(
    data: bytes | memoryview, *, bytes_max: int, depth_max: int | None = DEPTH_MAX, items_max: int = ITEMS_MAX
) -> Any:
    """Decode one value that fills ``data``; arrays become lists, ``bin`` becomes bytes (one copy).

    ``depth_max`` counts containers in containers; None leaves it to a caller that checks the type of every field,
    which bounds it as well. ``items_max`` bounds the elements of all containers together.

    Raises:
        DecodeError: for whatever reason the bytes are not such a value.
    """
    size = len(data)
    if size > bytes_max:
        raise DecodeError(f"message of {size} bytes is larger than the limit of {bytes_max}")
    try:
        if size <= items_max:  # every element takes a byte, so that there is nothing to count
            value = msgpack.unpackb(data, object_pairs_hook=check_keys, ext_hook=_refuse, max_ext_len=0)
        else:
            value = _Counter(items_max).unpack(data)
    except DecodeError:
        raise
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(_reason(error)) from None
    if depth_max is not None:
        _check_depth(value, depth_max)
    return value


def check_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """``pairs`` of one map as a dict. Raises DecodeError for a repeated key or one that is not a string."""
    if not pairs:
        return {}
    value = dict(pairs)
    if len(value) != len(pairs) or not _STRINGS.issuperset(map(type, value)):
        seen: set[Any] = set()
        for key, _ in pairs:
            if type(key) is not str:
                raise DecodeError(f"map keys must be strings, got {type(key).__name__}")
            if key in seen:
                raise DecodeError(f"key {key[:64]!r} appears twice")
            seen.add(key)
    return value


class _Counter:
    """Counts the elements of containers, announced and completed."""

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._left = items_max

    def unpack(self, data: bytes | memoryview) -> Any:
        return msgpack.unpackb(
            data,
            object_pairs_hook=self.object,
            list_hook=self.array,
            ext_hook=_refuse,
            max_ext_len=0,
            max_array_len=self._items_max,
            max_map_len=self._items_max,
        )

    def array(self, items: list[Any]) -> list[Any]:
        self._take(len(items))
        return items

    def object(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self._take(len(pairs))
        return check_keys(pairs)

    def _take(self, count: int) -> None:
        self._left -= count + 1
        if self._left < 0:
            raise DecodeError(f"message holds more than {self._items_max} elements")


_EXTENSION = "not MessagePack of the contract: it has no extension types, timestamps among them"


def _refuse(code: int, data: bytes) -> Never:
    raise DecodeError(_EXTENSION)


def _check_depth(value: Any, depth_max: int) -> None:
    level = [value] if isinstance(value, (list, dict)) else []
    for _ in range(depth_max):
        if not level:
            return
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) is dict or type(item) is list
        ]
    if level:
        raise DecodeError(f"message is nested deeper than {depth_max} levels")


def _reason(error: Exception) -> str:
    """What is wrong, in words that do not depend on the library's version."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return f"not MessagePack: {reason}"
    text = str(error)
    if "max_ext_len" in text:
        return _EXTENSION
    for part, reason in _PARTS:
        if part in text:
            return f"not MessagePack: {reason}"
    return "not MessagePack"


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (msgpack.ExtraData, "bytes follow after the value"),
    (msgpack.StackError, "nested too deeply"),
    (msgpack.FormatError, "reserved byte 0xc1"),
    (UnicodeDecodeError, "a string is not UTF-8"),
)
_PARTS = (
    ("incomplete", "truncated"),
    ("exceeds max", "a header announces more than the message can hold"),
    ("map key", "map keys must be strings"),
)
