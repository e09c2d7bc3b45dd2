"""Checks of single fields, shared by both forms of a query.

A check takes a field's value as it was decoded and returns it as the message holds it. It raises DecodeError with
what is expected; the caller puts the field's name in front.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Collection, Mapping
from math import inf, isfinite
from typing import Any

from modelless.errors import DecodeError

Check = Callable[[Any], Any]

INTEGER_MAX = 2**64 - 1
"""The largest that MessagePack carries."""


def shown(value: object) -> str:
    """``value`` in an error message: short, whatever it is."""
    return reprlib.repr(value) if type(value) in (str, int, float, bool, bytes) else f"a {type(value).__name__}"


def text(length_max: int, length_min: int = 1) -> Check:
    """A string of ``length_min`` to ``length_max`` characters."""

    def check(value: Any) -> str:
        if type(value) is not str:
            raise DecodeError(f"must be a string, got {shown(value)}")
        if not length_min <= len(value) <= length_max:
            raise DecodeError(f"must have {length_min} to {length_max} characters, got {len(value)}")
        return value

    return check


def number(
    *,
    above: float = -inf,
    at_least: float = -inf,
    at_most: float = inf,
    below: float = inf,
    unit: str = "",
) -> Check:
    """A finite number in a range; integers are taken too."""
    bounds = (("above", above), ("of at least", at_least), ("of at most", at_most), ("below", below))
    words = " and ".join(f"{word} {bound:.15g}" for word, bound in bounds if isfinite(bound))
    wanted = " ".join(filter(None, ("a finite number", unit, words)))

    def check(value: Any) -> float:
        if type(value) is int and -INTEGER_MAX <= value <= INTEGER_MAX:
            value = float(value)
        if type(value) is not float or not (above < value < below and at_least <= value <= at_most):
            raise DecodeError(f"must be {wanted}, got {shown(value)}")
        return value

    return check


def integer(at_least: int, at_most: int) -> Check:
    """An integer in a range; booleans are none."""

    def check(value: Any) -> int:
        if type(value) is not int or not at_least <= value <= at_most:
            raise DecodeError(f"must be an integer from {at_least} to {at_most}, got {shown(value)}")
        return value

    return check


def choice(values: Collection[str]) -> Check:
    """One of some strings."""
    allowed = frozenset(values)
    wanted = ", ".join(values)

    def check(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise DecodeError(f"must be one of {wanted}, got {shown(value)}")
        return value

    return check


def string_map(entries_max: int, key_max: int, value_max: int) -> Check:
    """A map of strings to strings."""

    def check(value: Any) -> dict[str, str]:
        if type(value) is not dict or len(value) > entries_max:
            raise DecodeError(f"must be a map of at most {entries_max} strings, got {shown(value)}")
        for key, item in value.items():
            if type(item) is not str or len(item) > value_max or not 1 <= len(key) <= key_max:
                raise DecodeError(
                    f"{shown(key)}: keys have 1 to {key_max} characters, values are strings of at most {value_max}"
                )
        return value

    return check


def unknown(kind: str, name: object, known: Collection[str]) -> DecodeError:
    """The error for a field that is not of the contract; it names the nearest that is."""
    nearest = difflib.get_close_matches(str(name)[:64], known, 1, 0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are: {', '.join(known)}"
    return DecodeError(f"{kind}: unknown field {shown(name)}; {hint}")


def checked(kind: str, body: Any, checks: Mapping[str, Check], required: Collection[str]) -> dict[str, Any]:
    """The fields of one map, each through its check. None counts as absent.

    Raises:
        DecodeError: not a map, an unknown field, a missing one, or one that its check refuses; named.
    """
    if type(body) is not dict:
        raise DecodeError(f"{kind}: must be a map, got {shown(body)}")
    fields = {}
    for name, value in body.items():
        check = checks.get(name)
        if check is None:
            raise unknown(kind, name, checks)
        if value is None:
            continue
        try:
            fields[name] = check(value)
        except DecodeError as error:
            raise DecodeError(f"{kind}.{name}: {error.message}") from None
    for name in required:
        if name not in fields:
            raise DecodeError(f"{kind}.{name}: is required")
    return fields
