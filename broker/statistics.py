"""Counters and histograms of the core, in plain Python; :mod:`broker.metrics` only reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ShedReason = Literal["load", "share", "expired", "quota"]
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts per bucket, ``bounds`` being inclusive upper ones; the last bucket is everything above."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_all(self, values: Sequence[float]) -> None:
        counts, bounds = self.counts, self.bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.sum += sum(values)


class Shed(NamedTuple):
    """Which queries were not answered for want of devices, and why.

    ``load``: they would have been late; ``share``: so they would, since their topic is ahead of its share;
    ``expired``: their deadline passed while they waited; ``quota``: their tenant has used up what it may.
    """

    task: str
    topic: str
    """Where it is the quota, the tenant: a topic, or the name that its queries give."""
    reason: ShedReason


@dataclass(slots=True)
class Statistics:
    """What happened since the process started."""

    read: int = 0
    skipped: int = 0
    """Records that an earlier owner had finished, or that were answered by a worker before it lost its broker."""
    malformed: int = 0
    dead_letters: int = 0
    lost_workers: int = 0
    retried: int = 0
    recalled: int = 0
    """Queries that a straggling worker gave back before it had started them."""
    hedged: int = 0
    """Queries that were sent to a second worker while the first one straggled."""
    duplicates_avoided: int = 0
    """Hedged queries that one of the two did not answer any more, since the other one had."""
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (status, task)."""
    in_time: Counter[str] = field(default_factory=Counter)
    """OK within the latency asked for, by task."""
    shed: Counter[Shed] = field(default_factory=Counter)
    """What could have been answered in time, had there been less to do."""
    cost_usd: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Predicted device cost of what was sent, by task."""
    topic_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Predicted device time of what was sent, by topic, since there is more than one."""
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """From the log time to the dispatch."""
    worker_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """From the dispatch to the outcome."""
