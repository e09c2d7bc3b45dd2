"""What this worker answered lately. Pure.

A broker that takes over a partition asks nobody whether a query was answered between the last commit and the crash:
every worker tells every broker that connects. Bounded in time and number; what is forgotten costs a duplicate reply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from modelless.frames import Answered
from modelless.messages import RecordId

KEPT_MS = 30_000.0
RECORDS_MAX = 200_000
_BUCKET_MS = 1000.0


class AnsweredLately:
    """Offsets by topic and partition, in buckets of a second."""

    def __init__(self, kept_ms: float = KEPT_MS, records_max: int = RECORDS_MAX) -> None:
        self._kept_ms = kept_ms
        self._records_max = records_max
        self._buckets: deque[tuple[float, dict[tuple[str, int], set[int]]]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, records: Iterable[RecordId], now_ms: float) -> None:
        """Remember ``records`` (their replies are in Kafka)."""
        if not self._buckets or now_ms - self._buckets[-1][0] >= _BUCKET_MS:
            self._buckets.append((now_ms, {}))
        bucket = self._buckets[-1][1]
        for topic, partition, offset in records:
            offsets = bucket.get((topic, partition))
            if offsets is None:
                offsets = bucket[topic, partition] = set()
            self._count += offset not in offsets
            offsets.add(offset)
        self._forget(now_ms)

    def frame(self, now_ms: float) -> Answered:
        """All that is remembered, each record once."""
        self._forget(now_ms)
        merged: dict[tuple[str, int], set[int]] = {}
        for _, bucket in self._buckets:
            for key, offsets in bucket.items():
                merged.setdefault(key, set()).update(offsets)
        return Answered(tuple((topic, partition, tuple(sorted(o))) for (topic, partition), o in merged.items()))

    def _forget(self, now_ms: float) -> None:
        """Drop whole buckets that are too old, and the oldest ones while there are too many records."""
        while self._buckets and (
            now_ms - self._buckets[0][0] > self._kept_ms + _BUCKET_MS
            or (self._count > self._records_max and len(self._buckets) > 1)
        ):
            self._count -= sum(len(offsets) for offsets in self._buckets.popleft()[1].values())
