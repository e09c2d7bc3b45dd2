"""Which of several offline jobs goes first: the one that has had the least device time so far. Pure.

Least attained service (Gu et al., "Tiresias", NSDI 2019, section 3.2: who has had the least goes first, so that nobody
need know how long a job will be, and short ones do not wait for long ones). What waits is not sorted anew as service is
given: a query's place is what its job will have had by the time that it starts, which is what the job has had and what
waits of it already. Jobs that compete thus take turns, and a new one goes first until it has had as much.

A job is named by the query's ``metadata.job``; queries without one are one job for each topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

JOBS_MAX = 1_000
"""Of which the least recent ones with nothing waiting are forgotten."""
NAME = "job"
"""In a query's metadata."""


@dataclass(slots=True, eq=False)
class Job:
    """What one job has had of this broker."""

    attained_ms: float = 0.0
    """Device time, as predicted for its part of each batch."""
    waiting_ms: float = 0.0
    """Of what waits."""
    waiting: int = 0
    """Queries."""

    def add(self, cost_ms: float) -> None:
        """A query waits."""
        self.waiting += 1
        self.waiting_ms += cost_ms

    def take(self, cost_ms: float) -> None:
        """It does not any more."""
        self.waiting -= 1
        self.waiting_ms = self.waiting_ms - cost_ms if self.waiting else 0.0

    def ran(self, cost_ms: float) -> None:
        """Its part of a batch that was sent."""
        self.attained_ms += cost_ms

    @property
    def place_ms(self) -> float:
        """What it will have had when its next query starts."""
        return self.attained_ms + self.waiting_ms


class Jobs:
    """All jobs of late."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str | None], Job] = {}

    def of(self, topic: str, metadata: Mapping[str, str]) -> Job:
        """The job that a query without a deadline belongs to."""
        key = topic, metadata.get(NAME)
        job = self._jobs.pop(key, None) or Job()
        self._jobs[key] = job
        if len(self._jobs) > JOBS_MAX:
            idle = next((name for name, each in self._jobs.items() if not each.waiting and each is not job), None)
            if idle is not None:
                del self._jobs[idle]
        return job
