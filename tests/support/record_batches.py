"""Record batches made by hand, good and bad, as they lie in Kafka's log (magic 2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

HEADER_BYTES = 61
ATTRIBUTES_AT = 21
LAST_DELTA_AT = 23
COUNT_AT = 57
NOT_UTF8 = b"\xff\xfe\xfd"
"""A header key of three bytes."""


class Record(NamedTuple):
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def batch(
    records: Sequence[Record],
    *,
    base_offset: int = 0,
    codec: int = 0,
    producer_id: int = -1,
    transactional: bool = False,
    control: bool = False,
    timestamp_ms: int = 1_000,
) -> bytes:
    """A batch in good order. ``codec``: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer_id, 0, 0, 1 << 24)
    for delta, record in enumerate(records):
        builder.append(delta, timestamp_ms + delta, record.key, record.value, list(record.headers))
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base_offset)
    if control:
        data[ATTRIBUTES_AT + 1] |= 0x20
    return seal(data)


def seal(data: bytes | bytearray) -> bytes:
    """The batch with its length and its checksum made right."""
    sealed = bytearray(data)
    struct.pack_into(">i", sealed, 8, len(sealed) - 12)
    struct.pack_into(">I", sealed, 17, calc_crc32c(bytes(sealed[ATTRIBUTES_AT:])))
    return bytes(sealed)


def exchange(data: bytes, old: bytes, new: bytes) -> bytes:
    """Sealed anew with ``old`` for ``new``, of equal length, everywhere."""
    assert len(old) == len(new)
    assert old in data
    return seal(data.replace(old, new))


def with_bad_header_key(records: Sequence[Record], bad: int, **options: int) -> bytes:
    """A batch whose record number ``bad`` has one more header, with a key that is not UTF-8."""
    worse = list(records)
    worse[bad] = worse[bad]._replace(headers=[*worse[bad].headers, ("\x01\x02\x03", b"value")])
    return exchange(batch(worse, **options), b"\x01\x02\x03", NOT_UTF8)  # type: ignore[arg-type]
