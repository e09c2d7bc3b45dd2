"""`modelless up` scales: as the plan says, whoever dies or cannot be started, and nobody is left without an answer.

The plans are the test's own, with epochs beyond those of any leader.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_system import command, running, write_configuration, write_specification
from provisioned import author, log, processes

from modelless import Client, register
from modelless.config import load_config
from modelless.embedded import EmbeddedKafka
from modelless.topic_settings import create_missing

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def file(kafka: EmbeddedKafka, tmp_path: Path) -> Path:
    return write_configuration(tmp_path, kafka.bootstrap_servers, "workers_min = 1\nworkers_max = 3\n")


def copy(file: Path, to: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    to.write_text(file.read_text().replace(old, new))


def more(file: Path, lines: str) -> None:
    file.write_text(file.read_text() + lines)


async def status(file: Path) -> dict[str, Any]:
    asked = command(file, "status", "--json")
    done = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


async def test_there_are_as_many_as_the_plan_says_and_the_dead_are_replaced(file: Path) -> None:
    more(file, "[broker]\nbrokers = 0\n")  # so that no leader plans besides
    config = load_config(file)
    await create_missing(config)
    async with author(config) as boss:
        async with running(file, "up"):
            await boss.until(lambda: boss.ready() == ["emulated-0"])
            await boss.plan(3)
            await boss.until(lambda: boss.ready() == ["emulated-0", "emulated-1", "emulated-2"])
            starts_ms = [worker.statistics["start_ms"] for worker in boss.fleet.workers()]
            assert all(10 < ms < 60_000 for ms in starts_ms), starts_ms

            before = processes(file)["emulated-1"]
            before.kill()
            await boss.until(lambda: processes(file).get("emulated-1", before).pid != before.pid, 10)
            await boss.until(lambda: not boss.provisioner().errors)
            said = await status(file)
            assert said["groups"]["emulated"] == {
                "wanted": 3, "ready": 3, "starting": 0, "draining": 0, "reason": "as the test says",
            }  # fmt: skip

            await boss.plan(1, "emulated-0", "emulated-2")
            await boss.until(lambda: boss.ready() == ["emulated-1"])
            await boss.until(lambda: processes(file).keys() == {"emulated-1"}, 10)
            await boss.until(lambda: boss.provisioner().statistics["running"] == 1)
        assert not processes(file), "they end with `modelless up`"
        assert '"killed": true' not in log(file, "up")


async def test_who_cannot_work_is_reported_with_the_reason_and_tried_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics' address is one that no worker can listen at: it fails when it starts."""
    config = load_config(file)
    await create_missing(config)
    monkeypatch.setenv("MODELLESS_METRICS__HOST", "192.0.2.1")
    monkeypatch.setenv("MODELLESS_METRICS__PORT", "9464")
    async with author(config) as boss, running(file, "provisioner"):
        await boss.until(lambda: bool(boss.fleet.members()) and bool(boss.provisioner().errors))
        assert "emulated-0 died: exit status 1: " in boss.provisioner().errors["emulated"]
        said = await status(file)
        (warning,) = [each for each in said["warnings"] if "emulated-0 died" in each]
        assert "192.0.2.1" in warning
        assert log(file, "provisioner").count("starting a worker") >= 2


async def test_a_scale_down_under_load_leaves_no_query_unanswered(file: Path) -> None:
    """The broker takes the group for one of a fixed number, so that its leader leaves that to us."""
    fixed = file.with_name("fixed.toml")
    copy(file, fixed, "workers_min = 1\nworkers_max = 3\n", "workers = 3\n")
    config = load_config(file)
    await create_missing(config)
    async with (
        author(config) as boss,
        running(file, "provisioner"),
        running(fixed, "broker", "--name", "broker-0"),
        Client.from_config(config) as client,
    ):
        await boss.plan(3)
        await register(config, write_specification(file.parent, "m", "t", 20.0, rows=4), timeout_s=60)
        await boss.until(lambda: sum(bool(worker.variants) for worker in boss.fleet.workers()) == 3)
        asked: list[asyncio.Future[Any]] = []

        async def ask(seconds: float) -> None:
            for _ in range(int(seconds / 0.01)):
                asked.append(client.submit({"x": np.zeros((1, 2), np.float32)}, task="t", latency_ms_max=20_000))
                await asyncio.sleep(0.01)

        load = asyncio.create_task(ask(6.0))
        await asyncio.sleep(2)
        await boss.plan(1, "emulated-0", "emulated-1")
        await boss.until(lambda: processes(file).keys() == {"emulated-2"})
        await load
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert len(answers) == 600
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert '"killed": true' not in log(file, "provisioner")
