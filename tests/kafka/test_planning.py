"""The plan on a real Kafka, broker and worker as processes: what queries ask for takes the place of what is idle.

Three emulated models of 40 MB in a group of 100 MB: two fit. In another group of 64 MB one does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_system import command, running, write_configuration, write_specification

from modelless import Client, register
from modelless.config import Config, load_config
from modelless.embedded import EmbeddedKafka
from modelless.overview import Observer, Overview, observing
from modelless.topic_settings import create_missing

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def file(kafka: EmbeddedKafka, tmp_path: Path) -> Path:
    return write_configuration(tmp_path, kafka.bootstrap_servers, "memory_mb_max = 100")


async def until_loaded(observer: Observer, *names: str) -> Overview:
    """Until these models, and no others, are active."""
    for _ in range(600):
        overview = await observer.look()
        states = {view.profile.variant: view.state for view in overview.variants}
        there = ("active", "overloaded", "interfered")  # the last is what a busy machine does
        if {v.partition(":")[0] for v, state in states.items() if state in there} == set(names):
            return overview
        await asyncio.sleep(0.1)
    raise AssertionError(f"{states} {overview.warnings}")


async def ask(config: Config, name: str) -> str:
    kafka = config.kafka
    async with Client(kafka.servers, topic_prefix=kafka.topic_prefix) as client:
        result = await client.infer({"x": np.zeros((1, 2), np.float32)}, model=name, latency_ms_max=60_000)
    return str(result.variant)


async def test_what_is_asked_for_takes_the_place_of_what_is_idle(file: Path) -> None:
    config = load_config(file)
    await create_missing(config)
    async with running(file, "worker", "--group", "emulated"):
        async with running(file, "broker", "--name", "broker-0"):
            for name in ("a", "b"):
                await register(config, write_specification(file.parent, name, name), timeout_s=60)
            await register(config, write_specification(file.parent, "c", "c"), wait=False)
            async with observing(config) as observer:
                before = await until_loaded(observer, "a", "b")
                assert await ask(config, "c") == "c:1/emulated", "it waits until the plan has made room"
                await asyncio.sleep(2.5)  # conditions are written about once a second
                after = await observer.look()
        reasons = [view.why_not for view in before.variants if view.profile.variant == "c:1/emulated"]
        assert reasons == [None] or "does not fit on emulated: it needs 40 MiB" in str(reasons)
        assert sorted(view.state for view in after.variants) == ["active", "active", "inactive"]
        (c,) = [view for view in after.variants if view.profile.variant == "c:1/emulated"]
        assert c.p50_ms is not None, "the leader writes how it lives"
        assert c.p50_ms == pytest.approx(c.profile.batches[0].p50_ms, rel=1.0)


async def told(file: Path, *arguments: str) -> dict[str, Any]:
    asked = command(file, *arguments, "--json")
    done = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@asynccontextmanager
async def asking(client: Client, every_s: float) -> AsyncIterator[Counter[str]]:
    """A query every so often meanwhile; who answered, by model, or the error."""
    answers: Counter[str] = Counter()
    pending: set[asyncio.Future[Any]] = set()

    def answered(future: asyncio.Future[Any]) -> None:
        pending.discard(future)
        error = future.exception()
        answers[type(error).__name__ if error is not None else str(future.result().variant).partition(":")[0]] += 1

    async def ask_on() -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            future = client.submit({"x": np.zeros((1, 2), np.float32)}, task="t", latency_ms_max=400, on_miss="degrade")
            pending.add(future)
            future.add_done_callback(answered)
            next_s += every_s
            await asyncio.sleep(max(0.0, next_s - loop.time()))

    task = asyncio.create_task(ask_on())
    try:
        yield answers
    finally:
        task.cancel()
        await asyncio.wait([task, *pending])


async def until(condition: Callable[[], bool], what: Counter[str]) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(str(what))


async def test_the_plan_follows_the_demand_of_queries_that_may_be_degraded(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    """One of them fits. ``good`` does 20 rows a second, ``quick`` some hundreds."""
    file = write_configuration(tmp_path, kafka.bootstrap_servers, "memory_mb_max = 64")
    config = load_config(file)
    await create_missing(config)
    async with AsyncExitStack() as stack:
        for arguments in (("worker", "--group", "emulated"), ("broker", "--name", "broker-0")):
            await stack.enter_async_context(running(file, *arguments))
        for name, ms, accuracy in (("good", 50.0, 0.9), ("quick", 2.0, 0.8)):
            specification = write_specification(tmp_path, name, "t", ms, accuracy, rows=1)
            await register(config, specification, wait=False)
        observer = await stack.enter_async_context(observing(config))
        client = await stack.enter_async_context(Client.from_config(config))
        async with asking(client, 0.25) as calm:
            await until_loaded(observer, "good")
            calm.clear()
            await until(lambda: calm["good"] >= 8, calm)
        async with asking(client, 0.01) as rush:
            await until(lambda: rush["quick"] >= 300, rush)
            overview = await until_loaded(observer, "quick")
            said = await told(file, "explain", "--task", "t", "--latency-ms", "400", "--on-miss", "degrade")
            status = await told(file, "status")
    (broker,) = [member for member in overview.members if member.kind == "broker"]
    asked, *_ = broker.demand  # others are of when only one of the two was measured: the floor is the best's
    assert (asked.task, asked.latency_ms, asked.prefer, asked.degrades) == ("t", 400.0, "cost", True)
    assert asked.accuracy_min == pytest.approx(0.88)
    assert 20 < asked.rows_per_second < 150
    assert {each["variant"] for each in said["candidates"] if each["chosen"]} == {"quick:1/emulated"}, said
    states = {variant["variant"]: variant["state"] for variant in status["variants"]}
    assert states["good:1/emulated"] == "inactive", states
    assert states["quick:1/emulated"] != "inactive", states
