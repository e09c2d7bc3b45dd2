"""What the broker writes itself: error replies and dead letters, each until Kafka has acknowledged it.

One task for each topic sends in order and never waits for an acknowledgement, so that a topic that is gone holds up
nobody else's replies. A record whose send fails for a reason that can pass
(Kafka is away) is sent again for as long as the broker lives, one that can never be written is reported. One that is
too large is written smaller, where it says how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidPartitionsError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from modelless.config import Config
from modelless.kafka import make_producer, partition_of, raise_if_cancelled, stop_within
from modelless.topic_settings import DEAD_LETTER_OVERHEAD_BYTES
from modelless.topics import Topics

_log = structlog.get_logger(__name__)

RETRY_S = 0.2
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
PERMANENT = (
    *TOO_LARGE,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    InvalidPartitionsError,
    AssertionError,  # aiokafka's word for a partition that does not exist
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to write.

    Attributes:
        partition: None for the one that murmur2 of ``partition_key`` names.
        done: called once: with None when Kafka acknowledged it, or with the reason why it can never be written.
        must: an unwritable topic is no reason to give up (dead letters).
        smaller: makes what to write instead when it is too large.
    """

    topic: str
    partition: int | None
    partition_key: bytes
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    done: Callable[[str | None], None]
    must: bool = False
    smaller: Callable[[], Outgoing] | None = None


class Outbox:
    """Call :meth:`partitions` every few seconds: what it finds missing is not written to, and so never created."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._producer: AIOKafkaProducer | None = None
        self._dead_letter = Topics(config.kafka.topic_prefix).dead_letter
        self._existing: dict[str, int] = {}
        self._queues: dict[str, asyncio.Queue[Outgoing]] = {}  # bounded by the ledger: one record per entry
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.unacknowledged = 0

    async def start(self) -> None:
        bytes_max = self._config.kafka.request_bytes_max + DEAD_LETTER_OVERHEAD_BYTES
        self._producer = make_producer(self._config, max_request_size=bytes_max)
        await self._producer.start()

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._producer is not None:
            await stop_within(self._producer)

    @property
    def failed(self) -> BaseException | None:
        """Why sending ended, if it did."""
        for task in self._tasks.values():
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    async def partitions(self) -> dict[str, int]:
        """Every topic that exists and how many partitions it has, asked of Kafka now.

        Raises:
            KafkaError: Kafka does not answer, or its answer lacks what was there before: a node that has just started
                may not know all topics yet, and is not believed.
        """
        assert self._producer is not None
        cluster = await self._producer.client.fetch_all_metadata()
        found = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()}
        if self._existing and self._dead_letter not in found:
            raise UnknownTopicOrPartitionError(self._dead_letter)
        self._existing = found
        return found

    def put(self, outgoing: Outgoing) -> None:
        self.unacknowledged += 1
        self._enqueue(outgoing)

    def _enqueue(self, outgoing: Outgoing) -> None:
        queue = self._queues.get(outgoing.topic)
        if queue is None:
            queue = self._queues[outgoing.topic] = asyncio.Queue()
            self._tasks[outgoing.topic] = asyncio.create_task(self._run(queue))
        queue.put_nowait(outgoing)

    async def _run(self, queue: asyncio.Queue[Outgoing]) -> None:
        while True:
            await self._send(await queue.get())

    async def _send(self, outgoing: Outgoing) -> None:
        assert self._producer is not None
        partitions = self._existing.get(outgoing.topic, 0)
        if not partitions:
            self._failed(outgoing, UnknownTopicOrPartitionError())
            return
        try:
            future = await self._producer.send(
                outgoing.topic,
                outgoing.value,
                key=outgoing.key,
                partition=_partition(outgoing, partitions),
                headers=list(outgoing.headers),
            )
        except (KafkaError, AssertionError, TimeoutError, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            self._failed(outgoing, error)
            return

        def acknowledged(sent: asyncio.Future[object]) -> None:
            error = None if sent.cancelled() else sent.exception()
            if sent.cancelled() or error is not None:
                self._failed(outgoing, error)
            else:
                self.unacknowledged -= 1
                outgoing.done(None)

        future.add_done_callback(acknowledged)

    def _failed(self, outgoing: Outgoing, error: BaseException | None) -> None:
        if isinstance(error, TOO_LARGE) and outgoing.smaller is not None:
            self._enqueue(outgoing.smaller())
            return
        if isinstance(error, PERMANENT) and not outgoing.must:
            self.unacknowledged -= 1
            outgoing.done(f"{type(error).__name__}: the reply could not be written")
            return
        _log.warning("write failed, trying again", topic=outgoing.topic, error=repr(error))
        asyncio.get_running_loop().call_later(RETRY_S, self._enqueue, outgoing)


def _partition(outgoing: Outgoing, partitions: int) -> int:
    if outgoing.partition is not None:
        return outgoing.partition
    return partition_of(outgoing.partition_key, partitions)
