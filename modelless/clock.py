"""Kafka's time, known locally.

A record that is sent at local time ``s`` and acknowledged at local time ``a`` was stamped in between, with Kafka's
time ``l``, cut to whole milliseconds. So the offset *Kafka minus local* lies in ``[l - a, l + 1 - s)``: every
acknowledgement from a LogAppendTime topic is an interval, and what all recent ones have in common is the estimate
(Marzullo, "Maintaining the time in a distributed system", 1984; for one observation, Cristian's algorithm).

* Nothing is assumed of the local wall clock: local time is monotonic, so that an operator who sets the clock moves
  nothing here.
* Two clocks drift apart by up to ``DRIFT_MAX``: old intervals widen with their age.
* When Kafka's clock steps, new intervals contradict old ones: the newest win and what contradicts them is forgotten.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

DRIFT_MAX = 1e-4
"""Milliseconds per millisecond that two clocks may drift apart: two ordinary crystals of 50 ppm each."""
WINDOW_MS = 60_000.0
SLOT_MS = 1_000.0
"""Observations this close together are kept as one interval, so that the window is bounded in memory too."""

LocalClock = Callable[[], float]


@dataclass(slots=True)
class _Interval:
    at_ms: float
    low_ms: float
    high_ms: float


def _steady_clock() -> LocalClock:
    """Unix milliseconds by the wall clock of now, monotonic from then on."""
    start_ms = time.time() * 1000 - time.monotonic() * 1000
    return lambda: start_ms + time.monotonic() * 1000


class KafkaClock:
    """Kafka time in Unix milliseconds, and how far it may be off.

    Args:
        local_ms: the local clock, which must never step; default: the wall clock of now, monotonic from then on.
    """

    def __init__(self, local_ms: LocalClock | None = None) -> None:
        self.local_ms = local_ms or _steady_clock()
        self._seen: deque[_Interval] = deque()
        self._offset_ms = 0.0
        self._half_ms = math.inf
        self._estimated_ms = 0.0

    @property
    def synchronized(self) -> bool:
        """Whether anything was observed; until then Kafka time is taken to be local time."""
        return bool(self._seen)

    @property
    def offset_ms(self) -> float:
        """Kafka time minus local time."""
        return self._offset_ms

    @property
    def allowance_ms(self) -> float:
        """How far ``now_ms`` may be off either way; infinite until something was observed."""
        return self._half_ms + DRIFT_MAX * max(0.0, self.local_ms() - self._estimated_ms)

    def now_ms(self) -> float:
        """Kafka time now. Estimates improve, so it may step back by the allowance: no clock for intervals."""
        return self.local_ms() + self._offset_ms

    def observe(self, sent_ms: float, log_ms: float, acked_ms: float) -> None:
        """Learn from one acknowledged record.

        Args:
            sent_ms: ``local_ms()`` before it was handed to the producer.
            log_ms: the timestamp in its acknowledgement; the topic must be LogAppendTime.
            acked_ms: ``local_ms()`` after the acknowledgement.
        """
        if not sent_ms <= acked_ms:
            return
        drift_ms = DRIFT_MAX * (acked_ms - sent_ms)  # the upper end is of the time when it was sent
        new = _Interval(acked_ms, log_ms - acked_ms, log_ms + 1 - sent_ms + drift_ms)
        last = self._seen[-1] if self._seen else None
        if last is not None and acked_ms - last.at_ms < SLOT_MS and _meet(last, new):
            last.low_ms, last.high_ms = max(last.low_ms, new.low_ms), min(last.high_ms, new.high_ms)
        else:
            self._seen.append(new)
        self._estimate(acked_ms)

    def _estimate(self, now_ms: float) -> None:
        """Intersect from the newest to the oldest; what contradicts, and what is before it, is forgotten."""
        common = _Interval(now_ms, -math.inf, math.inf)
        kept: deque[_Interval] = deque()
        for interval in reversed(self._seen):
            age_ms = now_ms - interval.at_ms
            drift_ms = DRIFT_MAX * max(0.0, age_ms)
            wide = _Interval(now_ms, interval.low_ms - drift_ms, interval.high_ms + drift_ms)
            if age_ms > WINDOW_MS or not _meet(common, wide):
                break
            common.low_ms, common.high_ms = max(common.low_ms, wide.low_ms), min(common.high_ms, wide.high_ms)
            kept.appendleft(interval)
        self._seen = kept
        self._offset_ms = (common.low_ms + common.high_ms) / 2
        self._half_ms = (common.high_ms - common.low_ms) / 2
        self._estimated_ms = now_ms


def _meet(one: _Interval, other: _Interval) -> bool:
    return max(one.low_ms, other.low_ms) <= min(one.high_ms, other.high_ms)
