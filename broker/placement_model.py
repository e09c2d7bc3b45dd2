"""What a placement is made of: classes of demand, choices, groups; and what a choice is worth to a class.

Words: a **class** is all demand that asks for the same; a **choice** is a variant on a group; a **pair** is a class and
a choice that may answer it in time; a **pool** is a set of workers that the model does not tell apart. See
:mod:`broker.placement`. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import floor, log

import numpy as np
from numpy.typing import NDArray

from modelless.messages import MS_PER_HOUR, Prefer

INF = float("inf")
TIE_COST = 0.01
"""Of what an answer is worth: the most that its cost counts, for a class that prefers cost (or latency: its time)."""
TIE_ACCURACY = 0.001
"""Likewise for a class whose answers are worth their accuracy: cost decides between variants that are as good."""
LATENCY_STEP = 1.25
"""Latencies that differ by less than this factor may become one class."""

Key = tuple[str, str]
"""(variant, group)."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One class of queries."""

    task: str
    latency_ms: float
    """The most that an answer may take, from now; infinite if nobody asked."""
    accuracy_min: float
    rows_per_s: float
    prefer: Prefer = "cost"
    degrades: bool = False
    """Rather less accurate than not at all: any variant may answer."""
    weight: float = 1.0
    """What a row is worth beside others'."""
    level: int = 0
    """Classes of one level are asked for at the same time, those of another level at another time."""
    share: float = 1.0
    """Of the time, in which it is asked for; the same for all of a level."""
    burst: float = 1.0
    """Variance of the rows that come in some time, over their mean: 1 for a Poisson process (index of dispersion)."""

    @property
    def by_accuracy(self) -> bool:
        """An answer is worth its accuracy (otherwise 1, whatever the variant)."""
        return self.degrades or self.prefer == "accuracy"


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant on a group, as measured there."""

    variant: str
    task: str
    group: str
    accuracy: float
    sizes: tuple[int, ...]
    """Batch sizes, ascending."""
    p50_ms: tuple[float, ...]
    """By batch size, like :attr:`p99_ms`."""
    p99_ms: tuple[float, ...]
    memory_mb: float
    load_ms: float

    @property
    def key(self) -> Key:
        return self.variant, self.group


@dataclass(frozen=True, slots=True)
class Group:
    """Identical workers that are alive."""

    name: str
    memory_mb: float
    """Of each worker, for variants."""
    price_per_hour: float
    """USD, of each worker."""
    loaded: Mapping[str, Set[str]]
    """Variants that are loaded, or are being loaded, by worker. Every live worker is in it."""


@dataclass(frozen=True, slots=True)
class Options:
    utilisation_max: float = 0.8
    """Share of a worker's time that may be planned; the rest is for bursts."""
    runs_per_latency: float = 2.0
    """So many runs of a batch must fit into the latency, the last one at its p99. 2 (Nexus section 6.1, Proteus
    section 4: ``2 lat(b) <= SLO``): a query waits for the batch that runs, then runs. 1: nobody waits."""
    runs_alone: float = 2.0
    """So many runs' time is planned for a row that has the time for one run only: its device must be idle when it
    comes. 1: there is head-room for that."""
    period_ms: float = 30_000.0
    """The plan is for so long; a load of ``load_ms`` takes its share of it."""
    load_gain_min: float = 0.05
    """A new copy must be worth this share of the most that it could serve: hysteresis."""
    gap: float = 1e-4
    """The answer may be worse than the best one by this share."""
    time_limit_s: float = 2.0
    """Of each solution of a MILP; what was found by then counts."""
    classes_max: int = 200
    candidates_max: int = 12
    """Choices of one task on one group; the others are left out, the least useful first."""
    exact_integers_max: int = 60
    """With at most so many (worker, choice) pairs, workers are told apart where it may matter."""
    integers_max: int = 600
    """Beyond, the relaxation says which choices are left out."""


def row_ms(
    choice: Choice, latency_ms: float, rows_per_s: float, runs_per_latency: float = 2.0, runs_alone: float = 2.0
) -> float:
    """Device time per row, in batches that keep the latency; infinite if none does.

    The least ``p50(b) / fill(b)`` over profiled sizes with ``(runs - 1) p50(b) + p99(b) <= latency``, where ``fill(b) =
    min(b, rows that arrive while there is time to wait)``: with little demand batches do not fill. If none fits so but
    one run does, the device must mostly idle: ``runs_alone * p50``, one row at a time.
    """
    best = INF
    for size, p50_ms, p99_ms in zip(choice.sizes, choice.p50_ms, choice.p99_ms, strict=True):
        if (runs_per_latency - 1) * p50_ms + p99_ms <= latency_ms:
            company = rows_per_s * (latency_ms - p99_ms) / 1000 if latency_ms < INF else INF
            best = min(best, p50_ms / min(size, max(1.0, company)))
    if best == INF and choice.p99_ms[0] <= latency_ms:
        return runs_alone * choice.p50_ms[0]
    return best


def merged(demands: Iterable[Demand], choices: Iterable[Choice], classes_max: int = 200) -> tuple[Demand, ...]:
    """Alike classes as one, at most ``classes_max`` if there are fewer (task, preference) pairs than that.

    Accuracy floors become the least accuracy of a variant that meets them, which changes nothing. Latencies within a
    factor become the least of them, so that what suits the class suits all; the factor grows until there are few
    enough classes, and then the floors of one task become one, the highest that can be met.
    """
    accuracies: dict[str, list[float]] = defaultdict(list)
    for task, accuracy in sorted({(choice.task, choice.accuracy) for choice in choices}):
        accuracies[task].append(accuracy)
    asked = []
    for demand in demands:
        if demand.rows_per_s > 0:
            floor_ = next((each for each in accuracies[demand.task] if each >= demand.accuracy_min), INF)
            asked.append(replace(demand, accuracy_min=0.0 if demand.degrades else floor_))
    step, one_floor = LATENCY_STEP, False
    while True:
        classes = _merged(asked, step, one_floor)
        if len(classes) <= classes_max or one_floor:
            return classes
        step = step * step
        one_floor = step > 1e6


def _merged(demands: Sequence[Demand], step: float, one_floor: bool) -> tuple[Demand, ...]:
    bins: dict[tuple[object, ...], list[Demand]] = defaultdict(list)
    for each in demands:
        latency = floor(log(max(each.latency_ms, 1e-3), step)) if each.latency_ms < INF else INF
        hopeless = each.accuracy_min == INF
        floor_ = hopeless if one_floor else each.accuracy_min
        bins[each.task, latency, floor_, each.prefer, each.degrades, each.weight, each.level].append(each)
    return tuple(
        replace(
            alike[0],
            latency_ms=min(each.latency_ms for each in alike),
            accuracy_min=max(each.accuracy_min for each in alike),
            rows_per_s=(rows_per_s := sum(each.rows_per_s for each in alike)),
            burst=sum(each.burst * each.rows_per_s for each in alike) / rows_per_s,
        )
        for alike in bins.values()
    )


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Which choice may answer which class, and what that takes and gives, one element per pair."""

    of_class: NDArray[np.int64]
    of_choice: NDArray[np.int64]
    row_ms: NDArray[np.float64]
    worth: NDArray[np.float64]
    """Goodness of a row: the class's weight times 1, or times the accuracy, in its share of the time."""
    value: NDArray[np.float64]
    """Likewise, less what decides between equals."""

    def __len__(self) -> int:
        return len(self.row_ms)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What is to be decided."""

    classes: tuple[Demand, ...]
    choices: tuple[Choice, ...]
    groups: Mapping[str, Group]
    options: Options
    pairs: Pairs
    load_cost: NDArray[np.float64]
    """By choice: what a new copy must gain, goodness a second."""
    by_key: Mapping[Key, int]
    """Number of each choice."""
    memory_mb: Mapping[Key, float]
    """Of everything that was offered, be it of use or not."""

    @property
    def levels(self) -> int:
        """How many there are."""
        return 1 + max((each.level for each in self.classes), default=0)

    @property
    def level_of(self) -> NDArray[np.int64]:
        """By class."""
        return np.array([each.level for each in self.classes], dtype=np.int64)

    @property
    def share_of(self) -> NDArray[np.float64]:
        """By class."""
        return np.array([each.share for each in self.classes])

    @property
    def device_ms(self) -> float:
        """A worker's time that may be planned, milliseconds a second."""
        return 1000 * self.options.utilisation_max

    def load_share(self, index: int) -> float:
        """Of the period, in which a new copy is not there yet; at most a half, else what loads slowly never would."""
        return min(0.5, self.choices[index].load_ms / self.options.period_ms)


def problem(demands: Iterable[Demand], choices: Sequence[Choice], groups: Sequence[Group], options: Options) -> Problem:
    """Merge classes, pair them with choices, and leave out choices that another one beats in everything."""
    by_name = {group.name: group for group in groups if group.loaded}
    offered = [c for c in choices if c.group in by_name and c.memory_mb <= by_name[c.group].memory_mb]
    classes = merged(demands, offered, options.classes_max)
    of_task: dict[str, list[int]] = defaultdict(list)
    rates: dict[tuple[str, int], float] = defaultdict(float)
    for index, each in enumerate(classes):
        of_task[each.task].append(index)
        rates[each.task, each.level] += each.rows_per_s
    loaded = {(v, group.name) for group in by_name.values() for variants in group.loaded.values() for v in variants}
    alike: dict[tuple[str, str], list[tuple[Choice, NDArray[np.float64]]]] = defaultdict(list)
    for choice in {choice.key: choice for choice in offered}.values():
        own = of_task.get(choice.task, ())
        times = np.array([_time_of(choice, classes[i], rates[choice.task, classes[i].level], options) for i in own])
        if len(own) and np.isfinite(times).any():
            alike[choice.task, choice.group].append((choice, times))
    kept = [
        (choice, times)
        for (task, _), candidates in alike.items()
        for choice, times in _useful(candidates, loaded, [classes[i] for i in of_task[task]], options.candidates_max)
    ]
    rows: list[tuple[int, int, float, float, float]] = []
    for number, (choice, times) in enumerate(kept):
        usd = by_name[choice.group].price_per_hour / MS_PER_HOUR
        for index, ms in zip(of_task[choice.task], times.tolist(), strict=True):
            if ms < INF:
                rows.append((index, number, ms, _worth(choice, classes[index]), usd * ms))
    pairs = _pairs(rows, classes, [choice for choice, _ in kept])
    capacity_ms = 1000 * options.utilisation_max
    most = np.zeros(len(kept))
    for i, j, ms, worth in zip(pairs.of_class, pairs.of_choice, pairs.row_ms, pairs.worth, strict=True):
        most[j] = max(most[j], min(classes[i].rows_per_s, capacity_ms / max(ms, 1e-9)) * worth)
    return Problem(
        classes,
        tuple(choice for choice, _ in kept),
        by_name,
        options,
        pairs,
        options.load_gain_min * most,
        {choice.key: number for number, (choice, _) in enumerate(kept)},
        {choice.key: choice.memory_mb for choice in offered},
    )


def _time_of(choice: Choice, demand: Demand, rows_per_s: float, options: Options) -> float:
    if not demand.degrades and choice.accuracy < demand.accuracy_min:
        return INF
    return row_ms(choice, demand.latency_ms, rows_per_s, options.runs_per_latency, options.runs_alone)


def _worth(choice: Choice, demand: Demand) -> float:
    return demand.share * demand.weight * (choice.accuracy if demand.by_accuracy else 1.0)


def _useful(
    candidates: Sequence[tuple[Choice, NDArray[np.float64]]],
    loaded: Set[Key],
    classes: Sequence[Demand],
    candidates_max: int,
) -> list[tuple[Choice, NDArray[np.float64]]]:
    """Of one task on one group: what is loaded, and what no other beats in accuracy, time, memory and loading."""
    ordered = sorted(candidates, key=lambda c: (-c[0].accuracy, c[0].memory_mb, c[1].sum(), c[0].load_ms))
    kept: list[tuple[Choice, NDArray[np.float64]]] = []
    for choice, times in ordered:
        is_beaten = any(
            other.memory_mb <= choice.memory_mb
            and other.load_ms <= choice.load_ms
            and other.p50_ms[0] <= choice.p50_ms[0]
            and bool((others <= times).all())
            for other, others in kept
        )
        if choice.key in loaded or not is_beaten:
            kept.append((choice, times))
    if len(kept) <= candidates_max:
        return kept
    wanted: set[int] = set()
    table = np.array([times for _, times in kept])
    values = np.array([[_worth(choice, each) for each in classes] for choice, _ in kept])
    for ranked in (table, np.where(np.isfinite(table), -values, INF)):  # the fastest and the best of every class
        wanted.update(np.argmin(ranked, axis=0).tolist())
    spread = np.linspace(0, len(kept) - 1, max(0, candidates_max - len(wanted))).round().astype(int).tolist()
    wanted.update(spread)
    return [each for number, each in enumerate(kept) if number in wanted or each[0].key in loaded]


def _pairs(
    rows: Sequence[tuple[int, int, float, float, float]], classes: Sequence[Demand], choices: Sequence[Choice]
) -> Pairs:
    most: dict[tuple[str, bool], float] = defaultdict(float)
    for index, number, _, _, usd in rows:
        demand = classes[index]
        most[demand.task, False] = max(most[demand.task, False], usd)
        most[demand.task, True] = max(most[demand.task, True], choices[number].p50_ms[0])
    values = []
    for index, number, _, worth, usd in rows:
        demand = classes[index]
        by_latency = demand.prefer == "latency"
        less = choices[number].p50_ms[0] if by_latency else usd
        tie = TIE_ACCURACY if demand.by_accuracy else TIE_COST
        values.append(worth - tie * demand.share * demand.weight * less / max(most[demand.task, by_latency], 1e-300))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Pairs(
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.int64),
        np.array(columns[2], dtype=np.float64),
        np.array(columns[3], dtype=np.float64),
        np.array(values, dtype=np.float64),
    )
