"""Which offset of a partition may be committed, and what is finished above it.

Kafka remembers one number per partition: everything below it is done. Queries finish in any order, so the number
is the *lowest unfinished* offset, never the highest seen (that loses queries), and what has finished above it
travels beside the number, in the commit's metadata, so that a successor does not run it again.

Words:

* **position**: one past the last offset that was read, including gaps (transaction markers, aborted or compacted
  records) that nobody will ever see.
* **base**: the lowest unfinished offset; the position when nothing is unfinished. This is what gets committed.
* **bitmap**: bit ``i`` is set when offset ``base + i`` needs no further work: it finished, or it is a gap.

Metadata is ``1:`` and the base64 of the deflated bitmap, at most 4,096 characters (Kafka's default limit). One that
does not fit is left out: that costs duplicates, never a query.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import deque
from itertools import chain

METADATA_CHARACTERS_MAX = 4096
_BITMAP_BYTES_MAX = 1 << 20
_PREFIX = "1:"


class PartitionOffsets:
    """The offsets of one partition during one ownership (epoch) of it.

    The caller reports every record exactly in the order of its offsets to :meth:`arrived`, and each one that was
    accepted exactly once to :meth:`finished`.
    """

    def __init__(self, base: int, metadata: str = "") -> None:
        """Start from what the previous owner committed; unreadable metadata counts as none."""
        self._read: deque[int] = deque()
        self._finished: set[int] = set()
        self._position = base
        self._finished_before = {base + bit for bit in _set_bits(_unpack(metadata))}
        self._unfinished = 0

    @property
    def position(self) -> int:
        return self._position

    @property
    def unfinished(self) -> int:
        """How many accepted offsets have not finished."""
        return self._unfinished

    @property
    def base(self) -> int:
        """The lowest unfinished offset, which is what may be committed."""
        while self._read and self._read[0] in self._finished:
            self._finished.remove(self._read.popleft())
        return self._read[0] if self._read else self._position

    def arrived(self, offset: int) -> bool:
        """A record was read. False when it needs no work: an earlier owner finished it, or it was read before."""
        if offset < self._position:
            return False
        self._position = offset + 1
        if offset in self._finished_before:
            self._finished_before.remove(offset)
            return False
        self._read.append(offset)
        self._unfinished += 1
        return True

    def passed(self, position: int) -> None:
        """The reader stands at ``position`` now: offsets before it that never arrived are gaps."""
        if position > self._position:
            self._position = position
            if self._finished_before:
                self._finished_before = {offset for offset in self._finished_before if offset >= position}

    def finished(self, offset: int) -> None:
        """An accepted offset has its terminal outcome."""
        assert offset not in self._finished, f"offset {offset} finished twice"
        self._finished.add(offset)
        self._unfinished -= 1

    def commit(self) -> tuple[int, str]:
        """(offset, metadata) to commit now."""
        base = self.base
        bits = self._position - base
        if not bits and not self._finished_before:
            return base, ""
        return base, _pack(self._bitmap(base))

    def _bitmap(self, base: int) -> bytes:
        """Bits of [base, end): set unless the offset was accepted and is unfinished."""
        end = max(self._position, 1 + max(self._finished_before, default=-1))
        if end - base > _BITMAP_BYTES_MAX * 8:
            return b""
        bits = bytearray(b"\xff" * ((end - base) // 8 + 1))
        read_before = (offset for offset in self._read if offset not in self._finished)
        unread = (
            offset for offset in range(self._position, base + 8 * len(bits)) if offset not in self._finished_before
        )
        for offset in chain(read_before, unread):
            bits[(offset - base) >> 3] &= ~(1 << ((offset - base) & 7))
        return bytes(bits)


def _pack(bitmap: bytes) -> str:
    if not any(bitmap):
        return ""
    text = _PREFIX + base64.b64encode(zlib.compress(bitmap, 6)).decode()
    return text if len(text) <= METADATA_CHARACTERS_MAX else ""


def _unpack(metadata: str) -> bytes:
    """The bitmap, or nothing for whatever is not one of ours (an empty or foreign text, or a damaged one)."""
    if not metadata.startswith(_PREFIX) or len(metadata) > METADATA_CHARACTERS_MAX:
        return b""
    try:
        packed = base64.b64decode(metadata[len(_PREFIX) :], validate=True)
        inflate = zlib.decompressobj()
        bitmap = inflate.decompress(packed, _BITMAP_BYTES_MAX)
    except (binascii.Error, ValueError, zlib.error):
        return b""
    return bitmap if inflate.eof and not inflate.unused_data else b""


def _set_bits(bitmap: bytes) -> list[int]:
    return [8 * index + bit for index, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]
