"""The clients that we make, on real Kafka."""

from __future__ import annotations

import pytest

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
