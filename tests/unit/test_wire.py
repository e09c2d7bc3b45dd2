from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelless.errors import DecodeError
from modelless.wire import pack, unpack

BYTES_MAX = 8 * 1024 * 1024

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_round_trip(value: Any) -> None:
    assert unpack(pack(value), bytes_max=BYTES_MAX, depth_max=None) == value


@given(plain)
def test_counting_changes_nothing(value: Any) -> None:
    padded = [value, b"\0" * 1000]
    assert unpack(pack(padded), bytes_max=BYTES_MAX, depth_max=None, items_max=500) == padded


@given(st.binary(max_size=60))
def test_random_bytes_give_a_value_or_one_error(data: bytes) -> None:
    with suppress(DecodeError):
        unpack(data, bytes_max=BYTES_MAX)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "truncated"),
    "truncated array": (b"\x92\x01", "truncated"),
    "truncated bin": (b"\xc6\x00\x10\x00\x00abc", "truncated"),
    "trailing bytes": (b"\x01\x01", "bytes follow"),
    "reserved byte": (b"\x91\xc1", "0xc1"),
    "not UTF-8": (b"\xa2\xc3\x28", "not UTF-8"),
    "timestamp of 2^62": (b"\xc7\x0c\xff" + b"\0\0\0\0" + (2**62).to_bytes(8, "big"), "extension"),
    "32-bit timestamp": (msgpack.packb(msgpack.Timestamp(1)), "extension"),
    "extension type": (b"\xd4\x05\x00", "extension"),
    "empty extension type": (b"\xc7\x00\x05", "extension"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "'a' appears twice"),
    "integer key": (b"\x81\x01\x01", "keys must be strings"),
    "bytes key": (b"\x81\xc4\x01a\x01", "keys must be strings"),
    "array of 4 billion": (b"\xdd\xff\xff\xff\xff", "announces more"),
    "map of 4 billion": (b"\xdf\xff\xff\xff\xff", "announces more"),
    "bin of 4 billion": (b"\xc6\xff\xff\xff\xff", "truncated|announces more"),
    "a million levels": (b"\x91" * 1_000_000, "nested"),
    "nine levels": (b"\x91" * 9, "truncated"),
    "nine full levels": (b"\x91" * 8 + b"\x90", "deeper than 8"),
    "nine full levels of maps": (b"\x81\xa1a" * 8 + b"\x80", "deeper than 8"),
}


@pytest.mark.parametrize(("data", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        unpack(data, bytes_max=BYTES_MAX)


def test_eight_levels_are_fine() -> None:
    assert unpack(b"\x91" * 7 + b"\x90", bytes_max=BYTES_MAX) == [[[[[[[[]]]]]]]]


def test_size_is_checked_first() -> None:
    with pytest.raises(DecodeError, match="5 bytes is larger than the limit of 4"):
        unpack(b"\xa4abcd", bytes_max=4)


def _array(length: int, item: bytes) -> bytes:
    return b"\xdd" + length.to_bytes(4, "big") + item * length


BOMBS = {
    "a megabyte of empty maps": _array(1 << 20, b"\x80"),
    "a megabyte of empty maps in many arrays": _array(1024, _array(1024, b"\x80")),
    "a megabyte of empty arrays": _array(1 << 20, b"\x90"),
    "nested claims of as many as a query may hold": _array(1024, b"")[:5] * 1000 + b"\x01" * 4096,
    "nested claims of more than a query may hold": _array(9000, b"")[:5] * 1000 + b"\x01" * 4096,
    "nested claims of as many as there are bytes": _array(1000, b"")[:5] * 200,
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_with_little_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            unpack(data, bytes_max=BYTES_MAX, depth_max=None, items_max=1024)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000


def test_big_data_among_few_elements_is_fine() -> None:
    value = {"data": b"\x80" * 1_000_000}
    assert unpack(pack(value), bytes_max=BYTES_MAX, items_max=16) == value


def test_memoryviews_are_packed_and_unpacked() -> None:
    assert unpack(memoryview(pack([memoryview(b"abc")])), bytes_max=BYTES_MAX) == [b"abc"]
