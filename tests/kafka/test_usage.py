"""Who used what and who may, on a real Kafka with processes: it sums up to the bill, also when leaders are killed."""

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
from modelless.errors import ResourceExhaustedError
from modelless.messages import Usage
from modelless.topic_settings import create_missing
from modelless.usage import read

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PERIOD_S = 1
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
            async with running(file, "broker", "--name", "broker-1"):
                before = await until_counted(config, 30)
                first.kill()
                first.wait()
                cost_usd += await ask(config, 20)
                usages = await until_counted(config, 50)
                done = await asyncio.create_subprocess_exec(*command(file, "usage"), stdout=asyncio.subprocess.PIPE)
                shown, _ = await asyncio.wait_for(done.communicate(), 60)
        finally:
            first.kill()
            first.wait()
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


async def test_a_tenant_beyond_its_quota_is_told_when_to_come_back(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """Each query takes 20 ms; a quota of ten a second, with a burst of a second, for one of two tenants of a topic."""
    file = write_configuration(tmp_path, kafka.bootstrap_servers, "price_per_hour = 3.6")
    prefix = load_config(file).kafka.topic_prefix
    rows_per_second = 9.5
    quota = 3.6 * 0.02 * rows_per_second
    with file.open("a") as more:
        more.write("[broker]\nquota_burst_s = 1\nusage_period_s = 1\n")
        more.write(f'tenant_topics = ["{prefix}.queries", "{prefix}.queries.t"]\n')
        more.write(f'quotas = {{ "shop" = {quota} }}\n')
    config = load_config(file)
    await create_missing(config)
    async with running(file, "worker", "--group", "emulated"), running(file, "broker", "--name", "broker-0"):
        await register(config, write_specification(tmp_path, "m", "t", 20.0, rows=1), timeout_s=60)
        async with Client(config.kafka.servers, topic_prefix=prefix) as client:

            async def infer(tenant: str) -> float | None:
                """None when it was answered, else when to come back, ms."""
                try:
                    await client.infer(INPUTS, task="t", latency_ms_max=30_000, tenant=tenant)
                except ResourceExhaustedError as error:
                    assert "shop has used up its quota" in error.message
                    return error.retry_after_ms
                return None

            assert await infer("shop") is None
            outcomes = await asyncio.gather(*(infer("shop") for _ in range(40)), *(infer("other") for _ in range(40)))
            shop, others = outcomes[:40], outcomes[40:]
            waits_ms = [wait_ms for wait_ms in shop if wait_ms is not None]
            assert others == [None] * 40
            assert 8 <= shop.count(None) <= 30, "ten at once, and ten a second while they were read"
            assert waits_ms
            assert max(waits_ms) <= 1000
            await asyncio.sleep(max(waits_ms) / 1000 + 0.2)
            assert await infer("shop") is None
        usages = await until_counted(config, 42 + shop.count(None))
    queries = defaultdict[str, int](int)
    for each in usages:
        queries[each.tenant] += each.queries
    assert queries["shop"] == 2 + shop.count(None)
    assert queries["other"] == 40
