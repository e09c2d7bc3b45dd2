"""The embedded Kafka as a process: its data, its parent, its errors; and what follows it through a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelless.clock import KafkaClock
from modelless.config import Config
from modelless.embedded import EmbeddedKafka, answers
from modelless.errors import ConfigurationError, UnavailableError
from modelless.fleet import Announcer, FleetView
from modelless.kafka import make_consumer, make_producer
from modelless.messages import Member
from modelless.tables import Follower
from modelless.topic_settings import create_missing
from modelless.topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

COMMAND = [
    sys.executable,
    "-c",
    "from modelless.commands.kafka import register as r; import typer; a = typer.Typer(); r(a); a()",
]


def run_command(port: int, data: Path) -> subprocess.Popen[str]:
    """``modelless kafka``, up to its line that says it is ready."""
    command = [*COMMAND, "--port", str(port), "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"Kafka is ready at 127.0.0.1:{port}\n"
    return process


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def ended(pid: int, timeout_s: float = 10) -> bool:
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


async def produce(config: Config, topic: str, value: bytes) -> None:
    async with make_producer(config) as producer:
        await producer.send_and_wait(topic, value, key=b"key")


async def first_value(config: Config, topic: str) -> bytes | None:
    async with make_consumer(config, topic) as consumer:
        value: bytes | None = (await consumer.getone()).value
    return value


async def test_follower_and_fleet_live_through_a_crash_of_kafka(
    free_port: int, tmp_path: Path, make_config: Callable[[str], Config]
) -> None:
    config = make_config(f"127.0.0.1:{free_port}")
    registry = Topics(config.kafka.topic_prefix).registry
    member = Member("broker", "broker-0", "incarnation", "ready")
    clock = KafkaClock()
    seen: asyncio.Queue[bytes | None] = asyncio.Queue()
    deaths: list[int] = []
    with EmbeddedKafka(free_port, tmp_path / "data") as node:
        await create_missing(config)
        follower = Follower(config, [registry], lambda record: seen.put_nowait(record.value))
        announcer = Announcer(config, clock, lambda: member)
        view = FleetView(config, clock, lambda: deaths.append(len(view.members())) if not view.members() else None)
        for part in (follower, announcer, view):
            await part.start()
        await produce(config, registry, b"before")
        assert await asyncio.wait_for(seen.get(), 10) == b"before"

        node.kill()
        await asyncio.sleep(7)
        assert view.brokers() == (member,), "an outage of Kafka is nobody's death"
        await asyncio.to_thread(node.start)

        await produce(config, registry, b"after")
        assert await asyncio.wait_for(seen.get(), 30) == b"after"
        assert seen.empty()
        announcer.announce()
        await asyncio.sleep(3)
        assert (view.brokers(), deaths) == ((member,), [])

        node.kill()
        async with asyncio.timeout(15):  # nothing hangs while Kafka is down
            await asyncio.gather(*(part.stop() for part in (view, announcer, follower)))


def test_the_command_keeps_its_data_and_takes_java_along(
    free_port: int, tmp_path: Path, make_config: Callable[[str], Config]
) -> None:
    queries = Topics().queries
    config = make_config(f"127.0.0.1:{free_port}")
    process = run_command(free_port, tmp_path / "data")
    [java] = children(process.pid)
    asyncio.run(produce(config, queries, b"kept"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert ended(java), "Java outlived the process that started it"

    process = run_command(free_port, tmp_path / "data")
    [java] = children(process.pid)
    assert asyncio.run(first_value(config, queries)) == b"kept"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert ended(java)
    assert not answers(free_port)


def test_the_node_outlives_the_thread_that_started_it(free_port: int, tmp_path: Path) -> None:
    node = EmbeddedKafka(free_port, tmp_path)

    async def start() -> None:
        await asyncio.to_thread(node.start)

    asyncio.run(start())  # ends the thread
    assert not node.wait(1.0)
    assert answers(free_port)
    node.stop()
    assert node.pid is None


def test_a_taken_port_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"kafka\.embedded_port: {port}.*kafka\.bootstrap_servers"):
            EmbeddedKafka(port, tmp_path).start()


def test_an_unusable_folder_is_refused_by_name(free_port: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match=r"kafka\.embedded_data.*file"):
        EmbeddedKafka(free_port, file).start()


def test_a_java_that_ends_is_an_error_with_its_log(free_port: int, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "meta.properties").write_text("version=1\ncluster.id=a\nnode.id=7\n")
    node = EmbeddedKafka(free_port, tmp_path)
    with pytest.raises(UnavailableError, match=r"(?s)ended while starting.*node id"):
        node.start()
    assert node.pid is None


def test_jars_that_cannot_be_fetched_are_an_error_with_what_to_do(free_port: int, tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        nowhere[name] = "http://127.0.0.1:1"
    done = subprocess.run(
        [*COMMAND, "--port", str(free_port), "--data", str(tmp_path / "data")],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Kafka's jars cannot be fetched" in done.stderr
    assert "kafka.bootstrap_servers" in done.stderr
