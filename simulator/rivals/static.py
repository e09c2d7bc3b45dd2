"""Static placements: the best one in hindsight, and the one that the first tenth of the arrivals suggests.

Both ask :mod:`broker.placement` for a placement for the demand that they know, as classes of task, latency and accuracy
floor; every answer counts as its accuracy, since that is what they are compared by. Demand has bursts that its mean
hides, and the MILP knows neither queues nor variance. So a few plans are made (:data:`PLANS`: of mean demand and of
busy moments, with more or less of the devices' time, with or without time to wait for a running batch), each is played
on the arrivals that are known, and the one with the most goodness is kept. Memory that a plan leaves is filled with
more copies of what it uses.

* ``static-hindsight`` knows all arrivals, and has its placement for nothing at time 0 when it is played with what
  :meth:`StaticHindsight.placement_for` says; otherwise it loads it from time 0 on.
* ``static-first-tenth`` knows the first tenth of the arrivals once they are there, and loads its placement then. Until
  then it serves with what can be had without knowing demand: at the first query of each task, the fastest variant that
  may answer it is loaded on that task's part of the workers (their number by the number of tasks, at least one; those
  with the most free memory).

The scheduler is the same for all of them, and good. A query goes to a choice by the plan's shares (the one that is
furthest behind its share); where it would be late, to the one that would finish it first in time, the more accurate
first. Each (variant, group) has one queue, earliest deadline first. An idle device serves, of what it has loaded, the
queue whose head is due first, with the largest batch that still meets the head's deadline at its 99th percentile, or at
its median if none does; heads that cannot be in time are dropped.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np

from broker.placement import Allocation, Choice, Demand, Group, Key, Options, place
from simulator.facts import INF, GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile, sorted_queries
from simulator.world import Device, Running, World

PATIENCE_MS = 10_000.0
"""Who has no deadline is taken to be due after so long, for the order only."""
UTILISATIONS = (0.6, 0.9)
RUNS_PER_LATENCY = (1.0, 2.0)
QUANTILES = (None, 0.9, 1.0)
"""Of the numbers of arrivals in windows; None: their mean."""
WINDOWS = 50
SOLVE_S = 0.5
"""For each plan."""
PLANS = tuple(product(UTILISATIONS, RUNS_PER_LATENCY, QUANTILES))

Class = tuple[str, float, float, bool]
"""(task, latency, floor, may be degraded)."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is loaded, and the share of each class that goes to each (variant, group)."""

    placement: Placement
    shares: Mapping[Class, Mapping[Key, float]]


def class_of(portfolio: Portfolio, query: SimulatedQuery) -> Class:
    degrades = query.on_miss == "degrade"
    return query.task, query.latency_ms_max, 0.0 if degrades else portfolio.floor(query), degrades


def planned(
    fleet: Sequence[GroupSpec],
    portfolio: Portfolio,
    queries: Sequence[SimulatedQuery],
    utilisation_max: float,
    runs_per_latency: float,
    quantile: float | None,
) -> Plan:
    """The MILP's plan for the demand of ``queries``.

    Args:
        quantile: plan for that quantile of each class's arrivals in :data:`WINDOWS` equal windows, at least the mean.
    """
    rates = _rates(portfolio, queries, quantile)
    demands = [
        Demand(task, latency_ms, floor, rate, "accuracy", degrades)
        for (task, latency_ms, floor, degrades), rate in rates.items()
    ]
    choices = [
        Choice(p.variant, p.task, p.group, p.accuracy, p.sizes, p.p50_ms, p.p99_ms, p.memory_mb, 0.0)
        for p in portfolio.profiles
    ]
    groups = [
        Group(spec.name, spec.memory_mb, spec.price_per_hour, dict.fromkeys(spec.worker_names, frozenset()))
        for spec in fleet
        if spec.workers
    ]
    options = Options(utilisation_max, runs_per_latency, load_gain_min=1e-6, gap=3e-3, time_limit_s=SOLVE_S)
    found = place(demands, choices, groups, options)
    return Plan(_filled(found.load, fleet, portfolio, rates), _shares(found, rates))


def _filled(
    load: Placement, fleet: Sequence[GroupSpec], portfolio: Portfolio, rates: Mapping[Class, float]
) -> dict[str, list[str]]:
    """More copies of what the plan uses, where memory is left: first of what has the most demand for each copy.

    The MILP loads no more than its demand needs, but bursts do.
    """
    filled = {worker: list(variants) for worker, variants in load.items()}
    demand: dict[str, float] = defaultdict(float)
    for (task, *_), rate in rates.items():
        demand[task] += rate
    copies = Counter(variant for variants in load.values() for variant in variants)
    used = {p.key: p for p in portfolio.profiles if p.variant in copies}
    for spec in fleet:
        for worker in spec.worker_names:
            own = filled[worker]
            free_mb = spec.memory_mb - sum(used[variant, spec.name].memory_mb for variant in own)
            while True:
                fitting = [p for p in used.values() if p.group == spec.name and p.variant not in own
                           and p.memory_mb <= free_mb]  # fmt: skip
                if not fitting:
                    break
                best = max(fitting, key=lambda p: (demand[p.task] / copies[p.variant], p.variant))
                own.append(best.variant)
                copies[best.variant] += 1
                free_mb -= best.memory_mb
    return filled


def _rates(portfolio: Portfolio, queries: Sequence[SimulatedQuery], quantile: float | None) -> dict[Class, float]:
    """Rows a second of each class."""
    arrivals: dict[Class, list[float]] = defaultdict(list)
    for query in queries:
        arrivals[class_of(portfolio, query)].append(query.arrival_ms)
    first_ms, last_ms = queries[0].arrival_ms, queries[-1].arrival_ms
    span_ms = max(last_ms - first_ms, 1000.0)
    rates = {}
    for known, own in arrivals.items():
        rate = 1000 * len(own) / span_ms
        if quantile is not None:
            counts, _ = np.histogram(own, WINDOWS, (first_ms, first_ms + span_ms))
            rate = max(rate, float(np.quantile(counts, quantile)) * 1000 * WINDOWS / span_ms)
        rates[known] = rate
    return rates


def _shares(found: Allocation, known: Mapping[Class, float]) -> dict[Class, Mapping[Key, float]]:
    return {
        (task, latency_ms, floor, degrades): found.shares_for(
            task, latency_ms, floor, by_accuracy=True, degrades=degrades
        )
        for task, latency_ms, floor, degrades in known
    }


def best_plan(
    fleet: Sequence[GroupSpec], portfolio: Portfolio, queries: Sequence[SimulatedQuery], seed: int = 0
) -> Plan:
    """Of all :data:`PLANS`, the one that did best on ``queries`` with its placement given at time 0."""
    best, best_goodness = Plan({}, {}), -1.0
    tried: set[str] = set()
    for utilisation_max, runs_per_latency, quantile in PLANS if queries else ():
        plan = planned(fleet, portfolio, queries, utilisation_max, runs_per_latency, quantile)
        if repr(plan) in tried:
            continue
        tried.add(repr(plan))
        again = sorted_queries(query.again() for query in queries)
        World(fleet, portfolio, again, seed=seed, placement=plan.placement).play(Static(plan))
        goodness = sum(query.accuracy for query in again if query.outcome == "in_time")
        if goodness > best_goodness:
            best, best_goodness = plan, goodness
    return best


class _Line:
    """Queries for one variant on one group, earliest deadline first."""

    def __init__(self, profile: VariantProfile) -> None:
        self.profile = profile
        self.waiting: list[tuple[float, int, SimulatedQuery]] = []

    def add(self, query: SimulatedQuery) -> None:
        due_ms = query.deadline_ms if query.deadline_ms < INF else query.arrival_ms + PATIENCE_MS
        insort(self.waiting, (due_ms, query.index, query))

    def rows_in_time(self, budget_ms: float) -> int:
        """The most rows that end within the budget; 0 if not even one does."""
        profile, best = self.profile, 0
        for size, p99_ms in zip(profile.sizes, profile.p99_ms, strict=True):
            if p99_ms <= budget_ms:
                best = size
        return best or profile.rows_within(budget_ms)


class Static:
    """A plan, and the scheduler of the module. Without a plan it serves what its heirs load."""

    name = "static"

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan if plan is not None else Plan({}, {})

    def start(self, world: World) -> None:
        self.world = world
        self._lines = {p.key: _Line(p) for p in world.portfolio.profiles}
        self._by_task = {
            task: [self._lines[p.key] for p in sorted(profiles, key=lambda p: -p.accuracy)]
            for task, profiles in world.portfolio.by_task.items()
        }
        self._sent: dict[Class, dict[Key, float]] = defaultdict(lambda: defaultdict(float))
        for device in world.devices.values():
            self._adjust(device)

    def arrived(self, query: SimulatedQuery) -> None:
        self._admit(query)

    def _admit(self, query: SimulatedQuery) -> None:
        line = self._line_for(query)
        if line is None:
            self.world.refuse(query)
            return
        line.add(query)
        for device in self.world.devices.values():
            if device.group == line.profile.group and device.idle and line.profile.variant in device.loaded:
                self._serve(device)
                break

    def ran(self, device: Device, batch: Running) -> None:
        self._adjust(device)
        self._serve(device)

    def loaded(self, device: Device, variant: str) -> None:
        self._adjust(device)
        self._serve(device)

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        for query in queries:
            self._admit(query)
        self._reroute()

    def back(self, device: Device) -> None:
        self._adjust(device)

    # --- placement ----------------------------------------------------------------------------------------------------

    def _adjust(self, device: Device) -> None:
        """Towards the plan: what is not in it goes when it does not run, what is missing is loaded once it fits."""
        wanted = self.plan.placement.get(device.name)
        if wanted is None or not device.alive:
            return
        running = device.running.variant.variant if device.running is not None else None
        for variant in [v for v in device.loaded if v not in wanted and v != running]:
            self.world.unload(device, variant)
        for variant in wanted:
            needed_mb = self.world.portfolio.by_key[variant, device.group].memory_mb
            if variant not in device.loaded and variant not in device.loading:
                if needed_mb > self.world.free_mb(device) + 1e-9:
                    break
                self.world.load(device, variant)

        self._reroute()

    def _reroute(self) -> None:
        """What waits for a variant that is nowhere any more goes elsewhere."""
        there = {
            (variant, device.group)
            for device in self.world.devices.values()
            if device.alive
            for variant in (*device.loaded, *device.loading)
        }
        for key, line in self._lines.items():
            if line.waiting and key not in there:
                waiting, line.waiting = line.waiting, []
                for _, _, query in waiting:
                    self._admit(query)

    # --- queries ------------------------------------------------------------------------------------------------------

    def _line_for(self, query: SimulatedQuery) -> _Line | None:
        """By the plan's shares if that is in time, else whichever is first in time, the most accurate first."""
        now_ms, budget_ms = self.world.now_ms, query.deadline_ms - self.world.now_ms - self.world.reply_ms
        known = class_of(self.world.portfolio, query)
        shares = self.plan.shares.get(known, {})
        sent = self._sent[known]
        if shares:
            key = min(shares, key=lambda key: (sent[key] + 1) / shares[key])
            sent[key] += 1
            if self._finish_ms(self._lines[key], now_ms) <= budget_ms:
                return self._lines[key]
        allowed = [line for line in self._by_task.get(query.task, ()) if line.profile.accuracy >= known[2] - 1e-12]
        best, best_ms = None, INF
        for line in allowed:
            finish_ms = self._finish_ms(line, now_ms)
            if finish_ms <= budget_ms and finish_ms < INF:
                return line
            if finish_ms < best_ms:
                best, best_ms = line, finish_ms
        return best

    def _finish_ms(self, line: _Line, now_ms: float) -> float:
        """Predicted, from now: the device that is free first, what waits there before, and one run."""
        profile = line.profile
        best_ms, devices = INF, 0
        for device in self.world.devices.values():
            if device.group != profile.group or not device.alive:
                continue
            if profile.variant in device.loading:
                by_key = self.world.portfolio.by_key
                best_ms = min(best_ms, sum(by_key[variant, device.group].load_ms for variant in device.loading))
                devices += 1
            elif profile.variant in device.loaded:
                devices += 1
                ahead_ms = device.running.end_ms - now_ms if device.running is not None else 0.0
                for variant in device.loaded:
                    other = self._lines[variant, device.group]
                    if other is not line and other.waiting:
                        ahead_ms += other.profile.lat_ms(min(len(other.waiting), other.profile.rows_max))
                best_ms = min(best_ms, ahead_ms)
        if not devices:
            return INF
        batches = len(line.waiting) // (profile.rows_max * devices)
        rows = min(len(line.waiting) % (profile.rows_max * devices) // devices + 1, profile.rows_max)
        return best_ms + batches * profile.lat_ms(profile.rows_max) + profile.lat_ms(rows)

    def _serve(self, device: Device) -> None:
        """Start the batch whose head is due first, if there is any."""
        world = self.world
        while device.idle:
            lines = [self._lines[variant, device.group] for variant in device.loaded]
            line = min((line for line in lines if line.waiting), key=lambda line: line.waiting[0][:2], default=None)
            if line is None:
                return
            head = line.waiting[0][2]
            rows = line.rows_in_time(head.deadline_ms - world.now_ms - world.reply_ms)
            if rows == 0:
                line.waiting.pop(0)
                world.expire(head)
                continue
            batch = [query for _, _, query in line.waiting[:rows]]
            del line.waiting[:rows]
            world.run(device, line.profile.variant, batch)


class StaticHindsight(Static):
    """The best static placement for all arrivals."""

    name = "static-hindsight"

    def placement_for(
        self, fleet: Sequence[GroupSpec], portfolio: Portfolio, queries: Sequence[SimulatedQuery], seed: int = 0
    ) -> Placement:
        """To be given to the world at time 0."""
        self.plan = best_plan(fleet, portfolio, queries, seed)
        return self.plan.placement

    def start(self, world: World) -> None:
        if not self.plan.placement:
            self.placement_for(world.fleet, world.portfolio, world.queries)
        super().start(world)


class StaticFirstTenth(Static):
    """The best static placement for the first tenth, from then on."""

    name = "static-first-tenth"

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[SimulatedQuery] = []
        self._begun: set[str] = set()

    def start(self, world: World) -> None:
        self._tenth = max(1, ceil(len(world.queries) / 10))
        super().start(world)

    def arrived(self, query: SimulatedQuery) -> None:
        if len(self._seen) < self._tenth:
            self._seen.append(query)
            if query.task not in self._begun:
                self._begun.add(query.task)
                self._begin(query)
            if len(self._seen) == self._tenth:
                self.plan = best_plan(self.world.fleet, self.world.portfolio, self._seen)
                for device in self.world.devices.values():
                    self._adjust(device)
        super().arrived(query)

    def _begin(self, query: SimulatedQuery) -> None:
        """Load something for a task of which nothing is known but its first query."""
        world = self.world
        floor = class_of(world.portfolio, query)[2]
        devices = sorted(world.devices.values(), key=lambda device: (-world.free_mb(device), device.name))
        missing = max(1, len(devices) // max(1, len(world.portfolio.by_task)))
        for device in devices:
            able = [
                p
                for p in world.portfolio.by_task.get(query.task, ())
                if p.group == device.group and p.accuracy >= floor - 1e-12 and p.memory_mb <= world.free_mb(device)
            ]
            if able and missing and device.alive:
                world.load(device, min(able, key=lambda p: p.lat_ms(1)).variant)
                missing -= 1
