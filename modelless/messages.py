"""The contract's messages as plain frozen data. How they become bytes is :mod:`modelless.codec`'s business.

Words used throughout:

* **record**: one entry of a Kafka topic, named ``topic/partition/offset``. A query's record is its identity;
  its ``id`` only correlates.
* **Kafka time**: milliseconds of the clock of the node that leads ``modelless.fleet``; see :mod:`modelless.clock`.
* **model version**: ``name:version``, what an operator registered.
* **variant**: ``name:version/builder``, something executable made of a model version.
* **group**: a class of hardware, with a price. A profile says how a variant runs on a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from modelless.tensors import Tensor, TensorSpec

CONTRACT_VERSION = 1

Prefer = Literal["cost", "accuracy", "latency"]
OnMiss = Literal["reject", "late", "degrade"]
PREFERENCES: tuple[Prefer, ...] = ("cost", "accuracy", "latency")
ON_MISS: tuple[OnMiss, ...] = ("reject", "late", "degrade")
_NO_METADATA: Mapping[str, str] = {}


class RecordId(NamedTuple):
    """Where a record lies; the identity of the query in it."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class Query(NamedTuple):
    """What somebody asks for, as in the contract. Exactly one of task, model, variant is given."""

    id: str
    inputs: tuple[Tensor, ...]
    task: str | None = None
    model: str | None = None
    variant: str | None = None
    latency_ms_max: float | None = None
    deadline_ms: float | None = None
    """Unix milliseconds, Kafka time."""
    accuracy_min: float | None = None
    cost_max: float | None = None
    """USD per 1,000 rows."""
    prefer: Prefer = "cost"
    on_miss: OnMiss = "reject"
    reply_topic: str | None = None
    reply_partition: int | None = None
    tenant: str | None = None
    metadata: Mapping[str, str] = _NO_METADATA
    v: int = CONTRACT_VERSION


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one query. Fields that do not apply are None and do not travel."""

    id: str
    query: str
    """The query's record, ``topic/partition/offset``."""
    status: str
    message: str | None = None
    outputs: tuple[Tensor, ...] = ()
    model: str | None = None
    version: int | None = None
    variant: str | None = None
    group: str | None = None
    accuracy: float | None = None
    cost: float | None = None
    """USD attributed to this query: price times busy time times its share of the batch's rows."""
    batch_size: int | None = None
    """Rows of the batch that it ran in."""
    queue_ms: float | None = None
    """From the record's log time to the start of its batch."""
    execute_ms: float | None = None
    missed: tuple[str, ...] = ()
    """Constraints that were given up: ``latency``, ``accuracy``."""
    retry_after_ms: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    v: int = CONTRACT_VERSION


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop a query if it has not started. Exactly one of the two is given."""

    id: str | None = None
    query: str | None = None
    """``topic/partition/offset``."""


# --- what the system knows: compacted topics -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model's accuracy is known: measured on data in the store, or declared by the operator."""

    accuracy: float | None = None
    """As declared; None when it is measured."""
    data_url: str | None = None
    """An ``.npz`` with arrays named as the inputs, and ``labels``."""
    data_sha256: str | None = None
    metric: str = "accuracy"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered model (topic ``modelless.registry``, key ``model/<name>:<version>``)."""

    name: str
    version: int
    task: str
    format: str
    """``onnx``, ``safetensors`` or ``emulated``."""
    artifact_url: str
    artifact_sha256: str
    artifact_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    evaluation: Evaluation
    digest: str
    """SHA-256 of everything above that decides behaviour: the same digest is the same version."""
    factory: str | None = None
    """``package.module:function`` that builds the torch module of a safetensors artifact."""
    registered_ms: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class BatchTime:
    """lat(b) at one profiled batch size, supervisor to supervisor."""

    batch_size: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """How one variant runs on one group (topic ``modelless.profiles``, key ``<variant>@<group>``)."""

    variant: str
    group: str
    status: Literal["ready", "failed"]
    digest: str
    """Of the model version that was measured; another digest makes a profile stale."""
    reason: str | None = None
    """Why it failed."""
    load_ms: float = 0.0
    memory_bytes: int = 0
    accuracy: float | None = None
    accuracy_rows: int = 0
    """Rows that the accuracy was measured on; 0 when it was declared."""
    batches: tuple[BatchTime, ...] = ()
    """Ascending batch sizes."""
    price_per_hour: float = 0.0
    """USD, of one worker of the group, when it was measured."""
    measured_ms: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.variant}@{self.group}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the plan wants of one worker."""

    load: tuple[str, ...] = ()
    """Variants, the most valuable first."""
    measure: tuple[str, ...] = ()
    """Variants to build and measure for the group."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The one authority for what is loaded (topic ``modelless.plan``, key ``plan``)."""

    epoch: int
    leader: str
    created_ms: float
    workers: Mapping[str, Assignment]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A broker or worker that is alive (topic ``modelless.fleet``, key ``<kind>/<name>``), once a second."""

    kind: Literal["broker", "worker"]
    name: str
    incarnation: str
    """Unique per process start."""
    state: Literal["starting", "ready", "draining", "stopped"]
    endpoint: str | None = None
    """A broker's link address: ``unix:/path`` or ``host:port``."""
    group: str | None = None
    metrics: str | None = None
    """``host:port`` of the Prometheus endpoint."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    """A worker's loaded variants."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """What could not be done lately, by subject (a variant, say), in words for the operator."""


def split_variant(variant: str) -> tuple[str, str]:
    """``name:version/builder`` as (``name:version``, ``builder``)."""
    model, _, builder = variant.partition("/")
    return model, builder
