"""Reading queries from real Kafka: how soon a member of the brokers' group has what it owns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition

from broker.ledger import Ledger
from broker.reader import QueryReader
from modelless.config import Config
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


class Sink:
    def read(self, records: Iterable[ConsumerRecord]) -> float:
        raise AssertionError("nobody asks")

    def withdraw(self, partitions: list[tuple[str, int]]) -> None:
        pass

    def unreadable(self, record: ConsumerRecord, reason: str) -> None:
        raise AssertionError(reason)


async def test_who_joins_and_who_comes_back_owns_at_once(config: Config) -> None:
    queries = Topics(config.kafka.topic_prefix).queries
    for _ in range(2):
        ledger = Ledger()
        reader = QueryReader(config, ledger, Sink(), f"{config.kafka.topic_prefix}.brokers", "broker-0")
        await reader.start([queries])
        began_s = time.monotonic()
        while not ledger.owned():  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.01)
        assert time.monotonic() - began_s < 0.4, "answers of Kafka behind a fetch of nothing take half a second each"
        await reader.stop()  # it has a name of its own: the group expects it back


class Disturbed(QueryReader):
    """Another topic appears just before it owns those that it had asked for."""

    async def _committed(self, partitions: list[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        found = await super()._committed(partitions)
        topics = Topics(self._config.kafka.topic_prefix)
        self.subscribe([topics.queries, topics.offline])
        return found


async def test_who_hears_of_another_topic_while_it_joins_owns_both(config: Config) -> None:
    topics, ledger = Topics(config.kafka.topic_prefix), Ledger()
    reader = Disturbed(config, ledger, Sink(), f"{config.kafka.topic_prefix}.brokers", "broker-0")
    await reader.start([topics.queries])
    async with asyncio.timeout(20):
        while {topic for topic, _ in ledger.owned()} != {topics.queries, topics.offline}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await reader.stop()
