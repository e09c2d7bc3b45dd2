"""INFaaS, as its released source does it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from simulator.facts import INF, SimulatedQuery, VariantProfile
from simulator.rivals.base import Line, Rival, asked_latency_ms, floor_of
from simulator.world import Device, Running, World

Key = tuple[str, str]
"""Variant and group: what INFaaS calls a variant is made for one kind of hardware."""


@dataclass(slots=True, eq=False)
class Replica:
    """One variant on one worker, and what was seen of it since the last tick."""

    line: Line
    device: Device
    sent: int = 0
    done: int = 0
    batches: int = 0
    latency_ms: float = 0.0
    """Summed over the queries that were done, their waiting included."""
    qps: float = 0.0
    latency_mean_ms: float = 0.0
    blacklisted: bool = False
    """Overloaded or interfered: not chosen for queries while another one will do."""
    low_ticks: int = 0
    """In a row, for how long one replica fewer would have done."""
    leaving: bool = False
    successor: VariantProfile | None = None
    """What is to be loaded in its place."""

    @property
    def key(self) -> Key:
        return self.line.profile.key


@dataclass(slots=True)
class _Task:
    picks: list[Key] = field(default_factory=list)
    """The last ones, the latest first."""
    floor: float = 0.0
    """The highest that was asked for lately."""


class Infaas(Rival):
    """Greedy choice of a variant for every query, and an autoscaler that replicates or upgrades.

    INFaaS (ATC'21), as released (github.com/stanford-mast/INFaaS):

    - Choice (src/master/queryfe_server.cc, ``gpar_lat_acc_search``, the use-case path): first the last five picks,
      then at most ``max(3, 0.15 * latency / 0.6)`` variants, those of the lowest accuracy that meets the query's
      first. Of those in time that run and are not blacklisted, the one with the smallest gap to the latency. If none
      runs, the one with the smallest ``1000 + load + lat``, which is then loaded. Of its replicas, the one with the
      lowest rate (``min_qps_name``).
    - States (src/worker/query_executor.cc, the monitor, every second): blacklisted when the mean latency is above 1.5
      times the profile's (below 10 ms: above ``min(5, 15 / lat)`` times) at more than 0.3 of the peak rate, or when
      more than 0.8 s of work is queued; no longer when less is and the latency is below 1.25 times.
    - Variant autoscaler (src/worker/autoscaler.cc, every second): ``thr = 1000 * b / lat(b)``, ``delta =
      ceil((rate - replicas * thr + 0.0002 * replicas * thr * load) / thr)``, the load in ms; where it is positive,
      replicas are added, or the variant is upgraded to the next one of higher throughput when the replicas' loads
      cost more than 1.5 times the upgrade's (1000 times as much if there is no room for them). When ``rate <=
      (replicas - 1) * thr`` for 20 ticks on end, one replica is unloaded.
    - Worker autoscaler (src/master/master_vm_daemon.cc, every 2 s): workers busy for more than 80 % are not given
      new variants while others will do. Where a group scales: one worker is started when the least busy one of the
      group is busy for more than 80 %, or when a variant found no room there (``vm_scale_flag``); nothing else happens
      in the group until it is there (the daemon waits for it) and for 15 rounds after. A group whose least busy worker
      is busy for at most 8 %, or all of them for at most 25 % in the mean, 15 rounds on end, loses that worker, but for
      those that it began with (``inst_type_min``). Theirs is one daemon for all kinds of machines, which starts one in
      all at a time; has these numbers by kind of processor (5 and 30 % for CPUs); never stops a CPU machine, and stops
      others with what they run. Here every group has a daemon of its own, and a worker leaves when its queues are
      empty: both are kinder.

    A variant of theirs is built for one batch size and judged by it; ours have many, so b is the largest up to 32 with
    ``2 * lat(b)`` in the task's latency, or 1, for choice, throughput and batches.
    Workers run whatever waits for one variant, up to that size; queries are not dropped and run late.
    A replica is loaded where memory is free, else where it takes unloading variants that nobody asked for in the last
    second. The rule that a loose latency (above 100 ms) belongs on a CPU is left out: it is about its own hardware.
    """

    name = "infaas"
    tick_ms = 1000.0
    picks_max = 5
    batch_max = 32
    scale_down_ticks = 20
    busy_max = 0.8
    rounds_of_rest = 15
    rounds_to_stop = 15
    busy_least = 0.08
    busy_mean = 0.25

    def start(self, world: World) -> None:
        self.world = world
        self.margin_ms = world.reply_ms + world.timer_late_ms
        self.latency_ms = asked_latency_ms(world)
        self.on = {worker: [] for worker in world.devices}
        self.replicas: dict[Key, list[Replica]] = defaultdict(list)
        self.by_place: dict[tuple[str, str], Replica] = {}
        """By worker and variant."""
        self.tasks: dict[str, _Task] = defaultdict(_Task)
        self.by_accuracy = {
            task: sorted(profiles, key=lambda p: (p.accuracy, p.variant, p.group))
            for task, profiles in world.portfolio.by_task.items()
        }
        self._busy_ms = dict.fromkeys(world.devices, 0.0)
        self._hot: set[str] = set()
        self._wanted: set[str] = set()
        """Groups in which something found no room."""
        self._going: set[str] = set()
        """Workers that leave once nothing waits there."""
        self._rest: dict[str, int] = {}
        """By group, for how many rounds nothing happens."""
        self._low_rounds = dict.fromkeys([spec.name for spec in world.fleet if spec.scales], 0)
        self._rows_of: dict[Key, int] = {}
        self._ticks = 0
        for device in world.devices.values():
            for variant in sorted(device.loaded):
                self._add(device, world.portfolio.by_key[variant, device.group])
        world.at(self.tick_ms, self._tick)

    def arrived(self, query: SimulatedQuery) -> None:
        floor = floor_of(self.world, query)
        task = self.tasks[query.task]
        task.floor = max(task.floor, floor)
        profile = self._choose(query, floor, task)
        replica = self._replica(profile) if profile is not None else None
        if profile is None or replica is None:
            self.world.refuse(query)
            return
        if profile.key in task.picks:
            task.picks.remove(profile.key)
        task.picks.insert(0, profile.key)
        del task.picks[self.picks_max :]
        replica.sent += 1
        replica.line.add(query)
        self.poll(replica.line)

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        return line.take(self._rows(line.profile))

    def ran(self, device: Device, batch: Running) -> None:
        replica = self.by_place.get((device.name, batch.variant.variant))
        if replica is not None:
            replica.done += len(batch.queries)
            replica.batches += 1
            replica.latency_ms += sum(self.world.now_ms - query.arrival_ms for query in batch.queries)
            self._finish(replica)
        self.serve(device)

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        waiting = list(queries)
        for replica in [each for each in self.by_place.values() if each.device is device]:
            waiting += replica.line.take(len(replica.line))
            self._drop(replica)
        self._going.discard(device.name)
        for query in waiting:
            self.arrived(query)

    def back(self, device: Device) -> None:
        """It is empty, and filled as need arises."""
        self.on[device.name], self._busy_ms[device.name] = [], device.busy_ms

    # --- the choice for one query ---------------------------------------------------------------------------------

    def _choose(self, query: SimulatedQuery, floor: float, task: _Task) -> VariantProfile | None:
        by_key, latency_ms = self.world.portfolio.by_key, query.latency_ms_max - self.margin_ms
        for key in task.picks:
            profile = by_key[key]
            if profile.accuracy >= floor and self._lat_ms(profile) <= latency_ms and self._serves(key):
                return profile
        examined_max = max(3, int(min(0.15 * latency_ms / 0.6, 32_767.0)))
        able = [p for p in self.by_accuracy.get(query.task, ()) if p.accuracy >= floor][:examined_max]
        best, best_score = None, INF
        running, running_gap_ms, blacklisted, blacklisted_gap_ms = None, INF, None, INF
        for profile in able:
            lat_ms = self._lat_ms(profile)
            if lat_ms > latency_ms or not self._possible(profile):
                continue
            gap_ms = min(latency_ms, 1e12) - lat_ms
            if self._serves(profile.key):
                if gap_ms < running_gap_ms:
                    running, running_gap_ms = profile, gap_ms
            elif self._live(profile.key):
                if gap_ms < blacklisted_gap_ms:
                    blacklisted, blacklisted_gap_ms = profile, gap_ms
            elif (score := 1000.0 + profile.load_ms + lat_ms) < best_score:
                best, best_score = profile, score
        # a candidate that does not run is only taken if nothing that runs has a smaller score, blacklisted or not
        if running is not None:
            return running
        if blacklisted is not None and (blacklisted_gap_ms <= best_score or not self._room(best)):
            return blacklisted
        return best if best is not None else blacklisted

    def _lat_ms(self, profile: VariantProfile) -> float:
        """At the batch that it is judged by."""
        return profile.lat_ms(self._rows(profile))

    def _rows(self, profile: VariantProfile) -> int:
        """The batch that it is judged by."""
        key = profile.key
        if key not in self._rows_of:
            latency_ms = self.latency_ms.get(profile.task, INF) - self.margin_ms
            self._rows_of[key] = max(
                1, profile.rows_within(min(latency_ms / 2, profile.lat_ms(self._largest(profile))))
            )
        return self._rows_of[key]

    def _largest(self, profile: VariantProfile) -> int:
        return max((size for size in profile.sizes if size <= self.batch_max), default=profile.sizes[0])

    def _live(self, key: Key) -> list[Replica]:
        return [each for each in self.replicas.get(key, ()) if not each.leaving]

    def _serves(self, key: Key) -> bool:
        """Whether the replica that a query would get is there and not blacklisted."""
        live = self._live(key)
        return bool(live) and not min(live, key=self._load).blacklisted

    def _replica(self, profile: VariantProfile) -> Replica | None:
        """The one with the lowest rate; a new one if there is none."""
        live = self._live(profile.key)
        return min(live, key=self._load) if live else self._replicate(profile)

    def _load(self, replica: Replica) -> tuple[bool, float]:
        loaded = replica.line.profile.variant in replica.device.loaded
        return not loaded, replica.qps + replica.sent

    # --- the autoscaler -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticks += 1
        for replica in self.by_place.values():
            self._monitor(replica)
        if self._ticks % 2 == 0:
            self._watch_workers()
        for key in [key for key, replicas in self.replicas.items() if replicas]:
            self._scale(self.world.portfolio.by_key[key])
        for replica in self.by_place.values():
            replica.sent = replica.done = replica.batches = 0
            replica.latency_ms = 0.0
        for task in self.tasks.values():
            task.floor = 0.0
        world = self.world
        if world.now_ms <= world.queries[-1].deadline_ms or any(len(each.line) for each in self.by_place.values()):
            world.at(world.now_ms + self.tick_ms, self._tick)

    def _monitor(self, replica: Replica) -> None:
        """Set its rate, and whether it is overloaded or interfered."""
        profile, seconds = replica.line.profile, self.tick_ms / 1000.0
        replica.qps = replica.sent / seconds
        if replica.done:
            replica.latency_mean_ms = replica.latency_ms / replica.done
        else:
            replica.latency_mean_ms /= 1.5
        rows = max(1, ceil(replica.done / replica.batches)) if replica.batches else 1
        lat_ms = profile.lat_ms(min(rows, profile.rows_max))
        peak_qps = 1000.0 * rows / lat_ms
        limit = min(5.0, 15.0 / lat_ms) if lat_ms < 10.0 else 1.5
        queued_too_much = len(replica.line) > 0.8 * peak_qps
        if (replica.latency_mean_ms > lat_ms * limit and replica.qps > 0.3 * peak_qps) or queued_too_much:
            replica.blacklisted = True
        elif replica.latency_mean_ms < lat_ms * 1.25:
            replica.blacklisted = False

    def _watch_workers(self) -> None:
        """Which workers are too busy to be given more; and start or stop one."""
        self._hot.clear()
        busy: dict[str, dict[str, float]] = defaultdict(dict)
        for name, device in self.world.devices.items():
            share = (device.busy_ms - self._busy_ms.get(name, 0.0)) / (2 * self.tick_ms)
            if share > self.busy_max:
                self._hot.add(name)
            self._busy_ms[name] = device.busy_ms
            if device.alive and name not in self._going:
                busy[device.group][name] = share
        self._scale_fleet(busy)

    def _scale_fleet(self, busy: Mapping[str, Mapping[str, float]]) -> None:
        """By group and worker, for which share of the last round it ran."""
        for spec in self.world.fleet:
            group, own = spec.name, busy[spec.name]
            if not spec.scales:
                continue
            if self._rest.get(group, 0) > 0:
                self._rest[group] -= 1
                if not self._rest[group]:
                    self._wanted.discard(group)
                continue
            if any(not device.alive and device.group == group for device in self.world.devices.values()):
                continue  # the daemon waits until it has come
            if (min(own.values(), default=0.0) > self.busy_max or group in self._wanted) and self.world.room(group):
                self.world.rent(group)
                self._rest[group] = self.rounds_of_rest
            elif len(own) > max(spec.workers, spec.workers_min):
                is_low = min(own.values()) <= self.busy_least or sum(own.values()) / len(own) <= self.busy_mean
                self._low_rounds[group] = self._low_rounds[group] + 1 if is_low else 0
                if self._low_rounds[group] >= self.rounds_to_stop:
                    self._low_rounds[group], self._rest[group] = 0, self.rounds_of_rest
                    self._leave(min(own, key=lambda name: own[name]))

    def _leave(self, worker: str) -> None:
        self._going.add(worker)
        for replica in [each for each in self.by_place.values() if each.device.name == worker]:
            replica.successor = None
            self._unload(replica)
        self._gone(worker)

    def _gone(self, worker: str) -> None:
        """Release it, if nothing is left there."""
        if worker in self._going and not any(each.device.name == worker for each in self.by_place.values()):
            self.world.release(worker)

    def _scale(self, profile: VariantProfile) -> None:
        """Replicate, upgrade or unload one variant."""
        replicas = self._live(profile.key)
        if not replicas or any(profile.variant in each.device.loading for each in replicas):
            return  # being loaded: its rate says nothing yet
        thr_qps = 1000.0 * self._rows(profile) / self._lat_ms(profile)
        rate_qps, now_qps = sum(each.qps for each in replicas), len(replicas) * thr_qps
        delta = ceil((rate_qps - now_qps + 0.0002 * now_qps * profile.load_ms) / thr_qps)
        if delta > 0:
            for each in replicas:
                each.low_ticks = 0
            better = self._faster(profile)
            better_thr_qps = 1000.0 * self._rows(better) / self._lat_ms(better) if better is not None else 0.0
            cost_ms = delta * profile.load_ms * (1.0 if self._room(profile, delta) else 1000.0)
            if better is not None and cost_ms > 1.5 * better.load_ms * ceil(delta * thr_qps / better_thr_qps):
                for _ in range(ceil(delta * thr_qps / better_thr_qps)):
                    if self._replicate(better) is None:
                        self._replace(profile, better)
            else:
                for _ in range(delta):
                    self._replicate(profile)
        elif rate_qps <= (len(replicas) - 1) * thr_qps:
            least = min(replicas, key=self._load)
            least.low_ticks += 1
            if least.low_ticks >= self.scale_down_ticks:
                self._unload(least)
        else:
            for each in replicas:
                each.low_ticks = 0

    def _faster(self, profile: VariantProfile) -> VariantProfile | None:
        """The next one of higher throughput that keeps what is asked of the task."""
        task = profile.task
        latency_ms, floor = self.latency_ms.get(task, INF) - self.margin_ms, self.tasks[task].floor
        thr = self._rows(profile) / self._lat_ms(profile)
        able = [
            p
            for p in self.by_accuracy[task]
            if p.accuracy >= floor and self._lat_ms(p) <= latency_ms and self._rows(p) / self._lat_ms(p) > thr
        ]
        able = [p for p in able if self._possible(p)]
        return min(able, key=lambda p: self._rows(p) / self._lat_ms(p), default=None)

    # --- replicas -------------------------------------------------------------------------------------------------

    def _possible(self, profile: VariantProfile) -> bool:
        return any(
            spec.name == profile.group and spec.memory_mb >= profile.memory_mb and (spec.workers or spec.scales)
            for spec in self.world.fleet
        )

    def _room(self, profile: VariantProfile | None, number: int = 1) -> bool:
        """Whether so many workers could take it."""
        return profile is not None and len(self._workers(profile)) >= number

    def _workers(self, profile: VariantProfile) -> list[tuple[tuple[bool, bool, float], Device]]:
        """Those that could take it, the best first: not busy, with free memory, with most of it."""
        found = []
        for device in self.world.devices.values():
            if device.group != profile.group or not device.alive or (device.name, profile.variant) in self.by_place:
                continue
            if device.name in self._going:
                continue
            free_mb = self.world.free_mb(device)
            could_mb = free_mb + sum(each.line.profile.memory_mb for each in self._unused(device))
            if could_mb >= profile.memory_mb:
                order = device.name in self._hot, free_mb < profile.memory_mb, -free_mb
                found.append((order, device))
        return sorted(found, key=lambda each: each[0])

    def _unused(self, device: Device) -> list[Replica]:
        """What could be unloaded at once: nobody asked for it in the last second, and nothing waits or runs."""
        runs = device.running.variant.variant if device.running is not None else None
        return [
            each
            for each in self.by_place.values()
            if each.device is device
            and not each.line
            and each.qps + each.sent == 0
            and each.line.profile.variant in device.loaded
            and each.line.profile.variant != runs
        ]

    def _replicate(self, profile: VariantProfile) -> Replica | None:
        """Load it on one more worker; None if no worker has room."""
        workers = self._workers(profile)
        if not workers:
            self._wanted.add(profile.group)
            return None
        device = workers[0][1]
        for unused in sorted(self._unused(device), key=lambda each: -each.line.profile.memory_mb):
            if self.world.free_mb(device) >= profile.memory_mb:
                break
            self._drop(unused)
            self.world.unload(device, unused.line.profile.variant)
        self.world.load(device, profile.variant)
        return self._add(device, profile)

    def _replace(self, old: VariantProfile, better: VariantProfile) -> None:
        """Give the better one the place of a replica on its group, where no worker has room for both."""
        able = [
            each
            for each in self._live(old.key)
            if each.device.group == better.group
            and (each.device.name, better.variant) not in self.by_place
            and self.world.free_mb(each.device) + old.memory_mb >= better.memory_mb
        ]
        if able:
            replica = min(able, key=self._load)
            replica.successor = better
            self._unload(replica)

    def _add(self, device: Device, profile: VariantProfile) -> Replica:
        line = Line(profile, by_deadline=False, margin_ms=self.margin_ms)
        line.devices.append(device)
        replica = Replica(line, device)
        self.replicas[profile.key].append(replica)
        self.by_place[device.name, profile.variant] = replica
        self.on[device.name].append(line)
        return replica

    def _unload(self, replica: Replica) -> None:
        """No more queries; gone once its queue is."""
        replica.leaving = True
        self._finish(replica)

    def _finish(self, replica: Replica) -> None:
        running = replica.device.running
        variant = replica.line.profile.variant
        if (
            replica.leaving
            and not replica.line
            and replica.device.alive
            and (running is None or running.variant.variant != variant)
        ):
            self._drop(replica)
            self.world.unload(replica.device, variant)
            better = replica.successor
            if better is not None and self.world.free_mb(replica.device) >= better.memory_mb:
                self.world.load(replica.device, better.variant)
                self._add(replica.device, better)
            self._gone(replica.device.name)

    def _drop(self, replica: Replica) -> None:
        """Forget it."""
        self.replicas[replica.key].remove(replica)
        del self.by_place[replica.device.name, replica.line.profile.variant]
        self.on[replica.device.name].remove(replica.line)
