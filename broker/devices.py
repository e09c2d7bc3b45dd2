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
    started_ms: float | None = None

    def remaining_ms(self, now_ms: float) -> float:
        if self.started_ms is None:
            return self.cost_ms
        return max(0.0, self.cost_ms - (now_ms - self.started_ms))


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
    """Credit: predicted ms that may be outstanding."""
    ready: frozenset[str] = frozenset()
    loading: frozenset[str] = frozenset()
    draining: bool = False
    sent: dict[int, Sent] = field(default_factory=dict)

    def outstanding_ms(self, now_ms: float) -> float:
        return sum(sent.remaining_ms(now_ms) for sent in self.sent.values())

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent: what is sent and not settled is within the credit, or nothing is sent."""
        if self.draining:
            return False
        return not self.sent or sum(sent.cost_ms for sent in self.sent.values()) < self.window_ms


@dataclass(slots=True, eq=False)
class Group:
    """The workers of one class of hardware that are linked."""

    name: str
    workers: dict[str, Worker] = field(default_factory=dict)
    """By incarnation."""
    tightness: Tightness = field(default_factory=Tightness)

    def ready(self, variant: str) -> list[Worker]:
        return [w for w in self.workers.values() if variant in w.ready and not w.draining]
