"""What an operator wants to see at a glance: who is alive, what is loaded, what waits, and what is wrong, in words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from modelless.catalog import Catalog, CatalogView
from modelless.config import Config
from modelless.errors import UnavailableError
from modelless.fleet import FleetView
from modelless.health import (
    ScalingView,
    VariantView,
    drifts,
    may_idle,
    notes,
    overloads,
    scaling_views,
    to_measure,
    variant_views,
    warnings,
)
from modelless.kafka import make_admin, make_consumer, stop_within
from modelless.messages import Member, ModelVersion, Plan, Profile
from modelless.registration import PlanView, wall_clock
from modelless.topic_settings import unreachable
from modelless.topics import Topics

LOOK_S = 1.5
"""Longer than the interval of announcements: everybody who is alive is heard meanwhile."""


@dataclass(frozen=True, slots=True)
class Overview:
    members: tuple[Member, ...]
    models: tuple[ModelVersion, ...]
    profiles: tuple[Profile, ...]
    lag: Mapping[str, int]
    """Records by query topic that have no outcome yet: end minus committed."""
    rates: Mapping[str, float]
    """Outcomes per second by broker, since the last look."""
    variants: tuple[VariantView, ...]
    groups: tuple[ScalingView, ...]
    """Whose number of workers is planned."""
    to_measure: Mapping[str, tuple[str, ...]]
    """What each worker is still to build and measure, in this order."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """Worth knowing, and nothing to be done about."""
    plan: Plan | None = None
    """The newest one."""

    @property
    def may_idle(self) -> bool:
        """It is meant that there is no worker now."""
        return may_idle(self.members, self.groups)


class Observer:
    """Looks at the whole system; made by :func:`observing`."""

    def __init__(
        self,
        config: Config,
        fleet: FleetView,
        catalog: Catalog,
        plans: PlanView,
        admin: AIOKafkaAdminClient,
        ends: AIOKafkaConsumer,
    ) -> None:
        self._topics = Topics(config.kafka.topic_prefix)
        self._config = config
        self._fleet = fleet
        self._catalog = catalog
        self._plans = plans
        self._admin = admin
        self._ends = ends
        self._last: tuple[float, Mapping[str, float]] | None = None
        self._brokers: dict[str, Mapping[str, float]] = {}
        """Statistics of the last look, by incarnation."""

    async def look(self) -> Overview:
        """Raises UnavailableError when Kafka does not answer."""
        members, models = self._fleet.members(), tuple(self._catalog.models())
        profiles = tuple(self._catalog.all_profiles())
        try:
            async with asyncio.timeout(10):
                lag = await self._lag()
        except (KafkaError, TimeoutError, OSError) as error:
            raise unreachable(self._config, error) from error
        plan = self._plans.plan
        return Overview(
            members,
            models,
            profiles,
            lag,
            self._rates(members),
            variant_views(members, profiles, self._catalog.conditions(), plan),
            scaling_views(members, plan),
            to_measure(members, profiles, plan),
            (
                *warnings(members, models, profiles, lag, plan),
                *drifts(self._catalog.corrections()),
                *self._overloads(members),
            ),
            notes(members),
            plan,
        )

    async def _lag(self) -> dict[str, int]:
        try:
            committed = await self._admin.list_consumer_group_offsets(f"{self._topics.prefix}.brokers")
        except GroupCoordinatorNotAvailableError:  # a cluster where nobody has committed anything yet
            committed = {}
        names = [
            name
            for name in await self._admin.list_topics()
            if name in (self._topics.queries, self._topics.offline)
            or self._topics.task_of(name)
            or name in self._config.broker.topics
        ]
        described = await self._admin.describe_topics(names)
        partitions = [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in described
            for partition in topic["partitions"]
        ]
        begins = await self._ends.beginning_offsets(partitions)
        lag: dict[str, int] = {}
        for partition, end in (await self._ends.end_offsets(partitions)).items():
            at = committed.get(partition)
            done = max(at.offset if at is not None else 0, begins[partition])
            lag[partition.topic] = lag.get(partition.topic, 0) + max(0, end - done)
        return dict(sorted(lag.items()))

    def _overloads(self, members: Sequence[Member]) -> tuple[str, ...]:
        """Since the last look."""
        last, self._brokers = self._brokers, {m.incarnation: m.statistics for m in members if m.kind == "broker"}
        both = last.keys() & self._brokers.keys()
        before, now = (_total(each[name] for name in both) for each in (last, self._brokers))
        return overloads(before, now)

    def _rates(self, members: Sequence[Member]) -> dict[str, float]:
        now_s = asyncio.get_running_loop().time()
        counts = {f"{m.name}/{m.incarnation}": m.statistics.get("outcomes", 0.0) for m in members if m.kind == "broker"}
        last, self._last = self._last, (now_s, counts)
        if last is None:
            return {}
        passed_s = max(now_s - last[0], 1e-3)
        return {
            name.partition("/")[0]: (count - last[1][name]) / passed_s
            for name, count in counts.items()
            if name in last[1]
        }


def _total(statistics: Iterable[Mapping[str, float]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in statistics:
        total.update(each)
    return total


@asynccontextmanager
async def observing(config: Config) -> AsyncIterator[Observer]:
    """Raises UnavailableError when there is no Kafka, or it lacks our topics."""
    admin = make_admin(config)
    try:
        async with asyncio.timeout(10):
            await admin.start()
            names = await admin.list_topics()
    except (KafkaError, TimeoutError, OSError) as error:
        await admin.close()
        raise unreachable(config, error) from None
    topics = Topics(config.kafka.topic_prefix)
    missing = {topics.fleet, topics.registry, topics.profiles, topics.plan} - set(names)
    if missing:
        await admin.close()
        raise UnavailableError(
            f"Kafka at {config.kafka.servers} has no topic {', '.join(sorted(missing))}: "
            "start `modelless up`, or create them with `modelless check --create`"
        )
    fleet, view, ends = FleetView(config, wall_clock()), CatalogView(config), make_consumer(config)
    plans = PlanView(config)
    try:
        await asyncio.gather(fleet.start(), view.start(), plans.start(), ends.start())
        observer = Observer(config, fleet, view.catalog, plans, admin, ends)
        await observer.look()
        await asyncio.sleep(LOOK_S)
        yield observer
    finally:
        await asyncio.gather(fleet.stop(), view.stop(), plans.stop(), stop_within(ends))
        await admin.close()
