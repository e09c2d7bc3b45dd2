"""Which variants are loaded on which worker, and which share of the demand each gets: a MILP, or greedily. Pure.

After Proteus (ASPLOS'24, section 4: placement and query assignment as a MILP off the query path) and INFaaS (ATC'21),
with several variants on a worker, and batches as :func:`~broker.placement_model.row_ms` says. For classes *d* of demand
(``rate_d`` rows a second), choices *c* (a variant on a group) and pools *p* of ``W_p`` workers of one group::

    maximise    sum value_dc y_dcp  -  sum load_cost_c new_cp
    subject to  sum_cp y_dcp                   <= rate_d                                  of each class
                sum_dc ms_dc y_dcp             <= W_p T                                   time of each pool  (*)
                sum_d  ms_dc y_dcp             <= T (n_cp - load_share_c new_cp)          of the copies of c in p  (*)
                y_dcp                          <= rate_d n_cp                             (tightens the relaxation)
                sum_c  memory_c n_cp           <= W_p memory_p
                sum_(c: memory_c > memory_p / (k + 1)) n_cp <= k W_p                      no more fit, k = 1, 2, 3
                n_cp - new_cp                  <= copies that are loaded already
                y, new >= 0,  n_cp whole, at most W_p

``y`` is rows a second, ``n`` copies, ``new`` those that must be loaded, ``T = 1000 utilisation_max`` device
milliseconds a second. ``value_dc`` is what a row is worth (the class's weight times the variant's accuracy for classes
that prefer accuracy or degrade, times 1 for the others) less at most 1 % of it for what decides between equals: cost.
``load_share`` is the share of the period that a load takes; ``load_cost`` is what a new copy must gain at least, which
holds still what would only swing.

**Levels.** Demand may have several, which are not asked for at the same time (:mod:`broker.levels`). The rows (*) are
there for each level, with the classes of that level, whose values are multiplied by the share of time that it takes:
copies are the same at all levels, flows are not. What an allocation sums is the mean of all levels.

**Pools.** Workers of a group are alike, so a pool is a group, and its copies are packed onto its workers: what is
loaded stays where it is, the rest goes largest first to the worker with the least to do, or, if not all fit so, where
the least room is left. If that
fails, the pool gets less memory in the model, and it is solved again. Such a model can promise more than its packing
keeps (two variants on one worker share its time); where that matters and there are few workers, it is solved once more
with every worker a pool of its own, which is exact. Where there are many choices, the relaxation says first which are
of any use. What is packed is routed by a LP that tells apart workers by what they have; its dual values are the prices.

**Prices** are goodness per device millisecond: what one more millisecond would add. 0 where there is room. To choose
by ``score = value - price * row_ms`` makes a query give way to others that need the device more; for a class that
prefers cost, value is the same for all variants that meet its floor: the least ``price * row_ms`` wins, and cost
decides where that is 0. An answer is worth 0 to 1, so a price is comparable between classes, whatever they prefer; a
cost in USD is not, and stays outside of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array

from broker.placement_model import (
    INF,
    Choice,
    Demand,
    Group,
    Key,
    Options,
    Problem,
    merged,
    problem,
    row_ms,
)
from modelless.messages import MS_PER_HOUR

__all__ = ["Allocation", "Choice", "Demand", "Group", "Key", "Options", "greedy", "merged", "place", "route", "row_ms"]

PACKINGS_MAX = 3
EPSILON = 1e-9
DEFAULT = Options()

Load = Mapping[str, Set[str]]
"""Variants by worker."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """A placement, and how demand flows through it."""

    load: Mapping[str, tuple[str, ...]]
    """Variants of each live worker, those of the most traffic first."""
    classes: tuple[Demand, ...]
    """Demand as it was merged."""
    shares: tuple[Mapping[Key, float], ...]
    """Like :attr:`classes`: the share of the class that goes to each choice. What is missing to 1 cannot be served."""
    prices: Mapping[str, float]
    """By group, goodness per device millisecond, the mean of its workers'."""
    variant_prices: Mapping[Key, float]
    """Likewise by choice: that of the cheapest worker that has it."""
    goodness_per_s: float
    """Worth of what is served."""
    served_rows_per_s: float
    usd_per_s: float
    """Attributed cost: the price of the time that is used."""
    new_loads: tuple[tuple[str, str], ...]
    """(worker, variant) of what is not loaded yet."""
    objective: float
    """:attr:`goodness_per_s`, less what decides between equals and what loads cost."""
    bound: float = INF
    """No placement has a higher objective."""

    def shares_for(
        self, task: str, latency_ms: float, accuracy_min: float, *, by_accuracy: bool, degrades: bool = False
    ) -> Mapping[Key, float]:
        """Of the most alike class that asks for no less; empty if there is none."""
        best, best_by = None, (-INF, -INF)
        for demand, shares in zip(self.classes, self.shares, strict=True):
            is_alike = demand.task == task and demand.degrades == degrades and demand.by_accuracy == by_accuracy
            if is_alike and demand.latency_ms <= latency_ms and (degrades or demand.accuracy_min >= accuracy_min):
                by = (demand.latency_ms, -demand.accuracy_min)
                if best is None or by > best_by:
                    best, best_by = shares, by
        return best or {}


def place(
    demands: Iterable[Demand],
    choices: Sequence[Choice],
    groups: Sequence[Group],
    options: Options = DEFAULT,
    hint: Mapping[str, Sequence[Set[str]]] | None = None,
) -> Allocation:
    """The best placement that is found in time; see the module. Never worse than to leave everything as it is.

    Raises nothing for demand that cannot be met: as much of it is served as is worth most.

    Args:
        hint: by group, variants of its workers, whichever they are: a placement that may be good.
    """
    asked = problem(demands, choices, groups, options)
    stay = _stay(asked)
    if not len(asked.pairs):
        return replace(stay, bound=0.0)
    found = [_routed(asked, _greedy(asked))]
    if hint:
        found.append(_routed(asked, _assigned(asked, hint)))
    pools = [_Pool(group, tuple(sorted(group.loaded))) for group in asked.groups.values()]
    kept = _of_use(asked, pools)
    bound = _solve_and_pack(asked, pools, kept, found)
    best = max(each.objective for each in found)
    integers = sum(len(pool.workers) * _choices_of(asked, pool, kept).size for pool in pools)
    if best < bound - options.gap * abs(bound) and integers <= options.exact_integers_max:
        single = [_Pool(pool.group, (worker,)) for pool in pools for worker in pool.workers]
        bound = min(bound, _solve_and_pack(asked, single, kept, found))
    chosen = max(found, key=lambda each: each.objective)
    if chosen.objective <= stay.objective + options.gap * abs(stay.objective) + EPSILON:
        chosen = stay
    return replace(chosen, bound=max(bound, chosen.objective))


def greedy(
    demands: Iterable[Demand],
    choices: Sequence[Choice],
    groups: Sequence[Group],
    options: Options = DEFAULT,
) -> Allocation:
    """An answer at once: each worker in turn takes what gains most, first for what nobody serves yet."""
    asked = problem(demands, choices, groups, options)
    return max((_stay(asked), _routed(asked, _greedy(asked))), key=lambda each: each.objective)


def route(
    demands: Iterable[Demand],
    choices: Sequence[Choice],
    groups: Sequence[Group],
    load: Load,
    options: Options = DEFAULT,
) -> Allocation:
    """The best shares, and the prices, for a placement that is given."""
    return _routed(problem(demands, choices, groups, options), load)


# --- the MILP --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pool:
    group: Group
    workers: tuple[str, ...]
    memory_share: float = 1.0
    """Of its memory that may be used: less than 1 once packing failed."""

    def copies(self, variant: str) -> int:
        return sum(variant in self.group.loaded[worker] for worker in self.workers)


class _Copies(NamedTuple):
    number: int
    busy_ms: float
    """A second, of each, in the mean of all levels."""


class _Model:
    """The matrix of the module's formula. Columns, pool by pool: n, new, y."""

    def __init__(self, asked: Problem, pools: Sequence[_Pool], kept: NDArray[np.bool_]) -> None:
        self.asked, self.pools = asked, pools
        rates = np.array([demand.rows_per_s for demand in asked.classes])
        rows, columns, values = _Triples(), _Triples(), _Triples()
        self._triples = (rows, columns, values)
        ceiling: list[NDArray[np.float64]] = [rates]
        costs, uppers, whole = [], [], []
        self.slices: list[tuple[NDArray[np.int64], int]] = []
        self.flows: list[NDArray[np.int64]] = []
        self.flow_columns: list[int] = []
        row, column = len(rates), 0
        pairs, device_ms, levels, level_of = asked.pairs, asked.device_ms, asked.levels, asked.level_of
        for pool in pools:
            own = _choices_of(asked, pool, kept)
            mine = np.flatnonzero(np.isin(pairs.of_choice, own))
            local = np.searchsorted(own, pairs.of_choice[mine])
            workers, count, flows = len(pool.workers), own.size, mine.size
            memory = np.array([asked.choices[j].memory_mb for j in own])
            have = np.array([pool.copies(asked.choices[j].variant) for j in own], dtype=float)
            share = np.array([asked.load_share(int(j)) for j in own])
            n, new, y = (column + np.arange(count), column + count + np.arange(count),
                         column + 2 * count + np.arange(flows))  # fmt: skip
            ms = pairs.row_ms[mine]
            self._add(pairs.of_class[mine], y, 1.0)
            level = level_of[pairs.of_class[mine]]
            self._add(row + level, y, ms)
            ceiling.append(np.full(levels, workers * device_ms))
            row += levels
            self._add(row, n, memory)
            ceiling.append(np.array([workers * pool.group.memory_mb * pool.memory_share]))
            row += 1
            for k in (1, 2, 3):
                self._add(row, n[memory * (k + 1) > pool.group.memory_mb], 1.0)
                ceiling.append(np.array([float(k * workers)]))
                row += 1
            self._add(row + level * count + local, y, ms)
            for _ in range(levels):
                copies = row + np.arange(count)
                self._add(copies, n, -device_ms)
                self._add(copies, new, device_ms * share)
                row += count
            loads = row + np.arange(count)
            self._add(loads, n, 1.0)
            self._add(loads, new, -1.0)
            row += count
            links = row + np.arange(flows)
            self._add(links, y, 1.0)
            self._add(links, n[local], -rates[pairs.of_class[mine]])
            row += flows
            ceiling += [np.zeros(levels * count), have, np.zeros(flows)]
            costs += [np.zeros(count), asked.load_cost[own], -pairs.value[mine]]
            uppers += [np.full(2 * count, float(workers)), rates[pairs.of_class[mine]]]
            whole += [np.ones(count), np.zeros(count + flows)]
            self.slices.append((own, column))
            self.flows.append(mine)
            self.flow_columns.append(column + 2 * count)
            column += 2 * count + flows
        self.cost = np.concatenate(costs)
        self.upper = np.concatenate(uppers)
        self.whole = np.concatenate(whole)
        self.ceiling = np.concatenate(ceiling)
        self.matrix = csr_array(
            coo_array((values.joined(), (rows.joined().astype(int), columns.joined().astype(int))), (row, column))
        )

    def _add(
        self,
        row: int | NDArray[np.int64],
        column: NDArray[np.int64],
        value: float | NDArray[np.float64],
    ) -> None:
        for triples, each in zip(self._triples, (row, column, value), strict=True):
            triples.append(np.broadcast_to(np.asarray(each, dtype=float), column.shape))

    def relaxed(self) -> tuple[list[dict[int, float]], float] | None:
        """(copies by choice of each pool, fractional; objective)."""
        done = linprog(self.cost, A_ub=self.matrix, b_ub=self.ceiling, bounds=np.stack([0 * self.upper, self.upper]).T)
        return None if done.x is None else (self._copies(done.x), -float(done.fun))

    def solved(self) -> tuple[list[dict[int, _Copies]], float] | None:
        """(copies by choice of each pool, bound of the objective); None if nothing was found in time."""
        options = self.asked.options
        done = milp(
            self.cost,
            integrality=self.whole,
            bounds=Bounds(np.zeros_like(self.upper), self.upper),
            constraints=LinearConstraint(self.matrix, ub=self.ceiling),
            options={"time_limit": options.time_limit_s, "mip_rel_gap": options.gap},
        )
        if done.x is None:
            return None
        bound = -float(done.mip_dual_bound if done.mip_dual_bound is not None else done.fun)
        copies = []
        for of_pool, pairs, first in zip(self._copies(done.x), self.flows, self.flow_columns, strict=True):
            choice, ms = self.asked.pairs.of_choice[pairs], self.asked.pairs.row_ms[pairs]
            share = self.asked.share_of[self.asked.pairs.of_class[pairs]]
            busy_ms = np.bincount(choice, share * ms * done.x[first : first + pairs.size], len(self.asked.choices))
            copies.append({j: _Copies(round(n), float(busy_ms[j]) / round(n)) for j, n in of_pool.items() if round(n)})
        return copies, bound

    def _copies(self, x: NDArray[np.float64]) -> list[dict[int, float]]:
        return [
            {int(j): float(n) for j, n in zip(own, x[first : first + own.size], strict=True) if n > EPSILON}
            for own, first in self.slices
        ]


class _Triples(list[NDArray[np.float64]]):
    def joined(self) -> NDArray[np.float64]:
        return np.concatenate(self) if self else np.zeros(0)


def _choices_of(asked: Problem, pool: _Pool, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    name = pool.group.name
    return np.array([j for j, c in enumerate(asked.choices) if c.group == name and kept[j]], dtype=np.int64)


def _of_use(asked: Problem, pools: Sequence[_Pool]) -> NDArray[np.bool_]:
    """All choices, or where they are too many those that the relaxation uses, and what is loaded."""
    everything = np.ones(len(asked.choices), dtype=bool)
    if everything.size <= asked.options.integers_max:
        return everything
    relaxed = _Model(asked, pools, everything).relaxed()
    if relaxed is None:
        return everything
    loaded = {(v, g.name) for g in asked.groups.values() for variants in g.loaded.values() for v in variants}
    kept = np.array([choice.key in loaded for choice in asked.choices])
    for copies in relaxed[0]:
        kept[list(copies)] = True
    return kept


def _solve_and_pack(asked: Problem, pools: Sequence[_Pool], kept: NDArray[np.bool_], found: list[Allocation]) -> float:
    """Add to ``found`` what the MILP says, packed and routed; its bound."""
    bound = INF
    for _ in range(PACKINGS_MAX):
        solved = _Model(asked, pools, kept).solved()
        if solved is None:
            break
        copies, bound_now = solved
        bound = min(bound, bound_now) if bound == INF else bound
        load: dict[str, Set[str]] = {}
        smaller = []
        for pool, of_pool in zip(pools, copies, strict=True):
            packed, left_mb = _packed(asked, pool, of_pool)
            load.update(packed)
            total_mb = len(pool.workers) * pool.group.memory_mb
            planned_mb = sum(asked.choices[j].memory_mb * each.number for j, each in of_pool.items())
            smaller.append(replace(pool, memory_share=(planned_mb - left_mb) / total_mb) if left_mb else pool)
        found.append(_routed(asked, load))
        if smaller == list(pools):
            break
        pools = smaller
    return bound


def _packed(asked: Problem, pool: _Pool, copies: Mapping[int, _Copies]) -> tuple[dict[str, Set[str]], float]:
    """(what each worker of the pool loads, memory of the copies that found no place)."""
    best: tuple[dict[str, Set[str]], float] | None = None
    for is_spread in (True, False):
        packed, left_mb = _pack(asked, pool, copies, is_spread=is_spread)
        if best is None or left_mb < best[1]:
            best = packed, left_mb
        if not left_mb:
            break
    assert best is not None
    return best


def _pack(
    asked: Problem, pool: _Pool, copies: Mapping[int, _Copies], *, is_spread: bool
) -> tuple[dict[str, Set[str]], float]:
    load: dict[str, set[str]] = {worker: set() for worker in pool.workers}
    free_mb = dict.fromkeys(pool.workers, pool.group.memory_mb)
    busy_ms = dict.fromkeys(pool.workers, 0.0)
    left_mb = 0.0

    def put(worker: str, variant: str, memory_mb: float, more_ms: float = 0.0) -> bool:
        if variant in load[worker] or memory_mb > free_mb[worker] + EPSILON:
            return False
        load[worker].add(variant)
        free_mb[worker] -= memory_mb
        busy_ms[worker] += more_ms
        return True

    rest: list[tuple[Choice, float]] = []
    for j, (number, ms) in sorted(copies.items(), key=lambda item: (-item[1].busy_ms, item[0])):
        choice, missing = asked.choices[j], number
        for worker in sorted(pool.workers, key=lambda worker: busy_ms[worker]):
            if missing and choice.variant in pool.group.loaded[worker]:
                missing -= put(worker, choice.variant, choice.memory_mb, ms)
        rest += [(choice, ms)] * missing
    if is_spread:
        rest.sort(key=lambda each: -each[1] / asked.device_ms - each[0].memory_mb / pool.group.memory_mb)
    else:
        rest.sort(key=lambda each: -each[0].memory_mb)
    for choice, ms in rest:
        order = sorted(pool.workers, key=(busy_ms if is_spread else free_mb).__getitem__)
        if not any(put(worker, choice.variant, choice.memory_mb, ms) for worker in order):
            left_mb += choice.memory_mb
    for worker in pool.workers:  # what is there stays while there is room
        for variant in sorted(pool.group.loaded[worker]):
            memory_mb = asked.memory_mb.get((variant, pool.group.name))
            if memory_mb is not None:
                put(worker, variant, memory_mb)
    return dict(load), left_mb


def _assigned(asked: Problem, hint: Mapping[str, Sequence[Set[str]]]) -> dict[str, Set[str]]:
    """Each set of variants to the worker that has most of it; what is there besides stays while there is room."""
    load: dict[str, Set[str]] = {}
    for group in asked.groups.values():
        memory_mb = {v: mb for (v, name), mb in asked.memory_mb.items() if name == group.name}
        free = set(group.loaded)
        for wanted in sorted(hint.get(group.name, ()), key=len, reverse=True):
            if free:
                have = {w: sum(memory_mb.get(v, 0.0) for v in group.loaded[w] & wanted) for w in free}
                worker = min(free, key=lambda w: (-have[w], w))
                free.remove(worker)
                load[worker] = {variant for variant in wanted if variant in memory_mb}
        for worker, loaded in group.loaded.items():
            mine = set(load.get(worker, ()))
            left_mb = group.memory_mb - sum(memory_mb[variant] for variant in mine)
            for variant in sorted(loaded - mine):
                if memory_mb.get(variant, INF) <= left_mb + EPSILON:
                    mine.add(variant)
                    left_mb -= memory_mb[variant]
            load[worker] = mine
    return load


# --- flow through a placement ----------------------------------------------------------------------------------------


def _stay(asked: Problem) -> Allocation:
    """Load nothing; what does not fit, or nobody knows, goes."""
    load: dict[str, Set[str]] = {}
    for group in asked.groups.values():
        load.update(_pack(asked, _Pool(group, tuple(sorted(group.loaded))), {}, is_spread=True)[0])
    return _routed(asked, load)


def _routed(asked: Problem, load: Load) -> Allocation:
    """The best flow: a LP over kinds of workers, which have the same loaded and the same to load."""
    kinds: dict[tuple[str, frozenset[str], frozenset[str]], list[str]] = defaultdict(list)
    for group in asked.groups.values():
        for worker, loaded in group.loaded.items():
            variants = frozenset(load.get(worker, ()))
            kinds[group.name, variants, variants - loaded].append(worker)
    pairs, device_ms = asked.pairs, asked.device_ms
    ends = np.cumsum(np.bincount(pairs.of_choice, minlength=len(asked.choices)))
    by_choice = np.split(np.argsort(pairs.of_choice, kind="stable"), ends[:-1])
    flows: list[NDArray[np.int64]] = []
    rows: list[NDArray[np.int64]] = []
    ceiling = [demand.rows_per_s for demand in asked.classes]
    extra: list[tuple[int, NDArray[np.int64]]] = []
    column, load_cost = 0, 0.0
    first_kind, levels, level_of = len(ceiling), asked.levels, asked.level_of
    ceiling += [len(workers) * device_ms for workers in kinds.values() for _ in range(levels)]
    for number, ((group_name, variants, new), workers) in enumerate(kinds.items()):
        for variant in sorted(variants):
            choice = asked.by_key.get((variant, group_name))
            if choice is None:
                continue
            flows.append(by_choice[choice])
            level = level_of[pairs.of_class[by_choice[choice]]]
            rows.append(first_kind + number * levels + level)
            if variant in new:
                load_cost += float(asked.load_cost[choice]) * len(workers)
                extra += [(len(ceiling) + at, column + np.flatnonzero(level == at)) for at in range(levels)]
                ceiling += [len(workers) * device_ms * (1 - asked.load_share(choice))] * levels
            column += by_choice[choice].size
    if not column:
        return _allocation(asked, load, kinds, np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), {}, 0.0)
    pair, kind_row = np.concatenate(flows), np.concatenate(rows)
    entries = [
        (pairs.of_class[pair], np.arange(column), np.ones(column)),
        (kind_row, np.arange(column), pairs.row_ms[pair]),
    ]
    entries += [(np.full(columns.size, row), columns, pairs.row_ms[pair[columns]]) for row, columns in extra]
    row_, column_, value_ = (np.concatenate([entry[i] for entry in entries]) for i in range(3))
    matrix = csr_array(coo_array((value_, (row_, column_)), (len(ceiling), column)))
    done = linprog(-pairs.value[pair], A_ub=matrix, b_ub=np.array(ceiling), bounds=(0, None), method="highs")
    assert done.x is not None, "to serve nothing is always feasible"
    duals = np.maximum(0.0, -done.ineqlin.marginals)
    prices = {
        number: float(duals[first_kind + number * levels : first_kind + (number + 1) * levels].sum())
        for number in range(len(kinds))
    }
    return _allocation(asked, load, kinds, pair, done.x, kind_row - first_kind, prices, load_cost)


def _allocation(
    asked: Problem,
    load: Load,
    kinds: Mapping[tuple[str, frozenset[str], frozenset[str]], Sequence[str]],
    pair: NDArray[np.int64],
    flow: NDArray[np.float64],
    kind: NDArray[np.int64],
    price_of_kind: Mapping[int, float],
    load_cost: float,
) -> Allocation:
    pairs = asked.pairs
    shares: list[dict[Key, float]] = [{} for _ in asked.classes]
    traffic_ms: dict[Key, float] = defaultdict(float)
    usd_per_s = 0.0
    for p, rate in zip(pair[flow > EPSILON].tolist(), flow[flow > EPSILON].tolist(), strict=True):
        index, choice = int(pairs.of_class[p]), asked.choices[pairs.of_choice[p]]
        own = shares[index]
        own[choice.key] = own.get(choice.key, 0.0) + rate / asked.classes[index].rows_per_s
        ms = rate * float(pairs.row_ms[p]) * asked.classes[index].share
        traffic_ms[choice.key] += ms
        usd_per_s += ms * asked.groups[choice.group].price_per_hour / MS_PER_HOUR
    totals: dict[str, float] = defaultdict(float)
    variant_prices: dict[Key, float] = {}
    for number, ((group, variants, _), workers) in enumerate(kinds.items()):
        price = price_of_kind.get(number, 0.0)
        totals[group] += price * len(workers)
        for variant in variants:
            variant_prices[variant, group] = min(price, variant_prices.get((variant, group), INF))
    order = {
        worker: tuple(sorted(load.get(worker, ()), key=lambda v: (-traffic_ms[v, group.name], v)))
        for group in asked.groups.values()
        for worker in sorted(group.loaded)
    }
    return Allocation(
        load=order,
        classes=asked.classes,
        shares=tuple(shares),
        prices={name: totals[name] / len(group.loaded) for name, group in asked.groups.items()},
        variant_prices=variant_prices,
        goodness_per_s=float(pairs.worth[pair] @ flow),
        served_rows_per_s=float(asked.share_of[pairs.of_class[pair]] @ flow),
        usd_per_s=usd_per_s,
        new_loads=tuple(
            (worker, variant)
            for group in asked.groups.values()
            for worker in sorted(group.loaded)
            for variant in order[worker]
            if variant not in group.loaded[worker]
        ),
        objective=float(pairs.value[pair] @ flow) - load_cost,
    )


# --- the greedy answer -----------------------------------------------------------------------------------------------


def _greedy(asked: Problem) -> dict[str, Set[str]]:
    """Worker by worker, the cheapest and those that have something first: the choice that gains most in what time and
    memory are left, until none gains what its load must. A gain is what nobody served yet, then what is served by less.
    """
    pairs, classes, levels, level_of = asked.pairs, len(asked.classes), asked.levels, asked.level_of
    open_rows = np.array([demand.rows_per_s for demand in asked.classes])
    served_rows, served_value = np.zeros(classes), np.zeros(classes)
    load: dict[str, Set[str]] = {}
    by_price = sorted(asked.groups.values(), key=lambda group: (group.price_per_hour, group.name))
    for group in by_price:
        own = np.flatnonzero([choice.group == group.name for choice in asked.choices])
        mine = np.flatnonzero(np.isin(pairs.of_choice, own))
        local, of_class = np.searchsorted(own, pairs.of_choice[mine]), pairs.of_class[mine]
        ms, value = pairs.row_ms[mine], pairs.value[mine]
        memory = np.array([asked.choices[j].memory_mb for j in own])
        share = np.array([asked.load_share(int(j)) for j in own])
        variants = [asked.choices[j].variant for j in own]
        for worker in sorted(group.loaded, key=lambda worker: (not group.loaded[worker], worker)):
            is_new = np.array([variant not in group.loaded[worker] for variant in variants], dtype=bool)
            taken: set[int] = set()
            left_ms, free_mb = np.full(levels, asked.device_ms), group.memory_mb
            by_level = local * levels + level_of[of_class]
            while own.size and (left_ms > EPSILON).any():
                better = np.maximum(0.0, value - served_value[of_class])
                time_ms = np.maximum(0.0, left_ms - (is_new * share)[:, None] * asked.device_ms)
                needs = [_summed(by_level, rate * ms, own.size, levels)
                         for rate in (open_rows[of_class], served_rows[of_class] * (better > EPSILON))]  # fmt: skip
                gains = [_summed(by_level, rate * gain, own.size, levels)
                         for rate, gain in ((open_rows[of_class], value), (served_rows[of_class], better))]  # fmt: skip
                first = np.minimum(1.0, time_ms / np.maximum(needs[0], EPSILON))
                second = np.minimum(1.0, (time_ms - first * needs[0]) / np.maximum(needs[1], EPSILON))
                gain = (first * gains[0] + second * gains[1]).sum(axis=1) - is_new * asked.load_cost[own]
                gain[memory > free_mb + EPSILON] = -INF
                gain[list(taken)] = -INF
                j = int(np.argmax(gain))
                if not gain[j] > EPSILON:
                    break
                taken.add(j)
                free_mb -= float(memory[j])
                left_ms = left_ms - first[j] * needs[0][j] - second[j] * needs[1][j]
                at = local == j
                on, of = of_class[at], value[at]
                rose = better[at] > EPSILON
                new_rows = open_rows[on] * first[j][level_of[on]]
                up_rows = served_rows[on] * second[j][level_of[on]] * rose
                total = served_rows[on] * served_value[on] + new_rows * of + up_rows * (of - served_value[on])
                open_rows[on] -= new_rows
                served_rows[on] += new_rows
                served_value[on] = total / np.maximum(served_rows[on], EPSILON)
            kept = {variants[j] for j in taken}
            for variant in sorted(group.loaded[worker] - kept):  # what is there stays while there is room
                memory_mb = asked.memory_mb.get((variant, group.name), INF)
                if memory_mb <= free_mb + EPSILON:
                    kept.add(variant)
                    free_mb -= memory_mb
            load[worker] = kept
    return load


def _summed(at: NDArray[np.int64], value: NDArray[np.float64], choices: int, levels: int) -> NDArray[np.float64]:
    """By choice and level."""
    return np.bincount(at, value, choices * levels).astype(np.float64).reshape(choices, levels)
