"""Workers as a broker sees them: what is loaded, how much may be sent, and what is predicted to be unfinished."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.batcher import Tightness
from broker.catalog import Candidate
from broker.ledger import Entry
from modelless.messages import RecordId


@dataclass(slots=True, eq=False)
class Sent:
    """A batch that a worker has."""

    batch: int
    candidate: Candidate
    entries: dict[RecordId, Entry]
    """Those that are not settled."""
    cost_ms: float
    rows: int
    worker: Worker
    predicts: bool = False
    """Some of its queries are to be copied to a shadow."""


@dataclass(slots=True, eq=False)
class Worker:
    """One incarnation of a worker, from its link's opening to its loss."""

    name: str
    incarnation: str
    group: str
    price_per_hour: float
    memory_bytes_max: int
    builders: tuple[tuple[str, str], ...]
    window_ms: float = 0.0
    """Credit: predicted ms that may be sent and not settled."""
    ready: frozenset[str] = frozenset()
    loading: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    """What it should have loaded, and cannot."""
    draining: bool = False
    sent: dict[int, Sent] = field(default_factory=dict)
    """By number, in the order in which they were sent."""
    ends_ms: float = 0.0
    """When the device is predicted to have run all of it: one batch after another, without a pause."""

    def give(self, sent: Sent, now_ms: float) -> None:
        """A batch goes to this worker."""
        self.sent[sent.batch] = sent
        self.ends_ms = max(self.ends_ms, now_ms) + sent.cost_ms

    def settle(self, batch: int, now_ms: float) -> Sent:
        """A batch is settled; what is left cannot take longer than its predicted cost from now."""
        sent = self.sent.pop(batch)
        self.ends_ms = min(self.ends_ms, now_ms + self.unsettled_ms)
        return sent

    @property
    def unsettled_ms(self) -> float:
        """Predicted cost of what is sent and not settled; a handful of batches."""
        return sum([sent.cost_ms for sent in self.sent.values()])

    def outstanding_ms(self, now_ms: float) -> float:
        """Predicted time until the device has run all that was sent."""
        return max(0.0, self.ends_ms - now_ms)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent: what is sent and not settled is within the credit, or nothing is sent."""
        return not self.draining and (not self.sent or self.unsettled_ms < self.window_ms)


@dataclass(slots=True, eq=False)
class Group:
    """The workers of one class of hardware that are linked."""

    name: str
    workers: dict[str, Worker] = field(default_factory=dict)
    """By incarnation."""
    tightness: Tightness = field(default_factory=Tightness)

    def ready(self, variant: str) -> list[Worker]:
        return [w for w in self.workers.values() if variant in w.ready and not w.draining]
