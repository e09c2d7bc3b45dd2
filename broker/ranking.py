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
for, from columns of numbers at once (numpy), and for a while what comes or changes later is looked at beside it, one by
one. The orders by cost and by accuracy stay sorted as candidates come and go.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from modelless.messages import Prefer

if TYPE_CHECKING:
    from broker.catalog import Candidate

SIZES = tuple(1 << power for power in range(11))
"""Numbers of rows for which lat(b) is held; between them it is linear, above them it grows in proportion."""
BUCKETS_MAX = 128
LISTED_MAX = 256
"""Values; more are held as an array."""
VIEWS_MAX = 256
"""Of one target: preferences times numbers of rows."""
GONE, LOADED, ANY, UNLOADED = -3, -2, -1, 0
"""In place of a class: no candidate any more; all that somebody has loaded; all; those that nobody has loaded."""
FRESH_MAX = 16
"""Changes before the views are made anew."""
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
        members = np.zeros((-(-number // size), number), np.bool_)
        members[np.arange(number) // size, by_value] = True
        packed = np.packbits(members, axis=1, bitorder="little")
        self.sets = list(accumulate([int.from_bytes(row, "little") for row in map(bytes, packed)], or_, initial=0))
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
    """Slots sorted by a key, the best last."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.slots: Slots = np.empty(0, np.int32)

    def add(self, key: Key) -> None:
        index = bisect_left(self.keys, key)
        self.keys.insert(index, key)
        self.slots = np.insert(self.slots, index, key[3])

    def remove(self, key: Key) -> None:
        index = bisect_left(self.keys, key)
        assert self.keys[index] == key
        del self.keys[index]
        self.slots = np.delete(self.slots, index)


class _Place(NamedTuple):
    slot: int
    by_cost: Key
    by_accuracy: Key


class _Base(NamedTuple):
    """What the views by cost, or by accuracy, have in common, whatever the number of rows."""

    slots: Slots
    sets: Sets
    scale: _Scale


class _Fresh(NamedTuple):
    """What the views do not know of: candidates that came or changed since they were made."""

    candidates: list[Candidate]
    class_ids: dict[tuple[str, int], int]

    def of(self, class_id: int) -> list[Candidate]:
        """Those of one class."""
        if class_id == ANY:
            return self.candidates
        if class_id in (LOADED, UNLOADED):
            return [each for each in self.candidates if bool(each.workers) == (class_id == LOADED)]
        return [each for each in self.candidates if self.class_ids.get((each.group, each.workers)) == class_id]


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
            classes = self._classes[self._slots]
            if class_id == ANY:
                own = classes != GONE
            elif class_id == LOADED:
                own = classes > UNLOADED
            else:
                own = classes == class_id
            found = int.from_bytes(np.packbits(own, bitorder="little").tobytes(), "little")
            self._by_class[class_id] = found
        return found

    def forget(self) -> None:
        """Candidates changed their class."""
        self._by_class.clear()


class View:
    """Candidates in the order of a preference, the best last, for one number of rows.

    By cost the limits are on accuracy and lat(b), by accuracy on cost and lat(b), by latency on accuracy and cost.
    """

    __slots__ = ("_by", "_fresh", "_lat_ms", "_one", "_other", "_rows", "sets")

    def __init__(
        self,
        by: Prefer,
        rows: int,
        sets: Sets,
        one: _Scale,
        other: _Scale,
        lat_ms: Sequence[float],
        fresh: _Fresh,
    ) -> None:
        """``one`` is of minus accuracy or of cost, ``other`` of lat(b) or of cost; ``lat_ms`` in the order."""
        self._by, self._rows, self.sets, self._fresh = by, rows, sets, fresh
        self._one, self._other, self._lat_ms = one, other, lat_ms

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
                index = -1
        elif self._by == "latency":
            index = self._soonest(classes, ahead_ms, one_max, cost_max, slack_ms, without)
        else:
            guess = self._guess(one_max, ahead_ms, slack_ms, without)
            index = self._of_each(classes, ahead_ms, one_max, slack_ms, without) if guess is None else guess
        found = self.sets.candidates[index] if index >= 0 else None
        if found is not None and (found.cost_per_1000_usual > cost_max or found.accuracy_low < accuracy_min):
            found = None
        if self._fresh.candidates:
            return self._or_fresh(found, classes, ahead_ms, accuracy_min, cost_max, slack_ms, without)
        return found

    def _or_fresh(
        self,
        found: Candidate | None,
        classes: Sequence[Class],
        ahead_ms: Mapping[str, float],
        accuracy_min: float,
        cost_max: float,
        slack_ms: float,
        without: tuple[object, ...],
    ) -> Candidate | None:
        """The better one of what was found and what came or changed since the view was made; these are few."""
        best = found
        rank = None
        for class_id, group, workers in classes:
            wait_ms = ahead_ms[group] / workers
            for each in self._fresh.of(class_id):
                lat_ms = each.lat_ms(self._rows)
                if (
                    each.accuracy_low < accuracy_min
                    or each.cost_per_1000_usual > cost_max
                    or lat_ms > slack_ms - wait_ms
                    or each in without
                ):
                    continue
                if rank is None and best is not None:
                    own_ms = wait_ms if len(classes) == 1 else ahead_ms[best.group] / best.workers
                    rank = self._rank(best, own_ms)
                if rank is None or self._rank(each, wait_ms) < rank:
                    best, rank = each, self._rank(each, wait_ms)
        return best

    def _rank(self, candidate: Candidate, wait_ms: float) -> tuple[float, float, float]:
        """Lower is better."""
        cost, accuracy = candidate.cost_per_1000_usual, candidate.accuracy_low
        finish_ms = wait_ms + candidate.lat_ms(self._rows)
        if self._by == "latency":
            return finish_ms, cost, -accuracy
        return (cost, -accuracy, finish_ms) if self._by == "cost" else (-accuracy, cost, finish_ms)

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
    return one.cost_per_1000_usual == other.cost_per_1000_usual and one.accuracy_low == other.accuracy_low


def _cheaper(one: Candidate, other: Candidate) -> bool:
    return one.cost_per_1000_usual < other.cost_per_1000_usual


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
        self._fresh = _Fresh([], self._class_ids)
        self._changes = 0
        """Since the views were made."""
        self._retired: list[int] = []
        """Slots that some view still has."""
        self._class_sizes: Counter[int] = Counter()
        self._orders: dict[Prefer, _Order] = {"cost": _Order(), "accuracy": _Order()}
        self._bases: dict[Prefer, _Base] = {}
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
            self._grow()
        slot = self._free.pop()
        accuracy, cost, lat_ms = candidate.accuracy_low, candidate.cost_per_1000_usual, candidate.lat_sampled_ms
        self._columns[:, slot] = (accuracy, cost, *lat_ms)
        self._candidates[slot] = candidate
        place = _Place(slot, (-cost, accuracy, -lat_ms[0], slot), (accuracy, -cost, -lat_ms[0], slot))
        self._places[candidate] = place
        self._orders["cost"].add(place.by_cost)
        self._orders["accuracy"].add(place.by_accuracy)
        self._class_of[slot] = UNLOADED
        self._class_sizes[UNLOADED] += 1
        self.reclass(candidate)
        self._fresh.candidates.append(candidate)
        self._changed()

    def remove(self, candidate: Candidate) -> None:
        place = self._places.pop(candidate)
        self._orders["cost"].remove(place.by_cost)
        self._orders["accuracy"].remove(place.by_accuracy)
        self._class_sizes[int(self._class_of[place.slot])] -= 1
        self._class_of[place.slot] = GONE
        self._retired.append(place.slot)
        if candidate in self._fresh.candidates:
            self._fresh.candidates.remove(candidate)
        self._changed()

    def _grow(self) -> None:
        size = len(self._candidates)
        self._free = list(range(2 * size - 1, size - 1, -1))
        self._candidates = np.concatenate([self._candidates, np.full(size, None, object)])
        self._class_of = np.concatenate([self._class_of, self._class_of])
        self._columns = np.concatenate([self._columns, self._columns], axis=1)
        self._renew()

    def _changed(self) -> None:
        keys = self._orders["accuracy"].keys
        self.accuracy_best = keys[-1][0] if keys else 0.0
        self._classes, self.unloaded = None, self._class_sizes[UNLOADED]
        self._changes += 1
        if self._changes > FRESH_MAX or not self._views:
            self._renew()

    def _renew(self) -> None:
        """Have views made anew when they are asked for; they know of every candidate then."""
        self._views.clear()
        self._bases.clear()
        self._fresh.candidates.clear()
        self._candidates[self._retired] = None
        self._free += self._retired
        self._retired.clear()
        self._changes = 0

    def reclass(self, candidate: Candidate) -> None:
        """Another number of workers has it ready."""
        slot, key = self._places[candidate].slot, (candidate.group, candidate.workers)
        class_id = self._class_ids.setdefault(key, len(self._class_ids) + 1) if candidate.workers else UNLOADED
        self._class_sizes[int(self._class_of[slot])] -= 1
        self._class_sizes[class_id] += 1
        self._class_of[slot] = class_id
        self._classes, self.unloaded = None, self._class_sizes[UNLOADED]

    def _regroup(self) -> tuple[Class, ...]:
        for base in self._bases.values():
            base.sets.forget()
        for view in self._views.values():
            view.sets.forget()
        present = sorted(key for key, number in self._class_ids.items() if self._class_sizes[number])
        self._groups = tuple(dict.fromkeys([group for group, _ in present]))
        return tuple([Class(self._class_ids[key], *key) for key in present])

    # --- questions ------------------------------------------------------------------------------------------------

    def ordered(self, prefer: Prefer, rows: int, most: int | None = None) -> list[Candidate]:
        """All, or the first of them, the best first."""
        slots = self._orders["accuracy" if prefer == "accuracy" else "cost"].slots
        if prefer == "latency":
            slots = slots[np.argsort(-self._lat_ms(rows)[slots], kind="stable")]
        found: list[Candidate] = self._candidates[slots[::-1][:most]].tolist()
        return found

    def view(self, prefer: Prefer, rows: int) -> View:
        if self._classes is None:
            self._classes = self._regroup()
        view = self._views.get((prefer, rows))
        if view is None:
            if len(self._views) >= VIEWS_MAX:
                del self._views[next(iter(self._views))]
            view = self._views[prefer, rows] = self._make(prefer, rows)
        return view

    def _make(self, prefer: Prefer, rows: int) -> View:
        lat_ms = self._lat_ms(rows)
        if prefer == "latency":
            by_cost = self._base("cost").slots
            slots = by_cost[np.argsort(-lat_ms[by_cost], kind="stable")]
            sets = Sets(self._candidates, slots, self._class_of)
            one, other = _Scale(-self._columns[0][slots]), _Scale(self._columns[1][slots])
            return View(prefer, rows, sets, one, other, _listed(lat_ms[slots]), self._fresh)
        slots, sets, one = self._base(prefer)
        lat = _Scale(lat_ms[slots])
        return View(prefer, rows, sets, one, lat, lat.values, self._fresh)

    def _base(self, prefer: Prefer) -> _Base:
        base = self._bases.get(prefer)
        if base is None:
            slots = self._orders[prefer].slots
            limited = -self._columns[0] if prefer == "cost" else self._columns[1]
            base = _Base(slots, Sets(self._candidates, slots, self._class_of), _Scale(limited[slots]))
            self._bases[prefer] = base
        return base

    def _lat_ms(self, rows: int) -> Floats:
        index, share = between(rows)
        lat_ms = self._columns[2:]
        low_ms: Floats = lat_ms[index]
        return low_ms * share if index == len(SIZES) - 1 else low_ms + (lat_ms[index + 1] - low_ms) * share
