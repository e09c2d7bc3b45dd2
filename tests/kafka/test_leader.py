"""Leaders on real Kafka: who takes over goes on with what the one before knew, and nothing was handed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count

import pytest
from aiokafka.structs import ConsumerRecord
from broker_builders import model, profile

from broker.catalog import Catalog
from broker.conditions import Conditions
from broker.leader import Leader
from broker.scaler import SIZE_INTERVAL_MS, Scaling
from broker.situation import PlannedWorker, Situation
from modelless.clock import KafkaClock
from modelless.codec import decode_record
from modelless.config import Config, GroupConfig
from modelless.fleet import Announcer
from modelless.messages import Demanded, Member, Plan
from modelless.tables import Follower
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

SCALE_DOWN_S = 3.0
CALM, BURST = 200.0, 500.0
"""Rows a second; one worker does about 90, one by one."""


class System:
    """A broker that announces what it is asked for, and workers that are there as soon as they are planned."""

    def __init__(self, config: Config) -> None:
        self.config, self.asked = config, CALM
        self.plans: list[Plan] = []
        self._there, self._number = list[str](), count()
        self._clock = KafkaClock()
        self._announcer = Announcer(config, self._clock, self._member)
        self._follower = Follower(config, [Topics(config.kafka.topic_prefix).plan], self._on_plan)
        self._model = model()
        self._profile = profile(self._model, curve=((1, 10.0),))

    async def start(self) -> None:
        await self._announcer.start()
        await self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()
        await self._announcer.stop()

    @property
    def workers(self) -> int:
        return self.plans[-1].fleet["cpu"].workers if self.plans else 0

    def leader(self, name: str) -> Leader:
        return Leader(
            self.config, name, self._clock, Catalog(), Conditions(), self._situation,
            lambda: self.plans[-1] if self.plans else None,
        )  # fmt: skip

    async def ask(self, rows_per_s: float, seconds: float) -> None:
        self.asked = rows_per_s
        self._announcer.announce()
        await asyncio.sleep(seconds)

    def _member(self) -> Member:
        demand = (Demanded("t", 1000.0, 0.0, "cost", False, self.asked),)
        return Member("broker", "broker-0", "incarnation", "ready", demand=demand)

    def _on_plan(self, record: ConsumerRecord) -> None:
        plan = decode_record(Plan, record.value)
        self.plans.append(plan)
        self._there = [name for name in self._there if name not in plan.fleet["cpu"].leaving]
        while len(self._there) < plan.fleet["cpu"].workers:
            self._there.append(f"cpu-{next(self._number)}")

    def _situation(
        self, wants: Mapping[str, float], demand: Sequence[Demanded], scaling: Mapping[str, Scaling]
    ) -> Situation:
        loaded, able = frozenset([self._profile.variant]), (("onnx", "onnx-fp32"),)
        workers = [PlannedWorker(name, "cpu", 100 << 20, able, loaded) for name in self._there]
        return Situation(
            {self._model.key: self._model}, {self._profile.key: self._profile}, workers,
            served={self._model.name: self._model.key}, demand=demand, scaling=scaling,
        )  # fmt: skip


@pytest.fixture
async def system(config: Config) -> AsyncIterator[System]:
    group = GroupConfig(name="cpu", workers_min=0, workers_max=9, price_per_hour=1.0, memory_mb_max=512)
    planner = config.planner.model_copy(update={"scale_down_s": SCALE_DOWN_S})
    found = System(config.model_copy(update={"groups": (group,), "planner": planner}))
    await found.start()
    yield found
    await found.stop()


@asynccontextmanager
async def leading(leader: Leader) -> AsyncIterator[None]:
    await leader.start()
    try:
        yield
    finally:
        await leader.stop()


async def test_who_takes_over_keeps_the_room_that_bursts_need(system: System) -> None:
    async with leading(system.leader("broker-0")):
        for _ in range(4):
            await system.ask(CALM, 3)
            await system.ask(BURST, 2)
        await system.ask(CALM, 1)
        before = system.workers
        assert before > BURST / 100, "there is room for the bursts"
    taken, epoch = len(system.plans), system.plans[-1].epoch
    async with leading(system.leader("broker-1")):
        async with asyncio.timeout(30):
            while len(system.plans) == taken:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await asyncio.sleep(SIZE_INTERVAL_MS / 1000 + 2 * SCALE_DOWN_S)
        after = system.plans[taken:]
    assert {plan.leader for plan in after} == {"broker-1"} and after[0].epoch == epoch + 1
    assert {plan.fleet["cpu"].workers for plan in after} == {before}
