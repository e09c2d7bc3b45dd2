"""Creating and inspecting topics on real Kafka."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from aiokafka.admin import NewTopic

from modelless.config import Config
from modelless.embedded import EmbeddedKafka
from modelless.errors import ConfigurationError, UnavailableError
from modelless.kafka import make_admin
from modelless.topic_settings import create_missing, ensure_task_topic, grade, inspect, settings
from modelless.topics import Topics

pytestmark = pytest.mark.kafka


def check(config: Config, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "MODELLESS_KAFKA__BOOTSTRAP_SERVERS": config.kafka.servers,
        "MODELLESS_KAFKA__TOPIC_PREFIX": config.kafka.topic_prefix,
        "COLUMNS": "200",
    }
    command = [sys.executable, "-c", "from modelless.commands.check import register as r; import typer; "
               "a = typer.Typer(); r(a); a()", *arguments]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_created_topics_hold_the_promises(config: Config) -> None:
    task_topic = await ensure_task_topic(config, "digits")
    assert await ensure_task_topic(config, "digits") == task_topic
    assert await create_missing(config) == []
    cluster = await inspect(config)
    assert set(cluster.topics) == {*settings(config), task_topic}
    assert grade(config, cluster) == []


async def test_a_foreign_topic_is_graded_by_what_kafka_says(config: Config) -> None:
    foreign = f"{config.kafka.topic_prefix}.foreign"
    admin = make_admin(config)
    await admin.start()
    await admin.create_topics([NewTopic(foreign, 1, 1, topic_configs={"retention.ms": "60000"})])
    while foreign not in await admin.list_topics():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await admin.close()
    config = config.model_copy(update={"broker": config.broker.model_copy(update={"topics": (foreign,)})})
    found = {(f.topic, f.severity, f.what.split(" = ")[0]) for f in grade(config, await inspect(config))}
    assert found == {
        (foreign, "blocks", "retention.ms"),
        (foreign, "weakens", "message.timestamp.type"),
        (foreign, "weakens", "compression.type"),
        (foreign, "weakens", "max.message.bytes"),
    }


async def test_too_many_replicas_are_refused_by_name(config: Config) -> None:
    three = {"kafka": config.kafka.model_copy(update={"replication_factor": 3})}
    with pytest.raises(ConfigurationError, match=Topics(config.kafka.topic_prefix).task_queries("digits")):
        await ensure_task_topic(config.model_copy(update=three), "digits")


async def test_no_kafka_is_an_error_that_says_what_to_do(make_config: Callable[[str], Config]) -> None:
    with pytest.raises(UnavailableError, match="modelless kafka"):
        await create_missing(make_config("127.0.0.1:1"))
    with pytest.raises(UnavailableError, match=r"kafka\.bootstrap_servers"):
        await inspect(make_config("127.0.0.1:1"))


def test_check_blocks_then_creates_then_is_satisfied(
    kafka: EmbeddedKafka, make_config: Callable[[str], Config]
) -> None:
    config = make_config(kafka.bootstrap_servers)
    queries = Topics(config.kafka.topic_prefix).queries
    before = check(config)
    assert before.returncode == 1, before.stderr
    assert queries in before.stdout
    assert "11 findings block" in before.stdout
    created = check(config, "--create")
    assert created.returncode == 0, created.stderr
    assert f"{queries}," in created.stdout
    after = check(config)
    assert (after.returncode, "nothing blocks" in after.stdout) == (0, True), after.stdout
