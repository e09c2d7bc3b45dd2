"""The clients that we make, on real Kafka."""

from __future__ import annotations

import asyncio

import pytest

from modelless.config import Config
from modelless.kafka import ask_for, make_consumer, make_producer
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
    topic = Topics(config.kafka.topic_prefix).cancel
    async with make_producer(config) as producer, make_consumer(config, topic) as consumer:

        async def write(number: int) -> None:
            for _ in range(number):
                await producer.send_and_wait(topic, b"value")
                await asyncio.sleep(0.05)

        await write(1)
        assert await consumer.getmany(timeout_ms=10_000)
        ask_for(consumer, 1 << 20, 1_000)  # before the next fetch is sent
        writing = asyncio.create_task(write(3))
        (records,) = (await consumer.getmany(timeout_ms=10_000)).values()
        assert len(records) == 3
        await writing
