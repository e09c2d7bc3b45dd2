"""The ledger of outcomes: every record that was read, until its outcome is acknowledged by Kafka.

An entry moves one way only::

    WAITING ──> SENT ──────────> DONE          a worker answered
      │  ^        │
      │  └────────┘ the link was lost, or the worker gave it back
      ├─────────────> ANSWERING ──> DONE       the broker's own reply or dead letter is on its way
      └ revoked: forgotten, its offset stays unfinished for the next owner

``finish`` is called once per entry, after Kafka acknowledged the reply or the dead letter, and only then does its
offset count as finished. Entries belong to one *epoch* of their partition: what comes back for an entry of an
earlier epoch finds nothing here and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from broker.offsets import PartitionOffsets
from modelless.frames import Form
from modelless.messages import Query, RecordId
from modelless.tensors import Tensor

if TYPE_CHECKING:
    from broker.fairness import Account
    from broker.jobs import Job

Headers = Sequence[tuple[str, bytes | None]]
"""Of a record; Kafka lets a value be null."""


ANSWERED_MAX = 500_000


class State(Enum):
    WAITING = "waiting"
    SENT = "sent"
    ANSWERING = "answering"
    DONE = "done"


class Source:
    """A record as it was read."""

    def __init__(
        self, record: RecordId, key: bytes | None, value: bytes | None, headers: Headers, arrival_ms: float
    ) -> None:
        """``arrival_ms``: its log time, in Kafka time."""
        self.record, self.key, self.value, self.headers, self.arrival_ms = record, key, value, headers, arrival_ms

    @property
    def size_bytes(self) -> int:
        size = len(self.value or b"") + len(self.key or b"")
        for name, value in self.headers:
            size += len(name) + len(value or b"")
        return size


class Address:
    """Where and how the outcome of a record is told."""

    def __init__(
        self, id: str, topic: str, partition: int | None, form: Form, echo: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        self.id, self.topic, self.partition, self.form, self.echo = id, topic, partition, form, echo


class Entry:
    """One query on its way to its outcome."""

    state: State = State.WAITING
    attempts: int = 0
    inputs: tuple[Tensor, ...] = ()
    """In the order of the chosen model's specification."""
    missed: tuple[str, ...] = ()
    accuracy_floor: float = 0.0
    """Below this, an answer is less accurate than asked."""
    refused_by: tuple[object, ...] = ()
    """Candidates that it cannot wait for any more."""
    explains: bool = False
    """Its reply is to say why it was chosen as it was."""
    cancelled: bool = False
    """Somebody wants it dropped, but a worker has it."""
    place: Any = None
    """The queue that it waits in, the batch that it was sent with, or None."""
    account: Account | None = None
    """Its topic's, where there are several to be fair to."""
    job: Job | None = None
    """That it belongs to, where it has no deadline."""
    charged_ms: float = 0.0
    """To the account or the job, while it waits."""
    within_quota: bool = False
    """It was charged to its tenant's quota, if there is one."""
    sent_ms: float = 0.0
    sort_key: tuple[float, int] = (0.0, 0)

    def __init__(
        self,
        source: Source,
        query: Query,
        address: Address,
        rows: int,
        size_bytes: int,
        latency_deadline_ms: float | None,
        deadline_ms: float | None,
        give_up_ms: float | None,
    ) -> None:
        """
        Args:
            latency_deadline_ms: answered by then, or ``missed: [latency]``.
            deadline_ms: not started after this; None for ``on_miss: late``.
            give_up_ms: waits for a worker until then.
        """
        self.source, self.query, self.address = source, query, address
        self.rows, self.size_bytes = rows, size_bytes
        self.latency_deadline_ms, self.deadline_ms, self.give_up_ms = latency_deadline_ms, deadline_ms, give_up_ms

    @property
    def record(self) -> RecordId:
        return self.source.record


@dataclass(slots=True, eq=False)
class _Partition:
    epoch: int
    offsets: PartitionOffsets
    leaving: bool = False
    committed: tuple[int, str] | None = None
    bytes: int = 0
    """Of its entries."""
    entries: dict[int, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    topic: str
    partition: int
    epoch: int
    offset: int
    metadata: str


class Ledger:
    """Every partition that this broker owns, and every entry in it.

    Args:
        on_revoked: called for each unfinished entry of a partition that is lost, before it is forgotten.
    """

    def __init__(self, on_revoked: Callable[[Entry], None] = lambda entry: None) -> None:
        self._on_revoked = on_revoked
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._by_id: dict[str, dict[RecordId, Entry]] = {}
        self._answered: dict[tuple[str, int], set[int]] = {}
        self._epochs = 0
        self.queries = 0
        self.bytes = 0

    # --- ownership ------------------------------------------------------------------------------------------------

    def assign(self, topic: str, partition: int, base: int, metadata: str) -> None:
        """Own a partition from its committed position on."""
        assert (topic, partition) not in self._partitions, f"{topic}/{partition} is owned already"
        self._epochs += 1
        self._partitions[topic, partition] = _Partition(self._epochs, PartitionOffsets(base, metadata))

    def revoke(self, topic: str, partition: int) -> list[Entry]:
        """Forget a partition; returns the entries that were unfinished, now DONE for this owner."""
        owned = self._partitions.pop((topic, partition), None)
        if owned is None:
            return []
        entries = list(owned.entries.values())
        for entry in entries:
            self._on_revoked(entry)
            self._forget(entry)
        return entries

    def leave(self, partitions: Iterable[tuple[str, int]]) -> list[Entry]:
        """These are about to be revoked; returns their unfinished entries."""
        leaving = [self._partitions[key] for key in partitions if key in self._partitions]
        for owned in leaving:
            owned.leaving = True
        return [entry for owned in leaving for entry in owned.entries.values()]

    def is_leaving(self, record: RecordId) -> bool:
        return self._partitions[record.topic, record.partition].leaving

    def owned(self) -> list[tuple[str, int]]:
        return list(self._partitions)

    def position(self, topic: str, partition: int) -> int | None:
        """The next offset to read; None when the partition is not ours."""
        owned = self._partitions.get((topic, partition))
        return owned.offsets.position if owned else None

    def held(self) -> dict[str, tuple[int, int]]:
        """(unfinished queries, bytes of them) by topic, of all that is owned."""
        found: dict[str, tuple[int, int]] = {}
        for (topic, _), owned in self._partitions.items():
            queries, size_bytes = found.get(topic, (0, 0))
            found[topic] = queries + len(owned.entries), size_bytes + owned.bytes
        return found

    def unsettled(self, partitions: Iterable[tuple[str, int]]) -> int:
        """Entries of these partitions that somebody is working on (SENT or ANSWERING)."""
        owned = (self._partitions[key] for key in partitions if key in self._partitions)
        return sum(entry.state is not State.WAITING for each in owned for entry in each.entries.values())

    # --- records --------------------------------------------------------------------------------------------------

    def arrived(self, record: RecordId) -> bool:
        """A record was read. False when it needs no work (finished before, read twice, not ours any more)."""
        key = (record.topic, record.partition)
        owned = self._partitions.get(key)
        if owned is None or not owned.offsets.arrived(record.offset):
            return False
        answered = self._answered.get(key)
        if answered and record.offset in answered:
            answered.remove(record.offset)
            owned.offsets.finished(record.offset)
            return False
        return True

    def passed(self, topic: str, partition: int, position: int) -> None:
        """The reader stands at ``position``; see :meth:`PartitionOffsets.passed`."""
        owned = self._partitions.get((topic, partition))
        if owned is not None:
            owned.offsets.passed(position)

    def answered_before(self, topic: str, partition: int, offsets: Iterable[int]) -> None:
        """A worker answered these for a broker that is gone: those still to be read need no second run."""
        owned = self._partitions.get((topic, partition))
        remembered = self._answered.setdefault((topic, partition), set())
        for offset in offsets:
            if owned is None or offset >= owned.offsets.position:
                remembered.add(offset)
        if sum(map(len, self._answered.values())) > ANSWERED_MAX:
            self._answered.clear()  # costs duplicates, never a query

    def open(self, entry: Entry) -> None:
        record = entry.source.record
        owned = self._partitions[record.topic, record.partition]
        owned.entries[record.offset] = entry
        owned.bytes += entry.size_bytes
        self._by_id.setdefault(entry.address.id, {})[record] = entry
        self.queries += 1
        self.bytes += entry.size_bytes

    def finish(self, entry: Entry) -> bool:
        """The outcome is acknowledged. False for an entry that is not ours any more (revoked since)."""
        if entry.state is State.DONE:
            return False
        record = entry.source.record
        owned = self._partitions[record.topic, record.partition]
        del owned.entries[record.offset]
        owned.bytes -= entry.size_bytes
        owned.offsets.finished(record.offset)
        self._forget(entry)
        return True

    def find(self, record: RecordId) -> Entry | None:
        owned = self._partitions.get((record.topic, record.partition))
        return owned.entries.get(record.offset) if owned else None

    def with_id(self, query_id: str) -> list[Entry]:
        return list(self._by_id.get(query_id, {}).values())

    def entries(self) -> Iterable[Entry]:
        for owned in self._partitions.values():
            yield from owned.entries.values()

    def oldest_arrival_ms(self) -> float | None:
        """Log time of the oldest unfinished entry."""
        firsts = (next(iter(owned.entries.values())) for owned in self._partitions.values() if owned.entries)
        return min((entry.source.arrival_ms for entry in firsts), default=None)

    def commits(self) -> list[Commit]:
        """What to commit: partitions whose committable state changed since :meth:`committed`."""
        result = []
        for (topic, partition), owned in self._partitions.items():
            state = owned.offsets.commit()
            if state != owned.committed:
                result.append(Commit(topic, partition, owned.epoch, *state))
        return result

    def committed(self, commit: Commit) -> None:
        """Kafka has it. A commit of an earlier epoch is nothing to this one."""
        owned = self._partitions.get((commit.topic, commit.partition))
        if owned is not None and owned.epoch == commit.epoch:
            owned.committed = (commit.offset, commit.metadata)

    def _forget(self, entry: Entry) -> None:
        entry.state, entry.place = State.DONE, None
        same_id = self._by_id[entry.address.id]
        del same_id[entry.source.record]
        if not same_id:
            del self._by_id[entry.address.id]
        self.queries -= 1
        self.bytes -= entry.size_bytes
