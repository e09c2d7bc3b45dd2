"""Kafka is killed and comes back on its data, under a running system and under a client: everybody gets an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from responder import Responder
from under import Under

from benchmarks.system import running_system, stop
from modelless import Client
from modelless.config import Config
from modelless.embedded import EmbeddedKafka
from modelless.topic_settings import create_missing, ensure_task_topic

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_system_survives_it() -> None:
    """`up` runs the embedded Kafka here; it restarts what died."""
    with running_system(workers=1) as own:
        with Under(own) as under:
            (java,) = [
                child for child in psutil.Process(own.up.pid).children(recursive=True) if "java" in child.name().lower()
            ]
            java.kill()
        assert under.verdict.missing == []
        assert under.verdict.ok_share >= 0.98
        assert stop(own.up) == 0


async def test_a_client_survives_it(free_port: int, make_config: Callable[[str], Config], tmp_path: Path) -> None:
    """Queries are sent before, while and after Kafka is killed; each gets its answer."""
    node = EmbeddedKafka(free_port, tmp_path / "kafka")
    await asyncio.to_thread(node.start)
    try:
        config = make_config(node.bootstrap_servers)
        await create_missing(config)
        await ensure_task_topic(config, "digits")
        async with Responder(config), Client.from_config(config) as client:
            futures = [client.submit({"x": np.array([0], np.int64)}, model="echo", timeout_s=60)]
            await futures[0]
            restart = asyncio.create_task(asyncio.to_thread(lambda: (node.kill(), node.start())))
            while not restart.done():
                futures.append(client.submit({"x": np.array([len(futures)], np.int64)}, model="echo", timeout_s=60))
                await asyncio.sleep(0.05)
            await restart
            results = await asyncio.gather(*futures)
            assert [int(result.output[0]) for result in results] == list(range(len(futures)))
            assert len(futures) > 20
    finally:
        await asyncio.to_thread(node.kill)
