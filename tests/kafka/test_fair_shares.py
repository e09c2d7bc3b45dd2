"""Query topics beside each other on a real Kafka, broker and worker as processes: a flood, and what it leaves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from emulated_system import running, write_configuration, write_specification

from modelless import Client, register
from modelless.codec import encode_query
from modelless.config import load_config
from modelless.embedded import EmbeddedKafka
from modelless.kafka import make_producer
from modelless.messages import Query
from modelless.tensors import Tensor
from modelless.topic_settings import create_missing, ensure_task_topic
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

FLOOD = 2000
IN_FLIGHT_MAX = 600
MS = 20.0


async def test_a_flood_that_fills_the_broker_leaves_another_topic_its_share(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    """A device of 50 queries a second has 40 s of work of one topic that waits for ever, more than the broker holds.

    The client writes to the topic of its task.
    """
    file = write_configuration(tmp_path, kafka.bootstrap_servers)
    with file.open("a") as more:
        more.write(f"[broker]\nin_flight_max = {IN_FLIGHT_MAX}\nlatency_ms_default = 120000\ndrain_s = 1\n")
    config = load_config(file)
    await create_missing(config)
    await ensure_task_topic(config, "t")
    topics = Topics(config.kafka.topic_prefix)
    async with running(file, "worker", "--group", "emulated"), running(file, "broker", "--name", "broker-0"):
        await register(config, write_specification(tmp_path, "m", "t", MS, rows=1), timeout_s=60)
        async with Client(config.kafka.servers, topic_prefix=topics.prefix) as client:
            inputs = {"x": np.zeros((1, 2), np.float32)}
            await client.infer(inputs, task="t", latency_ms_max=60_000)
            async with make_producer(config) as producer:
                tensor = Tensor("x", "FP32", (1, 2), b"\0" * 8)
                for number in range(FLOOD):
                    query = Query(str(number), (tensor,), task="t", latency_ms_max=100, on_miss="late")
                    await producer.send(topics.queries, encode_query(query))
                await producer.flush()
            await asyncio.sleep(2)
            for _ in range(10):
                began_s = time.monotonic()
                result = await client.infer(inputs, task="t", latency_ms_max=5000)
                assert result.missed == ()
                assert time.monotonic() - began_s < 5
