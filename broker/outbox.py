"""What the broker writes itself: error replies and dead letters, each until Kafka has acknowledged it.

One task sends in order and never waits for an acknowledgement; a record whose send fails for a reason that can pass
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
from aiokafka.partitioner import murmur2

from modelless.config import Config
from modelless.kafka import make_producer, raise_if_cancelled, stop_within
from modelless.topic_settings import DEAD_LETTER_OVERHEAD_BYTES

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
    headers: tuple[tuple[str, bytes], ...]
    done: Callable[[str | None], None]
    must: bool = False
    smaller: Callable[[], Outgoing] | None = None


class Outbox:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._producer: AIOKafkaProducer | None = None
        self._queue: asyncio.Queue[Outgoing] = asyncio.Queue()  # bounded by the ledger: one record per entry
        self._task: asyncio.Task[None] | None = None
        self.unacknowledged = 0

    async def start(self) -> None:
        bytes_max = self._config.kafka.request_bytes_max + DEAD_LETTER_OVERHEAD_BYTES
        self._producer = make_producer(self._config, max_request_size=bytes_max)
        await self._producer.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._producer is not None:
            await stop_within(self._producer)

    @property
    def failed(self) -> BaseException | None:
        """Why sending ended, if it did."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def partitions(self) -> dict[str, int]:
        """Every topic that exists and how many partitions it has, asked of Kafka now."""
        assert self._producer is not None
        cluster = await self._producer.client.fetch_all_metadata()
        return {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()}

    def put(self, outgoing: Outgoing) -> None:
        self.unacknowledged += 1
        self._queue.put_nowait(outgoing)

    async def _run(self) -> None:
        while True:
            await self._send(await self._queue.get())

    async def _send(self, outgoing: Outgoing) -> None:
        assert self._producer is not None
        try:
            future = await self._producer.send(
                outgoing.topic,
                outgoing.value,
                key=outgoing.key,
                partition=await self._partition(outgoing),
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

    async def _partition(self, outgoing: Outgoing) -> int:
        if outgoing.partition is not None:
            return outgoing.partition
        assert self._producer is not None
        partitions = sorted(await self._producer.partitions_for(outgoing.topic))
        return int(partitions[(murmur2(outgoing.partition_key) & 0x7FFFFFFF) % len(partitions)])

    def _failed(self, outgoing: Outgoing, error: BaseException | None) -> None:
        if isinstance(error, TOO_LARGE) and outgoing.smaller is not None:
            self._queue.put_nowait(outgoing.smaller())
            return
        if isinstance(error, PERMANENT) and not outgoing.must:
            self.unacknowledged -= 1
            outgoing.done(f"{type(error).__name__}: the reply could not be written")
            return
        _log.warning("write failed, trying again", topic=outgoing.topic, error=repr(error))
        asyncio.get_running_loop().call_later(RETRY_S, self._queue.put_nowait, outgoing)
