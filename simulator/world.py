"""Virtual time, devices and the rules of physics; a policy decides everything else.

The rules, the same for whoever decides: a device runs one batch at a time, of a variant that is loaded there, no
larger than profiled, and never faster than its profile; a load takes its time beside what runs, one load at a time on
a worker; what is loaded or being loaded fits into the worker's memory. To break one is the policy's error, and raises.
A query may run on two devices at once (a hedge): the first end is its outcome, and the other one takes its time.

A policy is told what happens (:class:`Policy`) and acts through the world: :meth:`World.run`, :meth:`World.load`,
:meth:`World.unload`, :meth:`World.refuse`, :meth:`World.expire`, :meth:`World.at`. Time stands still while it does.

The workers of a group that scales are rented and released (:meth:`World.rent`, :meth:`World.release`): a rented one is
there after the group's ``start_ms``, a released one ends what runs and is gone. Its name is free again then.

A batch takes the median of the next larger profiled size; where the profile has a tail it is drawn from a lognormal
distribution with that median and that 99th percentile, cut off below the median.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import exp, log
from typing import Final, Protocol

import numpy as np

from simulator.facts import INF, GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile

Z99: Final = 2.3263478740408408
"""99th percentile of the standard normal distribution."""
_DRAWS: Final = 4096


class PolicyError(Exception):
    """A policy asked for what no device can do."""


class Running:
    """A batch on a device."""

    def __init__(
        self, variant: VariantProfile, queries: Sequence[SimulatedQuery], start_ms: float, end_ms: float
    ) -> None:
        self.variant, self.queries, self.start_ms, self.end_ms = variant, queries, start_ms, end_ms


@dataclass(slots=True, eq=False)
class Device:
    """One worker."""

    name: str
    group: str
    memory_mb_max: float
    price_per_hour: float
    loaded: set[str] = field(default_factory=set)
    loading: list[str] = field(default_factory=list)
    """In this order; the first one is on its way."""
    running: Running | None = None
    alive: bool = True
    """False: lost, gone, or not yet there."""
    leaving: bool = False
    """Released: gone once nothing runs."""
    life: int = 0
    """How often a worker of that name was lost or gone."""
    factor: float = 1.0
    """By how much it is slower than its profile."""
    busy_ms: float = 0.0

    @property
    def idle(self) -> bool:
        return self.alive and self.running is None and not self.leaving


@dataclass(slots=True)
class Rental:
    """A worker of a group that scales, from when it is rented until it is gone."""

    worker: str
    group: str
    start_ms: float
    ready_ms: float
    end_ms: float = INF


@dataclass(frozen=True, slots=True)
class Load:
    """A variant was loaded on a worker; ``end_ms`` is when it was ready."""

    worker: str
    variant: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong at an instant. ``worker`` names whom it happens to.

    ``lost``: gone, with what it ran; ``back``: there again, with nothing loaded (one of a group that scales must be
    rented again instead); ``slow``: ``value`` times slower; ``price``: all workers of the group of ``worker`` (a
    group's name) cost ``value`` USD per hour.
    """

    at_ms: float
    kind: str
    worker: str
    value: float = 1.0


class Policy(Protocol):
    """Who decides. Every method is called at the instant that it happens."""

    name: str

    def start(self, world: World) -> None:
        """Before the first event."""

    def arrived(self, query: SimulatedQuery) -> None: ...

    def ran(self, device: Device, batch: Running) -> None:
        """Its queries have their outcomes; the device is idle."""

    def loaded(self, device: Device, variant: str) -> None: ...

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        """The device is gone; ``queries`` ran there and have no outcome: run them again elsewhere, or give them up.

        One that was released is gone without any.
        """

    def back(self, device: Device) -> None:
        """It is there, empty: for the first time, if it was rented."""


class World:
    """One simulation of one policy.

    Args:
        queries: sorted and numbered by arrival; their outcomes are written into them.
        placement: what is loaded at time 0, for nothing; workers that are not named begin empty.
        truth: by (variant, group), how much slower it really is than its profile says.
        intake_ms: from a query's log time until the policy sees it; of several, as they were measured, each query draws
            one, and is seen no sooner than the one before it, since a log is read in order.
        reply_ms: from the end of a batch until its replies are out; in time is who is out before the deadline.
        timer_late_ms: timers are late by up to so much.
    """

    def __init__(
        self,
        fleet: Sequence[GroupSpec],
        portfolio: Portfolio,
        queries: Sequence[SimulatedQuery],
        *,
        seed: int = 0,
        placement: Placement | None = None,
        faults: Sequence[Fault] = (),
        truth: dict[tuple[str, str], float] | None = None,
        intake_ms: float | Sequence[float] = 0.0,
        reply_ms: float = 0.0,
        timer_late_ms: float = 0.0,
    ) -> None:
        self.fleet, self.portfolio, self.queries = fleet, portfolio, queries
        self.reply_ms, self.timer_late_ms = reply_ms, timer_late_ms
        self.now_ms = 0.0
        self.devices = {
            name: Device(name, spec.name, spec.memory_mb, spec.price_per_hour)
            for spec in fleet
            for name in spec.worker_names
        }
        self.rentals = [
            Rental(name, spec.name, 0.0, 0.0) for spec in fleet if spec.scales for name in spec.worker_names
        ]
        """Of groups that scale, in the order in which they begin."""
        self._rental = {rental.worker: rental for rental in self.rentals}
        """Of those that are there or to come."""
        self._spec = {spec.name: spec for spec in fleet}
        self.prices = {spec.name: spec.price_per_hour for spec in fleet}
        """USD per hour of a worker, now, by group."""
        self._lives: Counter[str] = Counter()
        self.loads: list[Load] = []
        self.random = np.random.default_rng(seed)
        self._normals: list[float] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = count()
        self._faults = sorted(faults, key=lambda fault: fault.at_ms)
        self._truth = truth or {}
        self._policy: Policy | None = None
        self._open = len(queries)
        self._seen_ms = seen_ms(queries, intake_ms, self.random)
        for worker, variants in (placement or {}).items():
            for variant in variants:
                self._check_fits(self.devices[worker], variant)
                self.devices[worker].loaded.add(variant)

    # --- what a policy may do -------------------------------------------------------------------------------------

    def at(self, at_ms: float, event: Callable[[], None]) -> None:
        """Call ``event`` then, or a little later if timers are late."""
        late_ms = self.random.uniform(0.0, self.timer_late_ms) if self.timer_late_ms else 0.0
        heappush(self._events, (max(at_ms, self.now_ms) + late_ms, next(self._sequence), event))

    def run(self, device: Device, variant: str, queries: Sequence[SimulatedQuery]) -> Running:
        """Start a batch on an idle device."""
        profile = self.portfolio.by_key.get((variant, device.group))
        if profile is None or variant not in device.loaded:
            raise PolicyError(f"{variant} is not loaded on {device.name}")
        if not device.idle:
            raise PolicyError(f"{device.name} is not idle")
        if not 0 < len(queries) <= profile.rows_max:
            raise PolicyError(f"a batch of {len(queries)} of {variant}: 1 to {profile.rows_max} are profiled")
        task = profile.task
        for query in queries:
            if query.task != task:
                raise PolicyError(f"{variant} is of task {task}, query {query.index} of {query.task}")
        index = profile.size_for(len(queries))
        p50_ms, p99_ms = profile.p50_ms[index], profile.p99_ms[index]
        execute_ms = p50_ms * device.factor * self._truth.get(profile.key, 1.0)
        if p99_ms > p50_ms:
            execute_ms *= max(1.0, exp(log(p99_ms / p50_ms) / Z99 * self._normal()))
        running = Running(profile, queries, self.now_ms, self.now_ms + execute_ms)
        device.running = running
        heappush(self._events, (running.end_ms, next(self._sequence), lambda: self._ran(device, running)))
        return running

    def load(self, device: Device, variant: str) -> None:
        """Begin to load, after what is being loaded there. Nothing happens if it is loaded, or will be."""
        if variant in device.loaded or variant in device.loading or not device.alive or device.leaving:
            return
        self._check_fits(device, variant)
        device.loading.append(variant)
        if len(device.loading) == 1:
            self._load_next(device)

    def unload(self, device: Device, variant: str) -> None:
        """At once; not while it runs."""
        if device.running is not None and device.running.variant.variant == variant:
            raise PolicyError(f"{variant} runs on {device.name}")
        device.loaded.discard(variant)
        if variant in device.loading[1:]:
            device.loading.remove(variant)

    def free_mb(self, device: Device) -> float:
        """Memory of the worker that nothing has."""
        by_key, group = self.portfolio.by_key, device.group
        return device.memory_mb_max - sum(by_key[v, group].memory_mb for v in (*device.loaded, *device.loading))

    def room(self, group: str) -> int:
        """How many workers more can be rented now."""
        most = self._spec[group].workers_max
        return 0 if most is None else most - sum(device.group == group for device in self.devices.values())

    def rent(self, group: str) -> str:
        """The new worker's name; the policy hears that it is back when it is ready."""
        if self.room(group) <= 0:
            raise PolicyError(f"no more workers of {group} can be rented")
        spec = self._spec[group]
        name = next(name for number in count() if (name := f"{group}-{number}") not in self.devices)
        device = Device(name, group, spec.memory_mb, self.prices[group], alive=False, life=self._lives[name])
        self.devices[name] = device
        rental = self._rental[name] = Rental(name, group, self.now_ms, self.now_ms + spec.start_ms)
        self.rentals.append(rental)

        def ready() -> None:
            if self._rental.get(name) is rental:
                device.alive = True
                assert self._policy is not None
                self._policy.back(device)

        heappush(self._events, (rental.ready_ms, next(self._sequence), ready))
        return name

    def release(self, name: str) -> None:
        """Nothing more begins there; when nothing runs any more it is gone. Nothing happens if it is leaving."""
        device = self.devices[name]
        if name not in self._rental:
            raise PolicyError(f"{name} is of a group that does not scale")
        if device.leaving:
            return
        staying = sum(other.group == device.group and not other.leaving for other in self.devices.values())
        if staying <= self._spec[device.group].workers_min:
            raise PolicyError(f"{device.group} is to have no fewer than {staying} workers")
        device.leaving = True
        if device.running is None:
            self._end(device)

    def refuse(self, query: SimulatedQuery) -> None:
        """Answered at once that it cannot be met."""
        self._settle(query, "refused")

    def expire(self, query: SimulatedQuery) -> None:
        """Given up: its deadline passed, or will have."""
        self._settle(query, "expired")

    # --- time -----------------------------------------------------------------------------------------------------

    def play(self, policy: Policy) -> None:
        """From 0 until every query has an outcome. Who has none when nothing more can happen has expired."""
        self._policy = policy
        for fault in self._faults:
            heappush(self._events, (fault.at_ms, next(self._sequence), lambda fault=fault: self._fault(fault)))  # type: ignore[misc]
        policy.start(self)
        events, queries, seen_ms = self._events, self.queries, self._seen_ms
        index, total = 0, len(queries)
        end_ms = max((q.deadline_ms for q in queries if q.deadline_ms < INF), default=0.0)
        end_ms = max(end_ms, queries[-1].arrival_ms if queries else 0.0) + 3_600_000
        while self._open:
            next_ms = seen_ms[index] if index < total else INF
            if events and events[0][0] <= next_ms:
                self.now_ms, _, event = heappop(events)
                if self.now_ms > end_ms:
                    break
                event()
            elif index < total:
                self.now_ms = next_ms
                policy.arrived(queries[index])
                index += 1
            else:
                break
        for query in queries:
            if query.outcome is None:
                self.expire(query)

    # --- what happens ---------------------------------------------------------------------------------------------

    def _ran(self, device: Device, running: Running) -> None:
        if device.running is not running:
            return  # it was lost meanwhile
        device.running = None
        device.busy_ms += running.end_ms - running.start_ms
        profile, rows = running.variant, len(running.queries)
        name, variant, accuracy = device.name, profile.variant, profile.accuracy
        start_ms, end_ms = running.start_ms, running.end_ms
        out_ms = end_ms + self.reply_ms
        for query in running.queries:
            if query.outcome is not None:
                if query.worker != name and start_ms < query.end_ms + self.reply_ms:
                    continue  # both ran it, and the other one was the first
                raise PolicyError(f"query {query.index} ran, and has an outcome already: {query.outcome}")
            query.worker, query.variant, query.accuracy = name, variant, accuracy
            query.start_ms, query.end_ms, query.batch = start_ms, end_ms, rows
            query.outcome = "in_time" if out_ms <= query.deadline_ms else "late"
            self._open -= 1
        assert self._policy is not None
        self._policy.ran(device, running)
        if device.leaving:
            self._end(device)

    def _load_next(self, device: Device) -> None:
        variant, start_ms, life = device.loading[0], self.now_ms, device.life
        load_ms = self.portfolio.by_key[variant, device.group].load_ms

        def ready() -> None:
            if device.life != life:
                return  # it was lost meanwhile
            device.loading.pop(0)
            device.loaded.add(variant)
            self.loads.append(Load(device.name, variant, start_ms, self.now_ms))
            if device.loading:
                self._load_next(device)
            assert self._policy is not None
            self._policy.loaded(device, variant)

        heappush(self._events, (start_ms + load_ms, next(self._sequence), ready))

    def _fault(self, fault: Fault) -> None:
        assert self._policy is not None
        if fault.kind == "price":
            for device in self.devices.values():
                if device.group == fault.worker:
                    device.price_per_hour = fault.value
            self.prices[fault.worker] = fault.value
            return
        if fault.worker not in self.devices:
            return  # it is not rented
        device = self.devices[fault.worker]
        if fault.kind == "slow":
            device.factor = max(1.0, fault.value)
        elif fault.kind == "lost" and (device.alive or device.name in self._rental):
            self._end(device)
        elif fault.kind == "back" and not device.alive and device.name not in self._rental:
            device.alive, device.factor = True, 1.0
            self._policy.back(device)

    def _end(self, device: Device) -> None:
        """It is gone, with what it ran; one that was rented is forgotten."""
        assert self._policy is not None
        queries = device.running.queries if device.running is not None else ()
        device.alive, device.running = False, None
        device.life += 1
        device.loaded.clear()
        device.loading.clear()
        rental = self._rental.pop(device.name, None)
        if rental is not None:
            rental.end_ms = self.now_ms
            self._lives[device.name] = device.life
            del self.devices[device.name]
        self._policy.lost(device, queries)

    def _settle(self, query: SimulatedQuery, outcome: str) -> None:
        if query.outcome is not None:
            raise PolicyError(f"query {query.index} has two outcomes: {query.outcome}, {outcome}")
        query.outcome = outcome  # type: ignore[assignment]
        self._open -= 1

    def _check_fits(self, device: Device, variant: str) -> None:
        profile = self.portfolio.by_key.get((variant, device.group))
        if profile is None:
            raise PolicyError(f"{variant} has no profile on {device.group}")
        if profile.memory_mb > self.free_mb(device) + 1e-9:
            raise PolicyError(f"{variant} does not fit on {device.name}")

    def _normal(self) -> float:
        if not self._normals:
            self._normals = self.random.standard_normal(_DRAWS).tolist()
        return self._normals.pop()


def seen_ms(
    queries: Sequence[SimulatedQuery], intake_ms: float | Sequence[float], random: np.random.Generator
) -> list[float]:
    """When a policy sees each query; see :class:`World`."""
    if isinstance(intake_ms, (int, float)):
        return [query.arrival_ms + intake_ms for query in queries]
    drawn_ms = random.choice(np.asarray(intake_ms, np.float64), len(queries))
    found: list[float] = np.maximum.accumulate([query.arrival_ms for query in queries] + drawn_ms).tolist()
    return found
