"""Reading a topic as a table: everything in it first, then what comes.

Registry, profiles, plan and fleet are read by many and owned by nobody's group. A :class:`Follower` reads all their
partitions without a group, says when it has caught up with what was there (the **barrier**), and follows from then on.

The barrier compares the consumer's *position* with the end of what is committed, never a record's offset with it:
transactions leave control records that are never delivered, and compaction leaves gaps. It survives Kafka: whatever
fails, the client is rebuilt at the next record that was not delivered yet. And since a fetch may stop without an error
(aiokafka #1037, #712), it asks for the end offsets every few seconds and rebuilds itself when it stays behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError, UnsupportedCodecError
from aiokafka.structs import ConsumerRecord

from modelless.config import Config
from modelless.errors import UnavailableError
from modelless.kafka import make_consumer, raise_if_cancelled, report_failure, stop_within

START_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 10.0
RETRY_S = 0.5
POLL_MS = 1000
"""As long as Kafka keeps a fetch that has nothing to return: a follower costs little while nothing happens."""
CATCHING_UP_POLL_MS = 50
"""What ends a topic may be nothing that is delivered."""
CHECK_INTERVAL_S = 1.0
STEP_S = 0.001
"""How long records are delivered before whatever else the event loop has to do gets its turn."""
STALLED_CHECKS_MAX = 5
"""Checks in a row that found us behind without a new record: the client is rebuilt."""

UNREADABLE = (ValueError, CorruptRecordException, UnsupportedCodecError)
"""What reading a malformed record raises: a header key that is not UTF-8, a bad checksum, a codec that we lack."""

_log = structlog.get_logger(__name__)


class _StalledError(Exception):
    """Fetching stopped, or the topic was made anew."""


class Follower:
    """A group-less reader of all partitions of ``topics``.

    Args:
        topics: they must exist.
        on_record: called for each record in the order of its partition; sync, and must not raise (that ends it).
            After trouble a record may be delivered again; only one that cannot be read is skipped, with an alarm.
        since_ms: read from this log time on, instead of from the beginning.
        positions: likewise, from these offsets on, in the partitions that are named.
    """

    def __init__(
        self,
        config: Config,
        topics: Sequence[str],
        on_record: Callable[[ConsumerRecord], None],
        since_ms: float | None = None,
        positions: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        self._config = config
        self._topics = tuple(topics)
        self._on_record = on_record
        self._since_ms = since_ms
        self._next: dict[TopicPartition, int] = dict(positions or {})
        self.unreadable = 0
        """Records that were skipped."""
        self._caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: BaseException | None = None
        self._quiet_s = 0.0
        self._behind = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def quiet_ms(self) -> float:
        """How long Kafka has been confirming that there is nothing new; 0 again while it does not answer."""
        return self._quiet_s * 1000

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """The offset after the last record that was delivered, by partition; of those where there was one."""
        return dict(self._next)

    def begin(self) -> None:
        """Follow in a task, without waiting for anything."""
        self._task = asyncio.create_task(self._run(), name=f"follow {','.join(self._topics)}")
        report_failure(self._task, self._caught_up)

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once everything up to the present ends was delivered; following goes on in a task.

        Raises:
            UnavailableError: that took longer than ``timeout_s``.
        """
        self.begin()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._caught_up)
        except TimeoutError:
            raise UnavailableError(
                f"topics {', '.join(self._topics)} at {self._config.kafka.servers} cannot be read "
                f"({type(self._failure).__name__ if self._failure else 'slow'}); `modelless check` says more"
            ) from self._failure
        finally:
            if not self._caught_up.done():
                await self.stop()

    async def stop(self) -> None:
        """Stop following; bounded also while Kafka is down."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except (KafkaError, OSError, TimeoutError, _StalledError, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                self._failure = error
                _log.warning("reading a table was interrupted", topics=self._topics, error=repr(error))
            self._quiet_s = 0.0
            await asyncio.sleep(RETRY_S)

    async def _session(self) -> None:
        """Read with one client for as long as it works."""
        consumer = make_consumer(self._config, *self._topics, fetch_max_wait_ms=POLL_MS)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await consumer.start()
                partitions = consumer.assignment()
                consumer.pause(*partitions)  # answers wait behind a fetch, which waits for records
                await self._seek(consumer)
            ends = await _ends(consumer)
            consumer.resume(*partitions)
            checked_s = time.monotonic()
            while True:
                if not self._caught_up.done() and await _reached(consumer, ends):
                    self._caught_up.set_result(None)
                heard = await self._poll(consumer)
                if heard:
                    self._quiet_s, self._behind = 0.0, 0
                elif (elapsed_s := time.monotonic() - checked_s) >= CHECK_INTERVAL_S:
                    await self._check(consumer, elapsed_s)
                    checked_s += elapsed_s
        finally:
            await stop_within(consumer, STOP_TIMEOUT_S)

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        """Every partition to where it was left, to ``since_ms``, or to its beginning."""
        partitions = consumer.assignment()
        fresh = [tp for tp in partitions if tp not in self._next]
        if self._since_ms is not None and fresh:
            found = await consumer.offsets_for_times({tp: int(self._since_ms) for tp in fresh})
            ends = await consumer.end_offsets(fresh)
            self._next.update({tp: at.offset if at is not None else ends[tp] for tp, at in found.items()})
        for tp in partitions:
            if tp in self._next:
                consumer.seek(tp, self._next[tp])
        beginnings = [tp for tp in fresh if tp not in self._next]
        if beginnings:
            await consumer.seek_to_beginning(*beginnings)

    async def _poll(self, consumer: AIOKafkaConsumer) -> bool:
        """Deliver what there is, waiting for a moment; whether there was anything."""
        try:
            timeout_ms = POLL_MS if self._caught_up.done() else CATCHING_UP_POLL_MS
            fetched = await consumer.getmany(timeout_ms=timeout_ms)
        except UNREADABLE:
            await self._seek(consumer)
            await self._poll_one_by_one(consumer)
            return True
        return await self._deliver(fetched)

    async def _poll_one_by_one(self, consumer: AIOKafkaConsumer) -> None:
        """Step over records that cannot be read (and what follows them in their batch): they would raise for ever."""
        for tp in consumer.assignment():
            while True:
                try:
                    if not await self._deliver(await consumer.getmany(tp, timeout_ms=POLL_MS, max_records=1)):
                        break
                except UNREADABLE as error:
                    offset = await consumer.position(tp)
                    _log.error("a record cannot be read and is skipped", record=f"{tp}/{offset}", error=repr(error))
                    consumer.seek(tp, offset + 1)
                    self._next[tp] = offset + 1
                    self.unreadable += 1

    async def _deliver(self, fetched: dict[TopicPartition, list[ConsumerRecord]]) -> bool:
        yielded_s = time.monotonic()
        for tp, records in fetched.items():
            for record in records:
                self._on_record(record)
                self._next[tp] = record.offset + 1
                if time.monotonic() - yielded_s > STEP_S:
                    await asyncio.sleep(0)
                    yielded_s = time.monotonic()
        return any(fetched.values())

    async def _check(self, consumer: AIOKafkaConsumer, elapsed_s: float) -> None:
        """After a silence: is there really nothing? Raises when the client has stalled."""
        ends = await _ends(consumer)
        if any(end < self._next.get(tp, 0) for tp, end in ends.items()):
            self._next.clear()
            raise _StalledError("the topic is shorter than what was read: it was made anew")
        if await _reached(consumer, ends):
            self._behind = 0
            self._quiet_s += min(elapsed_s, 2 * CHECK_INTERVAL_S)
            return
        self._behind += 1
        if self._behind >= STALLED_CHECKS_MAX:
            self._behind = 0
            raise _StalledError("records are there but do not come")


async def _ends(consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
    """Where what is committed ends now, by partition."""
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        ends: dict[TopicPartition, int] = await consumer.end_offsets(list(consumer.assignment()))
    return ends


async def _reached(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        return all([await consumer.position(tp) >= end for tp, end in ends.items()])
