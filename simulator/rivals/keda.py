"""KEDA's Kafka scaler: so many workers as the consumers' lag says, for deployments of a fixed choice of variants.

One deployment per set of variants that fits into one worker of a group. What is in it is chosen beforehand, as whoever
writes the manifests does: for every task, latency and accuracy that queries ask for, the variant that costs least per
row where a query may wait for one batch (:func:`cheapest_usd`); the variants of a group are dealt to workers' memory,
the first that has room. Queries go to the choice for what they ask; a worker runs earliest deadlines first, as many
as are in time at the median, and drops whom it cannot serve in time.

KEDA's rule (keda.sh, the Apache Kafka scaler and ScaledObject's defaults): ``desired = ceil(lag / lagThreshold)``,
the lag being queries that are not answered yet, read every ``pollingInterval`` of 30 s; the horizontal autoscaler, to
which it hands that metric, goes down only to the most that was desired in the last 300 s
(``stabilizationWindowSeconds``), and up at once. A deployment always keeps one worker (``minReplicaCount`` 1): what
wakes it up from none is the same lag, a start too late for any of these queries. KEDA's further wait of 300 s
(``cooldownPeriod``) is for going to none.

The threshold is :attr:`Keda.lag_threshold`; ``benchmarks.day`` looks for the best one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil

from simulator.facts import GroupSpec, SimulatedQuery, VariantProfile
from simulator.rivals.base import PATIENCE_MS, Line, Rival, floor_of
from simulator.world import Device, World

Asked = tuple[str, float, float]
"""Task, latency and accuracy floor."""


def cheapest_usd(profiles: Sequence[VariantProfile], price: dict[str, float], asked: Asked) -> VariantProfile | None:
    """The least price per row at the largest batch with ``2 * lat(b)`` in the latency, or alone if none has it."""

    def usd(profile: VariantProfile) -> float:
        rows = max(1, profile.rows_within(asked[1] / 2))
        return price[profile.group] * profile.lat_ms(rows) / rows

    able = [p for p in profiles if p.group in price and p.accuracy >= asked[2] and 2 * p.lat_ms(1) <= asked[1]]
    able = able or [p for p in profiles if p.group in price and p.accuracy >= asked[2] and p.lat_ms(1) <= asked[1]]
    return min(able, key=usd, default=None)


class Deployment:
    """Workers of one group that all have the same variants."""

    def __init__(self, group: str, memory_mb: float) -> None:
        self.group, self.free_mb = group, memory_mb
        self.lines: list[Line] = []
        self.devices: dict[str, Device] = {}
        """Those that are there."""
        self.starting: set[str] = set()
        self.desired: deque[tuple[float, int]] = deque()
        """When, and how many, of the last minutes."""

    @property
    def workers(self) -> int:
        return len(self.devices) + len(self.starting)

    @property
    def lag(self) -> int:
        """Queries that are not answered."""
        running = (device.running for device in self.devices.values())
        return sum(map(len, self.lines)) + sum(len(each.queries) for each in running if each is not None)


class Keda(Rival):
    """See the module.

    Args:
        lag_threshold: queries that one worker may have before it.
        polling_ms: between two readings of the lag.
        stabilisation_ms: how long the number only rises.
        first: workers of each deployment at time 0, in the order of :attr:`deployments`, if the fleet has them; what
            else is there goes to whoever has the fewest.
    """

    name = "keda"

    def __init__(
        self,
        lag_threshold: float = 10.0,
        polling_ms: float = 30_000.0,
        stabilisation_ms: float = 300_000.0,
        first: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._first = first
        self.lag_threshold, self.polling_ms, self.stabilisation_ms = lag_threshold, polling_ms, stabilisation_ms

    def start(self, world: World) -> None:
        self.world = world
        self.margin_ms = world.reply_ms + world.timer_late_ms
        self.lines: dict[tuple[str, str], Line] = {}
        self.of_task: dict[str, list[Line]] = {}
        self.on: dict[str, list[Line]] = {}
        self.deployments: list[Deployment] = []
        self._of: dict[str, Deployment] = {}
        """By worker."""
        self._home: dict[tuple[str, str], Deployment] = {}
        """By what the line is of."""
        self._choice = self._choose()
        self._deal()
        for device in list(world.devices.values()):
            own = [each for each in self.deployments if each.group == device.group]
            if own:
                self._join(device, min(own, key=self._lacking))
        for each in self.deployments:
            self._bring_to(each, max(1, len(each.devices)))
        world.at(self.polling_ms, self._poll_often)

    def route(self, query: SimulatedQuery) -> Line | None:
        return self._choice.get(_asked(self.world, query))

    def arrived(self, query: SimulatedQuery) -> None:
        line = self.route(query)
        if line is None or not self.home(line).workers:
            self.world.refuse(query)
            return
        line.add(query)
        self.poll(line)

    def home(self, line: Line) -> Deployment:
        """Of the line's variant."""
        return self._home[line.profile.key]

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        self.drop_late(line, line.profile.lat_ms(1))
        if not line:
            return []
        budget_ms = line.due_ms(line.head) - self.world.now_ms
        return line.take(max(1, line.profile.rows_within(budget_ms)))

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        deployment = self._of.get(device.name)
        if deployment is not None:
            if self._scales(device.group):
                del self._of[device.name]
            deployment.devices.pop(device.name, None)
            deployment.starting.discard(device.name)
            for line in self.on.pop(device.name, ()):
                line.devices.remove(device)
        super().lost(device, queries)

    def back(self, device: Device) -> None:
        if device.name in self._of:
            self._join(device, self._of[device.name])

    # --- the deployments ------------------------------------------------------------------------------------------

    def _choose(self) -> dict[Asked, Line]:
        price = {spec.name: spec.price_per_hour for spec in self.world.fleet if spec.scales or spec.workers}
        found: dict[Asked, Line] = {}
        for asked in sorted({_asked(self.world, query) for query in self.world.queries}):
            task, latency_ms, floor = asked
            reachable = task, min(latency_ms, PATIENCE_MS) - self.margin_ms, floor
            profile = cheapest_usd(self.world.portfolio.by_task.get(task, ()), price, reachable)
            if profile is not None:
                if profile.key not in self.lines:
                    self.lines[profile.key] = Line(profile, margin_ms=self.margin_ms)
                found[asked] = self.lines[profile.key]
        return found

    def _lacking(self, deployment: Deployment) -> tuple[bool, int]:
        """The first who gets a worker has the least of these."""
        index, number = self.deployments.index(deployment), len(deployment.devices)
        return index < len(self._first) and number >= self._first[index], number

    def _deal(self) -> None:
        """The largest variants first, each to the first deployment of its group that has room."""
        spec: dict[str, GroupSpec] = {each.name: each for each in self.world.fleet}
        for line in sorted(self.lines.values(), key=lambda line: (-line.profile.memory_mb, line.profile.key)):
            profile, own = line.profile, [each for each in self.deployments if each.group == line.profile.group]
            place = next((each for each in own if each.free_mb >= profile.memory_mb), None)
            if place is None:
                place = Deployment(profile.group, spec[profile.group].memory_mb)
                self.deployments.append(place)
            place.lines.append(line)
            self._home[profile.key] = place
            place.free_mb -= profile.memory_mb

    def _join(self, device: Device, deployment: Deployment) -> None:
        deployment.starting.discard(device.name)
        deployment.devices[device.name] = device
        self._of[device.name] = deployment
        self.on[device.name] = deployment.lines
        for line in deployment.lines:
            line.devices.append(device)
            self.world.load(device, line.profile.variant)

    def _poll_often(self) -> None:
        now_ms = self.world.now_ms
        for each in self.deployments:
            each.desired.append((now_ms, max(1, ceil(each.lag / self.lag_threshold))))
            while each.desired[0][0] < now_ms - self.stabilisation_ms:
                each.desired.popleft()
            self._bring_to(each, max(number for _, number in each.desired))
        if now_ms <= self.world.queries[-1].deadline_ms or any(each.lag for each in self.deployments):
            self.world.at(now_ms + self.polling_ms, self._poll_often)

    def _bring_to(self, deployment: Deployment, number: int) -> None:
        """Rent or release workers; a starting one goes first."""
        world = self.world
        while deployment.workers < number and world.room(deployment.group):
            name = world.rent(deployment.group)
            self._of[name] = deployment
            deployment.starting.add(name)
        going = [*sorted(deployment.starting), *reversed(deployment.devices)]
        for name in going[: max(0, deployment.workers - number)]:
            if not self._scales(deployment.group):
                return
            self._leave(name, deployment)

    def _leave(self, name: str, deployment: Deployment) -> None:
        """No more of its lines' batches; the world says when it is gone."""
        device = deployment.devices.pop(name, None)
        deployment.starting.discard(name)
        if device is not None:
            for line in self.on.pop(name):
                line.devices.remove(device)
            self.on[name] = []
        self._of.pop(name)
        self.world.release(name)

    def _scales(self, group: str) -> bool:
        return any(spec.name == group and spec.scales for spec in self.world.fleet)


def _asked(world: World, query: SimulatedQuery) -> Asked:
    return query.task, query.latency_ms_max, floor_of(world, query)
