"""Candidates in the order of a preference: the first within limits, whatever they are, without looking at each.

A set of candidates is an integer with a bit for each, the best at the highest, which makes "the best of a set" its
``bit_length``. What is within a limit is such a set, found by bisection: one of what is accurate, one of what is
affordable. Most often the best of both answers in time; only where it does not one looks who does, in each class.
Many candidates are cut into buckets of nearly equal values, and the set is that of every bucket that the limit touches:
then who is found is looked at, and the next one taken if it is not within the limits after all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import or_
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from modelless.messages import Prefer

if TYPE_CHECKING:
    from broker.catalog import Candidate

EXACT_MAX: Final = 512
"""Candidates in all fronts together up to which each has a bucket of its own."""
BUCKETS_MAX: Final = 128
"""Of more than these."""
GONE: Final = 0
UNLOADED: Final = 1
"""In place of a class: no candidate any more; those that nobody has loaded."""

NEVER: Final = float("inf")

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]
Objects = npt.NDArray[np.object_]

Where = Literal["loaded", "unloaded", "anywhere"]
"""In each of the classes, among what nobody has loaded, or among all."""
Bounds = tuple[Where, Sequence[float], float, float]
"""Where to look; ms of what comes before in each class there; ms until when, and of its own, it takes at most."""

EVERYTHING: Bounds = ("anywhere", (0.0,), NEVER, NEVER)
"""Loaded or not, if nothing came before it."""


class _Scale(NamedTuple):
    """What is within a limit: the set at ``bisect_right(lows, limit)``."""

    lows: list[float]
    """The smallest value of each bucket."""
    sets: list[int]
    """Of those in the buckets before each one; at last of all."""

    def within(self, limit: float) -> int:
        return self.sets[bisect_right(self.lows, limit)]


class _Part(NamedTuple):
    """Of the candidates those in one place, by class."""

    everybody: int
    """The set of all of them."""
    others: list[int]
    """Of each class the set of all that are not in it."""
    scales: list[_Scale]
    """By lat(b), of each class."""
    own: list[int]
    """Of each candidate that is there, which of the classes it is in."""


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
    """Fronts in the order of a preference, the best last, for one number of rows."""

    __slots__ = ("_accuracy", "_by", "_candidates", "_cost", "_equal", "_exact", "_lat_ms", "_parts", "age")

    def __init__(
        self, age: int, by: Prefer, candidates: Objects, losses: Floats, lat_ms: Floats, classes: Slots, number: int
    ) -> None:
        """``age``: of the fronts; ``losses``: minus accuracy and cost first; ``classes``: of so many; minus 1: none."""
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
        self._accuracy, self._cost = _scale(accuracy, everybody, size), _scale(cost, everybody, size)
        unloaded, *scales = [_scale(lat_ms, np.flatnonzero(classes == each), size) for each in range(-1, number)]
        present, *others = [~each.sets[-1] for each in (unloaded, *scales)]
        alone = [0] * len(order)
        self._parts: dict[Where, _Part] = {
            "loaded": _Part(present, others, scales, classes.tolist()),
            "unloaded": _Part(~present, [present], [unloaded], alone),
            "anywhere": _Part(-1, [0], [_Scale([-NEVER], [0, -1])], alone),
        }
        equal = (accuracy[1:] == accuracy[:-1]) & (cost[1:] == cost[:-1])
        self._equal: list[bool] = [False, *equal.tolist()]
        """Whether it has the same accuracy and cost as the one before it."""

    def best(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Candidate | None:
        """The best within the limits; of those that cost the same and are as accurate the first to have answered."""
        if self._by == "latency":
            return self._soonest(bounds, accuracy_min, cost_max)
        place, found = self._first(self._allowed(bounds, accuracy_min, cost_max), bounds, accuracy_min, cost_max)
        if place < 0:
            return None
        return self._sooner(place, found, bounds) if self._equal[place] else self._candidates[place]

    def all(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Iterator[tuple[int, Candidate]]:
        """(class, candidate) of all within the limits, the best first."""
        found, own_of = self._allowed(bounds, accuracy_min, cost_max), self._parts[bounds[0]].own
        while found:
            place, found = self._first(found, bounds, accuracy_min, cost_max)
            if place >= 0:
                yield own_of[place], self._candidates[place]
                found ^= 1 << place

    def best_of_each(
        self, bounds: Bounds, accuracy_min: float, cost_max: float
    ) -> Iterator[tuple[int, Candidate, bool]]:
        """(class, candidate, whether it may have equals) of each class the best within the limits, the best first."""
        found, (_, others, _, own_of) = self._allowed(bounds, accuracy_min, cost_max), self._parts[bounds[0]]
        while found:
            place, found = self._first(found, bounds, accuracy_min, cost_max)
            if place >= 0:
                yield own_of[place], self._candidates[place], self._equal[place]
                found &= others[own_of[place]]

    def _allowed(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> int:
        """What is there, accurate and affordable; of buckets, all that these limits touch."""
        found = self._accuracy.within(-accuracy_min) & self._parts[bounds[0]].everybody
        return found if cost_max == NEVER else found & self._cost.within(cost_max)

    def _first(self, found: int, bounds: Bounds, accuracy_min: float, cost_max: float) -> tuple[int, int]:
        """The best of a set that is within the limits, or minus 1; and the set without some that are not."""
        if not found:
            return -1, 0
        place = found.bit_length() - 1
        if self._is_late(place, bounds):
            found &= self._in_time(bounds)
            place = found.bit_length() - 1
        if not self._exact:
            while place >= 0 and (self._is_late(place, bounds) or not self._is_allowed(place, accuracy_min, cost_max)):
                found ^= 1 << place
                place = found.bit_length() - 1
        return place, found

    def _in_time(self, bounds: Bounds) -> int:
        """All that are not late; of buckets, all that the limits touch."""
        where, waits_ms, slack_ms, lat_ms_max = bounds
        found = 0
        for (lows, sets), wait_ms in zip(self._parts[where].scales, waits_ms, strict=True):
            left_ms = slack_ms - wait_ms
            found |= sets[bisect_right(lows, left_ms if left_ms < lat_ms_max else lat_ms_max)]
        return found

    def _is_late(self, place: int, bounds: Bounds) -> bool:
        where, waits_ms, slack_ms, lat_ms_max = bounds
        lat_ms = self._lat_ms[place]
        return lat_ms > slack_ms - waits_ms[self._parts[where].own[place]] or lat_ms > lat_ms_max

    def _is_allowed(self, place: int, accuracy_min: float, cost_max: float) -> bool:
        """Whether one of a bucket is accurate and affordable after all."""
        candidate = self._candidates[place]
        return candidate.accuracy_low >= accuracy_min and candidate.cost_per_1000_usual <= cost_max

    def _sooner(self, place: int, found: int, bounds: Bounds) -> Candidate:
        """Of this one and its equals the first to have answered."""
        where, waits_ms, _, _ = bounds
        own_of = self._parts[where].own
        best, best_ms, first = place, NEVER, False
        while not first:
            if found >> place & 1 and not self._is_late(place, bounds):
                finish_ms = waits_ms[own_of[place]] + self._lat_ms[place]
                if finish_ms < best_ms:
                    best, best_ms = place, finish_ms
            first = not self._equal[place]
            place -= 1
        return self._candidates[best]

    def _soonest(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Candidate | None:
        """The first to have answered, of equals the cheaper: the fastest of some class."""
        found = self._allowed(bounds, accuracy_min, cost_max)
        where, waits_ms, slack_ms, lat_ms_max = bounds
        _, others, _, own_of = self._parts[where]
        best, best_key, best_ms, least_ms = None, (NEVER, NEVER, 0), NEVER, min(waits_ms, default=NEVER)
        while found:
            place = found.bit_length() - 1
            lat_ms = self._lat_ms[place]
            if least_ms + lat_ms > best_ms:
                break
            if not (self._exact or self._is_allowed(place, accuracy_min, cost_max)):
                found ^= 1 << place
                continue
            own = own_of[place]
            wait_ms = waits_ms[own]
            finish_ms = wait_ms + lat_ms
            if not (finish_ms > best_ms or lat_ms > slack_ms - wait_ms or lat_ms > lat_ms_max):
                candidate = self._candidates[place]
                key = finish_ms, candidate.cost_per_1000_usual, own
                if best is None or key < best_key:
                    best, best_key, best_ms = candidate, key, finish_ms
            found &= others[own]
        return best
