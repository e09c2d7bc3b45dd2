"""The candidates of a target, ranked by what a query prefers; the first that meets its constraints, whatever they are.

A query asks for the best by one number (cost, accuracy or latency) among those within limits on the other two.
Constraints are continuous, so that answers cannot be remembered; and a tree over the order, with the best of either
number in each node, has to be searched leaf by leaf when half of the candidates meet one limit and the other half the
other. So sets are intersected instead. A set of candidates is an integer with a bit for each, the best at the highest,
which makes "the best of a set" its ``bit_length``:

* A :class:`_Scale` sorts one number into up to 256 buckets of nearly equal size, and has the set of those below each.
  What is within a limit is such a set, and of one more bucket those that are, looked at one by one from the best down
  to the best of the set: of 10,000 candidates at most 40.
* Candidates of one group with the same number of ready workers make a **class**: they wait for the same backlog, so
  that "answers in time" is one limit on lat(b) per class. Its set is an integer too, and so is what is not loaded.
* The answer is the highest bit of the intersection. Mostly it is found at once in that of all classes, since nobody
  waits for long; otherwise in that of each class, but for those whose best cannot be better.

Intersecting two sets of 10,000 candidates takes a fifth of a microsecond, and finding a limit's set is a bisection.
lat(b) depends on the number of rows: there is a :class:`View` per preference and number of rows, made when it is asked
for, from columns of numbers at once (numpy); the orders by cost and by accuracy stay sorted as candidates come and go.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from modelless.messages import Prefer

if TYPE_CHECKING:
    from broker.catalog import Candidate

SIZES = tuple(1 << power for power in range(11))
"""Numbers of rows for which lat(b) is held; between them it is linear, above them it grows in proportion."""
BUCKETS_MAX = 256
LISTED_MAX = 256
"""Values; more are held as an array."""
VIEWS_MAX = 256
"""Of one target: preferences times numbers of rows."""
LOADED, ANY, UNLOADED = -2, -1, 0
"""In place of a class: all that somebody has loaded; every candidate; those that nobody has loaded."""
GUESSES_MAX = 4
"""Candidates that are looked at before the classes are looked through one by one."""

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


class Class(NamedTuple):
    """Loaded candidates that wait for the same backlog."""

    id: int
    group: str
    workers: int


AT_ALL, SOME_LOADED, NOT_LOADED = (Class(ANY, "", 1),), (Class(LOADED, "", 1),), (Class(UNLOADED, "", 1),)
"""To look for what could be, however much there is to do: with ``IDLE``."""
IDLE: Mapping[str, float] = {"": 0.0}


def _listed(values: Any) -> Sequence[Any]:
    """A list is quicker to read one by one, an array is quicker to make."""
    listed: Sequence[Any] = values.tolist() if len(values) <= LISTED_MAX else values
    return listed


class _Scale:
    """One number of all candidates in one order, cut into buckets of nearly equal size by value."""

    __slots__ = ("_buckets", "_by_value", "_size", "exact", "sets", "steps", "values")

    def __init__(self, values: Floats) -> None:
        number = len(values)
        self.values = _listed(values)
        self._size = size = -(-number // BUCKETS_MAX) or 1
        self._by_value = by_value = np.argsort(values)
        self.steps: list[float] = values[by_value[size - 1 :: size]].tolist()
        """The largest value of each full bucket."""
        self.exact = size == 1
        """Each has a bucket of its own, so that what is within a limit is whole buckets."""
        rows = -(-number // size)
        members = np.zeros((rows + 1, number), np.bool_)
        members[np.arange(size, number + size) // size, by_value] = True
        packed = np.bitwise_or.accumulate(np.packbits(members, axis=1, bitorder="little"), axis=0)
        data, width = packed.tobytes(), packed.shape[1]
        self.sets = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
        self.sets.append(self.sets[-1])
        """Of those in the buckets before each one; at last of all."""
        self._buckets: dict[int, list[tuple[int, float]]] = {}

    def places_above(self, bucket: int, limit: float, place: int) -> Iterator[int]:
        """Of those in one bucket that are within the limit, the places above another, the highest first."""
        members = self._buckets.get(bucket)
        if members is None:
            places = np.sort(self._by_value[bucket * self._size : (bucket + 1) * self._size])[::-1].tolist()
            members = self._buckets[bucket] = [(own, float(self.values[own])) for own in places]
        for own, value in members:
            if own <= place:
                return
            if value <= limit:
                yield own


class _Order:
    """Slots sorted by a key, the best last; and what holds for this order whatever the number of rows."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.slots: Slots = np.empty(0, np.int32)
        self.sets: Sets | None = None
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


class Sets:
    """Candidates in one order, and sets of them by class, made when they are asked for."""

    __slots__ = ("_by_class", "_classes", "_slots", "candidates")

    def __init__(self, candidates: Objects, slots: Slots, classes: Slots) -> None:
        self.candidates: Sequence[Candidate] = _listed(candidates[slots])
        self._slots, self._classes = slots, classes
        self._by_class: dict[int, int] = {}

    def of(self, class_id: int) -> int:
        found = self._by_class.get(class_id)
        if found is None:
            if class_id == ANY:
                found = (1 << len(self._slots)) - 1
            elif class_id == LOADED:
                found = self.of(ANY) ^ self.of(UNLOADED)
            else:
                own = np.packbits(self._classes[self._slots] == class_id, bitorder="little")
                found = int.from_bytes(own.tobytes(), "little")
            self._by_class[class_id] = found
        return found

    def forget(self) -> None:
        """Candidates changed their class."""
        self._by_class.clear()


class View:
    """Candidates in the order of a preference, the best last, for one number of rows.

    By cost the limits are on accuracy and lat(b), by accuracy on cost and lat(b), by latency on accuracy and cost.
    """

    __slots__ = ("_by", "_lat_ms", "_one", "_other", "sets")

    def __init__(self, by: Prefer, sets: Sets, one: _Scale, other: _Scale, lat_ms: Sequence[float]) -> None:
        """``one`` is of minus accuracy or of cost, ``other`` of lat(b) or of cost; ``lat_ms`` in the order."""
        self._by, self.sets, self._one, self._other, self._lat_ms = by, sets, one, other, lat_ms

    def best(
        self,
        classes: Sequence[Class],
        ahead_ms: Mapping[str, float],
        accuracy_min: float,
        cost_max: float,
        slack_ms: float,
        without: tuple[object, ...] = (),
    ) -> Candidate | None:
        """The best of these classes that is accurate and affordable and will have answered within ``slack_ms``.

        Of equals the soonest.

        Args:
            ahead_ms: work that comes before, of each group, all of its devices together.
            without: candidates that do not count.
        """
        one_max = cost_max if self._by == "accuracy" else -accuracy_min
        if len(classes) == 1:
            ((class_id, group, workers),) = classes
            lat_ms_max = slack_ms - ahead_ms[group] / workers
            index = self._first(class_id, one_max, cost_max if self._by == "latency" else lat_ms_max, without)
            if index >= 0 and self._lat_ms[index] > lat_ms_max:
                return None
        elif self._by == "latency":
            index = self._soonest(classes, ahead_ms, one_max, cost_max, slack_ms, without)
        else:
            guess = self._guess(one_max, ahead_ms, slack_ms, without)
            index = self._of_each(classes, ahead_ms, one_max, slack_ms, without) if guess is None else guess
        if index < 0:
            return None
        found = self.sets.candidates[index]
        return found if found.cost_per_1000_least <= cost_max and found.accuracy_low >= accuracy_min else None

    def _first(self, class_id: int, one_max: float, other_max: float, without: tuple[object, ...]) -> int:
        """The place of the best of a class within both limits; -1 for none."""
        one, other, sets = self._one, self._other, self.sets
        one_bucket, other_bucket = bisect_right(one.steps, one_max), bisect_right(other.steps, other_max)
        own = sets.of(class_id)
        found = own & one.sets[one_bucket] & other.sets[other_bucket]
        best = found.bit_length() - 1
        while without and found and sets.candidates[best] in without:
            found ^= 1 << best
            best = found.bit_length() - 1
        if not one.exact:
            for place in one.places_above(one_bucket, one_max, best):
                if other.values[place] <= other_max and own >> place & 1 and sets.candidates[place] not in without:
                    best = place
                    break
        if not other.exact:
            for place in other.places_above(other_bucket, other_max, best):
                if one.values[place] <= one_max and own >> place & 1 and sets.candidates[place] not in without:
                    return place
        return best

    def _guess(
        self, one_max: float, ahead_ms: Mapping[str, float], slack_ms: float, without: tuple[object, ...]
    ) -> int | None:
        """The best of all that is loaded, if the first few that would do without waiting are not too late with it.

        None when that says nothing: they are, or the best has an equal, which may be the sooner.
        """
        candidates, passed = self.sets.candidates, without
        for _ in range(GUESSES_MAX):
            best = self._first(LOADED, one_max, slack_ms, passed)
            if best < 0:
                return -1
            found = candidates[best]
            if self._lat_ms[best] <= slack_ms - ahead_ms[found.group] / found.workers:
                return None if best and _equal(found, candidates[best - 1]) else best
            passed = (*passed, found)
        return None

    def _of_each(
        self,
        classes: Sequence[Class],
        ahead_ms: Mapping[str, float],
        one_max: float,
        slack_ms: float,
        without: tuple[object, ...],
    ) -> int:
        """The place of the best of the best of each class by cost or accuracy, of equals the sooner; -1 for none."""
        candidates, best, best_ms = self.sets.candidates, -1, NEVER
        for class_id, group, workers in classes:
            wait_ms = ahead_ms[group] / workers
            top = self._at_most(class_id, one_max, slack_ms - wait_ms)
            if top < best and not _equal(candidates[top], candidates[best]):
                continue
            index = self._first(class_id, one_max, slack_ms - wait_ms, without)
            if index < 0:
                continue
            finish_ms = wait_ms + self._lat_ms[index]
            equal = best >= 0 and _equal(candidates[index], candidates[best])
            if finish_ms < best_ms if equal else index > best:
                best, best_ms = index, finish_ms
        return best

    def _soonest(
        self,
        classes: Sequence[Class],
        ahead_ms: Mapping[str, float],
        one_max: float,
        cost_max: float,
        slack_ms: float,
        without: tuple[object, ...],
    ) -> int:
        """The place of the one that will have answered first, of equals the cheaper; -1 for none.

        The fastest of all is the one, unless somebody slower waits less.
        """
        candidates, lat_ms = self.sets.candidates, self._lat_ms
        fastest = self._first(LOADED, one_max, cost_max, without)
        if fastest < 0:
            return -1
        own_ms = ahead_ms[candidates[fastest].group] / candidates[fastest].workers
        best, best_ms = -1, slack_ms
        if lat_ms[fastest] <= slack_ms - own_ms:
            best, best_ms = fastest, own_ms + lat_ms[fastest]
        for class_id, group, workers in classes:
            wait_ms = ahead_ms[group] / workers
            if wait_ms >= own_ms or wait_ms + lat_ms[fastest] > best_ms:
                continue
            index = self._first(class_id, one_max, cost_max, without)
            if index < 0 or lat_ms[index] > slack_ms - wait_ms:
                continue
            finish_ms = wait_ms + lat_ms[index]
            if (
                best < 0
                or finish_ms < best_ms
                or (finish_ms == best_ms and _cheaper(candidates[index], candidates[best]))
            ):
                best, best_ms = index, finish_ms
        return best

    def _at_most(self, class_id: int, one_max: float, other_max: float) -> int:
        """No place of the class above this is within the limits."""
        one, other = self._one, self._other
        one_set = one.sets[bisect_right(one.steps, one_max) + 1]
        return (
            self.sets.of(class_id) & one_set & other.sets[bisect_right(other.steps, other_max) + 1]
        ).bit_length() - 1


def _equal(one: Candidate, other: Candidate) -> bool:
    return one.cost_per_1000_least == other.cost_per_1000_least and one.accuracy_low == other.accuracy_low


def _cheaper(one: Candidate, other: Candidate) -> bool:
    return one.cost_per_1000_least < other.cost_per_1000_least


class Ranking:
    """The candidates of one target, kept in order as they come, go and change.

    Of two with the same cost the more accurate is better, of two with the same accuracy the cheaper; then the faster
    one. Of two that are as fast, the cheaper.
    """

    def __init__(self) -> None:
        self.unloaded = 0
        """How many candidates nobody has loaded."""
        self._groups: tuple[str, ...] = ()
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

    @property
    def groups(self) -> tuple[str, ...]:
        """That have something loaded."""
        if self._classes is None:
            self._classes = self._regroup()
        return self._groups

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
        self._groups = tuple(dict.fromkeys([group for group, _ in present]))
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
            sets = Sets(self._candidates, slots, self._class_of)
            one, other = _Scale(-accuracy[slots]), _Scale(cost[slots])
            return View(prefer, sets, one, other, _listed(lat_ms[slots]))
        order = self._orders[prefer]
        if order.sets is None or order.scale is None:
            order.sets = Sets(self._candidates, order.slots, self._class_of)
            order.scale = _Scale((-accuracy if prefer == "cost" else cost)[order.slots])
        lat = _Scale(lat_ms[order.slots])
        return View(prefer, order.sets, order.scale, lat, lat.values)

    def _lat_ms(self, rows: int) -> Floats:
        index, share = between(rows)
        lat_ms = self._columns[2:]
        low_ms: Floats = lat_ms[index]
        return low_ms * share if index == len(SIZES) - 1 else low_ms + (lat_ms[index + 1] - low_ms) * share
