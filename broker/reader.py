"""The Kafka consumer of a broker: reads queries, survives rebalances, commits what is finished.

aiokafka is the member of the group and has the connections; its callbacks only open and close a gate here, and what it
would fetch is paused. What is fetched (:mod:`broker.fetching`) starts at the ledger's positions, so that the ledger
sees each partition's records exactly in order; what was fetched across a change of ownership is thrown away. Reading
stops while the broker holds its maximum of queries or bytes and goes on at three quarters.

Topics are read in turn, and one that takes most of the broker's room is not read on: neither what is buffered of a
flood nor what waits of it keeps the others from being read. The offline topic is read no further than to a part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from broker.fairness import readable
from broker.fetching import Fetched, fetch
from broker.ledger import Ledger
from broker.pace import Fetch, Pace
from broker.rescue import Unreadable, record_of
from modelless.config import Config
from modelless.kafka import make_admin, make_consumer, raise_if_cancelled, stop_within
from modelless.topics import Topics

_log = structlog.get_logger(__name__)

RECORDS_MAX = 256
"""Records per turn of the event loop. So many are only there when a backlog is, and what goes on together is cheaper;
it takes some ten milliseconds, so that devices are fed meanwhile."""
ROOM_SHARE = 1 / 16
"""Of the broker's room, that one turn may take: less than what a flood leaves to others."""
IDLE = Fetch(1, 100)
"""What a fetch asks for when nothing is to gather; the longest wait of one at Kafka."""
GATHER_WAIT_MS = 20
"""Without a record: then nothing comes any more that could gather."""
NO_LEADER = -1
NOT_ASSIGNED = IllegalStateError, AssertionError
"""aiokafka's words for partitions that the group has moved on from; an AssertionError since other topics are wanted."""
LEADERS_S = 0.5
"""Between two looks at who leads what is owned."""
SETTLE_S_MAX = 3.0
"""Before partitions are given up: longest wait for what workers have of them."""
COMMIT_TIMEOUT_S = 5.0
RETRY_S = 0.2
RESUME_SHARE = 0.75
T = TypeVar("T")


class Sink(Protocol):
    """What the reader tells the broker."""

    def read(self, records: Iterable[ConsumerRecord]) -> float:
        """Returns how long after its arrival the most urgent of them has to be answered, ms."""

    def withdraw(self, partitions: list[tuple[str, int]]) -> None: ...

    def unreadable(self, record: ConsumerRecord, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Leader:
    """Reading from one of Kafka's nodes."""

    node: int
    pace: Pace = field(default_factory=lambda: Pace(IDLE))
    generation: int = -1
    fetched: dict[TopicPartition, Fetched] = field(default_factory=dict)
    """What is left of the last answers."""
    turn: int = 0
    read_ms: float = 0.0
    """When something was there for the last time, by the loop's clock."""


class QueryReader(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of the brokers' consumer group.

    ``progress()`` must be called whenever the ledger got shorter.
    """

    def __init__(self, config: Config, ledger: Ledger, sink: Sink, group_id: str, instance_id: str) -> None:
        self._config = config
        self._ledger = ledger
        self._sink = sink
        self._group_id = group_id
        self._instance_id = instance_id
        self._consumer: AIOKafkaConsumer | None = None
        self._generation = 0
        self._owned = asyncio.Event()
        self._assigned = asyncio.Event()
        self._progress = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._records_max = max(1, min(RECORDS_MAX, int(config.broker.in_flight_max * ROOM_SHARE)))
        self._loop = asyncio.get_running_loop()
        self._ends: dict[TopicPartition, int] = {}
        self._resting: dict[TopicPartition, float] = {}
        self.paused = False
        self.commit_failures = 0

    async def start(self, topics: Iterable[str]) -> None:
        self._consumer = make_consumer(
            self._config,
            group_id=self._group_id,
            group_instance_id=self._instance_id,
            max_poll_interval_ms=float("inf"),  # aiokafka is never polled
        )
        self._consumer.subscribe(topics=sorted(topics), listener=self)
        await self._consumer.start()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._commit_often())]

    def subscribe(self, topics: Iterable[str]) -> None:
        """Serve these topics from now on; a change rebalances the group."""
        assert self._consumer is not None
        if set(topics) != self._consumer.subscription():
            self._consumer.subscribe(topics=sorted(topics), listener=self)

    def progress(self) -> None:
        self._progress.set()

    async def settled(self) -> None:
        """Wait for the next :meth:`progress`."""
        self._progress.clear()
        await self._progress.wait()

    @property
    def failed(self) -> BaseException | None:
        """Why reading ended, if it did."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    def stop_reading(self) -> None:
        """Read nothing more; what was read goes on."""
        if self._tasks:
            self._tasks[0].cancel()

    async def stop(self) -> None:
        """Commit once more and leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._consumer is not None:
            await self.commit()
            await stop_within(self._consumer)

    def lag(self) -> dict[tuple[str, int], int]:
        """Records behind the end of each owned partition, as far as the last fetch knew."""
        lags = {}
        for topic, partition in self._ledger.owned():
            end = self._ends.get(TopicPartition(topic, partition))
            position = self._ledger.position(topic, partition)
            if end is not None and position is not None:
                lags[topic, partition] = max(0, end - position)
        return lags

    # --- ownership ------------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let workers finish what they have of these, commit, forget them."""
        self._generation += 1
        self._owned.clear()
        partitions = self._ledger.owned()
        self._sink.withdraw(partitions)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S_MAX):
                while self._ledger.unsettled(partitions):
                    await self.settled()
        await self.commit()
        for topic, partition in partitions:
            self._ledger.revoke(topic, partition)
        self.progress()
        await asyncio.sleep(0)  # a heartbeat of aiokafka's that is cancelled before it has begun ends the membership
        if partitions:
            _log.info("partitions given up", partitions=len(partitions))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Read what the previous owner committed and start there. Tried until it works, or the group moves on."""
        assert self._consumer is not None
        self._generation += 1
        generation = self._generation
        lost = self._ledger.owned()  # by a generation that ended without a revocation
        self._sink.withdraw(lost)
        for topic, partition in lost:
            self._ledger.revoke(topic, partition)
        partitions = sorted(assigned)
        with contextlib.suppress(*NOT_ASSIGNED):
            self._consumer.pause(*partitions)  # a fetch of its own would hold up the answers that we wait for here
        while generation == self._generation:
            try:
                positions = await self._committed(partitions)
                break
            except (Exception, asyncio.CancelledError) as error:  # aiokafka would log it, and we own nothing for ever
                raise_if_cancelled(error)
                _log.warning("cannot read committed offsets, trying again", error=repr(error))
                await asyncio.sleep(0.5)
        else:
            return
        for partition, (offset, metadata) in positions.items():
            self._ledger.assign(partition.topic, partition.partition, offset, metadata)
            with contextlib.suppress(*NOT_ASSIGNED):
                self._consumer.seek(partition, offset)  # or aiokafka would look for one
        _log.info("partitions taken", partitions=len(partitions))
        self._owned.set()
        self._assigned.set()

    async def _committed(self, partitions: list[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """(offset, metadata) per partition; the log's start where nothing, or nothing that exists, was committed."""
        if not partitions:
            return {}
        assert self._consumer is not None
        admin = make_admin(self._config)
        async with asyncio.timeout(COMMIT_TIMEOUT_S * 2):
            await admin.start()
            try:
                committed = await admin.list_consumer_group_offsets(self._group_id, partitions=partitions)
            finally:
                await admin.close()
            starts = await self._consumer.beginning_offsets(partitions)
            ends = await self._consumer.end_offsets(partitions)
        result = {}
        for partition in partitions:
            found = committed.get(partition)
            if found is None or not starts[partition] <= found.offset <= ends[partition]:
                result[partition] = (starts[partition], "")
            else:
                result[partition] = (found.offset, found.metadata or "")
        return result

    # --- reading --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """The leaders of what is owned are read side by side."""
        assert self._consumer is not None
        client = self._consumer._client
        async with asyncio.TaskGroup() as group:
            reading: dict[int, asyncio.Task[None]] = {}
            while True:
                await self._owned.wait()
                for node in self._led():
                    if node == NO_LEADER:
                        client.force_metadata_update()
                    elif node not in reading or reading[node].done():
                        reading[node] = group.create_task(self._read_from(_Leader(node)))
                self._assigned.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEADERS_S):
                        await self._assigned.wait()

    def _led(self) -> dict[int, dict[str, list[TopicPartition]]]:
        """What is owned, by leader and topic; without what rests."""
        assert self._consumer is not None
        cluster, now_s = self._consumer._client.cluster, self._loop.time()
        led: dict[int, dict[str, list[TopicPartition]]] = {}
        for topic, partition in self._ledger.owned():
            key = TopicPartition(topic, partition)
            leader = cluster.leader_for_partition(key)
            if self._resting.get(key, 0.0) <= now_s:
                led.setdefault(NO_LEADER if leader is None else leader, {}).setdefault(topic, []).append(key)
        return led

    async def _read_from(self, leader: _Leader) -> None:
        """What a leader has; ends when it leads nothing that is owned."""
        while True:
            await self._room()
            await self._owned.wait()
            if leader.generation != self._generation:  # the ledger knows where to go on
                leader.generation = self._generation
                leader.fetched.clear()
            led = self._led().get(leader.node)
            if not led:
                return
            topics = self._readable(led)
            if not topics:
                await self.settled()
                continue
            leader.turn += 1
            partitions = [each for topic in _turned(topics, leader.turn) for each in _turned(led[topic], leader.turn)]
            if leader.fetched.keys().isdisjoint(partitions):
                await self._fetch(leader, partitions)
            if leader.generation == self._generation:
                self._deliver(leader, partitions)
                await asyncio.sleep(0)  # the broker decides
                await asyncio.sleep(0)  # what it decided is on its way before the next fetch is prepared

    async def _fetch(self, leader: _Leader, partitions: Sequence[TopicPartition]) -> None:
        assert self._consumer is not None
        client = self._consumer._client
        positions = {each: at for each in partitions if (at := self._ledger.position(*each)) is not None}
        try:
            answer = await fetch(client, leader.node, positions, leader.pace.next)
        except (KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            _log.warning("cannot fetch, trying again", error=repr(error))
            client.force_metadata_update()
            await asyncio.sleep(RETRY_S)
            return
        if leader.generation != self._generation:
            return
        self._ends.update(answer.ends)
        leader.fetched |= {each.partition: each for each in answer.fetched}
        for partition, problem in answer.errors.items():
            await self._mend(partition, problem)

    async def _mend(self, partition: TopicPartition, problem: type[KafkaError]) -> None:
        """A partition could not be read: it rests for a moment, meanwhile its leader is looked up."""
        assert self._consumer is not None
        _log.warning("cannot read a partition, trying again", partition=str(partition), error=problem.__name__)
        self._resting[partition] = self._loop.time() + RETRY_S
        if problem is not OffsetOutOfRangeError:
            self._consumer._client.force_metadata_update()
            return
        generation = self._generation
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                starts = await self._consumer.beginning_offsets([partition])
            if generation == self._generation:  # what was before is deleted
                self._ledger.passed(partition.topic, partition.partition, starts[partition])

    def _deliver(self, leader: _Leader, partitions: Iterable[TopicPartition]) -> None:
        """Hand on what was fetched of these, the first ones first, as much as one turn takes."""
        slack_ms, number, size_bytes = float("inf"), 0, 0
        for partition in partitions:
            fetched = leader.fetched.get(partition)
            if fetched is None or number >= self._records_max:
                continue
            wanted = self._records_max - number
            items = fetched.take(wanted)
            slack_ms = min(slack_ms, self._hand_on(items))
            if len(items) < wanted:
                del leader.fetched[partition]
                self._ledger.passed(partition.topic, partition.partition, fetched.position)
            number += len(items)
            size_bytes += sum([len(record.value or b"") for record in map(record_of, items)])
        now_ms = self._loop.time() * 1000
        if number:
            leader.read_ms = now_ms
        if number or not leader.pace.gathers or now_ms > leader.read_ms + GATHER_WAIT_MS:
            leader.pace.read(number, size_bytes, slack_ms, now_ms)

    def _hand_on(self, items: Sequence[ConsumerRecord | Unreadable]) -> float:
        """In their order; returns as :meth:`Sink.read` does."""
        slack_ms = float("inf")
        for bad, group in groupby(items, lambda item: isinstance(item, Unreadable)):
            if not bad:
                slack_ms = min(slack_ms, self._sink.read(group))
                continue
            for item in group:
                record = item.record
                _log.warning("unreadable", topic=record.topic, offset=record.offset, reason=item.reason)
                self._sink.unreadable(record, item.reason)
        return slack_ms

    def _readable(self, topics: Collection[str]) -> list[str]:
        """Of these, all but those that take most of the room, if there are others."""
        offline = Topics(self._config.kafka.topic_prefix).offline
        if len(topics) < 2 and offline not in topics:
            self.paused = False
            return list(topics)
        limit, limit_bytes = self._config.broker.in_flight_max, self._config.broker.memory_mb_max << 20
        held = {topic: max(n / limit, size / limit_bytes) for topic, (n, size) in self._ledger.held().items()}
        found = readable(topics, held, offline)
        self.paused = any(topic not in found for topic in topics if topic != offline)
        return found

    async def _room(self) -> None:
        """Wait while the broker is full."""
        limit, limit_bytes = self._config.broker.in_flight_max, self._config.broker.memory_mb_max << 20
        if self._ledger.queries < limit and self._ledger.bytes < limit_bytes:
            return
        self.paused = True
        while self._ledger.queries > limit * RESUME_SHARE or self._ledger.bytes > limit_bytes * RESUME_SHARE:
            await self.settled()
        self.paused = False

    # --- committing -----------------------------------------------------------------------------------------------

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(self._config.broker.commit_interval_ms / 1000)
            if self._owned.is_set():
                await self.commit()

    async def commit(self) -> None:
        """Commit what changed; a failure leaves it for the next time."""
        async with self._commit_lock:
            commits = self._ledger.commits()
            if not commits or self._consumer is None:
                return
            offsets = {
                TopicPartition(each.topic, each.partition): OffsetAndMetadata(each.offset, each.metadata)
                for each in commits
            }
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    await self._consumer.commit(offsets)
            except (KafkaError, TimeoutError, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                self.commit_failures += 1
                _log.warning("commit failed, trying again", error=repr(error))
                return
            for each in commits:
                self._ledger.committed(each)


def _turned(items: list[T], number: int) -> list[T]:
    """Another one first each time."""
    first = number % len(items)
    return items[first:] + items[:first]
