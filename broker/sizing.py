"""How many workers of each group serve a demand at least cost. Pure.

The placement's program (:mod:`broker.placement`), turned round: there the workers are given and as much is served as is
worth most, here all is to be served and the workers cost. For classes *d* of demand (``rate_d`` rows a second), choices
*c* (a variant on a group) and groups *g*::

    minimise    sum price_g W_g  +  penalty sum miss_d
    subject to  sum_c y_dc + rate_d miss_d     >= rate_d (1 + h)                      of each class
                sum_dc ms_dc y_dc              <= T W_g                               time of each group
                sum_d  ms_dc y_dc              <= T n_c                               time of the copies of c
                y_dc                           <= rate_d (1 + h) n_c                  (tightens the relaxation)
                sum_c  memory_c n_c            <= W_g memory_g
                sum_(c: memory_c > memory_g / (k + 1)) n_c <= k W_g                   no more fit, k = 1, 2, 3
                n_c                            <= W_g
                y >= 0,  0 <= miss <= 1,  n whole,  W_g whole, from its least to its most

``y`` is rows a second, ``n`` copies, ``W`` workers, ``T = 1000 utilisation_max`` device milliseconds a second. A
choice serves a class only if it keeps its latency and its accuracy (:func:`~broker.placement_model.row_ms`).

**Head-room** ``h`` is a square-root rule (Halfin, Whitt: "Heavy-traffic limits for queues with many exponential
servers", 1981; Kolesar, Green: "Insights on service system design from a normal approximation to Erlang's delay
formula", 1998): in a latency's time *L* a class brings ``rate L`` rows, with a variance of ``burst`` times that (its
index of dispersion, 1 for a Poisson process, larger when it comes in bursts). The work that all classes together bring,
since devices are shared, deviates from its mean by the share::

    s = sqrt(sum burst_d rate_d w_d^2 / L_d) / sum rate_d w_d,    w_d = what a row of the class costs at least

and of it no more than ``missed_max`` is to find no room (:mod:`broker.headroom`).

**Solving.** Without whole numbers it is a linear program, whose value no fleet can undercut: the **bound**. Tiny
instances are solved with every worker told apart, which is exact. Others are solved with whole numbers over the choices
that the relaxation uses; then the work is packed: choice by choice, the most time first, each part goes to the worker
where it fits best, and is divided where it fits nowhere, so that what is packed is a placement that serves. Where that
takes more workers than there may be, the group gets less in the program, and it is solved again. At the end it is tried
to do without one worker of each group, or with a cheaper one instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array

from broker import headroom, placement_model
from broker.placement_model import INF, Choice, Demand, Group, Key, Problem, row_ms

EPSILON = 1e-6
PENALTY = 1000.0
"""What it costs to serve nothing of a class, beside all the workers that there may be."""
FREE = 1e-3
"""What a worker that costs nothing counts, beside the cheapest that does: few of them are better than many."""
TIE = 1e-3
"""Of what a worker costs, at most, for its time that is used, and likewise for its memory: of fleets that cost the same
that one is found of which the least is used, so that the rest of it can be packed."""
PACKINGS_MAX = 4
SHRINK = 0.97
MISSING = 1e-3
"""Of a class: less than this does not count."""
LATENCY_MS_MAX = 10_000.0
"""Who has longer than this waits out any burst."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A group of like workers, of which there may be more or fewer."""

    name: str
    memory_mb: float
    """Of each worker, for variants."""
    price_per_hour: float
    """USD, of each worker."""
    workers_min: int
    workers_max: int


@dataclass(frozen=True, slots=True)
class Options:
    utilisation_max: float = 0.9
    """Share of a worker's time that may be planned, beside the head-room."""
    missed_max: float = 0.002
    """Share of the work that may come when there is no time for it."""
    headroom: float = 1.0
    """Share of the head-room which that takes."""
    runs_per_latency: float = 2.0
    """As in :class:`broker.placement_model.Options`."""
    gap: float = 0.005
    """The answer may cost more than the best one by this share."""
    time_limit_s: float = 1.0
    """Of each program with whole numbers; what was found by then counts."""
    improvements_max: int = 12
    """Times that it is tried to do without a worker."""
    classes_max: int = 200
    choices_max: int = 200
    """With more, those that the relaxation does not use are left out."""
    exact_integers_max: int = 40
    """With at most so many (worker, choice) pairs, workers are told apart."""


DEFAULT = Options()


@dataclass(frozen=True, slots=True)
class Sizing:
    """A fleet, and what it is good for."""

    workers: Mapping[str, int]
    """By group, all that were offered."""
    usd_per_hour: float
    bound_usd_per_hour: float
    """No fleet that serves as much costs less: that of the program without whole numbers."""
    missing: float
    """The share of all rows that is not served, with as many workers as there may be."""
    headroom: float
    """The share of the demand that was added for bursts."""
    copies: Mapping[Key, int] = field(default_factory=dict)
    """Of each choice, the workers that are to have it."""
    placed: Mapping[str, Sequence[Set[str]]] = field(default_factory=dict)
    """By group, the variants of each worker that has any: so loaded, it serves."""
    tasks: Mapping[str, Set[str]] = field(default_factory=dict)
    """By group, those that it serves."""
    unserved: tuple[str, ...] = ()
    """Tasks of which not all is served, for want of workers."""
    hopeless: tuple[str, ...] = ()
    """Tasks with something that no choice can serve as it is asked for, however many workers there are."""
    classes: tuple[Demand, ...] = ()
    """Demand as it was merged."""
    shares: tuple[Mapping[Key, float], ...] = ()
    """Like :attr:`classes`: the share of the class that each choice serves. What is missing to 1 is not served."""

    @property
    def serves(self) -> bool:
        return not self.unserved


def size(
    demands: Iterable[Demand], choices: Sequence[Choice], groups: Sequence[Limits], options: Options = DEFAULT
) -> Sizing:
    """The cheapest fleet that is found in time; see the module.

    Raises nothing for demand that cannot be served: as much of it is as can be, and the rest is told.
    """
    asked = _Asked(demands, choices, groups, options)
    if not len(asked.pairs_of_class) or not any(group.workers_max for group in groups):
        return asked.sizing({}, 0.0)
    relaxed = _Model(asked, asked.pools()).relaxed()
    if asked.integers <= options.exact_integers_max:
        solved = _Model(asked, asked.single_workers()).solved()
        if solved is not None:
            return asked.sizing(solved.packed_alone(asked), relaxed.bound)
    return _packed_best(asked, relaxed)


def greedy(
    demands: Iterable[Demand], choices: Sequence[Choice], groups: Sequence[Limits], options: Options = DEFAULT
) -> Sizing:
    """An answer at once: each class is served by what costs the least per row, while there may be workers for it."""
    asked = _Asked(demands, choices, groups, options)
    return asked.sizing(_packed(asked, _cheapest(asked)), 0.0) if len(asked.pairs_of_class) else asked.sizing({}, 0.0)


# --- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pool:
    """Workers of one group that the model does not tell apart."""

    group: Limits
    workers_min: int
    workers_max: int
    share: float = 1.0
    """Of its time and memory that may be used: less than 1 once packing failed."""


class _Asked:
    """Classes, choices that are of use, and which of them serves which class."""

    def __init__(
        self, demands: Iterable[Demand], choices: Sequence[Choice], groups: Sequence[Limits], options: Options
    ) -> None:
        self.options = options
        self.groups = {group.name: group for group in groups}
        able = [choice for choice in choices if choice.group in self.groups]
        problem = placement_model.problem(
            _constrained(demands, able, options.runs_per_latency),
            able,
            [Group(g.name, g.memory_mb, g.price_per_hour, {"": frozenset()}) for g in groups],
            placement_model.Options(
                classes_max=options.classes_max,
                candidates_max=len(able),
                runs_per_latency=options.runs_per_latency,
                runs_alone=1.0,
            ),
        )
        self.classes = problem.classes
        kept = _undominated(problem)
        keep = np.isin(problem.pairs.of_choice, kept)
        self.choices = [problem.choices[j] for j in kept]
        self.pairs_of_class = problem.pairs.of_class[keep]
        self.pairs_of_choice = np.searchsorted(kept, problem.pairs.of_choice[keep])
        self.pairs_ms = problem.pairs.row_ms[keep]
        self._ms: dict[tuple[int, int], float] = {
            (j, index): ms
            for j, index, ms in zip(
                self.pairs_of_choice.tolist(), self.pairs_of_class.tolist(), self.pairs_ms.tolist(), strict=True
            )
        }
        self.memory_mb = np.array([choice.memory_mb for choice in self.choices])
        names = np.array([choice.group for choice in self.choices])
        self.choices_of = {name: np.flatnonzero(names == name) for name in self.groups}
        self.device_ms = 1000 * options.utilisation_max
        self.price = _prices(groups)
        usd = np.array([self.price[choice.group] for choice in self.choices])
        self.pairs_usd = self.pairs_ms * (usd[self.pairs_of_choice] if usd.size else 0.0)
        self.headroom = self._headroom()
        self.rates = np.array([each.rows_per_s for each in self.classes]) * (1 + self.headroom)

    def _headroom(self) -> float:
        least: dict[int, float] = {}
        for index, usd in zip(self.pairs_of_class.tolist(), self.pairs_usd.tolist(), strict=True):
            least[index] = min(usd, least.get(index, INF))
        mean: float = sum(self.classes[index].rows_per_s * usd for index, usd in least.items())
        variance: float = sum(
            (of := self.classes[index]).burst * of.rows_per_s * usd * usd / (of.latency_ms / 1000)
            for index, usd in least.items()
            if self.classes[index].latency_ms <= LATENCY_MS_MAX
        )
        if mean <= 0:
            return 0.0
        return self.options.headroom * headroom.room(sqrt(variance) / mean, self.options.missed_max)

    def need_ms(self, j: int, rows: Mapping[int, float]) -> float:
        """Device milliseconds a second that a choice takes for these rows a second by class."""
        return sum([rate * self._ms[j, index] for index, rate in rows.items()])

    def pools(self) -> list[_Pool]:
        return [_Pool(group, group.workers_min, group.workers_max) for group in self.groups.values()]

    def single_workers(self) -> list[_Pool]:
        return [
            _Pool(group, int(number < group.workers_min), 1)
            for group in self.groups.values()
            for number in range(group.workers_max)
        ]

    @property
    def integers(self) -> int:
        return sum(self.choices_of[name].size * group.workers_max for name, group in self.groups.items())

    def sizing(self, packed: Mapping[str, Sequence[_Bin]], bound: float) -> Sizing:
        """What a placement amounts to."""
        workers = {name: max(group.workers_min, len(packed.get(name, ()))) for name, group in self.groups.items()}
        served = np.zeros(len(self.classes))
        copies: dict[Key, int] = defaultdict(int)
        shares: list[dict[Key, float]] = [defaultdict(float) for _ in self.classes]
        tasks: dict[str, set[str]] = {name: set() for name in self.groups}
        for name, bins in packed.items():
            for each in bins:
                for j, rows in each.rows.items():
                    copies[self.choices[j].key] += 1
                    tasks[name].add(self.choices[j].task)
                    for index, rate in rows.items():
                        served[index] += rate
                        shares[index][self.choices[j].key] += rate / self.rates[index]
        able = np.isin(np.arange(len(self.classes)), self.pairs_of_class)
        missing = np.maximum(0.0, self.rates - served)
        unserved = {self.classes[i].task for i in np.flatnonzero(able & (missing > MISSING * self.rates))}
        hopeless = {self.classes[i].task for i in np.flatnonzero(~able)}
        total = float(self.rates.sum())
        return Sizing(
            workers,
            sum(self.groups[name].price_per_hour * number for name, number in workers.items()),
            max(0.0, bound - sum((self.price[n] - g.price_per_hour) * g.workers_max for n, g in self.groups.items())),
            float(missing.sum()) / total if total else 0.0,
            self.headroom,
            dict(copies),
            {
                name: [frozenset(self.choices[j].variant for j in each.rows) for each in bins]
                for name, bins in packed.items()
            },
            tasks,
            tuple(sorted(unserved)),
            tuple(sorted(hopeless)),
            self.classes,
            tuple(dict(each) for each in shares),
        )


def _constrained(demands: Iterable[Demand], choices: Sequence[Choice], runs: float) -> list[Demand]:
    """Who would rather be degraded than refused is planned for as asked, unless nothing can do that."""
    of_task: dict[str, list[Choice]] = defaultdict(list)
    for choice in choices:
        of_task[choice.task].append(choice)
    return [
        replace(each, degrades=False, prefer="cost")
        if not each.degrades
        or any(
            choice.accuracy >= each.accuracy_min and row_ms(choice, each.latency_ms, each.rows_per_s, runs) < INF
            for choice in of_task[each.task]
        )
        else replace(each, prefer="cost")
        for each in demands
    ]


def _undominated(problem: Problem) -> NDArray[np.int64]:
    """Choices of which no other one of their task and group takes less time for each class, and less memory."""
    times: dict[int, dict[int, float]] = defaultdict(dict)
    pairs = problem.pairs
    for i, j, ms in zip(pairs.of_class.tolist(), pairs.of_choice.tolist(), pairs.row_ms.tolist(), strict=True):
        times[j][i] = ms
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for j in times:
        alike[problem.choices[j].task, problem.choices[j].group].append(j)
    kept: list[int] = []
    for numbers in alike.values():
        classes = sorted({i for j in numbers for i in times[j]})
        best: list[NDArray[np.float64]] = []
        numbers.sort(key=lambda j: (problem.choices[j].memory_mb, sum(times[j].get(i, 1e12) for i in classes), j))
        for j in numbers:
            own = np.array([times[j].get(i, INF) for i in classes])
            if not any(bool((other <= own).all()) for other in best):
                best.append(own)
                kept.append(j)
    return np.array(sorted(kept), dtype=np.int64)


def _prices(groups: Sequence[Limits]) -> dict[str, float]:
    """USD an hour; what costs nothing counts a little."""
    least = min((group.price_per_hour for group in groups if group.price_per_hour > 0), default=1.0)
    return {group.name: group.price_per_hour if group.price_per_hour > 0 else FREE * least for group in groups}


# --- the program ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Flow:
    """A solution: rows a second of each pair, in each pool."""

    pools: Sequence[_Pool]
    pool: NDArray[np.int64]
    pair: NDArray[np.int64]
    rows: NDArray[np.float64]
    number: NDArray[np.float64]
    """Of workers, by pool."""
    bound: float
    """USD an hour."""
    is_cut: bool = False
    """It took as long as it may, and perhaps there is something better."""

    def workers(self, group: str) -> int:
        return sum(
            round(n) for pool, n in zip(self.pools, self.number.tolist(), strict=True) if pool.group.name == group
        )

    def of_choices(self, asked: _Asked) -> dict[int, dict[int, float]]:
        """By choice and class, rows a second."""
        found: dict[int, dict[int, float]] = {}
        used = self.rows > EPSILON
        for pair, rows in zip(self.pair[used].tolist(), self.rows[used].tolist(), strict=True):
            own = found.setdefault(int(asked.pairs_of_choice[pair]), {})
            index = int(asked.pairs_of_class[pair])
            own[index] = own.get(index, 0.0) + rows
        return found

    def packed_alone(self, asked: _Asked) -> dict[str, list[_Bin]]:
        """Where every pool is one worker."""
        bins: dict[int, _Bin] = {}
        for at, pair, rows in zip(self.pool.tolist(), self.pair.tolist(), self.rows.tolist(), strict=True):
            if rows > EPSILON:
                own = bins.setdefault(at, _Bin(0.0, 0.0)).rows.setdefault(int(asked.pairs_of_choice[pair]), {})
                own[int(asked.pairs_of_class[pair])] = rows
        packed: dict[str, list[_Bin]] = defaultdict(list)
        for at, each in bins.items():
            packed[self.pools[at].group.name].append(each)
        return packed


class _Model:
    """The matrix of the module's formula. Columns: W, n, y, miss."""

    def __init__(self, asked: _Asked, pools: Sequence[_Pool], only: NDArray[np.int64] | None = None) -> None:
        self.asked, self.pools = asked, pools
        classes, count = len(asked.classes), len(pools)
        owns = [asked.choices_of[pool.group.name] for pool in pools]
        if only is not None:
            owns = [own[np.isin(own, only)] for own in owns]
        n_pool = np.repeat(np.arange(count), [own.size for own in owns])
        n_choice = np.concatenate([*owns, np.zeros(0, np.int64)])
        by_choice = np.argsort(asked.pairs_of_choice, kind="stable")
        starts = np.searchsorted(asked.pairs_of_choice[by_choice], np.arange(len(asked.choices) + 1))
        y_n = np.repeat(np.arange(n_choice.size), (starts[1:] - starts[:-1])[n_choice])
        self.y_pair = np.concatenate(
            [by_choice[starts[j] : starts[j + 1]] for j in n_choice.tolist()] + [np.zeros(0, np.int64)]
        )
        self.y_pool = n_pool[y_n]
        copies, flows = n_choice.size, self.y_pair.size
        w, n, y = np.arange(count), count + np.arange(copies), count + copies + np.arange(flows)
        miss = count + copies + flows + np.arange(classes)
        self.first_y, self.first_n, self.columns = count + copies, count, count + copies + flows + classes
        ms, of_class = asked.pairs_ms[self.y_pair], asked.pairs_of_class[self.y_pair]
        memory = asked.memory_mb[n_choice]
        memory_of = np.array([pool.group.memory_mb for pool in pools])
        share = np.array([pool.share for pool in pools])
        rows: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        ceilings: list[NDArray[np.float64]] = []
        self._row = 0

        def block(height: int, ceiling: NDArray[np.float64] | float, *entries: tuple[object, object, object]) -> None:
            for at, column, value in entries:
                at_, column_ = np.asarray(at, np.int64), np.asarray(column, np.int64)
                rows.append((self._row + at_, column_, np.broadcast_to(np.asarray(value, float), column_.shape)))
            ceilings.append(np.broadcast_to(np.asarray(ceiling, float), height))
            self._row += height

        block(classes, -asked.rates, (of_class, y, -1.0), (np.arange(classes), miss, -asked.rates))
        block(count, 0.0, (self.y_pool, y, ms), (w, w, -asked.device_ms * share))
        block(count, 0.0, (n_pool, n, memory), (w, w, -memory_of * share))
        for k in (1, 2, 3):
            large = memory * (k + 1) > memory_of[n_pool]
            block(count, 0.0, (n_pool[large], n[large], 1.0), (w, w, -float(k)))
        block(copies, 0.0, (y_n, y, ms), (np.arange(copies), n, -asked.device_ms))
        block(flows, 0.0, (np.arange(flows), y, 1.0), (np.arange(flows), n[y_n], -asked.rates[of_class]))
        block(copies, 0.0, (np.arange(copies), n, 1.0), (np.arange(copies), w[n_pool], -1.0))
        alike = [i for i in range(1, count) if pools[i].group is pools[i - 1].group]  # in order: none twice
        after = np.array(alike, np.int64)
        block(len(alike), 0.0, (np.arange(len(alike)), after, 1.0), (np.arange(len(alike)), after - 1, -1.0))
        self.ceiling = np.concatenate(ceilings)
        at, column, value = (np.concatenate([each[i] for each in rows]) for i in range(3))
        self.matrix = csr_array(coo_array((value, (at, column)), (self._row, self.columns)))
        prices = np.array([asked.price[pool.group.name] for pool in pools])
        penalty = PENALTY * max(1e-9, sum(asked.price[g.name] * max(1, g.workers_max) for g in asked.groups.values()))
        # What nobody can serve costs nothing: beside its penalty a gap of half a per cent would be many workers.
        able = np.isin(np.arange(classes), asked.pairs_of_class)
        self.cost = np.concatenate(
            [
                prices,
                TIE * prices[n_pool] * memory / memory_of[n_pool],
                TIE * prices[self.y_pool] * ms / asked.device_ms,
                np.where(able, penalty / max(1, classes), 0.0),
            ]
        )
        most = np.array([pool.workers_max for pool in pools], float)
        self.lower = np.concatenate([[float(pool.workers_min) for pool in pools], np.zeros(self.columns - count)])
        self.upper = np.concatenate([most, most[n_pool], asked.rates[of_class], np.ones(classes)])
        self.whole = np.concatenate([np.ones(count + copies), np.zeros(flows + classes)])

    def relaxed(self) -> _Flow:
        """Without whole numbers."""
        done = linprog(
            self.cost,
            A_ub=self.matrix,
            b_ub=self.ceiling,
            bounds=np.stack([self.lower, self.upper]).T,
            method="highs",
        )
        assert done.x is not None, "to serve nothing is always feasible"
        return self._flow(done.x)

    def solved(self) -> _Flow | None:
        """With whole numbers; None if nothing was found in time."""
        options = self.asked.options
        done = milp(
            self.cost,
            integrality=self.whole,
            bounds=Bounds(self.lower, self.upper),
            constraints=LinearConstraint(self.matrix, ub=self.ceiling),
            options={"time_limit": options.time_limit_s, "mip_rel_gap": options.gap},
        )
        return None if done.x is None else self._flow(done.x, is_cut=done.status == 1)

    def _flow(self, x: NDArray[np.float64], *, is_cut: bool = False) -> _Flow:
        count, flows = len(self.pools), self.first_y + self.y_pair.size
        least = float(self.cost[:flows] @ x[:flows]) / (1 + 2 * TIE)  # ties are at most twice the share of the workers
        return _Flow(self.pools, self.y_pool, self.y_pair, x[self.first_y : flows], x[:count], least, is_cut)


# --- packing ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bin:
    """A worker: what is left of it, and rows a second by choice and class."""

    left_ms: float
    left_mb: float
    rows: dict[int, dict[int, float]] = field(default_factory=dict)


def _packed_best(asked: _Asked, relaxed: _Flow) -> Sizing:
    """Over the choices that the relaxation uses; see the module."""
    options = asked.options
    used = np.unique(asked.pairs_of_choice[relaxed.pair[relaxed.rows > EPSILON]])
    if len(asked.choices) <= options.choices_max:
        used = np.arange(len(asked.choices))
    found = [asked.sizing(_packed(asked, relaxed.of_choices(asked)), relaxed.bound)]
    found.append(asked.sizing(_packed(asked, _cheapest(asked)), relaxed.bound))
    pools = asked.pools()
    for _ in range(PACKINGS_MAX):
        flow = _Model(asked, pools, used).solved()
        if flow is None:
            break
        packed = _packed(asked, flow.of_choices(asked))
        found.append(asked.sizing(packed, relaxed.bound))
        over = {name for name, bins in packed.items() if len(bins) > flow.workers(name)}
        if (found[-1].serves and not over) or flow.is_cut:
            break
        pools = [
            replace(pool, share=pool.share * SHRINK) if pool.group.name in over or not found[-1].serves else pool
            for pool in pools
        ]
    best = min(found, key=lambda each: (round(each.missing, 4), each.usd_per_hour))
    return _improved(asked, best, used) if best.serves else best


def _improved(asked: _Asked, best: Sizing, used: NDArray[np.int64]) -> Sizing:
    """Without one worker of a group, the dearest first, and perhaps with a cheaper one instead, while that serves."""
    tries = asked.options.improvements_max
    for name in sorted(asked.groups, key=lambda name: -asked.price[name]):
        while tries and best.workers[name] > asked.groups[name].workers_min:
            tries -= 1
            if best.usd_per_hour <= best.bound_usd_per_hour * (1 + asked.options.gap) + EPSILON:
                return best
            fewer = best.workers[name] - 1
            pools = [
                replace(pool, workers_max=min(pool.workers_max, fewer) if pool.group.name == name else pool.workers_max)
                for pool in asked.pools()
            ]
            tried = asked.sizing(
                _packed(asked, _Model(asked, pools, used).relaxed().of_choices(asked), {name: fewer}),
                best.bound_usd_per_hour,
            )
            if not tried.serves or tried.usd_per_hour >= best.usd_per_hour - EPSILON:
                break
            best = tried
    return best


def _cheapest(asked: _Asked) -> dict[int, dict[int, float]]:
    """By choice and class, rows a second where each class is served by what costs the least per row."""
    flows: dict[int, dict[int, float]] = {}
    best: dict[int, int] = {}
    for pair in np.argsort(asked.pairs_usd, kind="stable").tolist():
        best.setdefault(int(asked.pairs_of_class[pair]), pair)
    for index, pair in best.items():
        flows.setdefault(int(asked.pairs_of_choice[pair]), {})[index] = float(asked.rates[index])
    return flows


def _packed(
    asked: _Asked, flows: Mapping[int, Mapping[int, float]], most: Mapping[str, int] | None = None
) -> dict[str, list[_Bin]]:
    """Workers with the work of each choice, by group; what finds no place there goes elsewhere, or is left."""
    limits = {name: min(group.workers_max, (most or {}).get(name, 10**9)) for name, group in asked.groups.items()}
    packed: dict[str, list[_Bin]] = {name: [] for name in asked.groups}
    left: dict[int, float] = defaultdict(float)
    for name, bins in packed.items():
        own = {j: dict(rows) for j, rows in flows.items() if asked.choices[j].group == name}
        bins += _pack(asked, asked.groups[name], own, limits[name])
        for rows in own.values():
            for index, rate in rows.items():
                left[index] += rate
    others: dict[int, list[int]] = defaultdict(list)
    for pair in np.argsort(asked.pairs_usd, kind="stable").tolist() if left else ():
        others[int(asked.pairs_of_class[pair])].append(int(asked.pairs_of_choice[pair]))
    for index, rate in left.items():
        for j in others[index]:
            name = asked.choices[j].group
            own = {j: {index: rate}}
            for each in packed[name]:
                _give(asked, each, own, j)
            packed[name] += _pack(asked, asked.groups[name], own, limits[name] - len(packed[name]))
            rate = own[j][index] if j in own else 0.0
            if not rate:
                break
    return packed


def _pack(asked: _Asked, group: Limits, work: dict[int, dict[int, float]], bins_max: int) -> list[_Bin]:
    """Fill one worker after another; ``work`` (rows a second by choice and class) keeps what is left.

    Each takes of all that fits what needs most of what it has most of (the dot product of Panigrahy et al.: "Heuristics
    for vector bin packing", 2011), and at last a part of what does not. What fills a worker alone does so, or it is
    the sand between the rest, whichever takes fewer workers.
    """
    best: tuple[float, int, list[_Bin], dict[int, dict[int, float]]] | None = None
    for is_sand in (False, True):
        left = {j: dict(rows) for j, rows in work.items()}
        bins = _filled(asked, group, left, bins_max, is_sand=is_sand)
        left_ms = round(sum(asked.need_ms(j, rows) for j, rows in left.items()), 3)
        if best is None or (left_ms, len(bins)) < best[:2]:
            best = left_ms, len(bins), bins, left
    assert best is not None
    work.clear()
    work.update(best[3])
    return best[2]


def _filled(
    asked: _Asked, group: Limits, work: dict[int, dict[int, float]], bins_max: int, *, is_sand: bool
) -> list[_Bin]:
    size_ = {j: float(asked.memory_mb[j]) / group.memory_mb for j in work}
    need = {j: asked.need_ms(j, rows) / asked.device_ms for j, rows in work.items()}
    bins: list[_Bin] = []
    while work and len(bins) < bins_max:
        bin_ = _Bin(asked.device_ms, group.memory_mb)
        weight_ms, weight_mb = sum(need[j] for j in work), sum(size_[j] for j in work)
        largest = max(work, key=need.__getitem__)
        sand = largest if need[largest] >= 1.0 else -1
        if sand >= 0 and not is_sand:
            _give(asked, bin_, work, sand)
        while bin_.left_ms > EPSILON:
            left_ms, left_mb = bin_.left_ms / asked.device_ms, bin_.left_mb / group.memory_mb
            if sand >= 0 and is_sand:
                left_mb -= size_[sand]
            fits = [j for j in work if size_[j] <= left_mb + EPSILON and j not in bin_.rows and j != sand]
            whole = [j for j in fits if need[j] <= left_ms + EPSILON]
            if whole:
                chosen = max(whole, key=lambda j: weight_ms * need[j] * left_ms + weight_mb * size_[j] * left_mb)
            elif sand >= 0 and is_sand:
                chosen = sand
            elif fits:
                chosen = min(fits, key=size_.__getitem__)
            else:
                break
            _give(asked, bin_, work, chosen)
            need[chosen] = asked.need_ms(chosen, work[chosen]) / asked.device_ms if chosen in work else 0.0
        bins.append(bin_)
    return bins


def _give(asked: _Asked, bin_: _Bin, work: dict[int, dict[int, float]], j: int) -> None:
    """A worker takes as much of a choice's work as it has time for, if it has the memory."""
    if j not in work or bin_.left_ms <= EPSILON or (j not in bin_.rows and bin_.left_mb < asked.memory_mb[j] - EPSILON):
        return
    need_ms = asked.need_ms(j, work[j])
    share = min(1.0, bin_.left_ms / need_ms) if need_ms > 0 else 1.0
    if j not in bin_.rows:
        bin_.left_mb -= float(asked.memory_mb[j])
    own = bin_.rows.setdefault(j, {})
    for index, rate in work[j].items():
        own[index] = own.get(index, 0.0) + share * rate
    bin_.left_ms -= share * need_ms
    if share >= 1.0 - EPSILON:
        del work[j]
    else:
        work[j] = {index: (1 - share) * rate for index, rate in work[j].items()}
