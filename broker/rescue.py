"""Decoding what was fetched where aiokafka gives up, so that one bad record costs only itself.

aiokafka 0.14 refuses a whole fetch for one header key that is not UTF-8, a batch that fails its checksum or a codec
that is not installed. Here the same bytes are decoded tolerantly. What can be read is handed on as it would have been;
what cannot is handed on as :class:`Unreadable`, with the bytes that there are:

* a record whose header keys are not UTF-8, or whose inside is broken: the record;
* a batch that fails its checksum or does not unpack: all of it, once, at its first offset; its other offsets are gaps.

The isolation is ``read_committed``: Kafka returns nothing beyond the last stable offset, and what belongs to an
aborted transaction is left out here.

Format: https://kafka.apache.org/documentation/#recordbatch (magic 2); older ones are left to aiokafka's decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import ConsumerRecord

RECORDS_MAX = 2_000
"""Of one stretch: bounds how long the event loop is held up."""
HEADERS_READ_MAX = 10_000
"""A record with more is handed on as its raw bytes."""

_LOG_OVERHEAD = struct.Struct(">qiib")  # base offset, length of what follows the first 12 bytes, leader epoch, magic
_BATCH = struct.Struct(">qiibIhiqqqhii")
_LENGTH_STARTS = 12
_CRC_COVERS_FROM = 21
_CODECS = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What cannot be handed on as a record. ``record`` holds what there is, its header keys made printable."""

    record: ConsumerRecord
    reason: str


def record_of(item: ConsumerRecord | Unreadable) -> ConsumerRecord:
    return item.record if isinstance(item, Unreadable) else item


@dataclass(slots=True)
class Stretch:
    """Part of a partition: what is in it, in the order of offsets, and the position behind it."""

    items: list[ConsumerRecord | Unreadable]
    position: int


def decode(
    partition: TopicPartition, data: bytes, aborted: Iterable[tuple[int, int]], position: int, stable: int
) -> Stretch:
    """Decode what a fetch at ``position`` returned.

    Args:
        aborted: (producer id, first offset) of the aborted transactions in it.
        stable: the last stable offset.
    """
    stretch = Stretch([], position)
    transactions = _Transactions(sorted(aborted, key=lambda each: each[1]))
    for batch in _split(data):
        if batch.next_offset <= stretch.position:
            continue
        if len(stretch.items) >= RECORDS_MAX:
            return stretch
        if not batch.intact:
            stretch.items.append(_whole(partition, batch, stretch.position, "the batch fails its checksum"))
            stretch.position = max(stretch.position + 1, min(batch.next_offset, stable))
        elif transactions.hides(batch):
            stretch.position = batch.next_offset
        elif not _read_batch(partition, batch, stretch):
            return stretch
    return stretch


# --- batches ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Batch:
    raw: memoryview
    magic: int
    intact: bool
    base_offset: int
    next_offset: int
    attributes: int = 0
    first_timestamp: int = -1
    max_timestamp: int = -1
    producer_id: int = -1
    count: int = 0

    @property
    def timestamp_type(self) -> int:
        return self.attributes >> 3 & 1

    @property
    def transactional(self) -> bool:
        return bool(self.attributes & 0x10)

    @property
    def control(self) -> bool:
        return bool(self.attributes & 0x20)

    def body(self) -> bytes:
        """Its records, decompressed. Raises whatever the codec raises."""
        body = bytes(self.raw[_BATCH.size :])
        codec = self.attributes & 7
        return bytes(_CODECS[codec](body)) if codec else body


def _split(data: bytes) -> Iterator[_Batch]:
    """The complete batches in ``data``. Where a checksum fails, the next batch's offset says where this one ends."""
    view, at = memoryview(data), 0
    while at + _LOG_OVERHEAD.size <= len(data):
        base_offset, length, _, magic = _LOG_OVERHEAD.unpack_from(data, at)
        end = at + _LENGTH_STARTS + length
        if not at < end <= len(data):
            if at == 0:  # Kafka returns the first one whole: its length is wrong
                yield replace(_batch(view, 2, base_offset), intact=False)
            return
        batch = _batch(view[at:end], magic, base_offset)
        if not batch.intact and end + _LOG_OVERHEAD.size <= len(data):
            following: int = _LOG_OVERHEAD.unpack_from(data, end)[0]
            batch = replace(batch, next_offset=max(following, base_offset + 1))
        yield batch
        at = end


def _batch(raw: memoryview, magic: int, base_offset: int) -> _Batch:
    if magic < 2:
        return _Batch(raw, magic, True, base_offset, base_offset + 1)
    if len(raw) < _BATCH.size:
        return _Batch(raw, magic, False, base_offset, base_offset + 1)
    _, _, _, _, crc, attributes, last_delta, first_timestamp, max_timestamp, producer_id, _, _, count = (
        _BATCH.unpack_from(raw)
    )
    intact = calc_crc32c(bytes(raw[_CRC_COVERS_FROM:])) == crc and last_delta >= 0
    next_offset = base_offset + 1 + max(last_delta, 0)
    return _Batch(
        raw, magic, intact, base_offset, next_offset, attributes, first_timestamp, max_timestamp, producer_id, count
    )


@dataclass(slots=True)
class _Transactions:
    """Which batches belong to aborted transactions (KIP-98, as Kafka's own consumer decides it)."""

    to_come: list[tuple[int, int]]
    aborted: set[int] = field(default_factory=set)

    def hides(self, batch: _Batch) -> bool:
        """True for control batches and for batches of aborted transactions. Call it for every batch in order."""
        while self.to_come and self.to_come[0][1] <= batch.base_offset:
            self.aborted.add(self.to_come.pop(0)[0])
        if batch.control:
            self.aborted.discard(batch.producer_id)  # a marker ends its producer's transaction, either way
            return True
        return batch.transactional and batch.producer_id in self.aborted


def _whole(partition: TopicPartition, batch: _Batch, position: int, reason: str) -> Unreadable:
    """All of a batch as one record, at the first of its offsets that was not read yet."""
    record = _Fields(max(batch.base_offset, position), batch.max_timestamp, None, bytes(batch.raw), ())
    return Unreadable(_consumer_record(partition, batch.timestamp_type, record), reason)


# --- records ---------------------------------------------------------------------------------------------------


class _Fields(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def _read_batch(partition: TopicPartition, batch: _Batch, stretch: Stretch) -> bool:
    """Add the batch's records to the stretch; False when the stretch is full within the batch."""
    try:
        records = _legacy(batch) if batch.magic < 2 else _records(batch, batch.body(), stretch.position)
        for fields, reason in records:
            if fields.offset < stretch.position:
                continue
            if len(stretch.items) >= RECORDS_MAX:
                return False
            record = _consumer_record(partition, batch.timestamp_type, fields)
            stretch.items.append(record if reason is None else Unreadable(record, reason))
            stretch.position = fields.offset + 1
    except Exception as error:  # codecs raise what they like
        reason = f"the batch does not unpack ({type(error).__name__})"
        if stretch.position < batch.next_offset:
            stretch.items.append(_whole(partition, batch, stretch.position, reason))
    stretch.position = max(stretch.position, batch.next_offset)
    return True


def _records(batch: _Batch, body: bytes, position: int) -> Iterator[tuple[_Fields, str | None]]:
    """Every record from ``position`` on, with the reason why it is not readable. ValueError when the frame breaks."""
    at, expected = 0, batch.base_offset
    for _ in range(batch.count):
        length, start = _varint(body, at)
        at = start + length
        if length < 1 or at > len(body):
            raise ValueError("record length")
        timestamp_delta, inside = _varint(body, start + 1)
        offset_delta, inside = _varint(body, inside)
        offset = batch.base_offset + offset_delta
        if not expected <= offset < batch.next_offset:
            raise ValueError("record offset")
        expected = offset + 1
        if offset < position:
            continue
        timestamp = batch.max_timestamp if batch.timestamp_type else batch.first_timestamp + timestamp_delta
        try:
            yield _inside(body[inside:at], offset, timestamp)
        except (ValueError, IndexError):
            yield _Fields(offset, timestamp, None, body[start:at], ()), "the inside of the record is broken"


def _inside(data: bytes, offset: int, timestamp: int) -> tuple[_Fields, str | None]:
    key, at = _bytes(data, 0)
    value, at = _bytes(data, at)
    count, at = _varint(data, at)
    if not 0 <= count <= HEADERS_READ_MAX:
        return _Fields(offset, timestamp, key, data, ()), f"{count} headers are too many"
    reason = None
    headers = []
    for _ in range(count):
        name, at = _bytes(data, at)
        header_value, at = _bytes(data, at)
        if name is None:
            raise ValueError("header key")
        text = name.decode("utf-8", errors="backslashreplace")
        if text.encode() != name:
            reason = "a header key is not UTF-8"
        headers.append((text, header_value))
    if at != len(data):
        raise ValueError("record length")
    return _Fields(offset, timestamp, key, value, tuple(headers)), reason


def _bytes(data: bytes, at: int) -> tuple[bytes | None, int]:
    length, at = _varint(data, at)
    if length < 0:
        return None, at
    if at + length > len(data):
        raise ValueError("length of a field")
    return data[at : at + length], at + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint and the position behind it. IndexError past the end (aiokafka's compiled one reads on)."""
    byte = data[at]
    at += 1
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        if shift > 63:
            raise ValueError("varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value >> 1 ^ -(value & 1), at


def _legacy(batch: _Batch) -> Iterator[tuple[_Fields, str | None]]:
    records = LegacyRecordBatch(batch.raw, batch.magic)
    if not records.validate_crc():
        raise ValueError("checksum")
    for record in records:
        yield _Fields(record.offset, record.timestamp or -1, record.key, record.value, ()), None


def _consumer_record(partition: TopicPartition, timestamp_type: int, fields: _Fields) -> ConsumerRecord:
    key_size = -1 if fields.key is None else len(fields.key)
    value_size = -1 if fields.value is None else len(fields.value)
    return ConsumerRecord(
        partition.topic,
        partition.partition,
        fields.offset,
        fields.timestamp,
        timestamp_type,
        fields.key,
        fields.value,
        None,
        key_size,
        value_size,
        fields.headers,
    )
