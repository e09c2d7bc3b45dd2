"""A bound that no policy beats on given arrivals: fractional devices, perfect batches, everything loaded everywhere.

**What is counted.** A query is answered in time by a variant that meets its accuracy floor (any, if it degrades). Its
batch takes ``p50(b)`` or longer, where ``b`` is the profiled size that the batch is rounded up to. Divide that time
among those ``m`` queries of the batch that are in time. Then

* ``m <= b``;
* all of them have arrived when it starts and none's deadline has passed when it ends, so for each of them ``p50(b) <=
  latency``, and of any two, each arrives at least ``p50(b)`` before the other's deadline. So ``m`` is at most the
  number of queries of the task that stand so to this one;
* so the query takes at least ``min over b of p50(b) / min(b, that number)`` of the time of one device of the group, and
  all of it between its arrival and its deadline.

And a group of ``W`` devices has ``W * length`` of time in any interval. Take time bins: a query that arrives within a
bin, or is due within it, may use the whole bin. So whatever a policy does gives a feasible point of this LP, with the
goodness of the policy: for classes *k* of queries of one task, floor, bins of arrival and of deadline; choices *c*::

    maximise   sum accuracy_c y_kc                       (or sum y_kc, for the bound of what is in time)
    subject to sum_c y_kc                            <= queries of k
               sum_(c of group g) least_ms_kc y_kc   <= sum over bins of z_kg,bin
               sum_k z_kg,bin                        <= W_g * length of the bin

``least_ms_kc`` is the least of the class's queries. Loads, memory (but that of one variant on one worker), tails, slow
and lost workers and the ways of queries and replies only take away from a policy, and are left out. What has no
deadline counts as answered by the best variant. Long runs are cut into parts; each has the devices for itself until its
last deadline, so that the sum of the parts' bounds is a bound too. It is not one for a policy that disregards floors,
nor for devices that are faster than their profile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array

from modelless.messages import MS_PER_HOUR
from simulator.facts import INF, GroupSpec, Portfolio, SimulatedQuery, VariantProfile

VARIABLES_MAX = 20_000
"""Of one part's LP; more are cut in two while a part is longer than its longest latency by far."""
PART_LATENCIES_MIN = 10
ROUNDING = 1e-6
"""Of the solver: added to the bound, as a share of it."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Nobody has more. Both are shares of all queries, as in a report."""

    goodness: float
    in_time: float


@dataclass(frozen=True, slots=True, eq=False)
class LeastCost:
    """The least that anybody pays for these queries in time; see :func:`least_cost`."""

    usd: NDArray[np.float64]
    """By query; 0 for those that nobody can answer in time, or that are given up."""
    group: NDArray[np.int64]
    """Where: index of the fleet's group; -1: nowhere."""
    device_ms: NDArray[np.float64]
    """There."""

    @property
    def total_usd(self) -> float:
        return float(self.usd.sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Class:
    first: int
    """Bin of arrival."""
    last: int
    """Bin of the deadline."""
    queries: int
    least_ms: dict[int, float]
    """By choice."""


def bound(
    fleet: Sequence[GroupSpec],
    portfolio: Portfolio,
    queries: Sequence[SimulatedQuery],
    *,
    accuracy_slack: float = 0.02,
    bin_ms: float | None = None,
    variables_max: int = VARIABLES_MAX,
) -> Bound:
    """The bound for these queries; their outcomes are not looked at.

    Args:
        queries: sorted by arrival.
        bin_ms: length of a bin; default the shortest latency that anything can meet. Shorter is tighter and slower.
        variables_max: of one LP; smaller is faster and less tight.
    """
    if not queries:
        return Bound(0.0, 0.0)
    memory_mb = {spec.name: spec.memory_mb for spec in fleet if spec.workers}
    choices = [p for p in portfolio.profiles if p.memory_mb <= memory_mb.get(p.group, -1.0) + 1e-9]
    least = _least_ms(choices, portfolio, queries, accuracy_slack)
    goodness = in_time = 0.0
    limited: list[int] = []
    for index, query in enumerate(queries):
        if least[index] and query.latency_ms_max == INF:
            in_time += 1
            goodness += max(choices[c].accuracy for c in least[index])
        elif least[index]:
            limited.append(index)
    if limited:
        shortest_ms = min(queries[index].latency_ms_max for index in limited)
        length_ms = bin_ms if bin_ms is not None else max(shortest_ms, 1e-3)
        workers = {spec.name: spec.workers for spec in fleet}
        for part in _parts(queries, limited, length_ms, variables_max, len(workers)):
            classes = _classes(queries, part, least, choices, length_ms)
            by_goodness, by_number = _solved(classes, choices, workers, length_ms)
            goodness += by_goodness
            in_time += by_number
    return Bound(min(1.0, goodness / len(queries) * (1 + ROUNDING)), min(1.0, in_time / len(queries) * (1 + ROUNDING)))


def least_cost(
    fleet: Sequence[GroupSpec],
    portfolio: Portfolio,
    queries: Sequence[SimulatedQuery],
    *,
    missed: float = 0.0,
    accuracy_slack: float = 0.02,
) -> LeastCost:
    """What nobody underbids who answers all but a share ``missed`` of the queries in time: fractional workers, as many
    as it takes and no longer than it takes, perfect batches, nothing to start or to load.

    Each query costs at least, of the choices that may answer it in time, the least of price times the device time of
    the module's theory; the ``missed`` share that costs most is given up. In fleets that scale no worker costs less
    than its price for the time in which it runs batches, so whatever a policy does, its bill is at least the sum.
    """
    number = {spec.name: index for index, spec in enumerate(fleet)}
    usd, device_ms = np.full(len(queries), INF), np.zeros(len(queries))
    group = np.full(len(queries), -1)
    of_task: dict[str, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        of_task[query.task].append(index)
    for task, indices in of_task.items():
        own = np.array(indices, dtype=np.int64)
        floors = np.array(
            [0.0 if queries[i].on_miss == "degrade" else portfolio.floor(queries[i], accuracy_slack) for i in indices]
        )
        arrival = np.array([queries[i].arrival_ms for i in indices])
        deadline = np.array([queries[i].deadline_ms for i in indices])
        for choice in portfolio.by_task.get(task, ()):
            if choice.group not in number or choice.memory_mb > fleet[number[choice.group]].memory_mb + 1e-9:
                continue
            able = np.flatnonzero(floors <= choice.accuracy + 1e-12)
            ms = _device_ms(choice, arrival[able], deadline[able])
            cost = ms * (fleet[number[choice.group]].price_per_hour / MS_PER_HOUR)
            better = cost < usd[own[able]]
            at = own[able[better]]
            usd[at], device_ms[at], group[at] = cost[better], ms[better], number[choice.group]
    never = usd == INF
    free = np.flatnonzero(never)
    left = max(0, int(missed * len(queries) + 1e-6) - free.size)
    costliest = np.argsort(np.where(never, -1.0, usd))[len(queries) - left :]
    for gone in (free, costliest):
        usd[gone], device_ms[gone], group[gone] = 0.0, 0.0, -1
    return LeastCost(usd, group, device_ms)


def _least_ms(
    choices: Sequence[VariantProfile],
    portfolio: Portfolio,
    queries: Sequence[SimulatedQuery],
    accuracy_slack: float,
) -> list[dict[int, float]]:
    """By query: the choices that may answer it in time, and the least device time that it takes of each."""
    found: list[dict[int, float]] = [{} for _ in queries]
    of_task: dict[str, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        of_task[query.task].append(index)
    for number, choice in enumerate(choices):
        own = np.array(of_task.get(choice.task, ()), dtype=np.int64)
        if not own.size:
            continue
        floors = np.array(
            [0.0 if queries[i].on_miss == "degrade" else portfolio.floor(queries[i], accuracy_slack) for i in own]
        )
        own = own[floors <= choice.accuracy + 1e-12]
        arrival = np.array([queries[i].arrival_ms for i in own])
        deadline = np.array([queries[i].deadline_ms for i in own])
        ms = _device_ms(choice, arrival, deadline)
        for index, each_ms in zip(own.tolist(), ms.tolist(), strict=True):
            if each_ms < INF:
                found[index][number] = each_ms
    return found


def _device_ms(
    choice: VariantProfile, arrival: NDArray[np.float64], deadline: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each of these queries: the least device time that it takes of the choice; INF if it cannot be in time."""
    ms = np.full(arrival.size, INF)
    for size, p50_ms in zip(choice.sizes, choice.p50_ms, strict=True):
        # Who has just the time for a batch must not be lost to rounding, here and below.
        able = np.flatnonzero(deadline - arrival >= p50_ms - 1e-6)
        if not able.size:
            continue
        arrivals, deadlines = np.sort(arrival[able]), np.sort(deadline[able])
        there = np.searchsorted(arrivals, deadline[able] - p50_ms + 1e-6, side="right")
        gone = np.searchsorted(deadlines, arrival[able] + p50_ms - 1e-6, side="left")
        together = np.minimum(size, np.maximum(1, there - gone))
        ms[able] = np.minimum(ms[able], p50_ms / together)
    return ms


def _parts(
    queries: Sequence[SimulatedQuery], limited: Sequence[int], bin_ms: float, variables_max: int, groups: int
) -> Iterable[Sequence[int]]:
    """Cut by arrival until a part is small, or so short that cutting would give too much away."""
    latency_ms = max(queries[index].latency_ms_max for index in limited)
    span_ms = queries[limited[-1]].arrival_ms - queries[limited[0]].arrival_ms
    windows = sum(queries[index].latency_ms_max / bin_ms + 1 for index in limited)
    classes = len({(queries[i].task, queries[i].accuracy_min, int(queries[i].arrival_ms // bin_ms)) for i in limited})
    variables = windows / len(limited) * min(len(limited), classes) * groups
    if variables <= variables_max or span_ms < 2 * PART_LATENCIES_MIN * latency_ms or len(limited) < 2:
        return [limited]
    middle_ms = (queries[limited[-1]].arrival_ms + queries[limited[0]].arrival_ms) / 2
    before = [index for index in limited if queries[index].arrival_ms < middle_ms]
    after = [index for index in limited if queries[index].arrival_ms >= middle_ms]
    halves = [half for half in (before, after) if half]
    return [part for half in halves for part in _parts(queries, half, bin_ms, variables_max, groups)]


def _classes(
    queries: Sequence[SimulatedQuery],
    part: Sequence[int],
    least: Sequence[dict[int, float]],
    choices: Sequence[VariantProfile],
    bin_ms: float,
) -> list[_Class]:
    together: dict[tuple[frozenset[int], int, int], list[int]] = defaultdict(list)
    for index in part:
        query = queries[index]
        first, last = int(query.arrival_ms // bin_ms), max(0, ceil(query.deadline_ms / bin_ms - 1e-9) - 1)
        together[frozenset(least[index]), first, max(first, last)].append(index)
    return [
        _Class(first, last, len(own), _useful({c: min(least[i][c] for i in own) for c in able}, choices))
        for (able, first, last), own in together.items()
    ]


def _useful(least_ms: dict[int, float], choices: Sequence[VariantProfile]) -> dict[int, float]:
    """Of the choices on one group, those that are not both slower and less accurate than another."""
    kept: dict[int, float] = {}
    fastest: dict[str, float] = {}
    for c in sorted(least_ms, key=lambda c: (-choices[c].accuracy, least_ms[c])):
        if least_ms[c] < fastest.get(choices[c].group, INF):
            kept[c] = fastest[choices[c].group] = least_ms[c]
    return kept


def _solved(
    classes: Sequence[_Class], choices: Sequence[VariantProfile], workers: dict[str, int], bin_ms: float
) -> tuple[float, float]:
    """(most goodness, most answers in time), both as sums over queries."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    ceiling: list[float] = []
    accuracy: list[float] = []
    answers: list[float] = []
    column = 0
    bins: dict[tuple[str, int], int] = {}

    def put(row: int, at: int, value: float) -> None:
        rows.append(row)
        columns.append(at)
        values.append(value)

    def new_row(most: float) -> int:
        ceiling.append(most)
        return len(ceiling) - 1

    for each in classes:
        of_class = new_row(float(each.queries))
        for group in sorted({choices[c].group for c in each.least_ms}):
            of_work = new_row(0.0)
            for c, least_ms in each.least_ms.items():
                if choices[c].group == group:
                    put(of_class, column, 1.0)
                    put(of_work, column, least_ms)
                    accuracy.append(choices[c].accuracy)
                    answers.append(1.0)
                    column += 1
            for number in range(each.first, each.last + 1):
                if (group, number) not in bins:
                    bins[group, number] = new_row(workers[group] * bin_ms)
                put(of_work, column, -1.0)
                put(bins[group, number], column, 1.0)
                accuracy.append(0.0)
                answers.append(0.0)
                column += 1
    matrix = csr_array(coo_array((values, (rows, columns)), (len(ceiling), column)))
    goodness = _most(matrix, np.array(accuracy), ceiling)
    return goodness, _most(matrix, np.array(answers), ceiling)


def _most(matrix: csr_array, objective: NDArray[np.float64], ceiling: Sequence[float]) -> float:
    done = linprog(-objective, A_ub=matrix, b_ub=np.array(ceiling), bounds=(0, None), method="highs-ipm")
    assert done.x is not None, "to answer nothing is always feasible"
    return -float(done.fun)
