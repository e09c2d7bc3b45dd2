"""What is asked for: rows a second by class of query, as the placement plans for it. Pure.

A class is what queries have in common that ask for nearly the same: task, latency within a factor of
:data:`LATENCY_STEP`, accuracy floor within 1 / :data:`ACCURACY_STEPS`, preference, whether they may be degraded. It is
told with the shortest latency and the highest floor that was lately asked for in it. So what serves the class serves
each of its queries, and a class asks for no more than some query of it did: queries that all ask the same are told
exactly. (Rounded to a step, a class could ask for less time, or more accuracy, than a variant has that suits all of
its queries.)

A rate is an exponentially weighted mean over the time between two looks, over the weights that there was time for:
exact for what is constant from the first look on, and forgotten within some tens of seconds when it is over. What rises
beyond chance is believed at once: no rate is below what the last look saw less three standard deviations, and after a
surge, which is another load than the one before, the mean begins anew with what came since it began. When that was is
told by a cumulative sum (Page, "Continuous inspection schemes", Biometrika 41, 1954): where the rows since some moment
are no more than a surge's would have been, it has not begun yet. Asked often, that is within a few queries' time,
whatever the time since the last look.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import exp, floor, inf, log, sqrt
from typing import Final

from modelless.messages import Demanded, Prefer, Query

MEMORY_MS: Final = 5_000.0
"""Time constant of forgetting."""
CLASSES_MAX: Final = 256
"""That are told, the most asked for; 100 bytes each, a broker's announcement stays below some 30 kB."""
COUNTED_MAX: Final = 4 * CLASSES_MAX
"""New classes between two looks; what is beyond is counted for its task alone."""
LATENCY_STEP: Final = 1.25
LATENCY_MS_MIN: Final = 1e-3
"""Less is one class."""
ACCURACY_STEPS: Final = 1000
FIRST_LOOK_MS: Final = 500.0
"""What is taken to have passed when nobody looked before."""
CHANCE: Final = 3.0
"""Standard deviations of the number of queries."""
SURGE: Final = 1.5
SURGE_ROWS_MIN: Final = 3.0
"""More than so many times what was expected since it began, plus so many rows, are worth to be told at once."""
RISE_MS_MIN: Final = 200.0
"""So long a surge is taken to have lasted at least: what comes in one clump says little of how much comes."""
_FORGOTTEN: Final = 0.01
"""Rows a second."""
_LOG_STEP: Final = log(LATENCY_STEP)

Key = tuple[str, int | None, int, Prefer, bool]
"""Of a class: task, steps of latency, steps of accuracy, preference, whether it degrades."""


@dataclass(slots=True)
class _Class:
    rows: int = 0
    """Since the last look; so are the next three."""
    queries: int = 0
    latency_ms: float = inf
    accuracy: float = 0.0
    rate: float = 0.0
    """Rows a second."""
    weight: float = 0.0
    """The sum of all weights of that mean."""
    before: tuple[float, float] = inf, 0.0
    """The shortest latency and the highest floor at the last look that saw any."""
    strictest: tuple[float, float] = inf, 0.0
    """Of the last two such looks."""
    rise_ms: float = -inf
    """When a surge may have begun, unless that was at the last look."""
    rise_rows: int = 0
    """By then, of those since the last look; so is the next one."""
    rise_queries: int = 0
    surges: bool = False

    @property
    def surely(self) -> float:
        """Of the rows since the last look, those that are not chance."""
        return _surely(self.rows, self.queries)

    def look_for_surge(self, looked_ms: float, now_ms: float) -> None:
        """Since the last look."""
        if self.surges:
            return
        rows, queries = self.rows - self.rise_rows, self.queries - self.rise_queries
        least = SURGE * (self.rate * (now_ms - max(self.rise_ms, looked_ms)) / 1000)
        self.surges = _surely(rows, queries) > least + SURGE_ROWS_MIN
        if rows <= least:
            self.rise_ms, self.rise_rows, self.rise_queries = now_ms, self.rows, self.queries


class DemandMeter:
    """Counts in :meth:`add`, tells in :meth:`rates`."""

    def __init__(self) -> None:
        self._classes: dict[Key, _Class] = {}
        self._beyond: dict[str, int] = {}
        """By task, rows since the last look of classes that were too many to count."""
        self._looked_ms: float | None = None
        self._weight = 0.0
        """Of a mean that began with the first look."""

    def add(self, query: Query, latency_ms: float, accuracy_floor: float, rows: int) -> None:
        """A query that names a task arrived; one that names a model has no choice that a placement could widen.

        Args:
            latency_ms: from its log time to its deadline; infinite: none.
        """
        assert query.task is not None
        key = class_key(query.task, latency_ms, accuracy_floor, query.prefer, query.on_miss == "degrade")
        of = self._classes.get(key)
        if of is None:
            if len(self._classes) >= COUNTED_MAX:
                self._beyond[query.task] = self._beyond.get(query.task, 0) + rows
                return
            of = self._classes[key] = _Class(weight=self._weight)
        of.rows += rows
        of.queries += 1
        if latency_ms < of.latency_ms:
            of.latency_ms = latency_ms
        if accuracy_floor > of.accuracy:
            of.accuracy = accuracy_floor

    def rates(self, now_ms: float) -> tuple[Demanded, ...]:
        """Rows a second, class by class, the most asked for first; called about once a second.

        What a task has beyond :data:`CLASSES_MAX` classes is told as more of its others, so that its volume is right.
        """
        if self._looked_ms is None:
            self._looked_ms = now_ms - FIRST_LOOK_MS
        passed_ms = now_ms - self._looked_ms
        if passed_ms > 0:
            self._look(self._looked_ms, now_ms)
            self._looked_ms = now_ms
        told = [item for item in self._classes.items() if item[1].rate > 0]
        return tuple(
            Demanded(
                task,
                None if steps is None else of.strictest[0],
                of.strictest[1],
                prefer,
                degrades,
                of.rate,
            )
            for (task, steps, _, prefer, degrades), of in told
        )

    def surges(self, now_ms: float) -> bool:
        """Much more came of late than was to be expected, and than is chance; the oftener it is called the sooner."""
        looked_ms = now_ms - FIRST_LOOK_MS if self._looked_ms is None else self._looked_ms
        for of in self._classes.values():
            of.look_for_surge(looked_ms, now_ms)
        return any(of.surges for of in self._classes.values())

    def _look(self, looked_ms: float, now_ms: float) -> None:
        passed_ms = now_ms - looked_ms
        kept = exp(-passed_ms / MEMORY_MS)
        self._weight = kept * self._weight + 1 - kept
        volume: dict[str, float] = {}
        for (task, *_), of in self._classes.items():
            of.look_for_surge(looked_ms, now_ms)
            surely = of.surely * 1000 / passed_ms
            if of.surges:
                rise_ms = max(RISE_MS_MIN, now_ms - max(of.rise_ms, looked_ms))
                of.rate, of.weight = (of.rows - of.rise_rows) * 1000 / rise_ms, 1 - exp(-rise_ms / MEMORY_MS)
            else:
                weight = kept * of.weight + 1 - kept
                of.rate = (kept * of.weight * of.rate + (1 - kept) * of.rows * 1000 / passed_ms) / weight
                of.weight = weight
            of.rate = max(of.rate, surely)
            volume[task] = volume.get(task, 0.0) + of.rate
            if of.rows:
                now = of.latency_ms, of.accuracy
                of.strictest = min(now[0], of.before[0]), max(now[1], of.before[1])
                of.before = now
                of.rows, of.queries, of.latency_ms, of.accuracy = 0, 0, inf, 0.0
            of.rise_ms, of.rise_rows, of.rise_queries, of.surges = -inf, 0, 0, False
        for task, rows in self._beyond.items():
            volume[task] = volume.get(task, 0.0) + (1 - kept) * rows * 1000 / passed_ms / self._weight
        self._beyond.clear()
        ranked = sorted(self._classes.items(), key=lambda item: -item[1].rate)
        if len(ranked) > CLASSES_MAX:  # what is told of one class of each task first: no task is forgotten for others'
            most = {key[0]: key for key, _ in reversed(ranked)}
            ranked.sort(key=lambda item: most[item[0][0]] != item[0])
            ranked = sorted(ranked[:CLASSES_MAX], key=lambda item: -item[1].rate)
        self._classes = {key: of for key, of in ranked if of.rate > _FORGOTTEN}
        told: dict[str, float] = {}
        for (task, *_), of in self._classes.items():
            told[task] = told.get(task, 0.0) + of.rate
        for (task, *_), of in self._classes.items():
            of.rate *= volume[task] / told[task]


def _surely(rows: int, queries: int) -> float:
    """Of rows in so many queries, those that are not chance."""
    return rows * max(0.0, 1 - CHANCE / sqrt(queries)) if queries else 0.0


def total(demands: Iterable[Demanded]) -> tuple[Demanded, ...]:
    """Of all brokers together, by the same classes."""
    classes: dict[Key, Demanded] = {}
    for each in demands:
        key = key_of(each)
        known = classes.get(key)
        if known is None:
            classes[key] = each
            continue
        classes[key] = Demanded(
            each.task,
            None if known.latency_ms is None or each.latency_ms is None else min(known.latency_ms, each.latency_ms),
            max(known.accuracy_min, each.accuracy_min),
            each.prefer,
            each.degrades,
            known.rows_per_second + each.rows_per_second,
        )
    return tuple(classes.values())


def key_of(each: Demanded) -> Key:
    """The class of what is told."""
    latency_ms = inf if each.latency_ms is None else each.latency_ms
    return class_key(each.task, latency_ms, each.accuracy_min, each.prefer, each.degrades)


@lru_cache(4096)
def class_key(task: str, latency_ms: float, accuracy: float, prefer: Prefer, degrades: bool) -> Key:
    """The class of a query, and of what is told of it. ``latency_ms`` infinite: none."""
    steps = floor(log(max(latency_ms, LATENCY_MS_MIN)) / _LOG_STEP + 1e-9) if latency_ms < inf else None
    return task, steps, floor(accuracy * ACCURACY_STEPS + 1e-9), prefer, degrades
