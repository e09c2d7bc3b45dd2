"""Proteus: accuracy scaling. A MILP off the query path places one variant per device and divides the queries."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from simulator.facts import INF, Portfolio, SimulatedQuery, VariantProfile
from simulator.rivals.base import Line, asked_floor, asked_latency_ms, floor_of
from simulator.rivals.batching import ProteusBatching
from simulator.world import Device, Running, World

QueryClass = tuple[str, int]
"""A task, and how many of its accuracies are too low."""
Key = tuple[str, str]
"""Variant and group."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the MILP found."""

    devices: Mapping[Key, int]
    """How many devices have the variant."""
    shares: Mapping[QueryClass, Mapping[Key, float]]
    """Queries per second of each class that go there."""
    scale: float
    """Of the demand, how much it was solved for."""


def solve(
    demand_qps: Mapping[QueryClass, float],
    variants: Mapping[QueryClass, Sequence[VariantProfile]],
    capacity_qps: Mapping[Key, float],
    workers: Mapping[str, int],
    *,
    time_limit_s: float = 1.0,
    gap: float = 0.005,
) -> Plan | None:
    """Place variants and divide demand so that mean accuracy is highest; None if that demand cannot be met.

    Proteus (ASPLOS'24), algorithms/ilp.py: maximise the accuracy of what is served, subject to: each device has one
    variant; what goes to a variant is within its capacity; all demand is served. Identical devices are counted, not
    told apart (the same optimum, far fewer variables). Devices that the demand does not need are given to the variants
    of their group that are used most, one after another: the source leaves them to the solver, which has no preference.

    Args:
        demand_qps: by class.
        variants: by class, those that may serve it.
        capacity_qps: of one device with the variant; those that have none are left out.
        workers: by group.
    """
    keys = list(capacity_qps)
    flows = [(each, p) for each in demand_qps for p in variants[each] if p.key in capacity_qps]
    counts, total = len(keys), sum(demand_qps.values())
    column = {key: index for index, key in enumerate(keys)}
    reward = np.zeros(counts + len(flows))
    capacity = np.array([capacity_qps[key] for key in keys])
    within, one_each = np.zeros((counts, reward.size)), np.zeros((len(workers), reward.size))
    within[range(counts), range(counts)] = -capacity
    for row, group in enumerate(workers):
        one_each[row, [column[key] for key in keys if key[1] == group]] = 1.0
    rows = {each: np.zeros(reward.size) for each in demand_qps}
    for index, (each, profile) in enumerate(flows, start=counts):
        reward[index] = profile.accuracy / total
        within[column[profile.key], index] = 1.0
        rows[each][index] = 1.0
    served = np.array(list(rows.values()))
    wanted = np.array(list(demand_qps.values()))
    result = milp(
        -reward,
        integrality=np.r_[np.ones(counts), np.zeros(len(flows))],
        bounds=Bounds(0, np.inf),
        constraints=[
            LinearConstraint(within, -np.inf, 0.0),
            LinearConstraint(one_each, -np.inf, np.array(list(workers.values()), dtype=float)),
            LinearConstraint(served, wanted, wanted),
        ],
        options={"time_limit": time_limit_s, "mip_rel_gap": gap},
    )
    if result.x is None:
        return None
    shares: dict[QueryClass, dict[Key, float]] = defaultdict(dict)
    for (each, profile), qps in zip(flows, result.x[counts:], strict=True):
        if qps > 1e-6 * demand_qps[each]:
            shares[each][profile.key] = float(qps)
    load_qps: dict[Key, float] = defaultdict(float)
    for by_key in shares.values():
        for key, qps in by_key.items():
            load_qps[key] += qps
    placed = {key: max(1, ceil(qps / capacity_qps[key] - 1e-6)) for key, qps in load_qps.items()}
    for group, number in workers.items():
        here = [key for key in placed if key[1] == group]
        for _ in range(number - sum(placed[key] for key in here)):
            if here:
                placed[max(here, key=lambda key: load_qps[key] / placed[key] / capacity_qps[key])] += 1
    return Plan(placed, shares, 1.0)


class Proteus(ProteusBatching):
    """Accuracy scaling with a MILP every 30 s and at a burst, and deadline-driven batching.

    Proteus (Ahmad and others, ASPLOS'24); source (github.com/UMass-LIDS/Proteus): algorithms/ilp.py, core/predictor.py,
    core/simulator.py. Capacity of a device is that of the largest b with ``2 * lat(b)`` in the task's latency. Demand
    is an average of counts per second (``ewma_decay`` 1.6, there the centre of mass), times ``beta`` 1.05; what is
    infeasible is lowered in steps of 0.05 and solved again. A burst is a second in which a task got more than
    its devices can do. A device queues what is sent to it; when its variant changes, its queue is sent anew. It goes
    on with the old variant while it loads the new one if both fit, else it is down, as in the source.

    What a query asks for at least is honoured (the paper has one accuracy for all): demand is told apart by which
    variants are allowed, and ``degrade`` allows all.
    The solver's time is not counted (paper: seconds, off the query path). If there are more tasks than devices, no
    demand is feasible; then the tasks with the least demand are left out, and their queries refused.
    """

    name = "proteus"
    period_ms = 30_000.0
    tick_ms = 1000.0
    decay = 1.6
    beta = 1.05
    beta_step = 0.05
    burst_growth = 1.2

    def start(self, world: World) -> None:
        self.world, portfolio = world, world.portfolio
        self.margin_ms = world.reply_ms + world.timer_late_ms
        self.latency_ms = asked_latency_ms(world)
        self.accuracies = {task: sorted({p.accuracy for p in of}) for task, of in portfolio.by_task.items()}
        self.capacity_qps = self._capacity_qps(portfolio)
        self.counts: dict[QueryClass, int] = defaultdict(int)
        self.demand_qps: dict[QueryClass, float] = {}
        self.at: dict[str, Line] = {}
        """What each device serves now, or will once it is loaded."""
        self.on = {worker: [] for worker in world.devices}
        self.wanted: dict[str, str] = {}
        self.plan = Plan({}, {}, 0.0)
        self.plans = 0
        self._routes: dict[QueryClass, list[tuple[Key, float]]] = {}
        self._sent_to: dict[tuple[QueryClass, Key], float] = defaultdict(float)
        self._planned_ms = self._planned_qps = 0.0
        self._stale = False
        given = {name: sorted(device.loaded) for name, device in world.devices.items() if device.loaded}
        if given:
            self.wanted = {worker: variants[0] for worker, variants in given.items()}
            self._move()
        else:
            floor = asked_floor(world)
            self._replan({self._class(task, floor[task]): 1.0 for task in self.latency_ms if task in self.accuracies})
        world.at(self.tick_ms, self._tick)

    def arrived(self, query: SimulatedQuery) -> None:
        self.counts[self._class(query.task, floor_of(self.world, query))] += 1
        self._send(query)

    def ran(self, device: Device, batch: Running) -> None:
        self._change(device)
        self.serve(device)

    def loaded(self, device: Device, variant: str) -> None:
        self._change(device)
        self.serve(device)

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        self._stale = True
        for query in [*queries, *self._leave(device)]:
            self._send(query)

    def back(self, device: Device) -> None:
        self._stale = True
        self._change(device)

    # --- routing --------------------------------------------------------------------------------------------------

    def _class(self, task: str, floor: float) -> QueryClass:
        return task, bisect_left(self.accuracies.get(task, ()), floor - 1e-12)

    def _allowed(self, each: QueryClass) -> list[VariantProfile]:
        task, too_low = each
        if task not in self.accuracies or too_low == len(self.accuracies[task]):
            return []
        least = self.accuracies[task][too_low]
        return [p for p in self.world.portfolio.by_task[task] if p.accuracy >= least]

    def _send(self, query: SimulatedQuery) -> None:
        line = self._line_for(self._class(query.task, floor_of(self.world, query)))
        if line is None:
            self.world.refuse(query)
            return
        line.add(query)
        self.poll(line)

    def _line_for(self, each: QueryClass) -> Line | None:
        """By the plan's shares; among the devices of a variant, the one with the shortest queue."""
        lines: dict[Key, list[Line]] = defaultdict(list)
        for line in self.at.values():
            if line.profile.task == each[0]:
                lines[line.profile.key].append(line)
        best, best_score = None, INF
        for key, weight in self._routes.get(each, ()):
            if key in lines and (score := (self._sent_to[each, key] + 1.0) / weight) < best_score:
                best, best_score = key, score
        if best is None:  # not in the plan, or not there yet
            allowed = [p.key for p in self._allowed(each) if p.key in lines]
            if not allowed:
                return None
            best = min(allowed, key=lambda key: min(len(line) for line in lines[key]))
        self._sent_to[each, best] += 1.0
        return min(
            lines[best], key=lambda line: (not self._ready(line), len(line), line.devices[0].running is not None)
        )

    def _ready(self, line: Line) -> bool:
        return line.profile.variant in line.devices[0].loaded

    # --- planning -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Once a second: average the demand, look for a burst, plan when it is time."""
        world = self.world
        seconds, weight = self.tick_ms / 1000.0, 1.0 / (1.0 + self.decay)
        now_qps = {each: self.counts.get(each, 0) / seconds for each in {*self.counts, *self.demand_qps}}
        self.counts.clear()
        for each, qps in now_qps.items():
            self.demand_qps[each] = (1.0 - weight) * self.demand_qps.get(each, qps) + weight * qps
        burst = self._burst(now_qps)
        if burst or self._stale or world.now_ms - self._planned_ms >= self.period_ms:
            demand = dict(self.demand_qps)
            if burst:
                demand = {each: max(qps, now_qps.get(each, 0.0)) for each, qps in demand.items()}
            self._replan({each: qps for each, qps in demand.items() if qps > 0.01})
        if world.now_ms <= world.queries[-1].deadline_ms or any(self.at.values()):
            world.at(world.now_ms + self.tick_ms, self._tick)

    def _burst(self, now_qps: Mapping[QueryClass, float]) -> bool:
        """Whether some task got more than its devices can do; if even the last plan could not, much more than then."""
        if self.plan.scale < 1.0 and sum(now_qps.values()) <= self.burst_growth * self._planned_qps:
            return False
        able: dict[str, float] = defaultdict(float)
        for key, number in self.plan.devices.items():
            able[self.world.portfolio.by_key[key].task] += number * self.capacity_qps[key]
        asked: dict[str, float] = defaultdict(float)
        for (task, _), qps in now_qps.items():
            asked[task] += qps
        return any(qps > able[task] for task, qps in asked.items())

    def _replan(self, demand_qps: dict[QueryClass, float]) -> None:
        self._planned_ms, self._stale = self.world.now_ms, False
        self._planned_qps = sum(demand_qps.values())
        workers: dict[str, int] = {}
        for device in self.world.devices.values():
            workers[device.group] = workers.get(device.group, 0) + device.alive
        variants = {each: [p for p in self._allowed(each) if p.key in self.capacity_qps] for each in demand_qps}
        demand_qps = {each: qps for each, qps in demand_qps.items() if variants[each]}
        plan = self._lowered(demand_qps, variants, workers) if any(workers.values()) else None
        if plan is None:
            return
        self.plan = plan
        self.plans += 1
        self._routes = {each: list(shares.items()) for each, shares in plan.shares.items()}
        self._sent_to.clear()
        self._assign()
        self._move()

    def _lowered(
        self,
        demand_qps: dict[QueryClass, float],
        variants: Mapping[QueryClass, Sequence[VariantProfile]],
        workers: Mapping[str, int],
    ) -> Plan | None:
        """The plan for the largest feasible multiple of the demand; bisected, since feasibility is monotone."""
        while demand_qps:
            scales = [self.beta - step * self.beta_step for step in range(int(self.beta / self.beta_step))]
            low, high, found = 0, len(scales) - 1, None
            probe = low  # most often the first one is feasible
            while low <= high:
                scaled = {each: qps * scales[probe] for each, qps in demand_qps.items()}
                plan = solve(scaled, variants, self.capacity_qps, workers)
                if plan is not None:
                    found, high = Plan(plan.devices, plan.shares, scales[probe]), probe - 1
                else:
                    low = probe + 1
                probe = (low + high) // 2
            if found is not None:
                return found
            least = min(demand_qps, key=lambda each: demand_qps[each])
            demand_qps = {each: qps for each, qps in demand_qps.items() if each != least}
        return None

    def _assign(self) -> None:
        """Which device gets what, so that as few as possible change."""
        left = dict(self.plan.devices)
        free: list[Device] = []
        for worker, device in self.world.devices.items():
            key = self.wanted.get(worker, ""), device.group
            if device.alive and left.get(key, 0) > 0:
                left[key] -= 1
            elif device.alive:
                free.append(device)
        for device in free:
            missing = [key for key, number in left.items() if number > 0 and key[1] == device.group]
            if missing:
                left[missing[0]] -= 1
                self.wanted[device.name] = missing[0][0]

    def _move(self) -> None:
        for device in self.world.devices.values():
            self._change(device)
        for device in self.world.devices.values():
            self.serve(device)

    def _change(self, device: Device) -> None:
        """Bring a device nearer to what is wanted of it: load, switch, unload."""
        world, wanted = self.world, self.wanted.get(device.name)
        if wanted is None or not device.alive:
            return
        runs = device.running.variant.variant if device.running is not None else None
        if wanted not in device.loaded and wanted not in device.loading:
            size_mb = world.portfolio.by_key[wanted, device.group].memory_mb
            if world.free_mb(device) < size_mb:
                for old in sorted(device.loaded - {runs}):
                    world.unload(device, old)
            if world.free_mb(device) >= size_mb:
                world.load(device, wanted)
        serves = self.at.get(device.name)
        moved: list[SimulatedQuery] = []
        if wanted in device.loaded:
            for old in sorted(device.loaded - {wanted, runs}):
                world.unload(device, old)
        if serves is None or (
            serves.profile.variant != wanted
            and (wanted in device.loaded or serves.profile.variant not in device.loaded)
        ):
            moved = self._leave(device)
            line = Line(world.portfolio.by_key[wanted, device.group], margin_ms=self.margin_ms)
            line.devices.append(device)
            self.at[device.name] = line
            self.on[device.name] = [line]
        for query in moved:
            self._send(query)

    def _leave(self, device: Device) -> list[SimulatedQuery]:
        """Take the device's queue from it."""
        line = self.at.pop(device.name, None)
        self.on[device.name] = []
        return line.take(len(line)) if line is not None else []

    def _capacity_qps(self, portfolio: Portfolio) -> dict[Key, float]:
        """By variant and group, where even ``2 * lat(1)`` is in the latency and the memory suffices."""
        memory_mb = {spec.name: spec.memory_mb for spec in self.world.fleet}
        found: dict[Key, float] = {}
        for profile in portfolio.profiles:
            rows = profile.rows_within((self.latency_ms.get(profile.task, 0.0) - self.margin_ms) / 2)
            if rows and profile.memory_mb <= memory_mb.get(profile.group, 0.0):
                found[profile.key] = 1000.0 * rows / profile.lat_ms(rows)
        return found
