"""The plan on a real Kafka, broker and worker as processes: what queries ask for takes the place of what is idle.

Three emulated models of 40 MB in a group of 100 MB: two fit.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from emulated_system import running, write_configuration, write_specification

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
        if {v.partition(":")[0] for v, state in states.items() if state == "active"} == set(names):
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
