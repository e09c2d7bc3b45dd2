"""What tests of provisioners share: plans with targets, and who is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.system import command_of
from modelless.clock import KafkaClock
from modelless.codec import encode_record
from modelless.config import Config
from modelless.fleet import FleetView
from modelless.kafka import make_producer, stop_within
from modelless.messages import GroupTarget, Member, Plan
from modelless.topics import Topics

EPOCH = 1_000_000


class Author:
    """Writes plans, and sees who is there."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._epoch = EPOCH
        self.fleet = FleetView(config, KafkaClock())

    async def plan(self, workers: int, *leaving: str) -> None:
        self._epoch += 1000
        plan = Plan(self._epoch, "test", 0.0, {}, (), {"emulated": GroupTarget(workers, leaving, "as the test says")})
        producer = make_producer(self._config)
        await producer.start()
        try:
            await producer.send_and_wait(Topics(self._config.kafka.topic_prefix).plan, encode_record(plan), key=b"plan")
        finally:
            await stop_within(producer)

    def ready(self) -> list[str]:
        return [worker.name for worker in self.fleet.workers() if worker.state == "ready"]

    def provisioner(self) -> Member:
        (found,) = [member for member in self.fleet.members() if member.kind == "provisioner"]
        return found

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():  # noqa: ASYNC110  (statistics change without a word)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{self.fleet.members()}") from None


@asynccontextmanager
async def author(config: Config) -> AsyncIterator[Author]:
    found = Author(config)
    await found.fleet.start()
    try:
        yield found
    finally:
        await found.fleet.stop()


def processes(file: Path) -> dict[str, psutil.Process]:
    """Workers of this configuration, or of a copy that a node got, by name."""
    found, text = {}, file.read_text()
    for process in psutil.process_iter():
        try:
            line = command_of(process)
            if "worker" in line and process.status() != psutil.STATUS_ZOMBIE:
                config = line[line.index("--config") + 1].replace("/dev/fd/", f"/proc/{process.pid}/fd/")
                if config == str(file) or (config.startswith("/proc/") and Path(config).read_text() == text):
                    found[line[line.index("--name") + 1]] = process
        except (psutil.Error, OSError, ValueError):
            continue
    return found


def log(file: Path, name: str) -> str:
    return (file.parent / f"{name}.log").read_text()
