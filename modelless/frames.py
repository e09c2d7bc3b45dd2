"""Frames of the link between a broker and a worker.

A frame on the wire is a 4-byte big-endian length, then one MessagePack array ``[type, field, ...]`` with the
fields of the class below in their order. :mod:`modelless.link` reads and writes them; this module is only
what they mean.

The conversation::

    worker                                   broker
      | ---- Hello (who I am) --------------> |
      | <--- Hello ------------------------- -|
      | ---- State, Answered, Credit -------> |   what is loaded; what I answered lately; how much you may send
      | <--- Batch -------------------------- |
      | ---- Outcome (replies are in Kafka) > |
      | <--- Cancel ------------------------- |   dropped if it has not started
      | <--- Recall ------------------------- |   given back if it has not started: you are too slow
      | <--- Ping ... Ping -----------------> |   every second each way; three missing: the link is dead
      | ---- Drain -------------------------> |   send nothing new; what I hold I answer

**Credit** is a window: the predicted milliseconds of work that this broker may have outstanding at this worker,
``Batch.cost_ms`` of what was sent and not yet settled. A broker with nothing outstanding may always send one batch.
A worker divides one cap over its brokers by the urgency that they announce in ``Demand``.

**Several brokers** have a part of the load each, and would send a worker small batches. It tells them what they have it
do together and who has the earliest deadline (``Backlog``), so that this one sends when the device is about to be free;
asks the others to fill up a batch that waits (``Call``); runs as one what is of one variant; and gives back what did
not join, since more urgent work may come before the next run.

**Who answers**: a query belongs to its broker until its Batch is sent, and to the worker from then until the link
is lost. A lost link hands what is unsettled back to the broker; the worker finishes and publishes what runs,
and drops the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modelless.messages import RecordId
from modelless.tensors import Tensor

LINK_VERSION = 4
FRAME_BYTES_MAX = 64 * 1024 * 1024
PING_INTERVAL_MS = 1000.0
PING_MISSES_MAX = 3

Form = Literal["msgpack", "json"]


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame each way. A worker fills the lower half."""

    version: int
    name: str
    incarnation: str
    group: str | None = None
    device: str | None = None
    memory_bytes_max: int = 0
    price_per_hour: float = 0.0
    builders: tuple[tuple[str, str], ...] = ()
    """(model format, builder) pairs that this worker can make variants with: ("onnx", "onnx-fp32")."""


@dataclass(frozen=True, slots=True)
class VariantState:
    """One variant at one worker; ``batches`` are (batch_size, measured ms) since the last State, newest last."""

    variant: str
    state: Literal["loading", "ready", "failed"]
    memory_bytes: int = 0
    batches: tuple[tuple[int, float], ...] = ()
    rows: int = 0
    """That ran since the last State, also where ``batches`` leaves out the oldest."""
    busy_ms: float = 0.0
    """Device time of these."""
    lengths: tuple[int, ...] = ()
    """To which the rows of ``batches`` were padded; empty where rows are not."""


@dataclass(frozen=True, slots=True)
class State:
    """A worker's condition, on change and at least every second."""

    variants: tuple[VariantState, ...]
    memory_bytes: int
    backlog_ms: float
    """Predicted work that is queued or running, of all brokers together."""
    plan_epoch: int
    measuring: str | None = None
    """The variant being measured: the device serves, but slower."""


@dataclass(frozen=True, slots=True)
class Credit:
    window_ms: float


@dataclass(frozen=True, slots=True)
class Demand:
    """A broker's urgency: queued work for this worker's group, and its earliest deadline (Kafka time, ms)."""

    backlog_ms: float
    deadline_ms: float | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a worker that several brokers send to has to do, whenever a broker must think otherwise."""

    ends_in_ms: float
    """Predicted time until the device has run all that it has, of all brokers."""
    batch: int
    """The last one of this broker that is in it; 0: none."""
    others_ms: float
    """What the other brokers have queued for the worker's group; see :class:`Demand`."""
    is_next: bool
    """No other broker has an earlier deadline. Otherwise it should not send before the device has nothing to do."""


@dataclass(frozen=True, slots=True)
class Call:
    """Another broker's batch waits for the device and has room: a batch of this variant would run with it."""

    variant: str
    rows: int
    length: int = 0
    """That its rows are padded to; 0: they are not."""


class Item(NamedTuple):
    """One query of a batch: what the worker needs to answer it."""

    record: RecordId
    id: str
    rows: int
    arrival_ms: float
    """The record's log time, Kafka time."""
    deadline_ms: float | None
    """Not started after this (Kafka time); None: no deadline."""
    latency_deadline_ms: float | None
    """What ``missed: [latency]`` is judged by; differs from deadline_ms for ``on_miss: late``."""
    reply_topic: str
    reply_partition: int | None
    """None: by ``key`` (murmur2), else by ``id``."""
    key: bytes | None
    form: Form
    headers: tuple[tuple[str, bytes], ...]
    """Echoed in the reply: traceparent, kafka_correlationId."""
    metadata: Mapping[str, str]
    missed: tuple[str, ...]
    """Given up before it was sent: ``accuracy``."""
    attempt: int
    length: int = 0
    """Of its rows before they were padded; 0: they were not."""


class BatchTensor(NamedTuple):
    """One input of all items, concatenated along the first dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @classmethod
    def joined(cls, parts: Sequence[Tensor | BatchTensor], rows: int) -> BatchTensor:
        """Several queries' values of one input, ``rows`` in all: in raw bytes that is putting one behind another."""
        first = parts[0]
        data = first.data if len(parts) == 1 else b"".join([part.data for part in parts])
        return cls(first.name, first.datatype, (rows, *first.shape[1:]), data)


@dataclass(frozen=True, slots=True)
class Batch:
    """Work for one variant, the items in the order of their rows."""

    batch: int
    """Unique per link."""
    variant: str
    accuracy: float
    cost_ms: float
    """Predicted execution time; what it takes of the credit."""
    items: tuple[Item, ...]
    inputs: tuple[BatchTensor, ...]
    predicts: bool = False
    """Its outcome tells the predictions."""
    shadow: bool = False
    """Copies of queries: run when nothing else waits, nobody is answered, and any trouble ends it."""
    times: tuple[tuple[int, float], ...] = ()
    """(rows, ms that they surely take), ascending: its own, and more if the worker has others of the variant to run
    with them, up to the most that are useful and do not block the device. None: it runs alone."""
    length: int = 0
    """That rows are padded to; 0: they are not."""
    cuts: tuple[tuple[int, int], ...] = ()
    """(index, axis) of the outputs that are cut back to each item's own length."""


class ItemOutcome(NamedTuple):
    """``disposition``:

    * ``answered``: Kafka acknowledged the reply; ``status`` says which.
    * ``poisoned``: the same, and it alone brings the executor down: the broker dead-letters a copy.
    * ``returned``: not answered (draining, variant unloaded, recalled); the broker has it again.
    * ``undeliverable``: ran, but the reply could not be written (topic gone, too large even as an error).
    """

    record: RecordId
    disposition: Literal["answered", "poisoned", "returned", "undeliverable"]
    status: str
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Settles items of a batch; ``final`` when it was the last of them and the credit is free again.

    Without items and not final: a run of the batch ended badly, and parts of it run again.
    """

    batch: int
    final: bool
    execute_ms: float
    """Device time that was spent; 0 when it did not run."""
    rows: int
    """That the device ran in this time, those of others that ran with it among them."""
    items: tuple[ItemOutcome, ...]
    rest_ok: bool = False
    """Every item that was not settled before and is not named here was answered OK; the usual end of a batch."""
    predictions: tuple[int, ...] = ()
    """The classes that were answered, the argmax along the last dimension of the first output, row by row: if the batch
    asked for them, and ran as a whole."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Records that this worker answered lately, for whichever broker: (topic, partition, offsets)."""

    records: tuple[tuple[str, int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class CancelItems:
    batch: int
    records: tuple[RecordId, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Give these back (``returned``), unanswered, where they have not started.

    ``answered``: another worker has answered them meanwhile, so give back what runs or has not started, whatever became
    of it. The worker alone decides what has not started, so that nothing that is given back is answered too.
    """

    batch: int
    records: tuple[RecordId, ...]
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    sent_ms: float
    """The sender's monotonic clock; meaningless to the receiver."""


@dataclass(frozen=True, slots=True)
class Drain:
    """The sender is leaving: a worker wants nothing new, a broker sends nothing new."""

    reason: str


Frame = (
    Hello | State | Credit | Demand | Batch | Outcome | Answered | CancelItems | Ping | Drain | Backlog | Call | Recall
)
FRAME_TYPES: tuple[type[Frame], ...] = (
    Hello,
    State,
    Credit,
    Demand,
    Batch,
    Outcome,
    Answered,
    CancelItems,
    Ping,
    Drain,
    Backlog,
    Call,
    Recall,
)
"""A frame's type on the wire is its index here; appended to, never reordered."""
