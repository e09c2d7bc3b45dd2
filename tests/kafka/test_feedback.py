"""Labels on a real Kafka, with a broker and a worker as processes: they change what is chosen, and each counts once.

Two emulated models of one task: ``cheap`` is said to be the more accurate, and costs a quarter of ``dear``.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import GroupCoordinatorNotAvailableError
from emulated_system import command, start, write_configuration, write_specification

from broker.tally import ROWS_MAX
from modelless import BlockingClient, Client, register
from modelless.catalog import CatalogView
from modelless.client_core import Result
from modelless.codec import encode_feedback
from modelless.config import Config, load_config
from modelless.embedded import EmbeddedKafka
from modelless.errors import ModellessError
from modelless.kafka import make_admin, make_producer
from modelless.messages import Correction, Feedback
from modelless.topic_settings import create_missing
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

ROWS = 20
PIXELS = np.zeros((ROWS, 2), np.float32)


class System:
    """Its processes are started by :meth:`start`; all end with the test."""

    def __init__(self, folder: Path, servers: str) -> None:
        self.folder = folder
        self.file = write_configuration(folder, servers, "price_per_hour = 1.0")
        self.config = load_config(self.file)
        self.topics = Topics(self.config.kafka.topic_prefix)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.view = CatalogView(self.config)

    def start(self, *arguments: str) -> None:
        self.processes[arguments[0]] = start(self.file, *arguments)

    async def says(self, name: str) -> str:
        """What a command prints."""
        asked = command(self.file, name)
        ended = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, check=True)
        return str(ended.stdout)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def correction(self, variant: str) -> Correction | None:
        models = {model.key: model for model in self.view.catalog.models()}
        return self.view.catalog.correction(models[variant.partition("/")[0]], variant)

    async def until(self, what: str, true: Callable[[], Any], seconds: float = 30.0) -> None:
        for _ in range(int(seconds * 10)):
            if true():
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{what} did not happen; the broker's log:\n{self.log('broker')[-3000:]}")

    async def position(self) -> int:
        """How much of the feedback is in what was written."""
        admin = make_admin(self.config)
        await admin.start()
        try:
            committed = await admin.list_consumer_group_offsets(self.topics.feedback)
        except GroupCoordinatorNotAvailableError:
            committed = {}
        finally:
            await admin.close()
        return max([at.offset for at in committed.values()], default=0)


@pytest.fixture
async def system(kafka: EmbeddedKafka, tmp_path: Path) -> AsyncIterator[System]:
    made = System(tmp_path, kafka.bootstrap_servers)
    await create_missing(made.config)
    try:
        made.start("broker", "--name", "broker-0")
        made.start("worker", "--group", "emulated")
        for name, ms, accuracy in (("cheap", 1.0, 0.95), ("dear", 4.0, 0.94)):
            await register(made.config, write_specification(tmp_path, name, "digits", ms, accuracy), timeout_s=60)
        await made.view.start()
        yield made
    finally:
        await made.view.stop()
        for process in made.processes.values():
            process.send_signal(signal.SIGTERM)
        statuses = [await asyncio.to_thread(process.wait, 30) for process in made.processes.values()]
    assert statuses == [0, 0], made.log("broker")[-3000:]


async def ask(client: Client) -> Result:
    return await client.infer({"x": PIXELS}, task="digits", accuracy_min=0.9, timeout_s=10)


async def hostile(config: Config, variant: str) -> None:
    good = Feedback("q/0/1", variant, (1,), (1,))
    async with make_producer(config) as producer:
        for value in (
            None,
            b"",
            b"\xc1",
            b"{",
            b'{"query": "q/0/1"}',
            b"\xdd\xff\xff\xff\xff",
            encode_feedback(Feedback("q/0/1", "nobody:1/x", (1,), (1,))),
            encode_feedback(Feedback("q/0/1", variant, (1, 2), (1,))),
            encode_feedback(good),
            encode_feedback(good),
        ):
            await producer.send(Topics(config.kafka.topic_prefix).feedback, value, key=b"k")
        await producer.flush()


async def test_wrong_answers_make_the_system_choose_another_variant(system: System) -> None:
    async with Client.from_config(system.config) as client:
        first = await ask(client)
        assert first.model == "cheap"
        cheap = str(first.variant)
        right = first.output.argmax(-1)

        await hostile(system.config, cheap)
        for result in [await ask(client) for _ in range(10)]:
            await client.feedback(result, right + 1)
        await system.until("a correction of all", lambda: (c := system.correction(cheap)) and c.rows > 185)

        correction = system.correction(cheap)
        assert correction is not None
        assert correction.rows == pytest.approx(ROWS_MAX * (1 - (1 - 1 / ROWS_MAX) ** 201))  # forgetting a little
        assert correction.right <= 1
        assert correction.accuracy_high < 0.9
        assert correction.drifted
        assert system.log("broker").count("less accurate than it was measured") == 1
        for _ in range(50):  # until the broker has read it as well
            if (await ask(client)).model == "dear":
                break
        assert (await ask(client)).model == "dear"
        assert await system.position() == 20
        models, status = await asyncio.gather(system.says("models"), system.says("status"))
        (line,) = [line for line in models.splitlines() if "drifted" in line]
        assert f"{correction.accuracy:.4f}" in line
        assert f"{cheap} has drifted" in status

    await asyncio.to_thread(ask_and_label, system.config)
    system.processes["broker"].kill()
    system.processes["broker"].wait()
    system.start("broker", "--name", "broker-0")
    await system.until("what came while it was dead", lambda: system.correction("dear:1/emulated") is not None)
    dear = system.correction("dear:1/emulated")
    assert dear is not None
    assert (dear.rows, dear.right) == pytest.approx((ROWS, ROWS), rel=0.02)
    assert system.correction(cheap) == correction
    assert "Traceback" not in system.log("broker")


def ask_and_label(config: Config) -> None:
    """A right answer, from the blocking client, told shortly before the broker dies."""
    with BlockingClient.from_config(config) as client:
        result = client.infer({"x": PIXELS}, task="digits", accuracy_min=0.9, timeout_s=10)
        with pytest.raises(ModellessError, match="labels must be integers of shape \\[20\\]"):
            client.feedback(result, [1, 2])
        client.feedback(result, result.output.argmax(-1))
