"""lat(b): how long a batch of b rows takes, from a measured profile, kept alive by every batch that runs.

The profile gives a median and a p99 at a few batch sizes. Between them lat(b) is linear; below the smallest it is
flat, above the largest it grows in proportion. What workers observe moves one scale factor (an exponentially
weighted mean of observed over profiled), so that a processor that is shared or throttled is believed within a few
batches while the curve keeps its shape.
"""

from __future__ import annotations

from itertools import pairwise

from modelless.messages import BatchTime

_WEIGHT = 0.05
_USEFUL_SHARE = 0.95
"""Of the best throughput; batches larger than the first that reaches it only block the device for longer."""
_SCALE_MIN, _SCALE_MAX = 0.25, 8.0


class LatencyTable:
    """lat(b) in ms of one variant on one group, by number of rows."""

    def __init__(self, batches: tuple[BatchTime, ...]) -> None:
        """``batches`` ascending by size, at least one."""
        assert batches, "a profile that is ready has batch times"
        self.batches = batches
        self.rows_max = batches[-1].batch_size
        best = max(b.batch_size / b.p50_ms for b in batches)
        self.rows_useful = next(b.batch_size for b in batches if b.batch_size / b.p50_ms >= _USEFUL_SHARE * best)
        self.scale = 1.0
        self._p50_ms = _dense([(b.batch_size, b.p50_ms) for b in batches])
        self._p99_ms = _dense([(b.batch_size, b.p99_ms) for b in batches])

    def p50_ms(self, rows: int) -> float:
        if rows <= self.rows_max:
            return self._p50_ms[rows] * self.scale
        return self._p50_ms[-1] * self.scale * rows / self.rows_max

    def p99_ms(self, rows: int) -> float:
        if rows <= self.rows_max:
            return self._p99_ms[rows] * self.scale
        return self._p99_ms[-1] * self.scale * rows / self.rows_max

    def queue_ms(self, rows: int) -> float:
        """Median time to work off that many rows in the largest useful batches."""
        if rows <= 0:
            return 0.0
        full, rest = divmod(rows, self.rows_useful)
        return (full * self._p50_ms[self.rows_useful] + (self._p50_ms[rest] if rest else 0.0)) * self.scale

    def rows_within(self, budget_ms: float, rows_min: int) -> int:
        """The most rows that are useful, at least ``rows_min``, whose batch fits into the budget."""
        rows = self.rows_useful
        while rows > rows_min and self.p50_ms(rows) > budget_ms:
            rows = rows * 3 // 4 if rows > 4 else rows - 1
        return max(rows, rows_min)

    def observe(self, rows: int, execute_ms: float) -> None:
        """A batch ran."""
        profiled_ms = self.p50_ms(rows) / self.scale
        if profiled_ms <= 0 or execute_ms <= 0:
            return
        ratio = min(max(execute_ms / profiled_ms, _SCALE_MIN), _SCALE_MAX)
        self.scale += _WEIGHT * (ratio - self.scale)


def _dense(points: list[tuple[int, float]]) -> list[float]:
    """Linear interpolation at 0, 1, …, largest size; never falling, since more rows are never faster."""
    dense = [points[0][1]] * (points[0][0] + 1)
    for (size, ms), (size_next, ms_next) in pairwise(points):
        step = (max(ms_next, ms) - ms) / (size_next - size)
        dense += [ms + step * i for i in range(1, size_next - size + 1)]
    for index in range(1, len(dense)):
        dense[index] = max(dense[index], dense[index - 1])
    return dense
