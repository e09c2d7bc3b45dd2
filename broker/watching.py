"""What a topic would ask for: rate and burstiness by class, of what is written to it meanwhile. Pure.

A class is as in :mod:`broker.demand`, but what states no accuracy is a class of its own, since a quote has a default
for it. **Burst** is the index of dispersion of counts: the variance of the rows in slots as long as the class's latency
(100 ms to 10 s), over their mean (Cox, Lewis: "The Statistical Analysis of Series of Events", 1966). The first slot is
left out, since it was not seen from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.demand import class_key
from broker.placement_model import INF
from broker.quote import Asked
from modelless.messages import OnMiss, Prefer, Query

SLOT_MS_MIN, SLOT_MS_MAX = 100.0, 10_000.0
SLOTS_MIN = 10
"""With fewer, rows are taken to come independently of each other."""
CLASSES_MAX = 1_000
"""More are counted with the task's first class."""


@dataclass(slots=True)
class _Class:
    asked: Asked
    slot_ms: float
    began_ms: float
    rows: int = 0
    strictest_ms: float = INF
    floor: float | None = None
    number: int = 0
    """Of the present slot."""
    count: int = 0
    """Of rows in it."""
    sums: tuple[int, int, int] = (0, 0, 0)
    """Of slots that are over: how many, rows, squares of rows."""

    def add(self, rows: int, at_ms: float) -> None:
        self.pass_to(at_ms)
        self.rows += rows
        self.count += rows

    def pass_to(self, at_ms: float) -> None:
        """Slots end, those without rows too."""
        number = int((at_ms - self.began_ms) // self.slot_ms)
        if number > self.number:
            slots, rows, squares = self.sums
            if self.number == 0:
                self.sums = number - 1, 0, 0
            else:
                self.sums = slots + number - self.number, rows + self.count, squares + self.count**2
            self.number, self.count = number, 0

    @property
    def burst(self) -> float:
        slots, rows, squares = self.sums
        if slots < SLOTS_MIN or not rows:
            return 1.0
        mean = rows / slots
        return max(0.0, squares / slots - mean * mean) / mean


class Watch:
    """Counts in :meth:`query` and :meth:`foreign`, tells in :meth:`asked`.

    Args:
        began_ms: Unix milliseconds, like all its times.
        foreign: what a record that is no query of ours stands for, a row each; None: they are only counted.
        latency_ms_default: of a query that states none.
    """

    def __init__(self, began_ms: float, foreign: Asked | None, latency_ms_default: float) -> None:
        self._began_ms, self._foreign, self._latency_ms_default = began_ms, foreign, latency_ms_default
        self._classes: dict[object, _Class] = {}
        self.queries = 0
        """Of ours that name a task."""
        self.named = 0
        """Likewise, that name a model or a variant, which a quote does not cover."""
        self.others = 0
        """Records that are no queries of ours."""

    def query(self, query: Query, log_ms: float, now_ms: float) -> None:
        """A query of ours was read."""
        if query.task is None:
            self.named += 1
            return
        self.queries += 1
        at_ms = log_ms if abs(log_ms - now_ms) < SLOT_MS_MAX else now_ms  # a log that keeps other times
        latency_ms = self._latency_ms_default if query.deadline_ms is None else query.deadline_ms - at_ms
        if query.latency_ms_max is not None:
            latency_ms = min(query.latency_ms_max, latency_ms) if query.deadline_ms else query.latency_ms_max
        rows = query.inputs[0].shape[0] if query.inputs else 1
        self._add(query.task, max(latency_ms, 1e-3), query.accuracy_min, query.prefer, query.on_miss, rows, at_ms)

    def foreign(self, log_ms: float, now_ms: float) -> None:
        """A record that is no query of ours was read."""
        self.others += 1
        of = self._foreign
        if of is not None:
            at_ms = log_ms if abs(log_ms - now_ms) < SLOT_MS_MAX else now_ms
            self._add(of.task, of.latency_ms, of.accuracy_min, of.prefer, of.on_miss, 1, at_ms)

    def _add(
        self,
        task: str,
        latency_ms: float,
        accuracy_min: float | None,
        prefer: Prefer,
        on_miss: OnMiss,
        rows: int,
        at_ms: float,
    ) -> None:
        key = *class_key(task, latency_ms, accuracy_min or 0.0, prefer, on_miss == "degrade"), accuracy_min is None
        of = self._classes.get(key)
        if of is None and len(self._classes) >= CLASSES_MAX:
            of = next((each for each in self._classes.values() if each.asked.task == task), None)
        if of is None:
            asked = Asked(task, 0.0, latency_ms, accuracy_min, prefer, on_miss)
            slot_ms = min(max(latency_ms, SLOT_MS_MIN), SLOT_MS_MAX)
            of = self._classes[key] = _Class(asked, slot_ms, self._began_ms)
        of.strictest_ms = min(of.strictest_ms, latency_ms)
        if accuracy_min is not None:
            of.floor = max(of.floor or 0.0, accuracy_min)
        of.add(rows, at_ms)

    def asked(self, now_ms: float) -> list[Asked]:
        """Mean rates since it began, the most asked for first."""
        passed_s = max(now_ms - self._began_ms, 1.0) / 1000
        found = []
        for of in self._classes.values():
            of.pass_to(now_ms)
            was = of.asked
            rate = of.rows / passed_s
            found.append(Asked(was.task, rate, of.strictest_ms, of.floor, was.prefer, was.on_miss, of.burst))
        return sorted(found, key=lambda each: -each.rows_per_s)

    def counted(self) -> Mapping[str, int]:
        """Records, by what they are."""
        return {"queries": self.queries, "named": self.named, "others": self.others}
