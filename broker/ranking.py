"""The candidates of a target, ranked by what a query prefers; the first that meets its constraints, whatever they are.

A query asks for the best by one number (cost, accuracy or latency) among those within limits on the other two.
Constraints are continuous, so that answers cannot be remembered; but most candidates are never the answer.

Candidates of one group that the same workers have ready make a **class**: they wait for the same work. One
**dominates** another of its class that is no more accurate, no cheaper and, at every sampled number of rows, no faster:
while the former is there, the latter is not chosen. What nobody dominates is the **front** of the class; of 10,000
candidates some hundreds in all. Who is not in it remembers one **witness** that dominates it, and is looked at again
when that one goes. A front may hold more than it must, which costs time only: in a class where hardly anybody dominates
anybody (accuracy, cost and latency perfectly correlated) looking for it is given up.

lat(b) depends on the number of rows: there is a :class:`broker.view.View` of the fronts per preference and number of
rows, made when it is asked for, from columns of numbers at once (numpy). A change that leaves the fronts as they were
leaves the views as they were. Who a query must not get may have dominated the answer: then all are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from broker.prices import PriceRange, price_range
from broker.view import (
    EVERYTHING,
    EXACT_MAX,
    GONE,
    NEVER,
    UNLOADED,
    Bounds,
    Floats,
    Objects,
    Places,
    Slots,
    View,
    keys_of,
)
from modelless.messages import Prefer

if TYPE_CHECKING:
    from broker.catalog import Candidate

SIZES = tuple(1 << power for power in range(11))
"""Numbers of rows for which lat(b) is held; between them it is linear, above them it grows in proportion."""
BLOCK: Final = 32
"""Candidates that enter a front at once."""
FRONT_MAX: Final = 1024
"""From that size on everything that comes is in the front of its class."""
SCANS_MAX: Final = 8
"""Of large fronts, before a view of them is made."""
VIEWS_MAX: Final = 256
"""Of one target: preferences times numbers of rows."""
IN_FRONT: Final = -1
UNDECIDED: Final = -2
"""In place of a witness."""

TINY: Final = 1e-300

Flags = npt.NDArray[np.bool_]


def between(rows: int) -> tuple[int, float]:
    """(index, share): lat(rows) is ``lat[index] * (1 - share) + lat[index + 1] * share`` at :data:`SIZES`.

    From the largest of them on it is ``lat[index] * share``. Either way who is faster at the sizes is faster here, to
    the last bit.
    """
    if rows >= SIZES[-1]:
        return len(SIZES) - 1, rows / SIZES[-1]
    rows = max(rows, 1)
    index = rows.bit_length() - 1
    return index, rows / SIZES[index] - 1.0


class Class(NamedTuple):
    """Loaded candidates that wait for the same work."""

    id: int
    group: str
    team: frozenset[str]
    """Workers that have all of them ready."""


class Teams(NamedTuple):
    """Of one group those that a query may be run by."""

    group: str
    teams: tuple[frozenset[str], ...]


class Ranking:
    """The candidates of one target and the fronts of their classes, kept as they come, go and change.

    A change is noted at once and followed up when the next question is asked, all of them together.
    """

    def __init__(self) -> None:
        self.unloaded = 0
        """How many candidates nobody has loaded."""
        self._slots: dict[Candidate, int] = {}
        self._candidates: Objects = np.full(16, None, object)
        """By slot, like what follows."""
        self._free = list(range(15, -1, -1))
        self._losses: Floats = np.zeros((2 + len(SIZES), 16))
        """Minus accuracy, cost, lat(b) at each of SIZES, the lower the better; a column per slot."""
        self._class_of: Slots = np.zeros(16, np.int32)
        self._witness: Slots = np.full(16, UNDECIDED, np.int32)
        """Who dominates it."""
        self._class_ids: dict[tuple[str, frozenset[str]], int] = {}
        self._next_class_id = UNLOADED + 1
        self._free_class_ids: list[int] = []
        self._class_sizes: Counter[int] = Counter()
        self._fronts: dict[int, Slots] = {}
        self._undecided: set[int] = set()
        """Slots of those that came, and of those whose witness went."""
        self._changed = False
        """Something has, since the last question."""
        self._views: dict[tuple[Prefer, int], View] = {}
        self._age = 0
        """How often the fronts have changed."""
        self._scans: Counter[tuple[Prefer, int]] = Counter()
        """In place of views of large fronts."""
        self._accuracy_best = 0.0
        self._classes: tuple[Class, ...] = ()
        self._class_ids_loaded: list[int] = []
        self._order_of_class: Slots = np.full(UNLOADED + 1, -1, np.int32)
        """By id, which of the classes it is; minus 1: none."""
        self._teams: tuple[Teams, ...] = ()
        self._price_ranges: dict[str, PriceRange] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, candidate: object) -> bool:
        return candidate in self._slots

    @property
    def candidates(self) -> list[Candidate]:
        return list(self._slots)

    @property
    def classes(self) -> tuple[Class, ...]:
        """Of all that is loaded, those of one group in a row."""
        if self._changed:
            self._follow_up()
        return self._classes

    @property
    def teams(self) -> tuple[Teams, ...]:
        """Of the classes, in their order."""
        if self._changed:
            self._follow_up()
        return self._teams

    def class_of(self, candidate: Candidate) -> int:
        """Which of the classes it is in."""
        return int(self._order_of_class[self._class_of[self._slots[candidate]]])

    def price_range(self, group: str) -> PriceRange:
        """Of the device time that what is loaded there takes."""
        if self._changed:
            self._follow_up()
        found = self._price_ranges.get(group)
        if found is None:
            ids = [each.id for each in self._classes if each.group == group]
            loaded = [candidate for each in ids for candidate in self._candidates[self._fronts[each]]]
            found = price_range((candidate.accuracy_low, candidate.row_ms) for candidate in loaded)
            self._price_ranges[group] = found
        return found

    @property
    def accuracy_best(self) -> float:
        if self._changed:
            self._follow_up()
        return self._accuracy_best

    # --- changes --------------------------------------------------------------------------------------------------

    def add(self, candidate: Candidate) -> None:
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[candidate], self._candidates[slot] = slot, candidate
        self._losses[:, slot] = (-candidate.accuracy_low, candidate.cost_per_1000_usual, *candidate.lat_sampled_ms)
        self._enter(slot, candidate)

    def remove(self, candidate: Candidate) -> None:
        slot = self._slots.pop(candidate)
        self._leave(slot)
        self._class_of[slot] = GONE
        self._candidates[slot] = None
        self._free.append(slot)

    def reclass(self, candidate: Candidate) -> None:
        """Other workers have it ready."""
        slot = self._slots[candidate]
        self._leave(slot)
        self._enter(slot, candidate)

    def _enter(self, slot: int, candidate: Candidate) -> None:
        key = (candidate.group, candidate.team)
        class_id = self._class_ids.get(key) if candidate.team else UNLOADED
        if class_id is None:
            if not self._free_class_ids:
                self._free_class_ids.append(self._next_class_id)
                self._next_class_id += 1
            class_id = self._class_ids[key] = self._free_class_ids.pop()
        self._class_of[slot] = class_id
        self._witness[slot] = UNDECIDED
        self._undecided.add(slot)
        self._count(class_id, 1)

    def _leave(self, slot: int) -> None:
        class_id = int(self._class_of[slot])
        if self._witness[slot] == IN_FRONT:
            front = self._fronts[class_id]
            self._fronts[class_id] = front[front != slot]
            self._renew()
        orphans = np.flatnonzero(self._witness == slot)
        self._witness[orphans] = UNDECIDED
        self._undecided.update(orphans.tolist())
        self._witness[slot] = UNDECIDED
        self._undecided.discard(slot)
        self._count(class_id, -1)

    def _renew(self) -> None:
        """Have each view made anew when it is asked for; to drop all of them at once would take milliseconds."""
        self._age += 1
        self._scans.clear()

    def _count(self, class_id: int, change: int) -> None:
        self._class_sizes[class_id] += change
        self.unloaded = self._class_sizes[UNLOADED]
        self._changed = True

    def _grow(self) -> None:
        size = len(self._candidates)
        self._free = list(range(2 * size - 1, size - 1, -1))
        self._candidates = np.concatenate([self._candidates, np.full(size, None, object)])
        self._losses = np.concatenate([self._losses, np.zeros_like(self._losses)], axis=1)
        self._class_of = np.concatenate([self._class_of, np.zeros_like(self._class_of)])
        self._witness = np.concatenate([self._witness, np.full(size, UNDECIDED, np.int32)])

    def _follow_up(self) -> None:
        """Decide the undecided."""
        self._changed = False
        self._price_ranges.clear()
        if self._undecided:
            undecided = np.fromiter(self._undecided, np.int32, len(self._undecided))
            self._undecided.clear()
            losses = self._losses[:, undecided]
            low, high = losses.min(axis=1, keepdims=True), losses.max(axis=1, keepdims=True)
            shares = (losses - low) / np.maximum(high - low, TINY)
            undecided = undecided[np.argsort(shares.sum(axis=0))]  # who dominates comes before whom it does
            classes = self._class_of[undecided]
            for class_id in set(classes.tolist()):
                self._decide(class_id, undecided[classes == class_id])
        fronts = self._fronts = {class_id: front for class_id, front in self._fronts.items() if len(front)}
        self._accuracy_best = max([-float(self._losses[0, front].min()) for front in fronts.values()], default=0.0)
        for key in [key for key, class_id in self._class_ids.items() if not self._class_sizes[class_id]]:
            class_id = self._class_ids.pop(key)
            del self._class_sizes[class_id]
            self._free_class_ids.append(class_id)
        present = sorted([(group, class_id, team) for (group, team), class_id in self._class_ids.items()])
        self._classes = tuple([Class(class_id, group, team) for group, class_id, team in present])
        self._class_ids_loaded = [each.id for each in self._classes]
        self._order_of_class = np.full(self._next_class_id, -1, np.int32)
        self._order_of_class[self._class_ids_loaded] = range(len(self._classes))
        by_group = groupby(self._classes, key=lambda each: each.group)
        self._teams = tuple([Teams(group, tuple([each.team for each in own])) for group, own in by_group])

    def _decide(self, class_id: int, undecided: Slots) -> None:
        """Into the front of their class, or a witness to each; a block at a time, which sieves those that follow."""
        front = self._fronts.get(class_id, undecided[:0])
        if len(front) <= FRONT_MAX:
            undecided = self._sieved(undecided, front, self._dominance(front, undecided))
        entered: list[Slots] = []
        while len(undecided):
            if len(front) + len(entered) * BLOCK > FRONT_MAX:
                block, undecided = undecided, undecided[:0]
            else:
                block, undecided = undecided[:BLOCK], undecided[BLOCK:]
                block = self._sieved(block, block, np.triu(self._dominance(block, block), 1))
                undecided = self._sieved(undecided, block, self._dominance(block, undecided))
                front = self._sieved(front, block, self._dominance(block, front))
            self._witness[block] = IN_FRONT
            entered.append(block)
        if entered:
            self._renew()
            self._fronts[class_id] = np.concatenate([front, *entered])

    def _dominance(self, better: Slots, worse: Slots) -> Flags:
        """Of each pair, whether the former is as good in every respect."""
        dominance: Flags = np.all(self._losses[:, better, None] <= self._losses[:, None, worse], axis=0)
        return dominance

    def _sieved(self, slots: Slots, by: Slots, dominance: Flags) -> Slots:
        """Those that nobody dominates; to each of the others a witness, if ``by`` is the same one of those."""
        lost = dominance.any(axis=0)
        if not lost.any():
            return slots
        if by is slots:
            by, dominance = by[~lost], dominance[~lost]
        self._witness[slots[lost]] = by[dominance[:, lost].argmax(axis=0)]
        return slots[~lost]

    # --- questions ------------------------------------------------------------------------------------------------

    def fastest(self, rows: int, accuracy_min: float, cost_max: float) -> Candidate | None:
        """Of all, loaded or not, if nothing came before it."""
        return self.best("latency", rows, EVERYTHING, accuracy_min, cost_max)

    def most_accurate(self) -> Candidate | None:
        """Of all, loaded or not."""
        return self.best("accuracy", 1, EVERYTHING, -NEVER, NEVER)

    def cheapest(self, accuracy_min: float) -> Candidate | None:
        """Of all, loaded or not."""
        return self.best("cost", 1, EVERYTHING, accuracy_min, NEVER)

    def best(
        self,
        prefer: Prefer,
        rows: int,
        bounds: Bounds,
        accuracy_min: float,
        cost_max: float,
        without: tuple[object, ...] = (),
    ) -> Candidate | None:
        """The best within the bounds that is accurate and affordable.

        Of two with the same cost the more accurate is better, of two with the same accuracy the cheaper; then the one
        that will have answered first. Of two that will have at the same time, the cheaper.

        Args:
            without: candidates that do not count.
        """
        return self.order(prefer, rows, without).best(bounds, accuracy_min, cost_max)

    def order(self, prefer: Prefer, rows: int, without: tuple[object, ...] = ()) -> View | Scan:
        """All as they are now, in the order of a preference.

        Args:
            without: candidates that do not count.
        """
        if self._changed:
            self._follow_up()
        if without:
            return Scan(self, prefer, rows, without)
        view = self._views.get((prefer, rows))
        if view is None or view.age != self._age:
            return Scan(self, prefer, rows, ()) if self._too_early(prefer, rows) else self._view(prefer, rows)
        return view

    def _too_early(self, prefer: Prefer, rows: int) -> bool:
        """Whether to make a view of so many later, when it is asked for more often, lest each change costs one."""
        if sum(map(len, self._fronts.values())) <= EXACT_MAX:
            return False
        self._scans[prefer, rows] += 1
        return self._scans[prefer, rows] <= SCANS_MAX

    def _view(self, prefer: Prefer, rows: int) -> View:
        if len(self._views) >= VIEWS_MAX and (prefer, rows) not in self._views:
            del self._views[next(iter(self._views))]
        slots = np.concatenate(list(self._fronts.values()))
        losses = self._losses[:, slots]
        classes, lat_ms = self._order_of_class[self._class_of[slots]], _lat_ms(losses, rows)
        view = View(self._age, prefer, self._candidates[slots], losses, lat_ms, classes, len(self._classes))
        self._views[prefer, rows] = view
        return view

    def scan(
        self,
        prefer: Prefer,
        rows: int,
        bounds: Bounds,
        accuracy_min: float,
        cost_max: float,
        without: tuple[object, ...],
    ) -> Candidate | None:
        """The best within the limits, by looking at all."""
        slots, lat_ms, wait_ms = self._within(rows, bounds, accuracy_min, cost_max, without)
        if not len(slots):
            return None
        keys = keys_of(prefer, self._losses[:, slots], lat_ms + wait_ms)
        first = np.flatnonzero(keys[0] == keys[0].min())
        best: Candidate = self._candidates[slots[first[np.lexsort((keys[2][first], keys[1][first]))[0]]]]
        return best

    def scan_all(
        self,
        prefer: Prefer,
        rows: int,
        bounds: Bounds,
        accuracy_min: float,
        cost_max: float,
        without: tuple[object, ...],
    ) -> Iterable[tuple[int, Candidate]]:
        """(class, candidate) of all that is within the limits, the best first."""
        slots, lat_ms, _ = self._within(rows, bounds, accuracy_min, cost_max, without)
        slots = slots[np.lexsort(keys_of(prefer, self._losses[:, slots], lat_ms)[::-1])]
        classes = self._order_of_class[self._class_of[slots]].tolist()
        return zip(classes, self._candidates[slots].tolist(), strict=True)

    def _within(
        self,
        rows: int,
        bounds: Bounds,
        accuracy_min: float,
        cost_max: float,
        without: tuple[object, ...],
    ) -> tuple[Places, Floats, Floats]:
        """Slots of all that is within the limits, with ms of its own and of what comes before it."""
        wait_ms, lat_ms_max = np.full((2, self._next_class_id), -NEVER)
        where, waits_ms, slack_ms, own_ms_max = bounds
        ids: list[int] | slice = self._class_ids_loaded if where == "loaded" else [UNLOADED]
        if where == "anywhere":
            ids = slice(UNLOADED, None)
        wait_ms[ids] = list(waits_ms)
        lat_ms_max[ids] = [left if (left := slack_ms - each) < own_ms_max else own_ms_max for each in waits_ms]
        losses, classes = self._losses, self._class_of
        lat_ms = _lat_ms(losses, rows)
        within = (losses[0] <= -accuracy_min) & (losses[1] <= cost_max) & (lat_ms <= lat_ms_max[classes])
        within[[self._slots[each] for each in without if each in self._slots]] = False
        slots = np.flatnonzero(within)
        return slots, lat_ms[slots], wait_ms[classes[slots]]

    def ordered(self, prefer: Prefer, rows: int, most: int | None = None) -> list[Candidate]:
        """All, or the first of them, the best first."""
        slots = np.flatnonzero(self._class_of != GONE)
        keys = keys_of(prefer, self._losses[:, slots], _lat_ms(self._losses[:, slots], rows))
        if most is not None and most < len(slots):  # who may be among the first, before they are sorted
            first = np.flatnonzero(keys[0] <= np.partition(keys[0], most - 1)[most - 1])
            slots, keys = slots[first], (keys[0][first], keys[1][first], keys[2][first])
        found: list[Candidate] = self._candidates[slots[np.lexsort(keys[::-1])][:most]].tolist()
        return found


class Scan(NamedTuple):
    """What a :class:`broker.view.View` tells, by looking at all: whom the absent ones dominate counts."""

    ranking: Ranking
    by: Prefer
    rows: int
    without: tuple[object, ...]

    def best(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Candidate | None:
        return self.ranking.scan(self.by, self.rows, bounds, accuracy_min, cost_max, self.without)

    def all(self, bounds: Bounds, accuracy_min: float, cost_max: float) -> Iterable[tuple[int, Candidate]]:
        return self.ranking.scan_all(self.by, self.rows, bounds, accuracy_min, cost_max, self.without)

    def best_of_each(
        self, bounds: Bounds, accuracy_min: float, cost_max: float
    ) -> Iterable[tuple[int, Candidate, bool]]:
        best: dict[int, Candidate] = {}
        for own, candidate in self.all(bounds, accuracy_min, cost_max):
            best.setdefault(own, candidate)
        return [(own, candidate, True) for own, candidate in best.items()]


def _lat_ms(losses: Floats, rows: int) -> Floats:
    index, share = between(rows)
    lat_ms = losses[2:]
    low_ms: Floats = lat_ms[index]
    return low_ms * share if index == len(SIZES) - 1 else low_ms * (1.0 - share) + lat_ms[index + 1] * share
