"""modelless itself as a policy: the broker's core and the workers' device queues, as they are, in virtual time.

What is real: :class:`broker.core.Core` with everything in it (ledger, catalog, selector, batcher, scheduler), one for
each broker; :class:`workers.device_queue.DeviceQueue`, one for each worker; :class:`broker.planner.Planner`, on its
period; and in place of the provisioner, the world's workers are rented and let go as the plan says. What is not there:
Kafka, decoding, the link's wire and the processor time of all that; the world's ``intake_ms`` and
``reply_ms`` stand for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from broker.core import Bury, CancelSent, Core, Reply, Send, TellDemand
from broker.demand import DemandMeter
from broker.demand import total as total_demand
from broker.devices import Worker
from broker.intake import set_deadlines
from broker.ledger import Address, Entry, Source
from broker.planner import Planner
from broker.scaler import Scaling
from broker.wants import total as total_wants
from modelless import frames
from modelless.messages import BatchTime, Evaluation, GroupTarget, ModelVersion, Plan, Profile, Query, RecordId
from modelless.tensors import Tensor, TensorSpec
from simulator.facts import INF, Portfolio, SimulatedQuery
from simulator.world import Device, Running, World
from workers.device_queue import Answer, DeviceQueue, Run, Tell

PLAN_INTERVAL_MS: Final = 500.0
STATE_INTERVAL_MS: Final = 500.0
JUDGE_INTERVAL_MS: Final = 100.0
LOOK_INTERVAL_MS: Final = 1000.0
LATENCY_MS_DEFAULT: Final = 30_000.0
SOLVE_S_MAX: Final = 5.0
"""The planner gets more real time than beside a fleet, so that what it finds does not depend on this machine."""
TOPIC = "queries"
_SPEC = (TensorSpec("x", "FP32", (-1, 1)),)
_INPUTS = (Tensor("x", "FP32", (1, 1), b"\0\0\0\0"),)


class Names:
    """The project's names for the variants of a portfolio, and back: ``m3:1/v5``.

    ``scaling``: groups that scale. What has no profile there was tried and failed, or a worker would be rented to try.
    """

    def __init__(self, portfolio: Portfolio, prices: dict[str, float], scaling: Collection[str] = ()) -> None:
        models: dict[tuple[str, str], ModelVersion] = {}
        builders: dict[str, str] = {}
        self.theirs: dict[str, str] = {}
        self.ours: dict[tuple[str, str], str] = {}
        """By (variant, group)."""
        self.profiles: list[Profile] = []
        self.makes: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for each in portfolio.profiles:
            model = models.get((each.task, each.model))
            if model is None:
                name = f"m{len(models)}"
                model = ModelVersion(
                    name, 1, each.task, name, "", "", 1, _SPEC, _SPEC, Evaluation(accuracy=each.accuracy), name
                )
                models[each.task, each.model] = model
            builder = builders.setdefault(each.variant, f"v{len(builders)}")
            ours = f"{model.key}/{builder}"
            self.theirs[ours] = each.variant
            self.ours[each.key] = ours
            self.makes[each.group].append((model.format, builder))
            batches = tuple(map(BatchTime, each.sizes, each.p50_ms, each.p99_ms))
            self.profiles.append(
                Profile(
                    ours,
                    each.group,
                    "ready",
                    model.digest,
                    load_ms=each.load_ms,
                    load_warm_ms=each.load_ms,
                    memory_bytes=int(each.memory_mb * 2**20),
                    accuracy=each.accuracy,
                    accuracy_low=each.accuracy,
                    accuracy_high=each.accuracy,
                    batches=batches,
                    price_per_hour=prices.get(each.group, 0.0),
                )
            )
        self.models = list(models.values())
        for group in scaling:
            there = {each.split("/")[0] for (_, of), each in self.ours.items() if of == group}
            self.profiles += [
                Profile(f"{model.key}/none", group, "failed", model.digest, "it has no profile")
                for model in self.models
                if model.key not in there
            ]


class _Alarm:
    """Calls at the time that it was set to last."""

    def __init__(self, world: World, call: Callable[[], None]) -> None:
        self._world, self._call = world, call
        self._at_ms = INF

    def set(self, at_ms: float) -> None:
        if at_ms != self._at_ms:
            self._at_ms = at_ms
            if at_ms < INF:
                self._world.at(at_ms, lambda: self._due(at_ms))

    def _due(self, at_ms: float) -> None:
        if at_ms == self._at_ms:  # it was not set anew meanwhile
            self._at_ms = INF
            self._call()


class _Worker:
    """A worker: its device queue, and a link to every broker."""

    def __init__(self, ours: Ours, device: Device) -> None:
        self.ours, self.device = ours, device
        self.queue = DeviceQueue(lead_ms=1.0)
        self.links: list[Worker] = []
        self.run: Run | None = None
        self.load: tuple[str, ...] = ()
        """What the plan says."""
        self.ran: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """Batches since the last state, by our name of the variant."""
        self._is_done = False
        """It has loaded what the plan says, and nothing else."""
        self.leaves = False
        """The plan wants it to go: nothing new, and gone when what it holds is done."""
        self._alarm = _Alarm(ours.world, self._woke)
        self.queue.device(up=True)
        for number, broker in enumerate(ours.brokers):
            incarnation = f"{device.name}.{device.life}"
            makes = tuple(ours.names.makes[device.group])
            memory_bytes = int(device.memory_mb_max * 2**20)
            link = Worker(device.name, incarnation, device.group, device.price_per_hour, memory_bytes, makes)
            self.links.append(link)
            self.queue.link_up(number)
            broker.core.joined(link)

    def tell_state(self) -> None:
        """To every broker: what is loaded, and how long batches took."""
        ours, device = self.ours, self.device
        ready = {ours.name_of(variant, device.group) for variant in device.loaded}
        variants = []
        for variant in sorted(ready):
            batches = tuple(self.ran.get(variant, ()))
            rows, busy_ms = sum(rows for rows, _ in batches), sum(ms for _, ms in batches)
            variants.append(frames.VariantState(variant, "ready", 0, batches, rows, busy_ms))
        variants += [frames.VariantState(ours.name_of(variant, device.group), "loading") for variant in device.loading]
        self.ran.clear()
        self.queue.ready(ready)
        state = frames.State(tuple(variants), 0, 0.0, 1)
        for broker, link in zip(ours.brokers, self.links, strict=True):
            broker.hear(link, state)

    def assign(self, load: Sequence[str]) -> None:
        self.load = tuple(load)
        self.follow()

    def follow(self) -> None:
        """Unload what the plan does not name, once nothing waits for it; load what it does, one by one, as it fits."""
        ours, device, world = self.ours, self.device, self.ours.world
        wanted = [ours.names.theirs[variant] for variant in self.load]
        gone = [v for v in device.loaded - set(wanted) if not self.queue.holds(ours.name_of(v, device.group))]
        for variant in gone:
            world.unload(device, variant)
        if not device.loading:
            free_mb, by_key = world.free_mb(device), world.portfolio.by_key
            missing = [variant for variant in wanted if variant not in device.loaded]
            fitting = [variant for variant in missing if by_key[variant, device.group].memory_mb <= free_mb]
            if fitting:
                world.load(device, fitting[0])
        self._is_done = device.loaded == set(wanted)
        if gone:
            self.tell_state()

    def push(self, link: Worker, batch: frames.Batch) -> None:
        self.queue.push(self.links.index(link), batch)

    def kick(self) -> None:
        """Carry out what the queue decides."""
        world, now_ms = self.ours.world, self.ours.world.now_ms
        while instructions := self.queue.poll(now_ms):
            for instruction in instructions:
                match instruction:
                    case Run():
                        self.run = instruction
                        queries = [self.ours.query(item.record) for item in instruction.items]
                        world.run(self.device, self.ours.names.theirs[instruction.variant], queries)
                    case Answer(link=link, batch=batch, items=items, status=status):
                        for item in items:
                            world.expire(self.ours.query(item.record))
                        outcomes = [frames.ItemOutcome(item.record, "answered", status) for item in items]
                        self.queue.settled(link, batch.batch, outcomes)
                    case Tell(link=link, frame=frame):
                        self.ours.brokers[link].hear(self.links[link], frame)
        wake_ms = self.queue.wake_at_ms()
        self._alarm.set(INF if wake_ms is None else wake_ms)
        if self.leaves and self.queue.drained:
            world.at(now_ms, self._go)

    def leave(self) -> None:
        """As a worker does that is told to stop."""
        if not self.leaves:
            self.leaves = True
            self.queue.drain()
            for broker, link in zip(self.ours.brokers, self.links, strict=True):
                broker.hear(link, frames.Drain("the plan lets it go"))
            self.kick()

    def _go(self) -> None:
        if self.device.alive and not self.device.leaving:
            self.ours.world.release(self.device.name)

    def _woke(self) -> None:
        if self.device.alive:
            self.kick()

    def end(self, running: Running) -> None:
        """A batch ended; its replies are out after a while."""
        run, world = self.run, self.ours.world
        assert run is not None
        execute_ms = running.end_ms - running.start_ms
        self.run = None
        self.ran[run.variant].append((len(running.queries), execute_ms))
        unwanted = self.queue.ran(execute_ms)
        if world.reply_ms:
            world.at(world.now_ms + world.reply_ms, lambda: self._published(run, unwanted))
        else:
            self._settled(run, unwanted)
        if not self._is_done:
            self.follow()
        self.kick()

    def _published(self, run: Run, unwanted: Sequence[Collection[RecordId]]) -> None:
        self._settled(run, unwanted)
        self.kick()

    def _settled(self, run: Run, unwanted: Sequence[Collection[RecordId]]) -> None:
        for part, gone in zip(run.parts, unwanted, strict=True):
            outcomes = [
                frames.ItemOutcome(item.record, "answered", "OK") for item in part.items if item.record not in gone
            ]
            if outcomes:
                self.queue.settled(part.link, part.batch.batch, outcomes)


class _Broker:
    """A broker: its core, and the records of its partition."""

    def __init__(self, ours: Ours, number: int) -> None:
        self.ours, self.number = ours, number
        self.core = Core(topic_weights=ours.topic_weights)
        self.queries: dict[str, list[SimulatedQuery]] = {}
        """By topic; of each one partition, by offset."""
        self._pumping = False
        self._alarm = _Alarm(ours.world, self.pump)
        for model in ours.names.models:
            self.core.catalog.put_model(model.key, model)
        for profile in ours.names.profiles:
            self.core.catalog.put_profile(profile.key, profile)
        self.core.catalog_changed(0.0)

    def read(self, query: SimulatedQuery) -> None:
        """A record is there, decoded."""
        topic = query.topic or TOPIC
        queries = self.queries.get(topic)
        if queries is None:
            queries = self.queries[topic] = []
            self.core.ledger.assign(topic, self.number, 0, "")
        record = RecordId(topic, self.number, len(queries))
        queries.append(query)
        arrived = self.core.ledger.arrived(record)
        assert arrived
        self.core.admit(self.ours.entry(query, record), self.ours.world.now_ms)
        self.pump()

    def hear(self, worker: Worker, frame: frames.Frame) -> None:
        self.core.frame(worker, frame, self.ours.world.now_ms)
        self.pump()

    def pump(self) -> None:
        """Carry out what the core decides. What that causes is carried out here too, not by a pump within a pump."""
        if self._pumping:
            return
        self._pumping = True
        ours, core, world = self.ours, self.core, self.ours.world
        now_ms = world.now_ms
        touched: dict[str, _Worker] = {}
        while instructions := core.poll(now_ms):
            for instruction in instructions:
                match instruction:
                    case Send(worker=link, batch=batch):
                        worker = touched[link.name] = ours.workers[link.name]
                        worker.push(link, batch)
                    case TellDemand(worker=link, demand=demand):
                        worker = touched[link.name] = ours.workers[link.name]
                        worker.queue.demand(self.number, demand)
                    case Reply(entry=entry, status=status):
                        query = ours.query(entry.record)
                        if status == "DEADLINE_EXCEEDED" or status == "UNAVAILABLE":
                            world.expire(query)
                        else:
                            world.refuse(query)
                        core.replied(entry, status)
                    case Bury(entry=entry):
                        world.expire(ours.query(entry.record))
                        core.buried(entry)
                    case CancelSent(worker=link, cancel=frames.Recall() as recall):
                        worker = touched[link.name] = ours.workers[link.name]
                        worker.queue.recall(self.number, recall)
                    case CancelSent():
                        raise AssertionError("nobody cancels")
            if not touched:
                break
            kicked, touched = list(touched.values()), {}
            for worker in kicked:
                worker.kick()
        self._pumping = False
        self._alarm.set(core.wake_at_ms())


class Ours:
    """The policy ``ours``.

    Args:
        brokers: queries are dealt to so many in turn, as if by partitions.
        topic_weights: as in the configuration.
        before: queries that came before time 0: what was asked for until then is known, as by who goes on all day.
    """

    name = "ours"

    def __init__(
        self,
        brokers: int = 1,
        topic_weights: Mapping[str, float] | None = None,
        before: Sequence[SimulatedQuery] = (),
    ) -> None:
        self._brokers, self.topic_weights, self._before = brokers, topic_weights, before

    def start(self, world: World) -> None:
        self.world = world
        prices = {spec.name: spec.price_per_hour for spec in world.fleet}
        self.names = Names(world.portfolio, prices, [spec.name for spec in world.fleet if spec.scales])
        self._asked: dict[tuple[object, ...], Query] = {}
        self._plan: Plan | None = None
        self._planner = Planner(solve_s_max=SOLVE_S_MAX)
        self._turn = 0
        self.workers: dict[str, _Worker] = {}
        self.brokers: list[_Broker] = []
        self.brokers = [_Broker(self, number) for number in range(self._brokers)]
        for device in world.devices.values():
            self.back(device)
        self._remember()
        self._plan_often()
        self._judge_often()
        self._tell_often()

    def _remember(self) -> None:
        """What was asked for before, told once a second."""
        meter, look_ms = DemandMeter(), -INF
        past = []
        for query in self._before:
            if query.arrival_ms >= look_ms + LOOK_INTERVAL_MS:
                look_ms = query.arrival_ms
                past.append((look_ms, meter.rates(look_ms)))
            entry = self.entry(query, RecordId(TOPIC, 0, 0))
            meter.add(entry.query, query.latency_ms_max, self.world.portfolio.floor(query), 1)
        self._planner.remember(self.brokers[0].core.situation(0.0, {}, (), self._scaling(0.0)), past)

    def name_of(self, variant: str, group: str) -> str:
        """Our name of one of the portfolio's variants."""
        return self.names.ours[variant, group]

    def query(self, record: RecordId) -> SimulatedQuery:
        return self.brokers[record.partition].queries[record.topic][record.offset]

    def entry(self, query: SimulatedQuery, record: RecordId) -> Entry:
        """As intake makes it."""
        latency_ms = query.latency_ms_max
        key = (query.task, latency_ms, query.accuracy_min, query.on_miss, query.prefer)
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = Query(
                "",
                _INPUTS,
                task=query.task,
                latency_ms_max=None if latency_ms == INF else latency_ms,
                accuracy_min=query.accuracy_min,
                on_miss=query.on_miss,
                prefer=query.prefer,
            )
        source = Source(record, None, None, (), query.arrival_ms)
        address = Address(str(query.index), "", None, "msgpack")
        entry = Entry(source, asked, address, 1, 64, None, None, None)
        set_deadlines(entry, LATENCY_MS_DEFAULT, is_offline=latency_ms == INF)
        return entry

    # --- what happens ---------------------------------------------------------------------------------------------

    def arrived(self, query: SimulatedQuery) -> None:
        broker = self.brokers[self._turn]
        self._turn = (self._turn + 1) % self._brokers
        broker.read(query)

    def ran(self, device: Device, batch: Running) -> None:
        self.workers[device.name].end(batch)

    def loaded(self, device: Device, variant: str) -> None:
        worker = self.workers[device.name]
        worker.follow()
        worker.tell_state()
        worker.kick()

    def lost(self, device: Device, queries: Sequence[SimulatedQuery]) -> None:
        worker = self.workers.pop(device.name, None)
        if worker is None:
            return  # it was never there
        for broker, link in zip(self.brokers, worker.links, strict=True):
            broker.core.lost(link, self.world.now_ms)
        for broker in self.brokers:  # each of them knows by now: what one sends elsewhere, others hear of
            broker.pump()

    def back(self, device: Device) -> None:
        worker = self.workers[device.name] = _Worker(self, device)
        worker.tell_state()
        worker.kick()

    # --- what comes again and again -------------------------------------------------------------------------------

    def _plan_often(self) -> None:
        now_ms, leader = self.world.now_ms, self.brokers[0].core
        wants = total_wants(broker.core.wants(now_ms) for broker in self.brokers)
        demand = total_demand(each for broker in self.brokers for each in broker.core.demand(now_ms))
        situation = leader.situation(now_ms, wants, demand, self._scaling(now_ms))
        plan = self._planner.plan(self._plan, situation, "broker-0", now_ms)
        if plan is not None:
            self._plan = plan
            wanted = {name: frozenset(assignment.load) for name, assignment in plan.workers.items()}
            for broker in self.brokers:
                broker.core.planned(wanted, now_ms)
                broker.pump()
        if self._plan is not None:
            for name, worker in self.workers.items():
                assignment = self._plan.workers.get(name)
                if assignment is not None:
                    worker.assign(assignment.load)
            for group, target in self._plan.fleet.items():
                self._provision(group, target)
        self.world.at(now_ms + PLAN_INTERVAL_MS, self._plan_often)

    def _scaling(self, now_ms: float) -> dict[str, Scaling]:
        """Of the groups that scale."""
        found = {}
        pressures = [broker.core.pressure(now_ms) for broker in self.brokers]
        for spec in self.world.fleet:
            if spec.workers_max is not None:
                waits = [pressure[spec.name] for pressure in pressures if spec.name in pressure]
                found[spec.name] = Scaling(
                    spec.workers_min,
                    spec.workers_max,
                    spec.memory_mb,
                    self.world.prices[spec.name],
                    spec.start_ms,
                    sum(backlog_ms for backlog_ms, _ in waits),
                    max((oldest_ms for _, oldest_ms in waits), default=0.0),
                )
        return found

    def _provision(self, group: str, target: GroupTarget) -> None:
        """Make it so, as the provisioner does: who is to go drains first; who is not there yet is not waited for."""
        world = self.world
        own = [device for device in world.devices.values() if device.group == group and not device.leaving]
        for device in own:
            if device.name in target.leaving and device.name in self.workers:
                self.workers[device.name].leave()
        staying = [device for device in own if device.name not in target.leaving]
        for _ in range(min(world.room(group), target.workers - len(staying))):
            world.rent(group)
        starting = [device for device in staying if not device.alive]
        for device in starting[: max(0, len(staying) - target.workers)]:
            world.release(device.name)

    def _judge_often(self) -> None:
        for broker in self.brokers:
            broker.core.judge(self.world.now_ms)
        self.world.at(self.world.now_ms + JUDGE_INTERVAL_MS, self._judge_often)

    def _tell_often(self) -> None:
        for worker in list(self.workers.values()):
            if worker.ran:
                worker.tell_state()
                worker.kick()
        self.world.at(self.world.now_ms + STATE_INTERVAL_MS, self._tell_often)
