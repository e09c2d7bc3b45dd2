"""How long a fetch waits for more records than the first one.

A record that is read by itself wakes every process on its way: Kafka, the broker, a worker, its executor, Kafka again,
whoever reads the reply. That costs several times what the record itself does, and where processors are scarce, what it
costs makes the others wait. So while records come quickly, the next fetch asks Kafka to let some gather (its
``min_bytes`` and ``max_wait_ms``), and all that follows is done once for these.

It waits no longer than that is worth: until a few are there, for a few milliseconds at most, for a small part of the
time that the most urgent query of late left us, and not at all where hardly another one would come meanwhile. What has
gathered already, in a backlog, is fetched at once. Pure; times are of any one clock.
"""

from __future__ import annotations

from math import exp
from typing import NamedTuple

GATHER_MS_MAX = 2.0
GATHER_RECORDS_MIN = 1.5
"""Expected meanwhile, or nothing is waited for."""
GATHER_RECORDS_MAX = 8.0
"""With so many together a wake-up costs little for each."""
SLACK_SHARE = 0.02
"""Of the time between a query's arrival and its deadline."""
RATE_MS = 100.0
"""Over which arrivals are averaged."""
URGENCY_MS = 1000.0
"""In which an urgent query is forgotten, by a factor of e."""


class Fetch(NamedTuple):
    """What to ask of Kafka: at least so many bytes, or whatever there is after so long."""

    bytes_min: int
    wait_ms: int


class Pace:
    """See the module.

    Args:
        idle: what to ask for when nothing is to gather.
    """

    def __init__(self, idle: Fetch) -> None:
        self._idle = idle
        self._records_per_ms = 0.0
        self._bytes_per_ms = 0.0
        self._slack_ms = float("inf")
        self._read_ms: float | None = None

    def read(self, records: int, size_bytes: int, slack_ms: float, now_ms: float) -> None:
        """So many records were read, the most urgent of them to be answered ``slack_ms`` after its arrival."""
        if not records:  # nothing came for longer than gathering would last
            self._records_per_ms = self._bytes_per_ms = 0.0
        past_ms = 0.0 if self._read_ms is None else max(0.0, now_ms - self._read_ms)
        self._read_ms = now_ms
        kept = exp(-past_ms / RATE_MS)
        self._records_per_ms = self._records_per_ms * kept + records / RATE_MS
        self._bytes_per_ms = self._bytes_per_ms * kept + size_bytes / RATE_MS
        self._slack_ms = min(slack_ms, self._slack_ms * exp(min(past_ms / URGENCY_MS, 10.0)))

    @property
    def gathers(self) -> bool:
        return self.next is not self._idle

    @property
    def next(self) -> Fetch:
        """What the next fetch should ask for."""
        rate = self._records_per_ms
        longest_ms = min(GATHER_MS_MAX, self._slack_ms * SLACK_SHARE)
        if rate * longest_ms < GATHER_RECORDS_MIN:
            return self._idle
        wait_ms = int(min(longest_ms, GATHER_RECORDS_MAX / rate))
        if not wait_ms:
            return self._idle
        return Fetch(max(1, int(self._bytes_per_ms * wait_ms)), wait_ms)
