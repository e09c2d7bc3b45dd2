"""The candidates of a target, ranked by what a query prefers; the first that meets its constraints, whatever they are.

A query asks for the best by one number (cost, accuracy or latency) among those within limits on the other two.
Constraints are continuous, so that answers cannot be remembered; and a tree over the order, with the best of either
number in each node, has to be searched leaf by leaf when half of the candidates meet one limit and the other half the
other. So sets are intersected instead. A set of candidates is an integer with a bit for each, the best at the highest,
which makes "the best of a set" its ``bit_length``:

* A :class:`_Scale` has, for up to 64 steps of one number, the set of those within the step. The set for a limit is
  that of the next step above it: all that are within the limit, and less than one step's worth too many.
* Candidates of one group with the same number of ready workers make a **class**: they wait for the same backlog, so
  that "answers in time" is one limit on lat(b) per class. Its set is an integer too, and so is what is not loaded.
* The answer is the highest bit of the intersection that is within the exact limits: the first, or one of the few that
  follow it, of which there are fewer than two steps' worth.

Intersecting two sets of 10,000 candidates takes a fifth of a microsecond, and finding a limit's set is a bisection.
lat(b) depends on the number of rows: there is a :class:`View` per preference and number of rows, made when it is asked
for, from columns of numbers at once (numpy); the orders by cost and by accuracy stay sorted as candidates come and go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from modelless.messages import Prefer

if TYPE_CHECKING:
    from broker.catalog import Candidate

SIZES = tuple(1 << power for power in range(11))
"""Numbers of rows for which lat(b) is held; between them it is linear, above them it grows in proportion."""
STEPS_MAX = 64
LISTED_MAX = 256
"""Values; more are held as an array."""
VIEWS_MAX = 128
"""Of one target: preferences times numbers of rows."""
ANY, UNLOADED = -1, 0
"""In place of a class: every candidate; those that nobody has loaded."""

NEVER = float("inf")

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int32]
Objects = npt.NDArray[np.object_]
Key = tuple[float, float, float, int]
"""Three numbers, the higher the better, and the slot."""


def between(rows: int) -> tuple[int, float]:
    """(index, share): lat(rows) is ``lat[index] + (lat[index + 1] - lat[index]) * share`` at :data:`SIZES`.

    From the largest of them on it is ``lat[index] * share``.
    """
    if rows >= SIZES[-1]:
        return len(SIZES) - 1, rows / SIZES[-1]
    rows = max(rows, 1)
    index = rows.bit_length() - 1
    return index, rows / SIZES[index] - 1.0


Waits = Sequence[tuple[int, float]]
"""Classes, and how long (ms) each waits before one of its workers is free."""
AT_ALL: Waits = ((ANY, 0.0),)
NOT_LOADED: Waits = ((UNLOADED, 0.0),)


class Class(NamedTuple):
    """Loaded candidates that wait for the same backlog."""

    id: int
    group: str
    workers: int


def _listed(values: Any) -> Sequence[Any]:
    """A list is quicker to read one by one, an array is quicker to make."""
    listed: Sequence[Any] = values.tolist() if len(values) <= LISTED_MAX else values
    return listed


class _Scale:
    """One number of all candidates in one order, and for each of its steps the set of those within it."""

    __slots__ = ("sets", "steps", "values")

    def __init__(self, values: Floats) -> None:
        self.values = _listed(values)
        step = -(-len(values) // STEPS_MAX) or 1
        steps = np.sort(values)[step - 1 :: step]
        self.steps: list[float] = steps.tolist()
        within = np.packbits(values <= steps[:, None], axis=1, bitorder="little")
        self.sets = [int.from_bytes(row.tobytes(), "little") for row in within]
        """The set for a limit is the one at its place among the steps; the last one is of all."""
        self.sets.append((1 << len(values)) - 1)


class _Order:
    """Slots sorted by a key, the best last; and what holds for this order whatever the number of rows."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.slots: Slots = np.empty(0, np.int32)
        self.sets: _Sets | None = None
        self.scale: _Scale | None = None

    def add(self, key: Key) -> None:
        index = bisect_left(self.keys, key)
        self.keys.insert(index, key)
        self.slots = np.insert(self.slots, index, key[3])
        self.sets = self.scale = None

    def remove(self, key: Key) -> None:
        index = bisect_left(self.keys, key)
        assert self.keys[index] == key
        del self.keys[index]
        self.slots = np.delete(self.slots, index)
        self.sets = self.scale = None


class _Place(NamedTuple):
    slot: int
    by_cost: Key
    by_accuracy: Key


class _Sets:
    """Candidates in one order, and sets of them by class, made when they are asked for."""

    __slots__ = ("_classes", "_slots", "by_class", "candidates")

    def __init__(self, candidates: Objects, slots: Slots, classes: Slots) -> None:
        self.candidates: Sequence[Candidate] = _listed(candidates[slots])
        self._slots, self._classes = slots, classes
        self.by_class: dict[int, int] = {}
        self.forget()

    def of(self, class_id: int) -> int:
        own = np.packbits(self._classes[self._slots] == class_id, bitorder="little")
        found = self.by_class[class_id] = int.from_bytes(own.tobytes(), "little")
        return found

    def forget(self) -> None:
        """Candidates changed their class."""
        self.by_class = {ANY: (1 << len(self._slots)) - 1}


class View(Protocol):
    """Candidates in the order of a preference, the best last, for one number of rows."""

    sets: _Sets

    def best(
        self,
        waits: Waits,
        accuracy_min: float,
        cost_max: float,
        slack_ms: float,
        without: tuple[object, ...] = (),
    ) -> Candidate | None:
        """The best of these classes that is accurate and affordable and will have answered within ``slack_ms``.

        Of equals the soonest. Those ``without`` do not count.
        """


class _LimitedView:
    """By cost or by accuracy: lat(b) is limited, and the one that it is not by."""

    __slots__ = ("_by_cost", "_lat", "_other", "sets")

    def __init__(self, prefer: Prefer, sets: _Sets, other: _Scale, lat: _Scale) -> None:
        """``other``: minus accuracy, or cost."""
        self._by_cost, self.sets, self._other, self._lat = prefer == "cost", sets, other, lat

    def best(
        self, waits: Waits, accuracy_min: float, cost_max: float, slack_ms: float, without: tuple[object, ...] = ()
    ) -> Candidate | None:
        sets, other, lat = self.sets, self._other, self._lat
        candidates, limit = sets.candidates, -accuracy_min if self._by_cost else cost_max
        within = other.sets[bisect_left(other.steps, limit)]
        best, best_index, best_ms = None, -1, 0.0
        for class_id, wait_ms in waits:
            lat_ms_max = slack_ms - wait_ms
            own = sets.by_class.get(class_id)
            if own is None:
                own = sets.of(class_id)
            found = within & own & lat.sets[bisect_left(lat.steps, lat_ms_max)]
            while found:
                index = found.bit_length() - 1
                if other.values[index] <= limit and lat.values[index] <= lat_ms_max:
                    candidate = candidates[index]
                    if not without or candidate not in without:
                        finish_ms = wait_ms + lat.values[index]
                        if best is None or _before(candidate, index, finish_ms, best, best_index, best_ms):
                            best, best_index, best_ms = candidate, index, finish_ms
                        break
                found ^= 1 << index
        if best is not None and (best.cost_per_1000_least > cost_max or best.accuracy_low < accuracy_min):
            return None
        return best


def _before(
    one: Candidate, index: int, finish_ms: float, other: Candidate, other_index: int, other_finish_ms: float
) -> bool:
    """Whether ``one`` is better: by its place in the order, and of equals the sooner."""
    if one.cost_per_1000_least == other.cost_per_1000_least and one.accuracy_low == other.accuracy_low:
        return finish_ms < other_finish_ms
    return index > other_index


class _LatencyView:
    """By latency: accuracy and cost are limited."""

    __slots__ = ("_accuracy", "_cost", "_lat_ms", "sets")

    def __init__(self, sets: _Sets, accuracy: _Scale, cost: _Scale, lat_ms: Sequence[float]) -> None:
        """``accuracy``: minus that."""
        self.sets, self._accuracy, self._cost, self._lat_ms = sets, accuracy, cost, lat_ms

    def best(
        self, waits: Waits, accuracy_min: float, cost_max: float, slack_ms: float, without: tuple[object, ...] = ()
    ) -> Candidate | None:
        sets, accuracy, cost = self.sets, self._accuracy, self._cost
        within = accuracy.sets[bisect_left(accuracy.steps, -accuracy_min)]
        within &= cost.sets[bisect_left(cost.steps, cost_max)]
        best: Candidate | None = None
        best_rank: tuple[float, ...] = ()
        for class_id, wait_ms in waits:
            own = sets.by_class.get(class_id)
            found = within & (sets.of(class_id) if own is None else own)
            while found:
                index = found.bit_length() - 1
                candidate = sets.candidates[index]
                if (
                    candidate.accuracy_low >= accuracy_min
                    and candidate.cost_per_1000_least <= cost_max
                    and (not without or candidate not in without)
                ):
                    finish_ms = wait_ms + self._lat_ms[index]
                    rank = finish_ms, candidate.cost_per_1000_least, -candidate.accuracy_low
                    if self._lat_ms[index] <= slack_ms - wait_ms and (best is None or rank < best_rank):
                        best, best_rank = candidate, rank
                    break
                found ^= 1 << index
        return best


class Ranking:
    """The candidates of one target, kept in order as they come, go and change.

    Of two with the same cost the more accurate is better, of two with the same accuracy the cheaper; then the faster
    one. Of two that are as fast, the cheaper.
    """

    def __init__(self) -> None:
        self.unloaded = 0
        """How many candidates nobody has loaded."""
        self._classes: tuple[Class, ...] | None = None
        self.accuracy_best = 0.0
        self._candidates: Objects = np.full(16, None, object)
        self._places: dict[Candidate, _Place] = {}
        self._free = list(range(15, -1, -1))
        self._columns: Floats = np.zeros((2 + len(SIZES), 16))
        """Accuracy, cost, lat(b) at each of SIZES; a column per slot."""
        self._class_of: Slots = np.zeros(16, np.int32)
        self._class_ids: dict[tuple[str, int], int] = {}
        self._class_sizes: Counter[int] = Counter()
        self._orders: dict[Prefer, _Order] = {"cost": _Order(), "accuracy": _Order()}
        self._views: dict[tuple[Prefer, int], View] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def candidates(self) -> list[Candidate]:
        return list(self._places)

    @property
    def classes(self) -> tuple[Class, ...]:
        """Of all that is loaded, those of one group in a row."""
        if self._classes is None:
            self._classes = self._regroup()
        return self._classes

    # --- changes --------------------------------------------------------------------------------------------------

    def add(self, candidate: Candidate) -> None:
        if not self._free:
            size = len(self._candidates)
            self._free = list(range(2 * size - 1, size - 1, -1))
            self._candidates = np.concatenate([self._candidates, np.full(size, None, object)])
            self._class_of = np.concatenate([self._class_of, self._class_of])
            self._columns = np.concatenate([self._columns, self._columns], axis=1)
        slot = self._free.pop()
        accuracy, cost, lat_ms = candidate.accuracy_low, candidate.cost_per_1000_least, candidate.lat_sampled_ms
        self._columns[:, slot] = (accuracy, cost, *lat_ms)
        self._candidates[slot] = candidate
        place = _Place(slot, (-cost, accuracy, -lat_ms[0], slot), (accuracy, -cost, -lat_ms[0], slot))
        self._places[candidate] = place
        self._orders["cost"].add(place.by_cost)
        self._orders["accuracy"].add(place.by_accuracy)
        self._class_of[slot] = UNLOADED
        self._class_sizes[UNLOADED] += 1
        self.reclass(candidate)
        self._changed()

    def remove(self, candidate: Candidate) -> None:
        place = self._places.pop(candidate)
        self._orders["cost"].remove(place.by_cost)
        self._orders["accuracy"].remove(place.by_accuracy)
        self._candidates[place.slot] = None
        self._free.append(place.slot)
        self._class_sizes[int(self._class_of[place.slot])] -= 1
        self._changed()

    def _changed(self) -> None:
        keys = self._orders["accuracy"].keys
        self.accuracy_best = keys[-1][0] if keys else 0.0
        self._views.clear()
        self._classes, self.unloaded = None, self._class_sizes[UNLOADED]

    def reclass(self, candidate: Candidate) -> None:
        """Another number of workers has it ready."""
        slot, key = self._places[candidate].slot, (candidate.group, candidate.workers)
        class_id = self._class_ids.setdefault(key, len(self._class_ids) + 1) if candidate.workers else UNLOADED
        self._class_sizes[int(self._class_of[slot])] -= 1
        self._class_sizes[class_id] += 1
        self._class_of[slot] = class_id
        self._classes, self.unloaded = None, self._class_sizes[UNLOADED]

    def _regroup(self) -> tuple[Class, ...]:
        for sets in [order.sets for order in self._orders.values()] + [view.sets for view in self._views.values()]:
            if sets is not None:
                sets.forget()
        present = sorted(key for key, number in self._class_ids.items() if self._class_sizes[number])
        return tuple([Class(self._class_ids[key], *key) for key in present])

    # --- questions ------------------------------------------------------------------------------------------------

    def view(self, prefer: Prefer, rows: int) -> View:
        view = self._views.get((prefer, rows))
        if view is None:
            if len(self._views) >= VIEWS_MAX:
                del self._views[next(iter(self._views))]
            view = self._views[prefer, rows] = self._make(prefer, rows)
        return view

    def _make(self, prefer: Prefer, rows: int) -> View:
        lat_ms, by_cost = self._lat_ms(rows), self._orders["cost"].slots
        accuracy, cost = self._columns[0], self._columns[1]
        if prefer == "latency":
            slots = by_cost[np.argsort(-lat_ms[by_cost], kind="stable")]
            sets = _Sets(self._candidates, slots, self._class_of)
            return _LatencyView(sets, _Scale(-accuracy[slots]), _Scale(cost[slots]), _listed(lat_ms[slots]))
        order = self._orders[prefer]
        if order.sets is None or order.scale is None:
            order.sets = _Sets(self._candidates, order.slots, self._class_of)
            order.scale = _Scale((-accuracy if prefer == "cost" else cost)[order.slots])
        return _LimitedView(prefer, order.sets, order.scale, _Scale(lat_ms[order.slots]))

    def _lat_ms(self, rows: int) -> Floats:
        index, share = between(rows)
        lat_ms = self._columns[2:]
        low_ms: Floats = lat_ms[index]
        return low_ms * share if index == len(SIZES) - 1 else low_ms + (lat_ms[index + 1] - low_ms) * share
