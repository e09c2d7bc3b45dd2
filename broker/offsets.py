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
        self._unfinished: dict[int, None] = {}
        self._position = base
        self._start = base
        self._before = _unpack(metadata)

    @property
    def position(self) -> int:
        return self._position

    @property
    def unfinished(self) -> int:
        """How many accepted offsets have not finished."""
        return len(self._unfinished)

    @property
    def base(self) -> int:
        """The lowest unfinished offset, which is what may be committed."""
        return next(iter(self._unfinished), self._position)

    def arrived(self, offset: int) -> bool:
        """A record was read. False when it needs no work: an earlier owner finished it, or it was read before."""
        if offset < self._position:
            return False
        self._position = offset + 1
        if self._before and self._finished_before(offset - self._start):
            return False
        self._unfinished[offset] = None
        return True

    def passed(self, position: int) -> None:
        """The reader stands at ``position`` now: offsets before it that never arrived are gaps."""
        self._position = max(position, self._position)

    def finished(self, offset: int) -> None:
        """An accepted offset has its terminal outcome."""
        assert offset in self._unfinished, f"offset {offset} was not accepted, or finished twice"
        del self._unfinished[offset]

    def commit(self) -> tuple[int, str]:
        """(offset, metadata) to commit now."""
        base = self.base
        if base == self._position and not self._before:
            return base, ""
        return base, _pack(self._bitmap(base))

    def _finished_before(self, bit: int) -> bool:
        if bit >= 8 * len(self._before):
            self._before = b""  # everything that it speaks of has been read
            return False
        return bool(self._before[bit >> 3] >> (bit & 7) & 1)

    def _bitmap(self, base: int) -> bytes:
        """Below the position all bits but the unfinished ones; from there on those that were finished before."""
        read = self._position - base
        if read > 8 * _BITMAP_BYTES_MAX:
            return b""
        everything = (1 << read) - 1 | int.from_bytes(self._before, "little") >> base - self._start
        bits = bytearray(everything.to_bytes((everything.bit_length() + 7) >> 3, "little"))
        for offset in self._unfinished:
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
