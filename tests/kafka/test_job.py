"""`modelless job` on a real Kafka, with a broker and an emulated worker as processes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import TopicPartition
from emulated_system import command, running, write_configuration, write_specification

from modelless import register
from modelless.config import load_config
from modelless.embedded import EmbeddedKafka
from modelless.kafka import make_consumer
from modelless.topic_settings import create_missing
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
ROWS = 6_000
AS_TYPED = ("env", "--default-signal=INT")
"""What a shell starts in the background, these tests perhaps, ignores Ctrl-C, and so do its children."""


async def run(file: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    asked = command(file, "job", "run", "--json", *arguments)
    done = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def interrupted(command: list[str], journal: Path) -> tuple[int, str]:
    """Its exit status and what it says when it is interrupted after some answers."""
    process = subprocess.Popen([*AS_TYPED, *command], stderr=subprocess.PIPE, text=True)
    end_s = time.monotonic() + 60
    while not journal.exists() or journal.stat().st_size < 20_000:
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


async def queries_asked(file: Path) -> int:
    """That are in the offline topic by now."""
    config = load_config(file)
    consumer = make_consumer(config)
    await consumer.start()
    try:
        partition = TopicPartition(Topics(config.kafka.topic_prefix).offline, 0)
        return int((await consumer.end_offsets([partition]))[partition])
    finally:
        await consumer.stop()


async def test_a_job_that_was_interrupted_goes_on_and_answers_every_row(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, kafka.bootstrap_servers, "price_per_hour = 1.0")
    await create_missing(load_config(file))
    data, out, journal = tmp_path / "data.npz", tmp_path / "out.npz", tmp_path / "out.npz.journal"
    np.savez(data, x=np.zeros((ROWS, 2), np.float32), labels=np.zeros(ROWS, np.int64))
    of = ("--task", "t", "--data", str(data), "--out", str(out), "--rows-per-query", "2")
    async with running(file, "broker"), running(file, "worker", "--group", "emulated"):
        await register(load_config(file), write_specification(tmp_path, "m", "t", ms=4.0, rows=8), timeout_s=60)
        returned, said = await asyncio.to_thread(interrupted, command(file, "job", "run", *of), journal)
        assert returned == 130, said
        assert "the same command goes on from there" in said
        assert not out.exists()
        asked_before = await queries_asked(file)
        status, found = await run(file, *of)
        assert (status, found["rows"], found["answered"], found["failed"]) == (0, ROWS, ROWS, 0)
        assert 0 < found["answered_before"] < ROWS
        assert await queries_asked(file) - asked_before == (ROWS - found["answered_before"]) // 2
        assert found["cost_usd"] > 0
        assert found["accuracy"] is not None
        with np.load(out) as arrays:
            assert arrays["logits"].shape == (ROWS, 10)
        assert not journal.exists()
