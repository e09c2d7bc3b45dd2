"""Writing replies to Kafka, each until it is acknowledged or can never be.

Group commit: a **lane** is one partition of one reply topic. While one batch of a lane is on its way, what arrives for
it gathers, and leaves as the next batch: under load batches are large, without it nothing waits. So there is one
future per batch and no task, future or wake-up per reply.

What belongs together (the replies of one run) is reported together, once all of it is acknowledged, or as far as it is
when some of it takes longer than ``PARTIAL_S``.

Kafka may be away for as long as it likes: a lane tries again. Nothing is given up but a reply to a topic that is gone
or forbidden.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import (
    InvalidPartitionsError,
    KafkaError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from modelless.config import Config
from modelless.frames import ItemOutcome
from modelless.kafka import partition_of
from workers.produce import Requests
from workers.replies import Outgoing

PARTIAL_S = 0.2
RETRY_S = 0.2
BATCH_BYTES_MAX = 256 * 1024
METADATA_S_MAX = 5.0
MISSES_MAX = 3
"""Looks at the cluster that do not find a topic, before it counts as gone: news of a new one takes a moment."""
PENDING_BYTES_MAX = 128 * 1024 * 1024
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_GONE = (
    UnknownTopicOrPartitionError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    InvalidPartitionsError,
)

_log = structlog.get_logger(__name__)

Lane = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Group:
    """Replies that are reported together."""

    on_settled: Callable[[list[ItemOutcome]], None]
    missing: int
    since_s: float
    outcomes: list[ItemOutcome] = field(default_factory=list)

    def report(self) -> None:
        outcomes, self.outcomes = self.outcomes, []
        if outcomes:
            self.on_settled(outcomes)


Entry = tuple[Outgoing, _Group]


class Publisher:
    """See the module.

    Args:
        replace: makes what is written instead of a reply that is too large for its topic.
        on_pressure: told True when more is pending than may be, False when that has passed.
    """

    def __init__(
        self, config: Config, replace: Callable[[Outgoing], Outgoing], on_pressure: Callable[[bool], None]
    ) -> None:
        self._config = config
        self._replace = replace
        self._on_pressure = on_pressure
        self._requests = Requests(config)
        self._lanes: dict[Lane, deque[Entry]] = {}
        self._open: set[_Group] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pressed = False
        self.pending = 0
        self.pending_bytes = 0

    async def start(self) -> None:
        """Returns when Kafka is there."""
        await self._requests.start()
        self._spawn(self._report_partial())

    async def stop(self) -> None:
        """Leave; what is pending stays unreported, so its brokers have it again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._requests.stop()

    async def write(self, topic: str, key: bytes, value: bytes) -> None:
        """Write one record that is no reply (a profile), however often that takes."""
        while True:
            try:
                count = len(await self._requests.client._wait_on_metadata(topic))
                batch = _batch()
                batch.append(0, None, key, value, [])
                await self._requests.send(TopicPartition(topic, partition_of(key, count)), bytes(batch.build()))
                return
            except (KafkaError, OSError, TimeoutError) as error:
                _log.warning("a record could not be written, trying again", topic=topic, error=repr(error))
                await asyncio.sleep(RETRY_S)

    def publish(self, replies: Sequence[Outgoing], on_settled: Callable[[list[ItemOutcome]], None]) -> None:
        """Write the replies; ``on_settled`` is called with their outcomes, in one or few parts."""
        group = _Group(on_settled, len(replies), time.monotonic())
        self._open.add(group)
        self._count(replies, 1)
        counts: dict[str, int] = {}
        for reply in replies:
            item = reply.item
            topic, partition = item.reply_topic, item.reply_partition
            if partition is None:
                count = counts.get(topic)
                if count is None:
                    count = counts[topic] = self._partitions(topic)
                partition = partition_of(reply.partition_key, count) if count else -1
            self._enqueue((topic, partition), (reply, group))

    def _enqueue(self, lane: Lane, entry: Entry) -> None:
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = deque()
            self._spawn(self._serve(lane, waiting))
        waiting.append(entry)

    async def _serve(self, lane: Lane, waiting: deque[Entry]) -> None:
        """Write what waits in the lane, batch after batch, until there is nothing."""
        try:
            if not self._partitions(lane[0]):
                await self._find(lane, waiting)
            while waiting:
                await self._write_next(lane, waiting)
        finally:
            del self._lanes[lane]

    async def _find(self, lane: Lane, waiting: deque[Entry]) -> None:
        """Learn the partitions of a topic that is not known yet; if several looks do not find it, it is gone."""
        topic, partition = lane
        misses, problem = 0, None
        while not self._partitions(topic) and misses < MISSES_MAX:
            problem = await self._missing(topic)
            misses += problem is not None
            await asyncio.sleep(RETRY_S if misses or not self._partitions(topic) else 0)
        count = self._partitions(topic)
        while waiting and (not count or partition < 0):
            entry = waiting.popleft()
            if count:
                self._enqueue((topic, partition_of(entry[0].partition_key, count)), entry)
            else:
                self._settle([entry], problem or f"topic {topic} does not exist")

    async def _write_next(self, lane: Lane, waiting: deque[Entry], at_most: int = 1 << 30) -> None:
        """One batch, however often that takes."""
        taken, error = await self._try(lane, waiting, at_most)
        if error is None:
            self._settle(taken)
            return
        if isinstance(error, _TOO_LARGE):
            await self._shrink(lane, taken)
            return
        problem = await self._problem(lane, error)
        if problem:
            self._settle(taken, problem)
            return
        _log.warning("replies could not be written, trying again", topic=lane[0], replies=len(taken), error=repr(error))
        waiting.extendleft(reversed(taken))
        await asyncio.sleep(RETRY_S)

    async def _try(self, lane: Lane, waiting: deque[Entry], at_most: int) -> tuple[list[Entry], KafkaError | None]:
        """Send one batch of what waits; what was taken for it, and how it failed."""
        batch, taken = _batch(), list[Entry]()
        while waiting and len(taken) < at_most:
            reply = waiting[0][0]
            if batch.append(len(taken), None, reply.item.key, reply.value, reply.headers) is None:
                break
            taken.append(waiting.popleft())
        try:
            if len(taken) == 1 and len(taken[0][0].value) > self._config.kafka.request_bytes_max:
                raise MessageSizeTooLargeError
            await self._requests.send(TopicPartition(*lane), bytes(batch.build()))
        except KafkaError as error:
            return taken, error
        return taken, None

    async def _shrink(self, lane: Lane, taken: list[Entry]) -> None:
        """The topic takes no batch as large: write one by one; a single one that is too large becomes an error."""
        if len(taken) > 1:
            rest = deque(taken)
            while rest:
                await self._write_next(lane, rest, at_most=1)
            return
        reply, group = taken[0]
        instead = self._replace(reply)
        if len(instead.value) >= len(reply.value):
            self._settle(taken, "even an error reply is too large for its topic")
            return
        self._count([instead], 1)
        self._count([reply], -1)
        await self._write_next(lane, deque([(instead, group)]))

    async def _problem(self, lane: Lane, error: KafkaError) -> str | None:
        """Why the lane can never be written, or None when trying again may help."""
        if isinstance(error, TopicAuthorizationFailedError):
            return f"writing to {lane[0]} is forbidden"
        partitions = self._requests.client.cluster.partitions_for_topic(lane[0])
        if partitions and lane[1] not in partitions:
            return f"{lane[0]} has no partition {lane[1]}"
        return await self._missing(lane[0]) if isinstance(error, _GONE) else None

    async def _missing(self, topic: str) -> str | None:
        """Ask the cluster: why the topic cannot be written, or None when it is there or nobody answers."""
        client = self._requests.client
        try:
            async with asyncio.timeout(METADATA_S_MAX):
                cluster = await client.fetch_all_metadata()
                if topic not in cluster.topics():
                    return f"topic {topic} does not exist"
                await client._wait_on_metadata(topic)
        except (KafkaError, OSError, TimeoutError):
            return None
        return None

    def _partitions(self, topic: str) -> int:
        return len(self._requests.client.cluster.partitions_for_topic(topic) or ())

    def _settle(self, entries: Sequence[Entry], problem: str | None = None) -> None:
        """The replies are in Kafka, or can never be for the reason given."""
        for group, own in groupby(entries, itemgetter(1)):
            replies = [reply for reply, _ in own]
            self._count(replies, -1)
            group.outcomes += [reply.outcome(problem) for reply in replies]
            group.missing -= len(replies)
            if group.missing == 0:
                self._open.discard(group)
                group.report()

    async def _report_partial(self) -> None:
        while True:
            await asyncio.sleep(PARTIAL_S)
            now_s = time.monotonic()
            for group in list(self._open):
                if now_s - group.since_s > PARTIAL_S:
                    group.report()

    def _count(self, replies: Sequence[Outgoing], sign: int) -> None:
        self.pending += sign * len(replies)
        self.pending_bytes += sign * sum([len(reply.value) for reply in replies])
        pressed = self.pending_bytes > PENDING_BYTES_MAX // (2 if self._pressed else 1)
        if pressed != self._pressed:
            self._pressed = pressed
            self._on_pressure(pressed)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A lane must not fail, or its replies were lost in silence: the loop's error handler decides."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "writing replies ended", "exception": error})


def _batch() -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(2, 0, False, -1, -1, 0, BATCH_BYTES_MAX)
