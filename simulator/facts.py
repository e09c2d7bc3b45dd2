"""What a simulation is about: queries, variants with their measured times, workers. The same for all policies.

Times are milliseconds of virtual time from 0, prices USD.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from modelless.messages import OnMiss, Prefer

Outcome = Literal["in_time", "late", "refused", "expired"]
INF = float("inf")


@dataclass(slots=True, eq=False)
class SimulatedQuery:
    """One query of one row: what was asked, and what became of it."""

    index: int
    """By arrival."""
    task: str
    arrival_ms: float
    latency_ms_max: float = INF
    accuracy_min: float | None = None
    """None: the task's best variant's accuracy minus the slack, as in the contract."""
    on_miss: OnMiss = "reject"
    prefer: Prefer = "cost"
    topic: str = ""
    """That it is written to; who writes to one topic shares what it gets."""
    deadline_ms: float = field(init=False)
    outcome: Outcome | None = None
    worker: str = ""
    variant: str = ""
    accuracy: float = 0.0
    """Of the variant that ran it."""
    start_ms: float = -1.0
    end_ms: float = -1.0
    batch: int = 0
    """Rows of the batch that it ran in."""

    def __post_init__(self) -> None:
        self.deadline_ms = self.arrival_ms + self.latency_ms_max

    def again(self) -> SimulatedQuery:
        """The same question, without its outcome."""
        return SimulatedQuery(
            self.index,
            self.task,
            self.arrival_ms,
            self.latency_ms_max,
            self.accuracy_min,
            self.on_miss,
            self.prefer,
            self.topic,
        )


@dataclass(frozen=True, eq=False)
class VariantProfile:
    """One variant on one group, as it was measured."""

    task: str
    model: str
    variant: str
    group: str
    accuracy: float
    load_ms: float
    memory_mb: float
    sizes: tuple[int, ...]
    """Profiled batch sizes, ascending."""
    p50_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]

    @cached_property
    def key(self) -> tuple[str, str]:
        return self.variant, self.group

    @property
    def rows_max(self) -> int:
        """No batch is larger."""
        return self.sizes[-1]

    def size_for(self, rows: int) -> int:
        """Index of the profiled size whose time a batch of ``rows`` takes: the next larger one's."""
        return bisect_left(self.sizes, rows)

    def lat_ms(self, rows: int) -> float:
        """Median of a batch of ``rows``; ``rows`` at most :attr:`rows_max`."""
        return self.p50_ms[bisect_left(self.sizes, rows)]

    def tail_ms(self, rows: int) -> float:
        """99th percentile of a batch of ``rows``."""
        return self.p99_ms[bisect_left(self.sizes, rows)]

    def rows_within(self, budget_ms: float) -> int:
        """The largest profiled batch whose median fits; 0 if none does."""
        best = 0
        for size, ms in zip(self.sizes, self.p50_ms, strict=True):
            if ms <= budget_ms:
                best = size
        return best

    @cached_property
    def rows_per_ms(self) -> float:
        """Throughput at the best profiled size."""
        return max(size / ms for size, ms in zip(self.sizes, self.p50_ms, strict=True))


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Identical workers, one device each.

    With ``workers_max`` it scales: ``workers`` are there at time 0, and who decides rents and releases others.
    """

    name: str
    workers: int
    """At time 0, ready."""
    memory_mb: float
    price_per_hour: float
    workers_min: int = 0
    workers_max: int | None = None
    """At most so many are rented at once; None: the number is fixed."""
    start_ms: float = 0.0
    """From rent to ready; it costs what other time costs."""
    bill_s_min: float = 0.0
    """Every rent costs at least so long."""

    @property
    def scales(self) -> bool:
        return self.workers_max is not None

    @property
    def worker_names(self) -> list[str]:
        """At time 0."""
        return [f"{self.name}-{number}" for number in range(self.workers)]


Placement = Mapping[str, Sequence[str]]
"""Variants by worker."""


@dataclass(frozen=True)
class Portfolio:
    """All variants on all groups."""

    profiles: tuple[VariantProfile, ...]

    @cached_property
    def by_key(self) -> dict[tuple[str, str], VariantProfile]:
        """By (variant, group)."""
        return {profile.key: profile for profile in self.profiles}

    @cached_property
    def by_task(self) -> dict[str, list[VariantProfile]]:
        found: dict[str, list[VariantProfile]] = defaultdict(list)
        for profile in self.profiles:
            found[profile.task].append(profile)
        return dict(found)

    @cached_property
    def accuracy_best(self) -> dict[str, float]:
        """Of the best variant of each task."""
        return {task: max(p.accuracy for p in profiles) for task, profiles in self.by_task.items()}

    def floor(self, query: SimulatedQuery, slack: float = 0.02) -> float:
        """The accuracy that a query asks for, as in the contract. A task without a profile has no floor to meet."""
        if query.accuracy_min is not None:
            return query.accuracy_min
        return self.accuracy_best.get(query.task, INF) - slack


def group_of(worker: str) -> str:
    """Of a worker named as in :attr:`GroupSpec.worker_names`."""
    return worker.rpartition("-")[0]


def sorted_queries(queries: Iterable[SimulatedQuery]) -> list[SimulatedQuery]:
    """By arrival, numbered in that order; of two that arrive at once, the one given first."""
    ordered = sorted(queries, key=lambda query: query.arrival_ms)
    for index, query in enumerate(ordered):
        query.index = index
    return ordered
