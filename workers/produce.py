"""Batches of records to Kafka: one request to a leader at a time, with all that has gathered for it meanwhile.

What aiokafka's producer does besides (it batches, retries and expires by itself) the lanes of
:mod:`workers.publisher` do as they need it; between a batch and its request they would wait for two of its tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, LeaderNotAvailableError, for_code
from aiokafka.protocol.produce import ProduceRequest

from modelless.config import Config
from modelless.kafka import close_within, make_client

REQUEST_TIMEOUT_MS = 10_000
STOP_TIMEOUT_S = 2.0
_EVERY_REPLICA = -1
_UNKNOWN = -1


class _Batch(NamedTuple):
    partition: TopicPartition
    data: bytes
    written: asyncio.Future[None]


class Requests:
    """See the module; used from one event loop."""

    def __init__(self, config: Config) -> None:
        self.client: AIOKafkaClient = make_client(config, request_timeout_ms=REQUEST_TIMEOUT_MS)
        self._waiting: dict[int, list[_Batch]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Raises KafkaError when Kafka is not there."""
        await self.client.bootstrap()

    async def stop(self) -> None:
        """What is on its way stays unacknowledged."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await close_within(self.client, STOP_TIMEOUT_S)

    def send(self, partition: TopicPartition, batch: bytes) -> asyncio.Future[None]:
        """Done when every replica has the batch.

        The future raises KafkaError: it was not written, or nobody knows.
        """
        written: asyncio.Future[None] = self._loop.create_future()
        leader = self.client.cluster.leader_for_partition(partition)
        if leader is None or leader == -1:
            self.client.force_metadata_update()
            written.set_exception(LeaderNotAvailableError(partition))
            return written
        self._waiting.setdefault(leader, []).append(_Batch(partition, batch, written))
        if leader not in self._tasks:
            self._tasks[leader] = asyncio.create_task(self._serve(leader))
        return written

    async def _serve(self, leader: int) -> None:
        """Request after request, until nothing waits."""
        try:
            while waiting := self._waiting.pop(leader, None):
                batches: dict[TopicPartition, _Batch] = {}
                later = [each for each in waiting if batches.setdefault(each.partition, each) is not each]
                if later:
                    self._waiting[leader] = later
                errors: Mapping[TopicPartition, Exception]
                try:
                    errors = await self._request(leader, batches.values())
                except Exception as error:  # whatever it is, replies wait for it
                    problem = error if isinstance(error, KafkaError) else KafkaError(repr(error))
                    errors = dict.fromkeys(batches, problem)
                if errors:
                    self.client.force_metadata_update()
                for partition, (_, _, written) in batches.items():
                    if written.done():  # whoever waited is gone
                        continue
                    failed = errors.get(partition)
                    written.set_result(None) if failed is None else written.set_exception(failed)
        finally:
            del self._tasks[leader]

    async def _request(self, leader: int, batches: Collection[_Batch]) -> dict[TopicPartition, Exception]:
        """Returns what went wrong, by partition."""
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for (topic, partition), data, _ in batches:
            topics.setdefault(topic, []).append((partition, data))
        request = ProduceRequest(
            transactional_id=None,
            required_acks=_EVERY_REPLICA,
            timeout=REQUEST_TIMEOUT_MS,
            topics=list(topics.items()),
        )
        response: Any = await self.client.send(leader, request)
        codes = {TopicPartition(topic, part[0]): part[1] for topic, parts in response.topics for part in parts}
        found = {each.partition: codes.get(each.partition, _UNKNOWN) for each in batches}
        return {partition: for_code(code)(partition) for partition, code in found.items() if code}
