"""Who plans: one broker leads, writes the plan when it changes, and is fenced when another one leads.

Owning the one partition of the plan topic in a consumer group of its own says who should lead; that is liveness
only. Safety is the transactional id, the same for all: whoever opened it last can write, an older one is refused.

What was asked for in the last minutes, which says what bursts there are, is not handed over: every broker announces
what it is asked for, and a new leader reads these announcements again (:meth:`broker.planner.Planner.remember`).

The leader also writes down how variants live, for those who look and for the next broker that starts.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from broker import placement, sizing
from broker.bursts import SAMPLES_MAX
from broker.catalog import Catalog
from broker.conditions import Conditions
from broker.demand import total as total_demand
from broker.planner import Planner
from broker.scaler import Scaler, Scaling
from broker.situation import Situation
from broker.solver import Solver
from broker.wants import total as total_wants
from modelless.clock import KafkaClock
from modelless.codec import encode_record
from modelless.config import Config, GroupConfig
from modelless.errors import UnavailableError
from modelless.fleet import FleetView, wait_at_most
from modelless.kafka import make_consumer, make_producer, raise_if_cancelled, stop_within
from modelless.messages import BACKLOG_MS, OLDEST_MS, START_MS, Demanded, Member, Plan
from modelless.topics import Topics

_log = structlog.get_logger(__name__)

PLAN_INTERVAL_S = 0.5
"""It is planned so often at least, and at once when a broker tells of another demand, or somebody comes or goes."""
RETRY_S = 1.0
WRITE_S_MAX = 10.0
PLAN_SHARE_MAX = 0.1
"""Of the time: a plan that takes long is made less often."""
PLAN_SAVED_S = 0.5
"""Of that time what was not used is there later, up to so much: news that come together are answered at once."""
SWITCH_INTERVAL_S = 0.001
"""For so long a plan in the making may keep the interpreter while the loop waits for it; Python's default is 5 ms."""
PLAN_KEY = b"plan"
START_MS_DEFAULT = 10_000.0
"""Of a group of which no worker has ever told."""


@dataclass(frozen=True, slots=True)
class _Office:
    """What a broker has while it leads."""

    producer: AIOKafkaProducer
    fleet: FleetView
    planner: Planner
    solver: Solver
    past: deque[tuple[float, tuple[Demanded, ...]]]
    """What was asked for at which time, as far as the planner has not heard it."""


class Share:
    """What planning may have of the processor: a token bucket."""

    def __init__(self) -> None:
        self._left_s = PLAN_SAVED_S
        self._looked_s: float | None = None

    def is_left(self, now_s: float) -> bool:
        if self._looked_s is not None:
            self._left_s = min(PLAN_SAVED_S, self._left_s + PLAN_SHARE_MAX * (now_s - self._looked_s))
        self._looked_s = now_s
        return self._left_s > 0

    def spend(self, seconds: float) -> None:
        self._left_s -= seconds


class Leader(ConsumerRebalanceListener):  # type: ignore[misc]
    """One broker's candidacy, and its planning while it leads.

    Args:
        situation: what is to be planned for now, given what all brokers want, what they are asked for, and how the
            groups do whose number of workers is the planner's choice.
        plan: the last one that was read.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        clock: KafkaClock,
        catalog: Catalog,
        conditions: Conditions,
        situation: Callable[[Mapping[str, float], Sequence[Demanded], Mapping[str, Scaling]], Situation],
        plan: Callable[[], Plan | None],
    ) -> None:
        self._config, self._name, self._clock = config, name, clock
        self._catalog, self._conditions, self._situation, self._plan = catalog, conditions, situation, plan
        self._topics = Topics(config.kafka.topic_prefix)
        self.leads = False
        self._written: Plan | None = None
        self._share = Share()
        self._start_ms: dict[str, float] = {}
        """By group, how long its workers took to start; remembered when there are none."""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self.leads = False

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.leads = bool(list(assigned))
        self._news.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except ProducerFenced:
                _log.warning("another broker leads")
            except (KafkaError, OSError, TimeoutError, UnavailableError, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                _log.warning("planning failed, trying again", error=repr(error))
            self.leads = False
            await asyncio.sleep(RETRY_S)

    async def _session(self) -> None:
        """Stand for leadership with one client for as long as it works; plan while it is ours."""
        consumer = make_consumer(
            self._config,
            group_id=f"{self._topics.prefix}.leader",
            group_instance_id=f"{self._name}.leader",
            auto_offset_reset="latest",  # ownership is all that we want; what is in the topic others read
        )
        consumer.subscribe(topics=[self._topics.plan], listener=self)
        try:
            await consumer.start()
            while True:
                await self._wait(consumer)
                if self.leads:
                    async with self._in_office() as office:
                        while self.leads:
                            await self._write_plan(office)
                            await self._write_conditions(office)
                            await self._wait(consumer)
        finally:
            await stop_within(consumer)

    async def _wait(self, consumer: AIOKafkaConsumer) -> None:
        """For the next moment to plan, or for news of the fleet; a member that does not poll is thrown out."""
        await consumer.getmany(timeout_ms=0)
        await wait_at_most(self._news, PLAN_INTERVAL_S)
        self._news.clear()

    @asynccontextmanager
    async def _in_office(self) -> AsyncIterator[_Office]:
        """With a producer whose start fences whoever led before."""
        transactional_id = f"{self._topics.prefix}.planner"
        producer = make_producer(self._config, transactional_id=transactional_id, enable_idempotence=True)
        past: deque[tuple[float, tuple[Demanded, ...]]] = deque(maxlen=SAMPLES_MAX)

        def on_past(at_ms: float, members: Sequence[Member]) -> None:
            past.append((at_ms, _demand(members)))
            learn_starts(members, self._start_ms)

        fleet, solver = FleetView(self._config, self._clock, self._news.set, on_past), Solver()
        try:
            await producer.start()
            await fleet.start()
            self._written, self._share = None, Share()
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            _log.info("leading")
            yield _Office(producer, fleet, self._planner(solver), solver, past)
        finally:
            solver.stop()
            await stop_within(producer)
            await fleet.stop()

    def _planner(self, solver: Solver) -> Planner:
        broker, planner = self._config.broker, self._config.planner
        options = sizing.Options(utilisation_max=planner.utilisation_max, missed_max=planner.missed_max)
        scaler = Scaler(planner.scale_down_s * 1000, planner.idle_s * 1000, options, solver(sizing.size))
        return Planner(
            broker.accuracy_slack, broker.profile_age_s_max * 1000, scaler=scaler, place=solver(placement.place)
        )

    async def _write_plan(self, office: _Office) -> None:
        if not self._share.is_left(time.monotonic()):
            return
        brokers = office.fleet.brokers()
        wants = total_wants(member.wants for member in brokers)
        scaling = scalings(self._config.groups, office.fleet.members(), self._start_ms)
        coming = {m.name: m.group for m in office.fleet.workers() if m.state == "starting" and m.group is not None}
        situation = replace(self._situation(wants, _demand(brokers), scaling), coming=coming)

        def decide() -> tuple[Plan | None, float]:
            began_s, now_ms = time.thread_time(), self._clock.now_ms()
            if office.past:
                office.planner.remember(situation, [(at_ms, demand) for at_ms, demand in office.past if at_ms < now_ms])
                office.past.clear()
            found = office.planner.plan(self._latest(), situation, self._name, now_ms)
            return found, time.thread_time() - began_s

        plan, took_s = await asyncio.to_thread(decide)  # beside the loop: it may take longer than a query has time for
        self._share.spend(took_s)
        if plan is None:
            return
        async with asyncio.timeout(WRITE_S_MAX), office.producer.transaction():
            await office.producer.send_and_wait(self._topics.plan, encode_record(plan), key=PLAN_KEY)
        self._written = plan
        _log.info(
            "plan written",
            epoch=plan.epoch,
            load=sum(len(a.load) for a in plan.workers.values()),
            measure=sum(len(a.measure) + len(a.outdated) for a in plan.workers.values()),
            fleet={group: target.workers for group, target in plan.fleet.items()},
        )

    async def _write_conditions(self, office: _Office) -> None:
        due = self._conditions.unwritten(self._catalog.candidate, self._clock.now_ms())
        if not due:
            return
        async with asyncio.timeout(WRITE_S_MAX), office.producer.transaction():
            for key, condition in due.items():
                value = encode_record(condition) if condition is not None else None
                await office.producer.send(self._topics.profiles, value, key=f"condition/{key}".encode())
        for key, condition in due.items():
            self._conditions.heard(key, condition)

    def _latest(self) -> Plan | None:
        """The newest of what we wrote and what we read."""
        read = self._plan()
        candidates = [plan for plan in (read, self._written) if plan is not None]
        return max(candidates, key=lambda plan: plan.epoch, default=None)


def _demand(members: Iterable[Member]) -> tuple[Demanded, ...]:
    """What all brokers together are asked for."""
    return total_demand(each for member in members for each in member.demand)


def learn_starts(members: Iterable[Member], start_ms: dict[str, float]) -> None:
    """By group, how long the workers took to start that are there; of groups without any it stays as it was."""
    told: dict[str, list[float]] = {}
    for member in members:
        if member.kind == "worker" and member.group is not None and START_MS in member.statistics:
            told.setdefault(member.group, []).append(member.statistics[START_MS])
    start_ms.update({group: median(each) for group, each in told.items()})


def scalings(
    groups: Iterable[GroupConfig], members: Sequence[Member], start_ms: dict[str, float]
) -> dict[str, Scaling]:
    """How the groups do whose number of workers is the planner's choice.

    Args:
        members: everybody alive.
        start_ms: by group, how long its workers usually take to start; what they tell now is put into it.
    """
    learn_starts(members, start_ms)
    brokers = [member.statistics for member in members if member.kind == "broker"]
    failing = {group: why for member in members if member.kind == "provisioner" for group, why in member.errors.items()}
    return {
        group.name: Scaling(
            group.workers_min,
            group.workers_max,
            group.memory_mb_max,
            group.price_per_hour,
            start_ms.get(group.name, START_MS_DEFAULT),
            sum(statistics.get(f"{BACKLOG_MS}{group.name}", 0.0) for statistics in brokers),
            max([statistics.get(f"{OLDEST_MS}{group.name}", 0.0) for statistics in brokers], default=0.0),
            failing.get(group.name, ""),
        )
        for group in groups
        if group.workers_max is not None
    }
