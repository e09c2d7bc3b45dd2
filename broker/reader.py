"""The Kafka consumer of a broker: reads queries, survives rebalances, commits what is finished.

aiokafka's callbacks only open and close a gate here. A batch that was fetched across a change of ownership is thrown
away and every partition is sought back to the ledger's position, so that the ledger sees each partition's records
exactly in order. The same is done when aiokafka raises, since it forgets what it had taken from other partitions for
that call; what made it raise is then read raw (:mod:`broker.rescue`). Reading stops while the broker holds its maximum
of queries or bytes and goes on at three quarters.

Topics are read in turn, and one that takes most of the broker's room is not read on: neither what is buffered of a
flood nor what waits of it keeps the others from being read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from broker.fairness import crowding
from broker.ledger import Ledger
from broker.pace import Fetch, Pace
from broker.rescue import Unreadable, read_raw
from modelless.config import Config
from modelless.kafka import ask_for, make_admin, make_client, make_consumer, raise_if_cancelled, stop_within

_log = structlog.get_logger(__name__)

RECORDS_MAX = 256
"""Records per turn of the event loop. So many are only there when a backlog is, and what goes on together is cheaper;
it takes some ten milliseconds, so that devices are fed meanwhile."""
ROOM_SHARE = 1 / 16
"""Of the broker's room, that one turn may take: less than what a flood leaves to others."""
FETCH_MAX_WAIT_MS = 100
"""Longest wait of a fetch at Kafka."""
FETCH_WAIT_MS = 200
GATHER_WAIT_MS = 20
"""Longest wait for a fetch that lets records gather: then nothing comes any more."""
SETTLE_S_MAX = 3.0
"""Before partitions are given up: longest wait for what workers have of them."""
COMMIT_TIMEOUT_S = 5.0
RAW_TIMEOUT_S = 10.0
RETRY_S = 0.2
RESUME_SHARE = 0.75
Records = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class Sink(Protocol):
    """What the reader tells the broker."""

    def read(self, records: Iterable[ConsumerRecord]) -> float:
        """Returns how long after its arrival the most urgent of them has to be answered, ms."""

    def withdraw(self, partitions: list[tuple[str, int]]) -> None: ...

    def unreadable(self, record: ConsumerRecord, reason: str) -> None: ...


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
        self._progress = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = 0
        self._records_max = max(1, min(RECORDS_MAX, int(config.broker.in_flight_max * ROOM_SHARE)))
        self._more = False
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(Fetch(1, FETCH_MAX_WAIT_MS))
        self.paused = False
        self.commit_failures = 0

    async def start(self, topics: Iterable[str]) -> None:
        self._consumer = make_consumer(
            self._config,
            group_id=self._group_id,
            group_instance_id=self._instance_id,
            max_poll_interval_ms=24 * 3600 * 1000,  # reading stops for as long as the broker is full
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
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
            key = TopicPartition(topic, partition)
            assigned = self._consumer is not None and key in self._consumer.assignment()
            end = self._consumer.highwater(key) if self._consumer is not None and assigned else None
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
            with contextlib.suppress(IllegalStateError):
                self._consumer.seek(partition, offset)
        _log.info("partitions taken", partitions=len(partitions))
        self._owned.set()

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
        assert self._consumer is not None
        while True:
            await self._room()
            await self._owned.wait()
            generation, gathered = self._generation, self._pace.gathers
            try:
                batches = await self._next(self._consumer)
            except (Exception, asyncio.CancelledError) as error:  # whatever a decoder or a codec raises
                raise_if_cancelled(error)
                _log.warning("aiokafka cannot read on", error=repr(error))
                await self._owned.wait()
                self._seek_back()
                if not await self._read_raw():
                    await asyncio.sleep(RETRY_S)
                continue
            if generation != self._generation:
                await self._owned.wait()
                self._seek_back()
                continue
            self._deliver(self._consumer, batches)
            await asyncio.sleep(0)  # aiokafka does not yield while it has records
            if not batches and not gathered:
                await self._pass_gaps()

    def _deliver(self, consumer: AIOKafkaConsumer, batches: Records) -> None:
        """Hand on what was read; the next fetch has not been sent yet."""
        slack_ms, number, size_bytes = float("inf"), 0, 0
        for records in batches.values():
            slack_ms = min(slack_ms, self._sink.read(records))
            number += len(records)
            size_bytes += sum([record.serialized_value_size for record in records])
        self._more = number >= self._records_max
        self._pace.read(number, size_bytes, slack_ms, self._loop.time() * 1000)
        ask_for(consumer, *self._pace.next)

    async def _next(self, consumer: AIOKafkaConsumer) -> Records:
        """Records of one topic, of another one the next time; none if there are none for a while."""
        topics: dict[str, list[TopicPartition]] = {}
        for partition in sorted(consumer.assignment()):
            topics.setdefault(partition.topic, []).append(partition)
        readable = self._readable(topics)
        if topics and not readable:
            await self.settled()
            return {}
        found: Records = {}
        if self._more and len(readable) > 1:  # none of the others is kept waiting by what is left of one
            self._turn += 1
            for number in range(len(readable)):
                topic = readable[(self._turn + number) % len(readable)]
                found = await consumer.getmany(*topics[topic], timeout_ms=0, max_records=self._records_max)
                if found:
                    break
        if not found:
            everything = [partition for topic in readable for partition in topics[topic]]
            timeout_ms = GATHER_WAIT_MS if self._pace.gathers else FETCH_WAIT_MS
            found = await consumer.getmany(*everything, timeout_ms=timeout_ms, max_records=self._records_max)
        return found

    def _readable(self, topics: Collection[str]) -> list[str]:
        """Of these, all but those that take most of the room, if there are others."""
        if len(topics) < 2:
            self.paused = False
            return list(topics)
        limit, limit_bytes = self._config.broker.in_flight_max, self._config.broker.memory_mb_max << 20
        held = {topic: max(n / limit, size / limit_bytes) for topic, (n, size) in self._ledger.held().items()}
        crowded = crowding(held)
        readable = [topic for topic in topics if topic not in crowded]
        self.paused = len(readable) < len(topics)
        return readable

    async def _room(self) -> None:
        """Wait while the broker is full."""
        limit, limit_bytes = self._config.broker.in_flight_max, self._config.broker.memory_mb_max << 20
        if self._ledger.queries < limit and self._ledger.bytes < limit_bytes:
            return
        self.paused = True
        while self._ledger.queries > limit * RESUME_SHARE or self._ledger.bytes > limit_bytes * RESUME_SHARE:
            await self.settled()
        self.paused = False

    def _seek_back(self) -> None:
        """Every owned partition to where the ledger stands."""
        assert self._consumer is not None
        for topic, partition in self._ledger.owned():
            position = self._ledger.position(topic, partition)
            if position is not None:
                with contextlib.suppress(IllegalStateError):
                    self._consumer.seek(TopicPartition(topic, partition), position)

    async def _pass_gaps(self) -> None:
        """Nothing more to read: positions stand behind whatever gaps there were."""
        assert self._consumer is not None
        generation = self._generation
        for topic, partition in self._ledger.owned():
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(1):
                    position = await self._consumer.position(TopicPartition(topic, partition))
                if generation != self._generation:
                    return
                self._ledger.passed(topic, partition, position)

    async def _read_raw(self) -> bool:
        """The next stretch of every partition that has one, past whatever aiokafka refuses. False: nothing read."""
        assert self._consumer is not None
        progress = False
        client = make_client(self._config)
        try:
            async with asyncio.timeout(RAW_TIMEOUT_S):
                await client.bootstrap()
                for key in self._behind():
                    progress |= await self._read_partition_raw(client, TopicPartition(*key))
        except (KafkaError, TimeoutError, OSError) as error:
            _log.warning("cannot read raw, trying again", error=repr(error))
        finally:
            await client.close()
        return progress

    async def _read_partition_raw(self, client: AIOKafkaClient, partition: TopicPartition) -> bool:
        generation, position = self._generation, self._ledger.position(partition.topic, partition.partition)
        if self._consumer is None or position is None:
            return False
        try:
            stretch = await read_raw(client, partition, position)
        except KafkaError as error:
            _log.warning("cannot read raw, trying again", topic=partition.topic, error=repr(error))
            return False
        if generation != self._generation:
            return True
        for item in stretch.items:
            if isinstance(item, Unreadable):
                _log.warning("unreadable", topic=partition.topic, offset=item.record.offset, reason=item.reason)
                self._sink.unreadable(item.record, item.reason)
            else:
                self._sink.read([item])
        self._ledger.passed(partition.topic, partition.partition, stretch.position)
        with contextlib.suppress(IllegalStateError):  # lost since; its next owner reads on
            self._consumer.seek(partition, stretch.position)
        return stretch.position > position

    def _behind(self) -> list[tuple[str, int]]:
        """Owned partitions that had more than the ledger knows at their last fetch."""
        return [key for key, records in self.lag().items() if records]

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
