"""lat(b): how long a batch of b rows takes, from a measured profile, kept alive by every batch that runs.

The profile gives a median and a p99 at a few batch sizes. Between them lat(b) is linear; below the smallest it is
flat, above the largest it grows in proportion. What workers observe moves two factors while the curves keep their
shape, so that a processor that is shared or throttled is believed within a few batches:

* ``scale`` of the median: the location of the logarithm of observed over profiled. Every batch moves it by a share of
  its own distance, and that distance counts up to a bound, so that no outlier moves it far (Huber, "Robust estimation
  of a location parameter", 1964, solved batch by batch as in Robbins and Monro, "A stochastic approximation method",
  1951);
* ``tail`` of the p99: the 99 % quantile of the same, by Robbins and Monro's steps for a quantile: a batch above the
  estimate moves it up by 0.99 of a step, one below it down by 0.01.

Both go back towards the profile while nothing is observed: what is chosen less because it was slow is tried again.

Rows that are padded to different lengths have a curve for each length. The two factors are those of all together: it is
the processor that is slower than it was, and not one length.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, inf, log
from typing import Final

from modelless.messages import BatchTime

_WEIGHT: Final = 0.05
_RATIO_MAX: Final = 2.0
"""Of one batch's time to the living median, either way; what is beyond counts as this."""
_TAIL_STEP: Final = 0.1
_TAIL: Final = 0.99
MARGIN_MAX: Final = 1.25
"""Times the median: the most that a batch is kept smaller for a long tail, which is seldom in the batch's size."""
QUIET_MS: Final = 5_000.0
"""Without a batch for so long, what was learned begins to be forgotten."""
RELAX_MS: Final = 30_000.0
"""Time constant of forgetting: a factor of 3 is one of 1.5 after so long."""
_FORGOTTEN: Final = 0.01
_USEFUL_SHARE: Final = 0.95
"""Of the best throughput; batches larger than the first that reaches it only block the device for longer."""
_FAIR_SHARE: Final = 0.5
"""Likewise; to make smaller batches than the first that reaches it, lest they block the device, costs all more."""
_SCALE_MIN: Final = 0.1
_SCALE_MAX: Final = 20.0


class LatencyTable:
    """lat(b) in ms of one variant on one group, by number of rows.

    Args:
        batches: ascending by size, at least one.
        beside: the table of rows of another length; what either observes both know.
    """

    def __init__(self, batches: tuple[BatchTime, ...], beside: LatencyTable | None = None) -> None:
        assert batches, "a profile that is ready has batch times"
        self.batches = batches
        self.rows_max = batches[-1].batch_size
        best = max(b.batch_size / b.p50_ms for b in batches)
        self.rows_useful = next(b.batch_size for b in batches if b.batch_size / b.p50_ms >= _USEFUL_SHARE * best)
        self.rows_fair = next(b.batch_size for b in batches if b.batch_size / b.p50_ms >= _FAIR_SHARE * best)
        self._sizes_useful = [b.batch_size for b in reversed(batches) if b.batch_size <= self.rows_useful]
        self.scale = 1.0
        """Living median over the profile's."""
        self.tail = 1.0
        """Living p99 over the profile's."""
        self.observed_ms = -inf
        """When the last batch was observed."""
        self._relaxed_ms = -inf
        self._together: list[LatencyTable] = [] if beside is None else beside._together
        self._together.append(self)
        self._p50_ms = _dense([(b.batch_size, b.p50_ms) for b in batches])
        self._p99_ms = _dense([(b.batch_size, b.p99_ms) for b in batches])

    def p50_ms(self, rows: int) -> float:
        if rows <= self.rows_max:
            return self._p50_ms[rows] * self.scale
        return self._p50_ms[-1] * self.scale * rows / self.rows_max

    def p99_ms(self, rows: int) -> float:
        if rows <= self.rows_max:
            return self._p99_ms[rows] * self.tail
        return self._p99_ms[-1] * self.tail * rows / self.rows_max

    def sure_ms(self, rows: int) -> float:
        """What a batch is given time for: its p99, or a margin above the median where the tail is longer than that."""
        p50_ms = self.p50_ms(rows)
        return min(max(self.p99_ms(rows), p50_ms), MARGIN_MAX * p50_ms)

    def queue_ms(self, rows: int, rows_of_batch: int | None = None) -> float:
        """Median time to work off that many rows in batches of that size, or in the largest useful ones."""
        if rows <= 0:
            return 0.0
        size = self.rows_useful if rows_of_batch is None else rows_of_batch
        return rows * self._p50_ms[size] / size * self.scale

    def rows_within(self, budget_ms: float, rows_min: int, block_ms: float = inf) -> int:
        """The largest profiled size that is useful, at least ``rows_min``, whose batch surely fits into the budget.

        ``block_ms``: and takes no longer than this at the median, unless all that does is much less efficient.
        """
        for size in self._sizes_useful:
            blocks = size > self.rows_fair and self.p50_ms(size) > block_ms
            if size <= rows_min or (self.sure_ms(size) <= budget_ms and not blocks):
                return max(size, rows_min)
        return rows_min

    def rows_lasting(self, ms: float) -> int:
        """The largest profiled size that is useful and surely takes no longer; 0: none."""
        return next((size for size in self._sizes_useful if self.sure_ms(size) <= ms), 0)

    def rows_as_quick(self, rows: int) -> int:
        """The most rows, of a profiled size, that take no longer than these."""
        ms = self.p50_ms(rows)
        return next((size for size in self._sizes_useful if size > rows and self.p50_ms(size) <= ms), rows)

    def times(self, rows: int, block_ms: float = inf) -> tuple[tuple[int, float], ...]:
        """(rows, ms that they surely take): these and, ascending, larger sizes as of :meth:`rows_within`."""
        larger = [
            (size, self.sure_ms(size))
            for size in reversed(self._sizes_useful)
            if size > rows and (size <= self.rows_fair or self.p50_ms(size) <= block_ms)
        ]
        return ((rows, self.sure_ms(rows)), *larger) if larger else ()

    def observe(self, rows: int, execute_ms: float, now_ms: float) -> None:
        """A batch ran."""
        self.relax(now_ms)
        p50_ms = self.p50_ms(rows)
        if p50_ms <= 0 or execute_ms <= 0:
            return
        self.observed_ms = now_ms
        ratio = min(max(execute_ms / p50_ms, 1 / _RATIO_MAX), _RATIO_MAX)
        self.scale = _bounded(self.scale * ratio**_WEIGHT)
        step = _TAIL if execute_ms > self.p99_ms(rows) else _TAIL - 1
        self.tail = _bounded(self.tail * exp(_TAIL_STEP * step))
        self._tell()

    def relax(self, now_ms: float) -> None:
        """Go back towards the profile for the time that nothing was observed; called now and then."""
        if self.scale == self.tail == 1.0:
            return
        since_ms = max(self.observed_ms + QUIET_MS, self._relaxed_ms)
        if now_ms > since_ms:
            share = exp((since_ms - now_ms) / RELAX_MS)
            self.scale, self.tail = _towards_one(self.scale, share), _towards_one(self.tail, share)
            self._relaxed_ms = now_ms
            self._tell()

    def restore(self, p50_scale: float, p99_scale: float, observed_ms: float) -> None:
        """Begin with what another broker had learned by ``observed_ms``; what was observed since then wins."""
        if observed_ms > self.observed_ms:
            self.scale, self.tail = _bounded(p50_scale), _bounded(p99_scale)
            self.observed_ms = observed_ms
            self._tell()

    def _tell(self) -> None:
        """What was learned, to the tables of other lengths."""
        for other in self._together:
            if other is not self:
                other.scale, other.tail = self.scale, self.tail
                other.observed_ms, other._relaxed_ms = self.observed_ms, self._relaxed_ms


def _bounded(factor: float) -> float:
    return min(max(factor, _SCALE_MIN), _SCALE_MAX)


def _towards_one(factor: float, share: float) -> float:
    """What is left of a factor's logarithm; 1 once nothing worth mentioning is."""
    left = log(factor) * share
    return exp(left) if abs(left) > _FORGOTTEN else 1.0


def _dense(points: list[tuple[int, float]]) -> list[float]:
    """At 0, 1, …, largest size the time of the next larger profiled one; never falling."""
    dense = [points[0][1]] * (points[0][0] + 1)
    for (size, _), (size_next, ms_next) in pairwise(points):
        dense += [ms_next] * (size_next - size)
    for index in range(1, len(dense)):
        dense[index] = max(dense[index], dense[index - 1])
    return dense
