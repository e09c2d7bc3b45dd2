"""Explanations on a real Kafka, broker and worker as processes: by the command, and in the header of a reply."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_system import command, running, write_configuration, write_specification

from modelless import register
from modelless.codec import encode_query
from modelless.config import Config, load_config
from modelless.embedded import EmbeddedKafka
from modelless.kafka import make_consumer, make_producer
from modelless.messages import Query
from modelless.tensors import Tensor
from modelless.topic_settings import create_missing
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


@pytest.fixture
def file(kafka: EmbeddedKafka, tmp_path: Path) -> Path:
    return write_configuration(tmp_path, kafka.bootstrap_servers)


async def explain(file: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    asked = command(file, "explain", "--task", "t", "--json", *arguments)
    done = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


async def ask(config: Config, **constraints: Any) -> dict[str, bytes]:
    """The headers of the reply to one query that wants to know why."""
    topics, query_id = Topics(config.kafka.topic_prefix), uuid.uuid4().hex
    query = Query(query_id, (Tensor("x", "FP32", (1, 2), np.zeros(2, "<f4").tobytes()),), task="t", **constraints)
    async with AsyncExitStack() as stack:
        consumer, producer = make_consumer(config, auto_offset_reset="earliest"), make_producer(config)
        consumer.subscribe([topics.replies])
        for client in (consumer, producer):
            await client.start()
            stack.push_async_callback(client.stop)
        await producer.send(topics.queries, encode_query(query), headers=[("modelless-explain", b"1")])
        async with asyncio.timeout(30):
            async for record in consumer:
                headers = dict(record.headers)
                if headers["modelless-id"] == query_id.encode():
                    return headers
    raise AssertionError


async def test_a_command_and_a_reply_say_why(file: Path) -> None:
    config = load_config(file)
    await create_missing(config)
    async with running(file, "broker"), running(file, "worker", "--group", "emulated"):
        await register(config, write_specification(file.parent, "m", "t"), timeout_s=60)
        status, said = await explain(file, "--latency-ms", "1000", "--accuracy", "0.8")
        assert (status, said["decision"]) == (0, "m:1/emulated on emulated: the cheapest that answers in time")
        (candidate,) = said["candidates"]
        assert (candidate["workers"], candidate["chosen"], candidate["accuracy_low"]) == (1, True, 0.9)
        status, said = await explain(file, "--accuracy", "0.99")
        assert status == 1
        assert said["decision"].startswith(
            "FAILED_PRECONDITION: no variant has accuracy >= 0.99; the most accurate, m:1"
        )
        headers = await ask(config, accuracy_min=0.8)
        assert headers["modelless-status"] == b"OK"
        assert json.loads(headers["modelless-explain"])["candidates"][0]["why"] == "chosen"
        headers = await ask(config, accuracy_min=0.99)
        assert headers["modelless-status"] == b"FAILED_PRECONDITION"
        assert json.loads(headers["modelless-explain"])["decision"] == said["decision"]
