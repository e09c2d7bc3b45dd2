"""Workers as a broker sees them: what is loaded, how much may be sent, and what is predicted to be unfinished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from broker.batcher import NEVER
from broker.catalog import Candidate
from broker.ledger import Entry
from broker.profiles import LatencyTable
from modelless.frames import Backlog
from modelless.messages import RecordId

LEAD_MS: Final = 2.0
"""At most so long before a device is predicted to be idle it gets its next batch: the sooner, the smaller is that."""
LEAD_SHARE: Final = 0.2
"""Of the batch that runs, if that is more: it may end so much sooner than predicted."""
LAG_WEIGHT: Final = 0.25
"""Of the last outcome in what is believed of how long outcomes take."""


class Sent:
    """A batch that a worker has."""

    sent_ms: float = 0.0
    margin_ms: float = 0.0
    """By so much it may well take longer."""
    tail_ms: float = 0.0
    """Its p99."""
    predicts: bool = False
    """Some of its queries are to be copied to a shadow."""
    is_offline: bool = False
    """Nobody in it has a deadline: the worker runs it when there is nothing else."""
    length: int = 0
    """That its rows are padded to; 0: they are not."""
    recalled_ms: float | None = None
    """When the worker was asked to give back what has not started of it."""
    failed: bool = False
    """A run of it ended badly; the worker looks for who is to blame."""

    def __init__(
        self,
        batch: int,
        candidate: Candidate,
        entries: dict[RecordId, Entry],
        cost_ms: float,
        rows: int,
        worker: Worker,
    ) -> None:
        """``entries``: those that are not settled."""
        self.batch, self.candidate, self.entries = batch, candidate, entries
        self.cost_ms, self.rows, self.worker = cost_ms, rows, worker
        self.others: dict[RecordId, Sent] = {}
        """Of the queries that a second worker was sent too: the other batch."""

    @property
    def table(self) -> LatencyTable:
        return self.candidate.table_of(self.length)

    def elsewhere(self, record: RecordId) -> Sent | None:
        """Another batch, at another worker, that still has this query too."""
        other = self.others.get(record)
        return other if other is not None and record in other.entries and other.batch in other.worker.sent else None


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
    """By number, in the order in which they run, most probably: as sent, an offline one last if it has not begun."""
    ends_ms: float = 0.0
    """When the device is predicted to have run all of it, one batch after another without a pause; but for an offline
    batch that has not begun, which waits for whatever comes."""
    ran_ms: float = 0.0
    """When the device had run all that is settled, by our reckoning."""
    lag_ms: float | None = None
    """From then to its outcome's arrival, when its device had nothing else to do before; None: not seen yet."""
    heard_ms: float = -NEVER
    """When it told of the end of a run last."""
    overdue_ms: float = NEVER
    """From when on it is unusual that it has not told of another one."""
    room_ms: float = -NEVER
    """From when on another batch may be sent; inf: not before one of those sent is settled, or credit comes."""
    room_offline_ms: float = -NEVER
    """Likewise an offline one, which is no room for another one until it has begun."""
    on_change: Callable[[], None] = lambda: None
    """Called when what may be sent, or when it would run, has changed."""
    is_shared: bool = False
    """Other brokers send to it too: it says itself when it will have run all of it."""
    lead_ms: float = LEAD_MS
    """Of what it runs, if that is another broker's."""
    others_ms: float = 0.0
    """Predicted work that the other brokers have queued for its group."""
    is_next: bool = True
    """No other broker has more urgent work; otherwise it gets nothing before it has run all that it has."""

    def told(self, backlog: Backlog, now_ms: float) -> None:
        """What the device has to do; what was sent after the batch that the worker names comes on top."""
        self.is_shared, self.others_ms, self.is_next = True, backlog.others_ms, backlog.is_next
        self.lead_ms = self._lead_ms(backlog.ends_in_ms)
        sent_ms = sum([sent.cost_ms for sent in self._counting if sent.batch > backlog.batch])
        self.ends_ms = now_ms + backlog.ends_in_ms + sent_ms
        self._changed()

    def give(self, sent: Sent, now_ms: float) -> None:
        """A batch goes to this worker."""
        sent.sent_ms = now_ms
        last = self._yielding
        self.sent[sent.batch] = sent
        if last is not None:
            del self.sent[last.batch]
            self.sent[last.batch] = last
        self.occupy(0.0 if sent is self._yielding else sent.cost_ms, now_ms)

    def occupy(self, cost_ms: float, now_ms: float) -> None:
        """Its device has so much more to do."""
        self.ends_ms = max(self.ends_ms, now_ms) + cost_ms
        self._changed()

    def delay(self, ends_ms: float) -> None:
        """Its device will not have run all of it sooner than then."""
        self.ends_ms = max(self.ends_ms, ends_ms)
        self._changed()

    def expect(self, overdue_ms: float) -> None:
        """It should tell of the end of a run before then."""
        self.overdue_ms = overdue_ms
        self.on_change()

    def credit(self, window_ms: float) -> None:
        self.window_ms = window_ms
        self._changed()

    def settle(self, batch: int, execute_ms: float, now_ms: float) -> Sent:
        """A batch is settled that took so long; what is left follows it on the device.

        That ended somewhat earlier: the replies were written meanwhile. By how much is seen where the device was idle
        before. Otherwise the error of each prediction would add to the next one's while it is never idle.
        """
        sent = self.sent.pop(batch)
        was_idle = sent.sent_ms >= self.ran_ms
        self.ran_ms = max(self.ran_ms, sent.sent_ms) + execute_ms
        if was_idle and execute_ms:
            lag_ms = max(now_ms - self.ran_ms, 0.0)
            self.lag_ms = lag_ms if self.lag_ms is None else self.lag_ms + LAG_WEIGHT * (lag_ms - self.lag_ms)
        self.ran_ms = min(max(self.ran_ms, now_ms - (self.lag_ms or 0.0)), now_ms)
        if not self.is_shared:
            self.ends_ms = self.ran_ms + self.unsettled_ms
        self._changed()
        return sent

    @property
    def front(self) -> Sent:
        """Of what is sent the first: it runs, most probably."""
        return next(iter(self.sent.values()))

    @property
    def unsettled_ms(self) -> float:
        """Predicted cost of what is sent and not settled, but for what would wait; a handful of batches."""
        return sum([sent.cost_ms for sent in self._counting])

    def start_ms(self, now_ms: float) -> float:
        """By when another batch will have started, unless what runs takes unusually long."""
        margin_ms = self._counting[-1].margin_ms if self.sent else 0.0
        return max(now_ms, self.ends_ms + margin_ms)

    def outstanding_ms(self, now_ms: float) -> float:
        """Predicted time until the device has run all that was sent."""
        return max(0.0, self.ends_ms - now_ms)

    def has_room(self, now_ms: float, *, offline: bool = False) -> bool:
        """Whether another batch may be sent: nothing is sent, or the last of it is about to end, and credit is left."""
        return now_ms >= (self.room_offline_ms if offline else self.room_ms) and not self.draining

    @property
    def _yielding(self) -> Sent | None:
        """An offline batch that has not begun."""
        if len(self.sent) < 2:
            return None
        last = next(reversed(self.sent.values()))
        return last if last.is_offline else None

    @property
    def _counting(self) -> list[Sent]:
        """All but that."""
        sent = [*self.sent.values()]
        return sent[:-1] if len(sent) > 1 and sent[-1].is_offline else sent

    def _changed(self) -> None:
        counting = self._counting
        if not counting:
            self.room_ms = self.ends_ms - (self.lead_ms if self.is_next else 0.0) if self.is_shared else -NEVER
        elif sum([sent.cost_ms for sent in counting]) >= self.window_ms:
            self.room_ms = NEVER
        else:
            last = counting[-1]
            lead_ms = self._lead_ms(last.cost_ms, last.margin_ms)
            self.room_ms = self.ends_ms - (lead_ms if self.is_next else min(lead_ms, 0.0))
        self.room_offline_ms = NEVER if self._yielding is not None else self.room_ms
        self.on_change()

    def _lead_ms(self, cost_ms: float, margin_ms: float = 0.0) -> float:
        """How long before the predicted end of what runs the next batch leaves; below 0: so long after it.

        If that waits for the outcome, the device does so for ``lag_ms``, and no longer. If it does not, it is put
        together sooner than need be, and without the ``margin_ms`` by which what runs may take longer. So where
        outcomes come at once, it waits for them; where they take longer than the margin, it leaves as long before the
        end.
        """
        most_ms = max(LEAD_MS, LEAD_SHARE * cost_ms)
        if self.lag_ms is None:
            return most_ms
        lag_ms = min(self.lag_ms, most_ms)
        return lag_ms - max(0.0, margin_ms - lag_ms)
