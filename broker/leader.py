"""Who plans: one broker leads, writes the plan when it changes, and is fenced when another one leads.

Owning the one partition of the plan topic in a consumer group of its own says who should lead; that is liveness
only. Safety is the transactional id, the same for all: whoever opened it last can write, an older one is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog
from aiokafka import AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from broker.planner import PlannedWorker, Planner
from modelless.clock import KafkaClock
from modelless.codec import encode_record
from modelless.config import Config
from modelless.kafka import make_consumer, make_producer, raise_if_cancelled, stop_within
from modelless.messages import ModelVersion, Plan, Profile
from modelless.topics import Topics

_log = structlog.get_logger(__name__)

PLAN_INTERVAL_MS = 500
RETRY_S = 1.0
PLAN_KEY = b"plan"


class Leader(ConsumerRebalanceListener):  # type: ignore[misc]
    """One broker's candidacy, and its planning while it leads.

    Args:
        models, profiles, workers, plan: what is known now.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        clock: KafkaClock,
        models: Callable[[], dict[str, ModelVersion]],
        profiles: Callable[[], dict[str, Profile]],
        workers: Callable[[], list[PlannedWorker]],
        plan: Callable[[], Plan | None],
    ) -> None:
        self._config, self._name, self._clock = config, name, clock
        self._models, self._profiles, self._workers, self._plan = models, profiles, workers, plan
        self._topics = Topics(config.kafka.topic_prefix)
        self.leads = False
        self._written: Plan | None = None
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

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except ProducerFenced:
                _log.warning("another broker leads")
            except (KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
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
        producer: AIOKafkaProducer | None = None
        planner = Planner()
        try:
            await consumer.start()
            while True:
                await consumer.getmany(timeout_ms=PLAN_INTERVAL_MS)  # a member that does not poll is thrown out
                if not self.leads:
                    if producer is not None:
                        await stop_within(producer)
                        producer = None
                    continue
                if producer is None:
                    producer = await self._take_office()
                    planner = Planner()
                await self._write_next(planner, producer)
        finally:
            await stop_within(consumer)
            if producer is not None:
                await stop_within(producer)

    async def _take_office(self) -> AIOKafkaProducer:
        """A producer whose start fences whoever led before."""
        transactional_id = f"{self._topics.prefix}.planner"
        producer = make_producer(self._config, transactional_id=transactional_id, enable_idempotence=True)
        await producer.start()
        self._written = None
        _log.info("leading")
        return producer

    async def _write_next(self, planner: Planner, producer: AIOKafkaProducer) -> None:
        previous = self._latest()
        now_ms = self._clock.now_ms()
        plan = planner.plan(previous, self._models(), self._profiles(), self._workers(), self._name, now_ms)
        if plan is None:
            return
        async with asyncio.timeout(10), producer.transaction():
            await producer.send_and_wait(self._topics.plan, encode_record(plan), key=PLAN_KEY)
        self._written = plan
        _log.info(
            "plan written",
            epoch=plan.epoch,
            load=sum(len(a.load) for a in plan.workers.values()),
            measure=sum(len(a.measure) for a in plan.workers.values()),
        )

    def _latest(self) -> Plan | None:
        """The newest of what we wrote and what we read."""
        read = self._plan()
        candidates = [plan for plan in (read, self._written) if plan is not None]
        return max(candidates, key=lambda plan: plan.epoch, default=None)
