"""Registering on real Kafka. The fleet is a small one that measures and loads as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelless import register, store
from modelless.catalog import CatalogView, digest_of
from modelless.clock import KafkaClock
from modelless.codec import decode_record, encode_record
from modelless.config import Config
from modelless.errors import ConfigurationError, DeadlineExceededError, DecodeError, UnavailableError
from modelless.fleet import Announcer
from modelless.kafka import make_admin, make_producer
from modelless.messages import BatchTime, Member, ModelVersion, Profile
from modelless.registration import GroupProgress, Registered
from modelless.tables import Follower
from modelless.topics import Topics

pytestmark = pytest.mark.kafka


def specification(folder: Path, name: str = "lenet", accuracy: float = 0.9) -> Path:
    (folder / "model.onnx").write_bytes(bytes([0x08, 8, 0x3A, 3]) + name.encode()[:3])
    path = folder / "model.toml"
    path.write_text(
        f'name = "{name}"\ntask = "digits"\nartifact = "model.onnx"\n'
        '[inputs.pixels]\ndatatype = "FP32"\nshape = [-1, 64]\n[outputs.logits]\ndatatype = "FP32"\nshape = [-1, 10]\n'
        f"[evaluation]\naccuracy = {accuracy}\n"
    )
    return path


class Worker:
    """Measures every model that it sees: ``failure`` is why it cannot, or it loads what it measured."""

    def __init__(self, config: Config, group: str, failure: str | None = None, loads: bool = True) -> None:
        self.config = config
        self.group = group
        self.failure = failure
        self.loads = loads
        self.loaded: tuple[str, ...] = ()

    def member(self) -> Member:
        return Member("worker", f"{self.group}-0", "1", "ready", group=self.group, variants=self.loaded)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        topics = Topics(self.config.kafka.topic_prefix)
        seen: asyncio.Queue[ModelVersion] = asyncio.Queue()

        def on_record(record: Any) -> None:
            try:
                seen.put_nowait(decode_record(ModelVersion, record.value))
            except DecodeError:
                return

        announcer = Announcer(self.config, KafkaClock(), self.member)
        follower = Follower(self.config, [topics.registry], on_record)
        async with make_producer(self.config) as producer:
            await asyncio.gather(announcer.start(), follower.start())

            async def work() -> None:
                while True:
                    model = await seen.get()
                    variant = f"{model.key}/onnx-fp32"
                    profile = Profile(
                        variant,
                        self.group,
                        "failed" if self.failure else "ready",
                        model.digest,
                        reason=self.failure,
                        accuracy=0.9,
                        batches=(BatchTime(1, 1.0, 1.2),),
                    )
                    await producer.send_and_wait(topics.profiles, encode_record(profile), key=profile.key.encode())
                    if self.loads and not self.failure:
                        self.loaded = (*self.loaded, variant)
                        announcer.announce()

            task = asyncio.create_task(work())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.gather(announcer.stop(), follower.stop())


@asynccontextmanager
async def fleet(config: Config, *workers: Worker) -> AsyncIterator[None]:
    broker = Announcer(config, KafkaClock(), lambda: Member("broker", "broker-0", "1", "ready"))
    async with AsyncExitStack() as stack:
        await broker.start()
        stack.push_async_callback(broker.stop)
        for worker in workers:
            await stack.enter_async_context(worker.running())
        yield


async def test_returns_when_every_group_serves_it(config: Config, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def on_progress(model: ModelVersion, groups: Sequence[GroupProgress]) -> None:
        seen.append([f"{group.group} {group.state}" for group in groups])

    async with fleet(config, Worker(config, "cpu"), Worker(config, "gpu")):
        registered = await register(config, specification(tmp_path), timeout_s=20, on_progress=on_progress)

    assert registered.created
    assert registered.is_served
    assert registered.model.key == "lenet:1"
    assert registered.model.digest == digest_of(registered.model)
    assert seen[-1] == ["cpu ready", "gpu ready"]
    artifact = store.fetch(config, registered.model.artifact_url, registered.model.artifact_sha256)
    assert artifact.read_bytes() == (tmp_path / "model.onnx").read_bytes()
    admin = make_admin(config)
    await admin.start()
    assert Topics(config.kafka.topic_prefix).task_queries("digits") in await admin.list_topics()
    await admin.close()


async def test_failed_groups_say_why(config: Config, tmp_path: Path) -> None:
    async with fleet(config, Worker(config, "cpu", failure="needs 3 GB"), Worker(config, "gpu")):
        partly = await register(config, specification(tmp_path), timeout_s=20)
    assert partly.is_served
    assert [(group.group, group.state, group.reason) for group in partly.groups] == [
        ("cpu", "failed", "needs 3 GB"),
        ("gpu", "ready", None),
    ]


async def test_versions_and_digests(config: Config, tmp_path: Path) -> None:
    async def write(name: str, accuracy: float) -> tuple[str, bool]:
        registered = await register(config, specification(tmp_path, name, accuracy), wait=False)
        return registered.model.key, registered.created

    assert await write("lenet", 0.9) == ("lenet:1", True)
    assert await write("lenet", 0.9) == ("lenet:1", False)
    assert await write("lenet", 0.8) == ("lenet:2", True)
    assert await write("other", 0.8) == ("other:1", True)
    assert await write("lenet", 0.9) == ("lenet:1", False)


async def test_two_operators_at_once_get_two_versions(config: Config, tmp_path: Path) -> None:
    async def write(n: int) -> Registered:
        folder = tmp_path / str(n)
        folder.mkdir()
        return await register(config, specification(folder, accuracy=n / 10), wait=False)

    registered = await asyncio.gather(*(write(n) for n in range(3)))

    assert sorted(one.model.key for one in registered) == ["lenet:1", "lenet:2", "lenet:3"]
    view = CatalogView(config)
    await view.start()
    await view.stop()
    assert {m.key: m.digest for m in view.catalog.models()} == {o.model.key: o.model.digest for o in registered}


async def test_nobody_is_there(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelless.registration.NOBODY_S", 0.5)
    with pytest.raises(UnavailableError, match=r"lenet:1 is registered, but no worker is alive.*modelless up"):
        await register(config, specification(tmp_path))
    worker = Worker(config, "cpu")
    async with worker.running():
        with pytest.raises(UnavailableError, match="no broker is alive"):
            await register(config, specification(tmp_path))


async def test_says_how_far_it_is_when_time_is_over(config: Config, tmp_path: Path) -> None:
    async with fleet(config, Worker(config, "cpu", loads=False)):
        with pytest.raises(DeadlineExceededError, match="group cpu is loading"):
            await register(config, specification(tmp_path), timeout_s=2)


async def test_a_wrong_specification_writes_nothing(config: Config, tmp_path: Path) -> None:
    path = specification(tmp_path)
    path.write_text(path.read_text().replace("[-1, 64]", "[1, 64]"))
    with pytest.raises(ConfigurationError, match=r"inputs\.pixels\.shape"):
        await register(config, path)
    assert not (tmp_path / "store").exists()


async def test_records_that_cannot_be_right_are_refused(config: Config, tmp_path: Path) -> None:
    good = (await register(config, specification(tmp_path), wait=False)).model
    topics = Topics(config.kafka.topic_prefix)
    async with make_producer(config) as producer:
        for key, value in (
            (f"model/{good.key}", b"\xc1"),
            (f"model/{good.key}", encode_record(ModelVersion(**(fields(good) | {"artifact_sha256": "0" * 64})))),
            ("model/other:1", encode_record(good)),
            ("route/x", b"not ours to read"),
        ):
            await producer.send_and_wait(topics.registry, value, key=key.encode())
    view = CatalogView(config)
    await view.start()
    await view.stop()
    assert view.catalog.models() == [good]


def fields(model: ModelVersion) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ModelVersion.__dataclass_fields__}
