"""Candidates in the order of a preference: the first within limits, whatever they are, without looking at each.

A set of candidates is an integer with a bit for each, the best at the highest, which makes "the best of a set" its
``bit_length``. What is within a limit is such a set, found by bisection: one of what answers in time in each class, one
of what is within the other limit; and the best of both is the answer. Many candidates are cut into buckets of nearly
equal values, and the set is that of every bucket that the limit touches: then who is found is looked at, and the next
one taken if it is not within the limits after all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from modelless.messages import Prefer

if TYPE_CHECKING:
    from broker.catalog import Candidate

EXACT_MAX = 512
"""Candidates in all fronts together up to which each has a bucket of its own."""
BUCKETS_MAX = 128
"""Of more than these."""
ANY, GONE, UNLOADED = -1, 0, 1
"""In place of a class: all; no candidate any more; those that nobody has loaded."""

NEVER = float("inf")

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]
Objects = npt.NDArray[np.object_]

Bounds = tuple[Sequence[int], Sequence[float], Sequence[float]]
"""Where to look, and what holds there: classes, ms of what comes before in each, at most so many ms of its own."""

EVERYTHING: Bounds = ((ANY,), (0.0,), (NEVER,))
"""Loaded or not, if nothing came before it."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """What is within a limit: the set at ``bisect_right(lows, limit)``."""

    lows: list[float]
    """The smallest value of each bucket."""
    sets: list[int]
    """Of those in the buckets before each one; at last of all."""

    def within(self, limit: float) -> int:
        return self.sets[bisect_right(self.lows, limit)]


def _scale(values: Floats, places: Places, size: int) -> _Scale:
    """Of these places, so many in a bucket."""
    places = places[np.argsort(values[places])]
    if size == 1:
        members = [1 << place for place in places.tolist()]
    else:
        number = len(places)
        flags = np.zeros((-(-number // size), len(values)), np.bool_)
        flags[np.arange(number) // size, places] = True
        rows = np.packbits(flags, axis=1, bitorder="little")
        members = [int.from_bytes(row.tobytes(), "little") for row in rows]
    return _Scale(values[places[::size]].tolist(), list(accumulate(members, or_, initial=0)))


def keys_of(prefer: Prefer, losses: Floats, lat_ms: Floats) -> tuple[Floats, Floats, Floats]:
    """What is preferred, then what decides between equals; lower is better."""
    accuracy, cost = losses[0], losses[1]
    if prefer == "latency":
        return lat_ms, cost, accuracy
    return (cost, accuracy, lat_ms) if prefer == "cost" else (accuracy, cost, lat_ms)


class View:
    """Fronts in the order of a preference, the best last, for one number of rows.

    By cost the limits are on accuracy and lat(b), by accuracy on cost and lat(b), by latency on accuracy and cost.
    """

    __slots__ = (
        "_accuracy",
        "_by",
        "_by_class",
        "_candidates",
        "_classes",
        "_cost",
        "_equal",
        "_exact",
        "_lat_ms",
        "age",
    )

    def __init__(
        self, age: int, by: Prefer, candidates: Objects, losses: Floats, lat_ms: Floats, classes: Slots
    ) -> None:
        """``age``: of the fronts; ``losses``: minus accuracy and cost first."""
        keys = keys_of(by, losses, lat_ms)
        order = np.lexsort(keys[::-1])[::-1]
        accuracy, cost, lat_ms, classes = losses[0][order], losses[1][order], lat_ms[order], classes[order]
        size = 1 if len(order) <= EXACT_MAX else -(-len(order) // BUCKETS_MAX)
        everybody = np.arange(len(order))
        self.age = age
        self._by = by
        self._candidates: list[Candidate] = candidates[order].tolist()
        self._exact = size == 1
        self._lat_ms: list[float] = lat_ms.tolist()
        self._classes: list[int] = classes.tolist()
        self._accuracy = _scale(accuracy, everybody, size) if by != "accuracy" else None
        self._cost = _scale(cost, everybody, size) if by != "cost" else None
        self._by_class = {ANY: _Scale([-NEVER], [0, -1])}
        for class_id in set(classes.tolist()):
            own = np.flatnonzero(classes == class_id)
            self._by_class[class_id] = _scale(lat_ms, own, len(own) if by == "latency" else size)
        equal = (accuracy[1:] == accuracy[:-1]) & (cost[1:] == cost[:-1])
        self._equal: list[bool] = [False, *equal.tolist()]
        """Whether it has the same accuracy and cost as the one before it."""

    def cheapest(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Iterator[tuple[int, Candidate]]:
        """Of a view by cost, (class, candidate): that of each class which is in time and accurate."""
        assert self._accuracy is not None
        class_ids, _, lats_ms_max = bounds
        accurate = self._accuracy.within(-accuracy_min)
        for class_id, lat_ms_max in zip(class_ids, lats_ms_max, strict=True):
            found = accurate & self._by_class[class_id].within(lat_ms_max)
            while found:
                place = found.bit_length() - 1
                candidate = self._candidates[place]
                if self._exact or (self._lat_ms[place] <= lat_ms_max and candidate.accuracy_low >= accuracy_min):
                    if candidate.cost_per_1000_usual <= cost_max:
                        yield class_id, candidate
                    break
                found ^= 1 << place

    def affordable(self, bounds: Bounds, cost_max: float) -> Iterator[tuple[int, Candidate]]:
        """Of a view by accuracy, (class, candidate) of what is in time and affordable."""
        assert self._cost is not None
        found = self._cost.within(cost_max) & self._in_time(bounds)
        lat_ms_max_of = {} if self._exact else dict(zip(bounds[0], bounds[2], strict=True))
        while found:
            place = found.bit_length() - 1
            found ^= 1 << place
            candidate, class_id = self._candidates[place], self._classes[place]
            if self._exact or (
                self._lat_ms[place] <= lat_ms_max_of[class_id] and candidate.cost_per_1000_usual <= cost_max
            ):
                yield class_id, candidate

    def _in_time(self, bounds: Bounds) -> int:
        found, by_class = 0, self._by_class
        class_ids, _, lats_ms_max = bounds
        for class_id, lat_ms_max in zip(class_ids, lats_ms_max, strict=True):
            scale = by_class[class_id]
            found |= scale.sets[bisect_right(scale.lows, lat_ms_max)]  # ``within``, without a call for each class
        return found

    def best(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Candidate | None:
        """The best that is accurate and affordable, and as fast as it has to be where it is; of equals the soonest."""
        found = -1
        if self._accuracy is not None:
            found = self._accuracy.within(-accuracy_min)
        if self._cost is not None:
            found &= self._cost.within(cost_max)
        if self._by == "latency":
            return self._soonest(found, bounds, accuracy_min, cost_max)
        found &= self._in_time(bounds)
        place = found.bit_length() - 1
        if not self._exact:
            lat_ms_max_of = dict(zip(bounds[0], bounds[2], strict=True))
            limits = (-NEVER, cost_max) if self._by == "accuracy" else (accuracy_min, NEVER)
            while place >= 0 and not (
                self._lat_ms[place] <= lat_ms_max_of.get(self._classes[place], NEVER) and self._within(place, *limits)
            ):
                found ^= 1 << place
                place = found.bit_length() - 1
        if place < 0:
            return None
        best = self._candidates[place]
        if best.cost_per_1000_usual > cost_max or best.accuracy_low < accuracy_min:
            return None
        return self._sooner(place, found, bounds) if self._equal[place] else best

    def _within(self, place: int, accuracy_min: float, cost_max: float) -> bool:
        candidate = self._candidates[place]
        return candidate.accuracy_low >= accuracy_min and candidate.cost_per_1000_usual <= cost_max

    def _sooner(self, place: int, found: int, bounds: Bounds) -> Candidate:
        """Of this one and its equals the first to have answered."""
        bound_of = {bound[0]: bound for bound in zip(*bounds, strict=True)}
        best, best_ms, first = place, NEVER, False
        while not first:
            if found >> place & 1:
                _, wait_ms, lat_ms_max = bound_of.get(self._classes[place], (ANY, 0.0, NEVER))
                lat_ms = self._lat_ms[place]
                if lat_ms <= lat_ms_max and wait_ms + lat_ms < best_ms:
                    best, best_ms = place, wait_ms + lat_ms
            first = not self._equal[place]
            place -= 1
        return self._candidates[best]

    def _soonest(self, found: int, bounds: Bounds, accuracy_min: float, cost_max: float) -> Candidate | None:
        """The one that will have answered first, of equals the cheaper."""
        best, best_ms, candidates = None, NEVER, self._candidates
        for class_id, wait_ms, lat_ms_max in zip(*bounds, strict=True):
            own = found & self._by_class[class_id].sets[-1]
            while own:
                place = own.bit_length() - 1
                lat_ms = self._lat_ms[place]
                finish_ms = wait_ms + lat_ms
                if lat_ms > lat_ms_max or finish_ms > best_ms:
                    break
                if self._exact or self._within(place, accuracy_min, cost_max):
                    each = candidates[place]
                    if best is None or finish_ms < best_ms or each.cost_per_1000_usual < best.cost_per_1000_usual:
                        best, best_ms = each, finish_ms
                own ^= 1 << place
        return best
