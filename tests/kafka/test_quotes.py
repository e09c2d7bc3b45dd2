"""Quotes on a real Kafka: of what is registered there, and of topics that other programs write."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from emulated_system import command, running, write_configuration, write_specification

from modelless import register
from modelless.codec import encode_query
from modelless.config import load_config
from modelless.embedded import EmbeddedKafka
from modelless.kafka import make_admin, make_producer
from modelless.messages import Query
from modelless.tensors import Tensor
from modelless.topic_settings import create_missing

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

EXAMPLES = Path(__file__).parents[2] / "examples" / "simulate"
OFFLINE = ("--profiles", str(EXAMPLES / "profiles.csv"), "--fleet", str(EXAMPLES / "fleet.csv"))


async def told(file: Path, *arguments: str) -> tuple[int | None, Any]:
    """Exit status and JSON of a command."""
    pipe = asyncio.subprocess.PIPE
    asked = command(file, *arguments, "--json")
    process = await asyncio.create_subprocess_exec(*asked, stdout=pipe, stderr=pipe, cwd=file.parent)
    said, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(said) if said else errors.decode()


async def test_an_existing_topic_is_read_without_a_group_and_quoted_for(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, kafka.bootstrap_servers)
    config = load_config(file)
    topic = f"{config.kafka.topic_prefix}-orders"
    admin = make_admin(config)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 2, 1)])
        query = Query(
            "q", (Tensor("x", "FP32", (3, 1), b"\0" * 12),), task="animals", latency_ms_max=200, accuracy_min=0.7
        )
        async with make_producer(config) as producer:
            await producer.send_and_wait(topic, b"before anybody looks")
            arguments = ("--watch", topic, "--task", "digits", "--latency-ms", "50", "--seconds", "8", *OFFLINE)
            watching = asyncio.create_task(told(file, "plan", *arguments))
            while not watching.done():
                await producer.send_and_wait(topic, b"an order", partition=0)
                await producer.send_and_wait(topic, encode_query(query), partition=1)
                await asyncio.sleep(0.1)
        status, said = await watching
        groups = [name for name, _ in await admin.list_consumer_groups()]
        missing, words = await told(file, "plan", "--watch", f"{topic}s", *OFFLINE)
    finally:
        await admin.close()
    assert status == 0, said
    assert said["is_served"]
    records = said["records"]
    assert records["queries"] > 10
    assert abs(records["queries"] - records["others"]) <= 5  # of two partitions, which are not read at one instant
    rates = {each["task"]: each["rows_per_second"] for each in said["classes"]}
    assert rates["animals"] == pytest.approx(3 * rates["digits"], rel=0.1)
    assert {each["latency_ms_max"] for each in said["classes"]} == {200, 50}
    assert not [name for name in groups if config.kafka.topic_prefix in name]
    assert (missing, f"did you mean {topic!r}" in words) == (1, True)


async def test_a_demand_is_quoted_for_what_is_measured_here(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, kafka.bootstrap_servers, "price_per_hour = 3.6\nworkers_max = 4")
    config = load_config(file)
    await create_missing(config)
    demand = tmp_path / "demand.csv"
    async with running(file, "worker", "--group", "emulated"), running(file, "broker", "--name", "broker-0"):
        await register(config, write_specification(tmp_path, "m", "t", 20.0, rows=1), timeout_s=60)
        demand.write_text("task,rate,latency_ms_max\nt,60,500\n")
        served, quote = await told(file, "plan", "--demand", str(demand))
        demand.write_text("task,rate,latency_ms_max\nt,600,500\n")
        short, refused = await told(file, "plan", "--demand", str(demand))
        status, plan = await told(file, "plan")
    assert (served, quote["is_served"]) == (0, True), quote
    (group,) = quote["groups"]
    assert 2 <= group["workers"] <= 3, "60 rows of 20 ms a second take more than one"
    assert quote["usd_per_hour"] == pytest.approx(3.6 * group["workers"])
    assert quote["usd_per_1000_rows"] == pytest.approx(quote["usd_per_hour"] / 60 / 3.6)
    assert (short, refused["is_served"]) == (1, False)
    assert "raise workers_max of emulated (at most 4)" in refused["classes"][0]["why_not"]
    assert status == 0
    assert [(each["name"], each["price_per_hour"]) for each in plan["groups"]] == [("emulated", 3.6)]
    assert [each["loaded"] for each in plan["workers"]] == [["m:1/emulated"]]
