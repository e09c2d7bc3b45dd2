"""The contract's messages as plain frozen data. How they become bytes is :mod:`modelless.codec`'s business.

Words used throughout:

* **record**: one entry of a Kafka topic, named ``topic/partition/offset``. A query's record is its identity;
  its ``id`` only correlates.
* **Kafka time**: milliseconds of the clock of the node that leads ``modelless.fleet``; see :mod:`modelless.clock`.
* **model version**: ``name:version``, what an operator registered.
* **variant**: ``name:version/builder``, something executable made of a model version; of a model with several exits
  also ``name:version/builder.exit1`` and so on, for every exit before the last.
* **group**: a class of hardware, with a price. A profile says how a variant runs on a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple

from modelless.tensors import Tensor, TensorSpec

CONTRACT_VERSION = 1

Prefer = Literal["cost", "accuracy", "latency"]
OnMiss = Literal["reject", "late", "degrade"]
PREFERENCES: tuple[Prefer, ...] = ("cost", "accuracy", "latency")
ON_MISS: tuple[OnMiss, ...] = ("reject", "late", "degrade")
MS_PER_HOUR = 3_600_000.0
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
    exits: int = 1
    """Points of the network where its answer can be taken; the last one is the whole network."""
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
class LengthTimes:
    """lat(b) of rows that are padded to one length."""

    length: int
    batches: tuple[BatchTime, ...]
    """Ascending batch sizes."""


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
    """Cold: the first time in a process that has its libraries imported."""
    load_warm_ms: float = 0.0
    """Again in the same process."""
    memory_bytes: int = 0
    """Peak, loaded and running its largest batch."""
    accuracy: float | None = None
    accuracy_low: float | None = None
    """Lower bound of the 95 % confidence interval: what is chosen by. The accuracy itself when it was declared."""
    accuracy_high: float | None = None
    accuracy_rows: int = 0
    """Rows that the accuracy was measured on; 0 when it was declared."""
    batches: tuple[BatchTime, ...] = ()
    """Ascending batch sizes; of the longest rows, where these are padded."""
    price_per_hour: float = 0.0
    """USD, of one worker of the group, when it was measured."""
    measured_ms: float = 0.0
    build_ms: float = 0.0
    """What building took; 0 when what was built before could be used."""
    build_url: str | None = None
    """What the builder made, in the store; None: it loads the model's own artifact."""
    build_sha256: str | None = None
    build_key: str | None = None
    """Digest of (model, builder, its version, hardware): the same key need not be built again."""
    lengths: tuple[LengthTimes, ...] = ()
    """Where rows are padded: of all lengths but the longest, ascending."""

    @property
    def key(self) -> str:
        return f"{self.variant}@{self.group}"

    @property
    def is_usable(self) -> bool:
        """Whether queries can be sent there, of a model whose digest is the profile's."""
        return self.status == "ready" and bool(self.batches)

    @property
    def price_per_ms(self) -> float:
        return self.price_per_hour / MS_PER_HOUR


@dataclass(frozen=True, slots=True)
class Condition:
    """How a profiled variant lives (topic ``modelless.profiles``, key ``condition/<variant>@<group>``).

    The leader's snapshot of what batches told; a broker that starts begins with it.
    """

    variant: str
    group: str
    digest: str
    """Of the model version that it is of."""
    state: Literal["inactive", "loading", "active", "overloaded", "interfered"]
    p50_scale: float = 1.0
    """Living median over the profile's."""
    p99_scale: float = 1.0
    rows_per_second: float = 0.0
    """Lately, all workers of the group together."""
    changed_ms: float = 0.0

    @property
    def key(self) -> str:
        return f"condition/{self.variant}@{self.group}"


@dataclass(frozen=True, slots=True)
class Correction:
    """What labels of answered queries say of a variant (topic ``modelless.profiles``, key ``correction/<variant>``)."""

    variant: str
    digest: str
    """Of the model version that it is of."""
    rows: float
    """Labelled rows, old ones counting less."""
    right: float
    """Of these, as often as the prediction was the label."""
    accuracy: float
    """Of profile and labels together; replaces the profile's."""
    accuracy_low: float
    accuracy_high: float
    drifted: bool = False
    """The labels say that it has become less accurate than it was measured."""
    changed_ms: float = 0.0

    @property
    def key(self) -> str:
        return f"correction/{self.variant}"


@dataclass(frozen=True, slots=True)
class Labels:
    """Which versions of a model answer (topic ``modelless.registry``, key ``labels/<name>``).

    Without this record, and without a version that is ``stable``, the newest version that can be served answers.
    """

    name: str
    stable: int | None = None
    canary: int | None = None
    canary_weight: float = 0.0
    """Share of the queries for the model, or chosen for it, that the canary answers; 0 to 1."""
    shadow: str | None = None
    """A version's number, or a variant's name, that gets copies; its answers are compared and dropped."""
    shadow_weight: float = 0.0
    errors_margin: float = 0.02
    """The canary is rolled back when its share of errors exceeds stable's by more."""
    latency_margin: float = 0.5
    """The canary is rolled back when most of its batches take longer than stable's would by more than this share."""
    samples_min: int = 100
    """Answers of the canary before it is judged."""
    reason: str | None = None
    """Why it was rolled back."""
    changed_ms: float = 0.0

    @property
    def key(self) -> str:
        return f"labels/{self.name}"


@dataclass(frozen=True, slots=True)
class Feedback:
    """The truth about an answered query (topic ``modelless.feedback``); variant and predictions are its reply's."""

    query: str
    """The query's record, ``topic/partition/offset``."""
    variant: str
    predictions: tuple[int, ...]
    """The class that was answered, a row each."""
    labels: tuple[int, ...]
    """The class that is right, a row each."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the plan wants of one worker."""

    load: tuple[str, ...] = ()
    """Variants, the most valuable first."""
    measure: tuple[str, ...] = ()
    """Variants to build and measure for the group."""
    outdated: Mapping[str, float] = field(default_factory=dict)
    """Variants to measure again whose profile was measured at this time or before."""


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """How many workers of one group there are to be."""

    workers: int
    leaving: tuple[str, ...] = ()
    """Of those that are there: who drains, and goes."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The one authority for what is loaded, and how many workers there are (topic ``modelless.plan``, key ``plan``)."""

    epoch: int
    leader: str
    created_ms: float
    workers: Mapping[str, Assignment]
    reasons: tuple[str, ...] = ()
    fleet: Mapping[str, GroupTarget] = field(default_factory=dict)
    """By group, of those whose number of workers is not fixed."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one model version answered since its labels changed, or the broker started; to judge a canary by."""

    model: str
    """``name:version``; of a shadow its variant."""
    answered: int
    failed: int
    """INTERNAL; of a shadow, copies that it could not answer."""
    execute_ms: float
    """Sum over the answered ones of their batch's time per row."""
    shadowed: int = 0
    """Copies that it answered as a shadow."""
    agreed: int = 0
    """Of these, with the same prediction as the answer that was sent."""
    batches: int = 0
    """Batches of the answered ones that can be compared with what stable's would have taken."""
    slow: int = 0
    """Of these, longer than that by more than the latency margin."""
    since_ms: float = 0.0
    """``changed_ms`` of the labels that were in force: counts of others do not belong together."""


SHED, ASKED = "shed.", "asked."
"""Followed by a reason, a space, a topic, a space and a task; and by a task: queries that were not answered for want of
devices, and all outcomes. Both since the broker started, of tasks that were ever overloaded."""
USUAL_ROWS, USUAL_SLOWNESS = "usual_rows.", "usual_slowness."
"""Followed by a group's name, in a broker's statistics: rows of the batch that a query joins there, as of late; and the
living median over the profile's, of what runs there."""

BACKLOG_MS, OLDEST_MS = "backlog_ms.", "oldest_ms."
"""Followed by a group's name, in a broker's statistics, of what waits there and has a deadline: predicted device time,
and for how long the most urgent has waited."""
WITHHELD_MS, WITHHELD_MS_MAX = "withheld_ms.", "withheld_ms_max."
"""Likewise, of what has no deadline and is too long to begin beside what has one: what the next one takes, and the most
that it might."""
START_MS = "start_ms"
"""In a worker's statistics: from when its process was asked for until it was ready."""


@dataclass(frozen=True, slots=True)
class Demanded:
    """Queries that ask for nearly the same, as a broker sees them arrive."""

    task: str
    latency_ms: float | None
    """The shortest of them; None: without a deadline."""
    accuracy_min: float
    """The highest of them."""
    prefer: Prefer
    degrades: bool
    """``on_miss: degrade``."""
    rows_per_second: float

    @property
    def bounds(self) -> tuple[float, float]:
        """Of what may answer: the least accuracy, and the most latency in ms."""
        return 0.0 if self.degrades else self.accuracy_min, self.latency_ms or inf


@dataclass(frozen=True, slots=True)
class Used:
    """What a broker had run for one tenant, since the broker started."""

    tenant: str
    """That the queries name; their topic, where they name none."""
    task: str
    group: str
    queries: int = 0
    """Answered by a worker."""
    rows: int = 0
    """Of these."""
    busy_ms: float = 0.0
    """Device time, by its share of the rows of each run."""


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who is alive (topic ``modelless.fleet``, key ``<kind>/<name>``), once a second."""

    kind: Literal["broker", "worker", "provisioner"]
    """A provisioner starts and ends workers as the plan says."""
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
    wants: Mapping[str, float] = field(default_factory=dict)
    """A broker's: rows a second that ``variant@group`` would serve better than what is loaded."""
    served: tuple[Served, ...] = ()
    """A broker's, of models with a canary or a shadow."""
    demand: tuple[Demanded, ...] = ()
    """A broker's: what it is asked for, by class; the most asked for, 256 at most."""
    used: tuple[Used, ...] = ()
    """A broker's: by tenant, task and group, 128 at most; what comes later is under the tenant ``others``."""


@dataclass(frozen=True, slots=True)
class Usage:
    """A tenant's part of what one group's workers cost in a period (topic ``modelless.usage``, key as :attr:`key`).

    The parts of a period sum up to what all workers cost that were alive.
    """

    start_ms: float
    """Unix milliseconds, Kafka time."""
    period_ms: float
    tenant: str
    """That queries name, or their topic; ``idle`` with an empty task: nobody used the group."""
    task: str
    group: str
    queries: int = 0
    """That a worker answered."""
    rows: int = 0
    busy_ms: float = 0.0
    """Device time."""
    cost_usd: float = 0.0
    """Price times busy time."""
    idle_usd: float = 0.0
    """The part of what the group cost beside its busy time, in proportion to the busy time."""

    @property
    def key(self) -> str:
        return f"{self.start_ms:.0f}/{self.tenant}/{self.task}/{self.group}"

    @property
    def total_usd(self) -> float:
        return self.cost_usd + self.idle_usd


def split_variant(variant: str) -> tuple[str, str]:
    """``name:version/builder`` as (``name:version``, ``builder``); an exit is the builder's."""
    model, _, builder = variant.partition("/")
    return model, builder


def split_exit(builder: str) -> tuple[str, int | None]:
    """``torch-fp32.exit1`` as (``torch-fp32``, 1), ``torch-fp32`` as (``torch-fp32``, None)."""
    name, _, number = builder.partition(".exit")
    return name, int(number) if number.isdecimal() else None
