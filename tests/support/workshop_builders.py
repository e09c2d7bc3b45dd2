"""A workshop with real executors, a real store and a real catalog; what it would write to Kafka is in the catalog."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker_builders import ENV, X, Y, write_onnx

from modelless import store
from modelless.catalog import Catalog, digest_of
from modelless.clock import KafkaClock
from modelless.codec import decode_record, encode_record
from modelless.config import Config
from modelless.messages import Assignment, Evaluation, ModelVersion, Plan, Profile
from modelless.topics import Topics
from workers.apart import Apart
from workers.builds import Builds
from workers.executor import ChildExecutor
from workers.measure import Bench
from workers.metrics import WorkerMetrics
from workers.orders import Orders
from workers.workshop import Workshop


def model_of(config: Config, folder: Path, name: str = "m", **fields: Any) -> ModelVersion:
    """y = x + 1, in the store."""
    path = write_onnx(folder / f"{name}.onnx")
    url, sha256, size = store.put(config, path)
    made = ModelVersion(name, 1, "t", "onnx", url, sha256, size, (X,), (Y,), Evaluation(0.9), "")
    made = replace(made, **fields)
    return replace(made, digest=digest_of(made))


class Shop:
    """A worker's workshop, and the world around it."""

    def __init__(self, config: Config, catalog: Catalog | None = None, worker: str = "cpu-0") -> None:
        self.config = config
        self.topics = Topics(config.kafka.topic_prefix)
        self.catalog = catalog or Catalog(self.topics)
        self.orders = Orders("cpu", worker, self.catalog)
        self.written: list[Profile] = []
        self.asked_for: list[tuple[str, str | None]] = []
        self.errors: dict[str, str] = {}
        self.spawned = 0
        self.changes = 0
        clock = KafkaClock()
        clock.observe(0.0, 0.0, 0.0)
        group = config.groups[0]
        self.builds = Builds(config, group, self.catalog, Apart(self._spawn, 5), WorkerMetrics())
        self.shop = Workshop(
            config,
            group,
            self.orders,
            self.builds,
            Bench(_step),
            Apart(self._spawn),
            self,  # type: ignore[arg-type]
            clock,
            self.errors,
            lambda builder: None,
            self._changed,
            lambda variant, failure: self.asked_for.append((variant, failure)),
        )
        self._worker = worker
        self._epoch = 0

    def _changed(self) -> None:
        self.changes += 1

    async def _spawn(self) -> ChildExecutor:
        self.spawned += 1
        return await ChildExecutor.spawn("cpu", 1, lambda _: None, ENV)

    async def write(self, topic: str, key: bytes, value: bytes) -> None:
        """The publisher's part: what is written is read by everybody."""
        assert topic == self.topics.profiles
        assert self.catalog.apply(SimpleNamespace(topic=topic, key=key, value=value)) is None
        self.written.append(decode_record(Profile, value))
        self.shop.wake()

    def register(self, model: ModelVersion) -> None:
        key = f"model/{model.key}".encode()
        record = SimpleNamespace(topic=self.topics.registry, key=key, value=encode_record(model))
        assert self.catalog.apply(record) is None
        self.shop.wake()

    def plan(self, measure: tuple[str, ...] = (), load: tuple[str, ...] = (), **outdated: float) -> None:
        """Names of ``outdated`` are builders of model m:1."""
        self._epoch += 1
        again = {f"m:1/{builder}": time_ms for builder, time_ms in outdated.items()}
        self.orders.take(Plan(self._epoch, "test", 0.0, {self._worker: Assignment(load, measure, again)}))
        self.shop.wake()


async def _step(work: Callable[[], Awaitable[None]]) -> None:
    await work()
