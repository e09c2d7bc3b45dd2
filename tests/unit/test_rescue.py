from __future__ import annotations

import struct
import time

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from record_batches import (
    ATTRIBUTES_AT,
    COUNT_AT,
    HEADER_BYTES,
    LAST_DELTA_AT,
    Record,
    batch,
    exchange,
    seal,
    with_bad_header_key,
)

from broker.rescue import RECORDS_MAX, Stretch, Unreadable, decode

PARTITION = TopicPartition("queries", 3)
THREE = [Record(b"zero"), Record(b"one", b"key", [("a", b"1"), ("b", None)]), Record(None, b"two")]


def read(data: bytes, position: int = 0, aborted: tuple[tuple[int, int], ...] = (), stable: int = 1_000) -> Stretch:
    return decode(PARTITION, data, aborted, position, stable)


def seen(stretch: Stretch) -> list[tuple[int, bytes | None, str | None]]:
    """(offset, value, reason) of every item."""
    return [
        (item.record.offset, item.record.value, item.reason)
        if isinstance(item, Unreadable)
        else (item.offset, item.value, None)
        for item in stretch.items
    ]


@pytest.mark.parametrize("codec", range(5))
def test_good_records_come_out_as_aiokafka_gives_them(codec: int) -> None:
    stretch = read(batch(THREE, base_offset=7, codec=codec), position=7)
    assert stretch.position == 10
    zero, one, two = stretch.items
    assert not isinstance(one, Unreadable)
    assert (one.topic, one.partition, one.offset, one.timestamp, one.timestamp_type) == ("queries", 3, 8, 1001, 0)
    assert (one.key, one.value, one.headers) == (b"key", b"one", (("a", b"1"), ("b", None)))
    assert (one.serialized_key_size, one.serialized_value_size) == (3, 3)
    assert not isinstance(zero, Unreadable)
    assert not isinstance(two, Unreadable)
    assert (zero.key, zero.value, two.key, two.value) == (None, b"zero", b"two", None)


def test_the_logs_time_is_the_time_of_all_records() -> None:
    data = bytearray(batch(THREE))
    data[ATTRIBUTES_AT + 1] |= 0x08
    stretch = read(seal(data))
    assert {(item.timestamp, item.timestamp_type) for item in stretch.items if not isinstance(item, Unreadable)} == {
        (1002, 1)
    }


@pytest.mark.parametrize("bad", range(3))
def test_a_bad_header_key_costs_its_record_only(bad: int) -> None:
    stretch = read(with_bad_header_key(THREE, bad))
    assert [offset for offset, _, reason in seen(stretch) if reason] == [bad]
    assert [value for _, value, _ in seen(stretch)] == [b"zero", b"one", None]
    item = stretch.items[bad]
    assert isinstance(item, Unreadable)
    assert item.reason == "a header key is not UTF-8"
    assert item.record.headers[-1] == (r"\xff\xfe\xfd", b"value")
    assert stretch.position == 3


def test_records_before_the_position_are_not_given_again() -> None:
    assert [offset for offset, *_ in seen(read(with_bad_header_key(THREE, 0), position=1))] == [1, 2]
    assert read(with_bad_header_key(THREE, 0), position=3).items == []


def test_a_failed_checksum_costs_the_batch_once() -> None:
    broken = bytearray(batch(THREE, base_offset=5))
    broken[-1] ^= 1
    data = batch([Record(b"before")], base_offset=4) + bytes(broken) + batch([Record(b"after")], base_offset=8)
    stretch = read(data, position=4)
    assert seen(stretch) == [
        (4, b"before", None),
        (5, bytes(broken), "the batch fails its checksum"),
        (8, b"after", None),
    ]
    assert stretch.position == 9


def test_the_next_batch_says_where_a_corrupt_one_ends() -> None:
    broken = bytearray(batch(THREE, base_offset=5))
    struct.pack_into(">i", broken, LAST_DELTA_AT, 1 << 30)
    stretch = read(bytes(broken) + batch([Record(b"after")], base_offset=8), position=5)
    assert [offset for offset, *_ in seen(stretch)] == [5, 8]
    assert read(bytes(broken), position=5, stable=8).position == 8, "never beyond what is stable"


@pytest.mark.parametrize("delta", [-1, -(1 << 31)])
def test_a_corrupt_batch_at_least_moves_on(delta: int) -> None:
    broken = bytearray(batch(THREE, base_offset=5))
    struct.pack_into(">i", broken, LAST_DELTA_AT, delta)
    assert read(bytes(broken), position=5).position == 6


@pytest.mark.parametrize("length", [-1, -(1 << 31), 0, 3, 1 << 30])
def test_a_wrong_length_does_not_stop_the_partition(length: int) -> None:
    broken = bytearray(batch(THREE))
    struct.pack_into(">i", broken, 8, length)
    stretch = read(bytes(broken))
    assert stretch.position > 0
    assert all(isinstance(item, Unreadable) for item in stretch.items)


def test_an_unknown_codec_costs_the_batch_once() -> None:
    data = bytearray(batch(THREE, base_offset=5))
    data[ATTRIBUTES_AT + 1] |= 7
    stretch = read(seal(data) + batch([Record(b"after")], base_offset=8), position=5)
    assert [(offset, reason) for offset, _, reason in seen(stretch)] == [
        (5, "the batch does not unpack (KeyError)"),
        (8, None),
    ]


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_damage_inside_a_compressed_batch_costs_the_batch(codec: int) -> None:
    data = bytearray(batch([Record(b"x" * 1000)], codec=codec))
    data[HEADER_BYTES : HEADER_BYTES + 12] = b"\x00" * 12
    stretch = read(seal(data))
    assert [type(item) for item in stretch.items] == [Unreadable]
    assert stretch.position == 1


def test_a_broken_inside_costs_its_record_only() -> None:
    data = batch([Record(b"zero"), Record(b"MARKER"), Record(b"two")])
    stretch = read(exchange(data, b"\x0cMARKER", b"\x7eMARKER"))  # claims more bytes than the record has
    assert [(offset, reason) for offset, _, reason in seen(stretch)] == [
        (0, None),
        (1, "the inside of the record is broken"),
        (2, None),
    ]
    assert b"MARKER" in (seen(stretch)[1][1] or b"")


def test_what_was_read_of_a_broken_batch_stays_read() -> None:
    data = bytearray(batch(THREE, base_offset=5))
    data[data.index(b"zero") + len(b"zero") + 1] = 0x7F  # the length of the second record
    stretch = read(seal(data), position=5)
    assert [offset for offset, *_ in seen(stretch)] == [5, 6]
    assert stretch.position == 8
    assert isinstance(stretch.items[1], Unreadable)


def test_a_count_that_is_too_large_takes_no_offset_of_the_next_batch() -> None:
    data = bytearray(batch(THREE))
    struct.pack_into(">i", data, COUNT_AT, 4)
    stretch = read(seal(data) + batch([Record(b"after")], base_offset=3))
    assert [(offset, reason) for offset, _, reason in seen(stretch)] == [(0, None), (1, None), (2, None), (3, None)]


def test_aborted_transactions_and_markers_are_left_out() -> None:
    data = b"".join(
        [
            batch([Record(b"aborted")], base_offset=0, producer_id=9, transactional=True),
            batch([Record(b"another's")], base_offset=1, producer_id=8, transactional=True),
            batch([Record(b"plain")], base_offset=2),
            batch([Record(b"", b"\0\0\0\0")], base_offset=3, producer_id=9, transactional=True, control=True),
            batch([Record(b"committed")], base_offset=4, producer_id=9, transactional=True),
            batch([Record(b"", b"\0\0\0\1")], base_offset=5, producer_id=9, transactional=True, control=True),
        ]
    )
    stretch = read(data, aborted=((9, 0),))
    assert [value for _, value, _ in seen(stretch)] == [b"another's", b"plain", b"committed"]
    assert stretch.position == 6


def test_an_incomplete_last_batch_is_left_for_the_next_fetch() -> None:
    whole = batch(THREE)
    stretch = read(whole + batch(THREE, base_offset=3)[:-1])
    assert stretch.position == 3
    assert len(stretch.items) == 3


def test_nothing_there_yet() -> None:
    assert read(b"", position=5) == Stretch([], 5)


def test_a_stretch_ends_within_a_huge_batch_and_goes_on_there() -> None:
    data = batch([Record(b"")] * (RECORDS_MAX * 2 + 1))
    positions, count, position = [], 0, 0
    while position < RECORDS_MAX * 2 + 1:
        stretch = read(data, position=position, stable=1 << 40)
        position, count = stretch.position, count + len(stretch.items)
        positions.append(position)
    assert positions == [RECORDS_MAX, RECORDS_MAX * 2, RECORDS_MAX * 2 + 1]
    assert count == RECORDS_MAX * 2 + 1


def test_150_000_headers_do_not_hold_up_the_loop() -> None:
    data = with_bad_header_key([Record(b"x", None, [("a", b"b")] * 150_000)], 0)
    started_s = time.process_time()
    stretch = read(data)
    assert time.process_time() - started_s < 0.5
    item = stretch.items[0]
    assert isinstance(item, Unreadable)
    assert item.reason == "150001 headers are too many"


@given(data=st.data())
def test_damaged_logs_always_move_on_and_never_raise(data: st.DataObject) -> None:
    """Bytes flipped anywhere, sealed anew or not: offsets grow, each is given once, nothing behind is lost."""
    codec = data.draw(st.integers(0, 4))
    damaged = bytearray(batch(THREE, codec=codec))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(16, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    sealed = data.draw(st.booleans())
    first = seal(damaged) if sealed else bytes(damaged)
    stretch = read(first + batch([Record(b"after")], base_offset=3), stable=4)
    offsets = [offset for offset, *_ in seen(stretch)]
    assert offsets == sorted(set(offsets))
    assert stretch.position > max(offsets, default=0)
    if not sealed:  # what a disk does, and not what a producer might
        assert seen(stretch)[-1] == (3, b"after", None)
