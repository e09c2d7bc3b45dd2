"""Small real things for tests of the broker's pure modules: models, profiles, entries, and a core with workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from broker.alike import Alike
from broker.catalog import Catalog
from broker.core import Core, Instruction, TellDemand
from broker.devices import Worker
from broker.intake import Intake
from broker.ledger import Entry, Source
from modelless import frames
from modelless.codec import encode_query
from modelless.messages import BatchTime, Evaluation, ModelVersion, Profile, Query, RecordId
from modelless.tensors import Tensor, TensorSpec
from modelless.topics import ReplyTopicRule, Topics

TOPIC = "modelless.queries"
FLAT = ((1, 10.0), (8, 10.0))
"""A batch of up to eight rows takes 10 ms."""
Curve = Sequence[tuple[int, float]]


def model(name: str = "m", version: int = 1, task: str = "t", shape: tuple[int, ...] = (-1, 4)) -> ModelVersion:
    spec = TensorSpec("x", "FP32", shape)
    return ModelVersion(
        name, version, task, "onnx", "file:///m", "0" * 64, 1, (spec,), (spec,), Evaluation(), f"{name}:{version}"
    )


def profile(
    of: ModelVersion, group: str = "cpu", curve: Curve = FLAT, accuracy: float = 0.9, price_per_hour: float = 3.6
) -> Profile:
    batches = tuple(BatchTime(size, ms, 2 * ms) for size, ms in curve)
    return Profile(
        f"{of.key}/onnx-fp32",
        group,
        "ready",
        of.digest,
        accuracy=accuracy,
        batches=batches,
        price_per_hour=price_per_hour,
    )


def put(catalog: Catalog, of: ModelVersion, *profiles: Profile) -> None:
    catalog.put_model(of.key, of)
    for each in profiles:
        catalog.put_profile(each.key, each)


def tensor(rows: int = 1, width: int = 4) -> Tensor:
    return Tensor("x", "FP32", (rows, width), b"\0" * (4 * rows * width))


_intake = Intake(Topics(), ReplyTopicRule(Topics()), lambda _: 4, latency_ms_default=30_000, request_bytes_max=1 << 20)
_numbers = count()


def source(
    value: bytes | None,
    offset: int = 0,
    arrival_ms: float = 0.0,
    headers: Sequence[tuple[str, bytes]] = (),
    topic: str = TOPIC,
) -> Source:
    return Source(RecordId(topic, 0, offset), None, value, headers, arrival_ms)


def entry(
    offset: int = 0, *, arrival_ms: float = 0.0, rows: int = 1, width: int = 4, topic: str = TOPIC, **asked: Any
) -> Entry:
    """An entry as intake makes it, for ``task="t"`` unless ``asked`` says otherwise."""
    if not asked.keys() & {"task", "model", "variant"}:
        asked["task"] = "t"
    query = Query(id=asked.pop("id", f"q{next(_numbers)}"), inputs=(tensor(rows, width),), **asked)
    made = _intake.read(source(encode_query(query), offset, arrival_ms, topic=topic))
    assert isinstance(made, Entry), made
    return made


class Bench:
    """A core that owns one partition, and what drives it by hand."""

    def __init__(self, *models: tuple[ModelVersion, Iterable[Profile]], **settings: Any) -> None:
        self.core = Core(**settings)
        for of, profiles in models:
            put(self.core.catalog, of, *profiles)
        self.core.ledger.assign(TOPIC, 0, 0, "")
        self._workers = count()
        self._offsets = count()
        self.demands: list[TellDemand] = []
        """What workers were told."""

    def worker(self, *variants: str, group: str = "cpu", window_ms: float = 20.0, now_ms: float = 0.0) -> Worker:
        name = f"{group}-{next(self._workers)}"
        worker = Worker(name, name, group, 3.6, 1 << 30, (("onnx", "onnx-fp32"),))
        self.core.joined(worker)
        self.ready(worker, *variants, now_ms=now_ms)
        self.core.frame(worker, frames.Credit(window_ms), now_ms)
        return worker

    def ready(self, worker: Worker, *variants: str, now_ms: float = 0.0) -> None:
        states = tuple(frames.VariantState(variant, "ready") for variant in variants)
        self.core.frame(worker, frames.State(states, 0, 0.0, 1), now_ms)

    def admit(self, now_ms: float = 0.0, alike: Alike | None = None, **asked: Any) -> Entry:
        made = entry(next(self._offsets), arrival_ms=asked.pop("arrival_ms", now_ms), **asked)
        assert self.core.ledger.arrived(made.record)
        self.core.admit(made, now_ms, alike)
        return made

    def poll(self, now_ms: float = 0.0) -> list[Instruction]:
        """But for what workers are told of demand, which ``demands`` has."""
        everything = self.core.poll(now_ms)
        self.demands += [each for each in everything if isinstance(each, TellDemand)]
        return [each for each in everything if not isinstance(each, TellDemand)]

    def answer(self, worker: Worker, batch: frames.Batch, now_ms: float, disposition: Any = "answered") -> None:
        items = tuple(frames.ItemOutcome(item.record, disposition, "OK") for item in batch.items)
        ran = disposition != "returned"
        self.core.frame(
            worker, frames.Outcome(batch.batch, True, 1.0 if ran else 0.0, len(items) if ran else 0, items), now_ms
        )
