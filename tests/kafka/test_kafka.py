"""The clients that we make, on real Kafka."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from broker.fetching import fetch
from broker.pace import Fetch
from modelless.config import Config
from modelless.kafka import make_consumer, make_producer
from modelless.topics import Topics

pytestmark = pytest.mark.kafka


async def test_what_is_produced_is_consumed(config: Config) -> None:
    topic = Topics(config.kafka.topic_prefix).queries
    async with make_producer(config) as producer:
        sent = await producer.send_and_wait(topic, b"value", key=b"key")
    async with make_consumer(config, topic) as consumer:
        record = await consumer.getone()
    assert (record.key, record.value, record.timestamp) == (b"key", b"value", sent.timestamp)
    assert sent.timestamp_type == 1, "log append time"


async def test_a_fetch_lets_records_gather_when_asked_to(config: Config) -> None:
    partition = TopicPartition(Topics(config.kafka.topic_prefix).cancel, 0)
    async with make_producer(config) as producer, make_consumer(config) as consumer:
        consumer.assign([partition])
        consumer.pause(partition)
        (start,) = (await consumer.end_offsets([partition])).values()
        leader = consumer._client.cluster.leader_for_partition(partition)

        async def write(number: int) -> None:
            for _ in range(number):
                await producer.send_and_wait(partition.topic, b"value", partition=0)
                await asyncio.sleep(0.05)

        writing = asyncio.create_task(write(3))
        answer = await fetch(consumer._client, leader, {partition: start}, Fetch(1 << 20, 1_000))
        (fetched,) = answer.fetched
        assert (len(fetched.take(2)), fetched.position) == (2, start + 2)
        assert (len(fetched.take(2)), fetched.position) == (1, start + 3)
        assert (answer.ends, answer.errors) == ({partition: start + 3}, {})
        await writing
        beyond = await fetch(consumer._client, leader, {partition: start + 99}, Fetch(1, 0))
        assert beyond.errors == {partition: OffsetOutOfRangeError}
