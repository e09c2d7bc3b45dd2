"""One real Kafka for the whole session of a process, and a configuration of its own for every test."""

from __future__ import annotations

import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from modelless import registration
from modelless.config import Config, load_config
from modelless.embedded import EmbeddedKafka
from modelless.kafka import make_admin
from modelless.topic_settings import create_missing

hypothesis.settings.register_profile("shared", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("shared")
registration.NOBODY_S = 60.0  # likewise: brokers and workers take their time to start on one


ON_KAFKA = ("kafka", "faults")
"""Folders of what runs on a Kafka node of the session, in the order in which it does."""
WAITING = ("test_leader.py", "test_planning.py", "test_usage.py", "test_embedded.py", "test_restarts.py")
"""Files of theirs that wait more than they compute, or start nodes of their own: last of all, beside what is near a
deadline, they go to whoever is free."""


def pytest_sessionstart() -> None:
    """Refuse to test compiled modules that are not what their source says."""
    root = Path(__file__).parent.parent
    for library in (root / "modelless").glob("compiled__mypyc*.so"):  # the others only point to it
        for folder in ("broker", "modelless", "simulator", "workers"):
            for module in (root / folder).glob("*.so"):
                source = module.with_name(module.name.partition(".")[0] + ".py")
                if source.exists() and source.stat().st_mtime > library.stat().st_mtime:
                    pytest.exit(f"{source} is newer than what was compiled of it: run `make compile`, or `make source`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rest, last = len(ON_KAFKA), len(ON_KAFKA) + 1

    def place(path: Path) -> int:
        if path.parent.name not in ON_KAFKA:
            return rest
        return last + WAITING.index(path.name) if path.name in WAITING else ON_KAFKA.index(path.parent.name)

    items.sort(key=lambda item: place(item.path))


class _KafkaInOneProcess(LoadFileScheduling):
    """One of the processes has what puts load on Kafka, from the beginning; the files of the rest go to the others.

    So no two loads are beside each other, and while they wait somebody computes. Another process has a node of its own
    if it comes to tests of those that wait.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(super()._split_scope(nodeid))
        if path.parent.name not in ON_KAFKA:
            return str(path)
        return nodeid if path.name in WAITING else "kafka"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _KafkaInOneProcess:
    config.option.loadscopereorder = False
    return _KafkaInOneProcess(config, log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def free_port() -> int:
    return _free_port()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[[str], Config]:
    """Makes a configuration for a Kafka address: its own topic prefix, two partitions a topic, its own folders."""

    def make(bootstrap_servers: str) -> Config:
        return load_config(
            kafka={
                "bootstrap_servers": bootstrap_servers,
                "topic_prefix": f"t{uuid.uuid4().hex[:10]}",
                "partitions": 2,
            },
            store={"url": str(tmp_path / "store"), "cache": tmp_path / "cache"},
            metrics={"port": 0},
            state=tmp_path / "state",
        )

    return make


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka(_free_port(), tmp_path_factory.mktemp("kafka")) as node:
        yield node


@pytest.fixture
async def config(kafka: EmbeddedKafka, make_config: Callable[[str], Config]) -> AsyncIterator[Config]:
    """Its topics exist, and go when the test is over."""
    config = make_config(kafka.bootstrap_servers)
    await create_missing(config)
    yield config
    await delete_topics(config)


async def delete_topics(config: Config) -> None:
    """All topics of the configuration's prefix."""
    admin = make_admin(config)
    await admin.start()
    try:
        ours = [name for name in await admin.list_topics() if name.startswith(f"{config.kafka.topic_prefix}.")]
        await admin.delete_topics(ours)
    finally:
        await admin.close()
