from __future__ import annotations

import struct

import pytest
from aiokafka import TopicPartition
from record_batches import LAST_DELTA_AT, Record, batch, seal, with_bad_header_key

from broker.fetching import Fetched
from broker.rescue import Unreadable, record_of

LENGTH_AT = 8
PARTITION = TopicPartition("queries", 3)
THREE = [Record(b"zero"), Record(b"one"), Record(b"two")]


def fetched(data: bytes, position: int = 0) -> Fetched:
    return Fetched(PARTITION, data, None, position, 1_000)


def taken(of: Fetched, number: int) -> list[tuple[int, bytes | None, bool]]:
    """(offset, value, whether it is readable) of what is taken next."""
    items = of.take(number)
    return [(record_of(i).offset, record_of(i).value, not isinstance(i, Unreadable)) for i in items]


def test_records_are_taken_part_by_part() -> None:
    of = fetched(batch(THREE, base_offset=4) + batch(THREE, base_offset=7), position=5)
    assert (taken(of, 1), of.position) == ([(5, b"one", True)], 6)
    assert (taken(of, 3), of.position) == ([(6, b"two", True), (7, b"zero", True), (8, b"one", True)], 9)
    assert (taken(of, 3), of.position) == ([(9, b"two", True)], 10)
    assert (taken(of, 3), of.position) == ([], 10)


def test_the_position_is_behind_a_gap_at_the_end() -> None:
    data = bytearray(batch(THREE, base_offset=4))
    struct.pack_into(">i", data, LAST_DELTA_AT, 8)  # those after the third were compacted away
    of = fetched(bytes(seal(data)), position=4)
    assert (len(of.take(3)), of.position) == (3, 7)
    assert (of.take(1), of.position) == ([], 13)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("bad", range(3))
def test_what_aiokafka_refuses_costs_only_itself(bad: int, number: int) -> None:
    before, after = batch(THREE, base_offset=1), batch(THREE, base_offset=7)
    of = fetched(before + with_bad_header_key(THREE, bad, base_offset=4) + after, position=1)
    items = []
    while more := taken(of, number):
        assert of.position == more[-1][0] + 1
        items += more
    assert items == [(offset, THREE[(offset - 1) % 3].value, offset != 4 + bad) for offset in range(1, 10)]


def test_a_failed_checksum_costs_the_batch() -> None:
    broken = bytearray(batch(THREE, base_offset=3))
    broken[-1] ^= 1
    of = fetched(batch(THREE) + bytes(broken) + batch(THREE, base_offset=6))
    assert taken(of, 4) == [(0, b"zero", True), (1, b"one", True), (2, b"two", True), (3, bytes(broken), False)]
    assert (of.position, len(of.take(4)), of.position) == (6, 3, 9)


@pytest.mark.parametrize("length", [-1, -(1 << 31), 0, 3, 1 << 30])
def test_a_batch_whose_length_is_wrong_is_passed(length: int) -> None:
    broken = bytearray(batch(THREE, base_offset=5))
    struct.pack_into(">i", broken, LENGTH_AT, length)
    of = fetched(bytes(broken), position=5)
    offset, _, readable = taken(of, 9)[0]
    assert (offset, readable) == (5, False)
    assert of.position > 5
