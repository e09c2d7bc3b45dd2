"""What all rivals share: a placement, queues, dispatch to idle devices, and what becomes of lost workers' queries.

Words: a *line* is a queue of queries that may share a batch, for one variant on one group; its devices are those on
which that variant is placed. One line for all of them is kinder than a queue per device, which most sources have.

What is the same for all, so that the comparison is fair:

- A query is only run by a variant that meets ``Portfolio.floor``; one that asks for ``degrade`` may be run by any.
  A query that no placed variant may run is refused at once.
- ``late`` is unknown to the sources and treated as ``reject``: whether expired queries are dropped or run late is the
  rival's own rule.
- Rivals know how long replies take on their way and how late timers may be (:attr:`World.reply_ms`,
  :attr:`World.timer_late_ms`), and take both off the deadline; sources have such a margin.
- A query without a deadline counts as due :data:`PATIENCE_MS` after its arrival for order and waiting;
  it never expires.
- The latency that the queries of a task ask for is configuration in all sources: rivals know its median and the
  median accuracy floor from the start. They know neither times nor numbers of arrivals.
- Queries that ran on a lost worker are queued again; a worker that is back loads what it had.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low

from simulator.facts import INF, Placement, SimulatedQuery, VariantProfile
from simulator.world import Device, Running, World

PATIENCE_MS = 10_000.0
_COMPACT = 1024
"""Entries taken from the head of a line before they are really deleted."""

Shares = Mapping[str, Mapping[tuple[str, str], float]]
"""By task, then by (variant, group): the weight of the queries that go there."""


class Line:
    """Queries that wait for one variant on one group, by deadline or by arrival."""

    def __init__(self, profile: VariantProfile, *, by_deadline: bool = True, margin_ms: float = 0.0) -> None:
        self.profile = profile
        self.devices: list[Device] = []
        """Where it is placed: loaded, being loaded, or lost."""
        self.wake_ms = INF
        """When the next timer goes off that was set for it."""
        self._by_deadline, self._margin_ms = by_deadline, margin_ms
        self._keys: list[tuple[float, int]] = []
        self._queries: list[SimulatedQuery] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._queries) - self._head

    @property
    def head(self) -> SimulatedQuery:
        return self._queries[self._head]

    def due_ms(self, query: SimulatedQuery) -> float:
        """By when a batch with it should end."""
        if query.deadline_ms == INF:
            return query.arrival_ms + PATIENCE_MS
        return query.deadline_ms - self._margin_ms

    def misses(self, query: SimulatedQuery, end_ms: float) -> bool:
        """Whether a batch that ends then is too late for it. Never for one without a deadline."""
        return end_ms > query.deadline_ms - self._margin_ms + 1e-9

    def peek(self, index: int) -> SimulatedQuery:
        return self._queries[self._head + index]

    def add(self, query: SimulatedQuery) -> None:
        key = (self.due_ms(query) if self._by_deadline else query.arrival_ms, query.index)
        if self._keys and key < self._keys[-1]:
            index = bisect_left(self._keys, key, self._head)
            self._keys.insert(index, key)
            self._queries.insert(index, query)
        else:
            self._keys.append(key)
            self._queries.append(query)

    def take(self, rows: int) -> list[SimulatedQuery]:
        """The first ``rows``, or as many as there are."""
        taken = self._queries[self._head : self._head + rows]
        self._head += len(taken)
        if self._head > _COMPACT or self._head == len(self._queries):
            del self._queries[: self._head], self._keys[: self._head]
            self._head = 0
        return taken

    def take_from(self, first: int, rows: int) -> list[SimulatedQuery]:
        """``rows`` of them, leaving the ``first`` ones where they are."""
        begin = self._head + first
        taken = self._queries[begin : begin + rows]
        del self._queries[begin : begin + rows], self._keys[begin : begin + rows]
        return taken

    def first_due(self, due_ms: float) -> int:
        """How many are due earlier than that; of a line by deadline."""
        return bisect_left(self._keys, (due_ms - 1e-9, -1), self._head) - self._head


Choose = Callable[[Sequence[VariantProfile], float, float], VariantProfile | None]
"""Which of a task's variants on one group to load, given the task's median latency and accuracy floor."""


def most_accurate_in_time(profiles: Sequence[VariantProfile], latency_ms: float, floor: float) -> VariantProfile | None:
    """The most accurate one whose lat(1) is at most half of the latency, so that a query may wait for one batch."""
    return _best([p for p in profiles if 2 * p.lat_ms(1) <= latency_ms])


def most_accurate(profiles: Sequence[VariantProfile], latency_ms: float, floor: float) -> VariantProfile | None:
    """Whatever it takes, as long as a query alone is in time."""
    return _best([p for p in profiles if p.lat_ms(1) <= latency_ms])


def cheapest(profiles: Sequence[VariantProfile], latency_ms: float, floor: float) -> VariantProfile | None:
    """The most rows per ms, and so the cheapest per row on its group, of those that meet the floor in time."""
    fit = [p for p in profiles if p.accuracy >= floor and 2 * p.lat_ms(1) <= latency_ms]
    return max(fit, key=lambda p: (p.rows_per_ms, p.accuracy), default=None)


def _best(profiles: Sequence[VariantProfile]) -> VariantProfile | None:
    return max(profiles, key=lambda p: (p.accuracy, p.rows_per_ms), default=None)


def asked_latency_ms(world: World) -> dict[str, float]:
    """Median latency that the queries of each task ask for."""
    asked: dict[str, list[float]] = defaultdict(list)
    for query in world.queries:
        asked[query.task].append(min(query.latency_ms_max, PATIENCE_MS))
    return {task: median_low(latencies) for task, latencies in asked.items()}


def asked_floor(world: World) -> dict[str, float]:
    """Median accuracy floor of the queries of each task; one that may be degraded has none."""
    asked: dict[str, list[float]] = defaultdict(list)
    for query in world.queries:
        asked[query.task].append(floor_of(world, query))
    return {task: median_low(floors) for task, floors in asked.items()}


def floor_of(world: World, query: SimulatedQuery) -> float:
    """The lowest accuracy that a rival may answer it with."""
    return 0.0 if query.on_miss == "degrade" else world.portfolio.floor(query)


def spread(world: World, choose: Choose) -> dict[str, list[str]]:
    """One variant per task and group, on every device of the group where memory allows.

    Where it does not, devices begin with different tasks, so that all tasks get about as many devices.
    """
    latency_ms, floor = asked_latency_ms(world), asked_floor(world)
    tasks = [task for task in world.portfolio.by_task if task in latency_ms]
    placement: dict[str, list[str]] = {}
    for spec in world.fleet:
        chosen: list[VariantProfile] = []
        for task in tasks:
            here = [p for p in world.portfolio.by_task[task] if p.group == spec.name and p.memory_mb <= spec.memory_mb]
            profile = choose(here, latency_ms[task], floor[task])
            if profile is not None:
                chosen.append(profile)
        for number, worker in enumerate(spec.worker_names):
            first = number % len(chosen) if chosen else 0
            free_mb = spec.memory_mb
            placement[worker] = []
            for profile in chosen[first:] + chosen[:first]:
                if profile.memory_mb <= free_mb and profile.variant not in placement[worker]:
                    placement[worker].append(profile.variant)
                    free_mb -= profile.memory_mb
    return placement


class Rival:
    """A policy with a fixed placement; sub-classes say when a batch leaves, and which queries are in it.

    Args:
        placement: variants by worker. None: what the world was given, if anything; else ``choose`` for every task.
        shares: by task, how much goes to which (variant, group). None: as much as each can do at its best size.
        choose: which variant of a task to load on a group, if nothing else says so.
    """

    name = "rival"
    by_deadline = True
    """Order of the lines; False: by arrival."""

    def __init__(
        self,
        placement: Placement | None = None,
        shares: Shares | None = None,
        choose: Choose = most_accurate_in_time,
    ) -> None:
        self.placement, self.shares, self.choose = placement, shares, choose

    # --- what a rival decides -------------------------------------------------------------------------------------

    def leave_ms(self, line: Line, device: Device) -> float:
        """When a batch of a line that is not empty should leave for an idle device; the past means now."""
        return 0.0

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        """Take a batch out of the line, and give up whom the rival gives up. Empty: nobody is left who can be run."""
        return line.take(line.profile.rows_max)

    def urgency_ms(self, line: Line) -> float:
        """Of the lines that could use an idle device, the one with the smallest gets it."""
        return line.due_ms(line.head)

    # --- the world's events ---------------------------------------------------------------------------------------

    def start(self, world: World) -> None:
        self.world = world
        self.margin_ms = world.reply_ms + world.timer_late_ms
        self.latency_ms = asked_latency_ms(world)
        self.lines: dict[tuple[str, str], Line] = {}
        self.of_task: dict[str, list[Line]] = defaultdict(list)
        self.on: dict[str, list[Line]] = {worker: [] for worker in world.devices}
        """Lines of each device."""
        self._sent: dict[tuple[str, tuple[str, str]], float] = defaultdict(float)
        self.place(self._placement())
        self._weights = self.shares or self._by_capacity()

    def arrived(self, query: SimulatedQuery) -> None:
        line = self.route(query)
        if line is None:
            self.world.refuse(query)
            return
        line.add(query)
        self.poll(line)

    def ran(self, device: Device, batch: Running) -> None:
        self.serve(device)

    def loaded(self, device: Device, variant: str) -> None:
        self.serve(device)

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        for query in queries:
            self.arrived(query)

    def back(self, device: Device) -> None:
        for line in self.on[device.name]:
            self.world.load(device, line.profile.variant)

    # --- the parts ------------------------------------------------------------------------------------------------

    def place(self, placement: Placement) -> None:
        """Make a line for all that is placed, and load it."""
        for worker, variants in placement.items():
            device = self.world.devices[worker]
            for variant in sorted(device.loaded - set(variants)):
                self.world.unload(device, variant)
            for variant in variants:
                line = self.line(variant, device.group)
                line.devices.append(device)
                self.on[worker].append(line)
                self.world.load(device, variant)

    def line(self, variant: str, group: str) -> Line:
        """The line of a variant on a group; a new one if there is none yet."""
        key = variant, group
        if key not in self.lines:
            profile = self.world.portfolio.by_key[key]
            self.lines[key] = Line(profile, by_deadline=self.by_deadline, margin_ms=self.margin_ms)
            self.of_task[profile.task].append(self.lines[key])
        return self.lines[key]

    def route(self, query: SimulatedQuery) -> Line | None:
        """Of the lines that may run it, the one that is furthest behind its share."""
        lines = self.of_task.get(query.task, ())
        weights = self._weights.get(query.task, {})
        floor = floor_of(self.world, query)
        best, best_score = None, INF
        for line in lines:
            key = line.profile.key
            weight = weights.get(key, 0.0)
            if line.profile.accuracy >= floor and weight > 0.0:
                score = (self._sent[query.task, key] + 1.0) / weight
                if score < best_score:
                    best, best_score = line, score
        if best is not None:
            self._sent[query.task, best.profile.key] += 1.0
        return best

    def poll(self, line: Line) -> None:
        """Offer a line to its idle devices."""
        for device in line.devices:
            if device.running is None and device.alive:
                self.serve(device)
                if not line:
                    return

    def serve(self, device: Device) -> None:
        """Give an idle device the batch that should have left, of the most urgent line."""
        now_ms = self.world.now_ms
        while device.idle:
            ready, ready_urgency_ms = None, INF
            for line in self.on[device.name]:
                if line and line.profile.variant in device.loaded:
                    leave_ms = self.leave_ms(line, device)
                    if leave_ms > now_ms + 1e-9:
                        self.wake(line, leave_ms)
                    elif (urgency_ms := self.urgency_ms(line)) < ready_urgency_ms:
                        ready, ready_urgency_ms = line, urgency_ms
            if ready is None:
                return
            queries = self.batch(ready, device)
            if queries:
                self.world.run(device, ready.profile.variant, queries)

    def wake(self, line: Line, at_ms: float) -> None:
        """Poll the line then, unless it is polled before anyway."""
        if at_ms >= line.wake_ms or at_ms == INF:
            return
        line.wake_ms = at_ms

        def woken() -> None:
            if line.wake_ms == at_ms:
                line.wake_ms = INF
            if line:
                self.poll(line)

        self.world.at(at_ms, woken)

    def drop_late(self, line: Line, execute_ms: float = 0.0) -> None:
        """Expire from the head on who would be late in a batch that begins now and takes so long."""
        end_ms = self.world.now_ms + execute_ms
        while line and line.misses(line.head, end_ms):
            self.world.expire(line.take(1)[0])

    def rows_planned(self, line: Line) -> int:
        """The largest profiled batch with ``2 * lat(b)`` in the task's latency; at least 1."""
        latency_ms = self.latency_ms.get(line.profile.task, PATIENCE_MS) - self.margin_ms
        return max(1, line.profile.rows_within(latency_ms / 2))

    def _placement(self) -> Placement:
        if self.placement is not None:
            return self.placement
        given = {name: sorted(device.loaded) for name, device in self.world.devices.items()}
        return given if any(given.values()) else spread(self.world, self.choose)

    def _by_capacity(self) -> Shares:
        return {
            task: {line.profile.key: line.profile.rows_per_ms * len(line.devices) for line in lines}
            for task, lines in self.of_task.items()
        }
