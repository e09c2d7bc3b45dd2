"""Who used what, on a real Kafka with real processes: it sums up to the bill, also when the leader is killed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from emulated_system import command, running, start, write_configuration, write_specification

from modelless import Client, register
from modelless.config import Config, load_config
from modelless.embedded import EmbeddedKafka
from modelless.messages import Usage
from modelless.topic_settings import create_missing
from modelless.usage import read

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PERIOD_S = 2
BILL_USD = 3.6 / 3600 * PERIOD_S
"""Of one worker in a whole period."""
INPUTS = {"x": np.zeros((1, 2), np.float32)}


async def ask(config: Config, times: int) -> float:
    """What the replies say that it cost, USD."""
    kafka = config.kafka
    async with Client(kafka.servers, topic_prefix=kafka.topic_prefix) as client:
        results = await asyncio.gather(*(client.infer(INPUTS, task="t", latency_ms_max=60_000) for _ in range(times)))
    return sum(result.cost or 0.0 for result in results)


async def until_counted(config: Config, queries: int) -> list[Usage]:
    """And a whole period beyond."""
    for _ in range(60):
        usages = list(await read(config, 0.0))
        counted_ms = [each.start_ms for each in usages if each.queries]
        if sum(each.queries for each in usages) >= queries and usages[-1].start_ms > max(counted_ms):
            return usages
        await asyncio.sleep(0.5)
    raise AssertionError(str(usages))


async def test_usage_sums_up_to_the_bill_also_when_the_leader_is_killed(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, kafka.bootstrap_servers, "price_per_hour = 3.6")
    with file.open("a") as more:
        more.write(f"[broker]\nusage_period_s = {PERIOD_S}\nsession_timeout_ms = 6000\n")
    config = load_config(file)
    await create_missing(config)
    async with running(file, "worker", "--group", "emulated"):
        first = start(file, "broker", "--name", "broker-0")
        try:
            await register(config, write_specification(tmp_path, "m", "t", 20.0, rows=1), timeout_s=60)
            cost_usd = await ask(config, 30)
            before = await until_counted(config, 30)
        finally:
            first.kill()
            first.wait()
        async with running(file, "broker", "--name", "broker-1"):
            cost_usd += await ask(config, 20)
            usages = await until_counted(config, 50)
            done = await asyncio.create_subprocess_exec(*command(file, "usage"), stdout=asyncio.subprocess.PIPE)
            shown, _ = await asyncio.wait_for(done.communicate(), 60)
    assert usages[: len(before)] == before, "what is written stays"
    assert sum(each.queries for each in usages) == 50
    assert sum(each.cost_usd for each in usages) == pytest.approx(cost_usd, rel=0.01)
    bills = defaultdict[float, float](float)
    for each in usages:
        assert each.group == "emulated"
        bills[each.start_ms] += each.total_usd
    starts = sorted(bills)
    assert starts == [starts[0] + number * PERIOD_S * 1000 for number in range(len(starts))], "no gap, nothing twice"
    assert [bills[at] for at in starts[1:]] == pytest.approx([BILL_USD] * (len(starts) - 1)), "but the first, all whole"
    assert 0 < bills[starts[0]] <= BILL_USD * 1.000001
    assert b"modelless.queries" not in shown, "the prefix is another one"
    assert f"{config.kafka.topic_prefix}.queries".encode() in shown
    assert b"all" in shown
