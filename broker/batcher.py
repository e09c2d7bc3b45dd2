"""Queues of waiting queries, earliest deadline first, and how many of them make a batch.

One queue per (variant, group, shape of a row): what may share a batch. A batch leaves when a device has room for it,
so that it grows by itself while the device is busy and a lone query is never kept waiting for company. Its size
is the largest that is useful (beyond some size throughput stops growing), whose predicted end still meets the
deadline at the head of the queue, and that does not block the device for more than half of the shortest latency
that anybody asked of the group lately: a batch cannot be interrupted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import count
from typing import Protocol

from broker.catalog import Candidate
from broker.ledger import Entry
from modelless.frames import BatchTensor
from modelless.tensors import Tensor

Signature = tuple[tuple[int, ...], ...]
NEVER = float("inf")
RUN_SHARE = 0.5
"""Of a query's slack, or of the shortest latency asked of a group lately: no batch takes more, if it can be smaller."""
TIGHTNESS_PERIOD_MS = 5000.0
_sequence = count()


class Changed(Protocol):
    """Somebody came or went; ``head``: the most urgent one is another one now, or nobody."""

    def __call__(self, *, head: bool) -> None: ...


def _unheard(*, head: bool) -> None:
    pass


class VariantQueue:
    """Entries that wait for one candidate. Sorted by deadline, then by arrival."""

    def __init__(self, candidate: Candidate, signature: Signature = (), on_change: Changed = _unheard) -> None:
        self.candidate, self.signature, self._on_change = candidate, signature, on_change
        self.rows = 0
        self._block_ms, self._rows_of_batch = NEVER, candidate.table.rows_useful
        self._waiting: list[tuple[float, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def head(self) -> Entry:
        return self._waiting[0][2]

    @property
    def head_deadline_ms(self) -> float:
        return self._waiting[0][0] if self._waiting else NEVER

    @property
    def tail_deadline_ms(self) -> float:
        """Of the last one: inf if it has none, minus inf if nobody waits."""
        return self._waiting[-1][0] if self._waiting else -NEVER

    def add(self, entry: Entry, deadline_ms: float | None = None) -> None:
        """Wait in the order of ``deadline_ms`` (default: the entry's latency deadline; none: last)."""
        if deadline_ms is None:
            deadline_ms = NEVER if entry.latency_deadline_ms is None else entry.latency_deadline_ms
        self._put(entry, (deadline_ms, next(_sequence)))

    def move_from(self, queue: VariantQueue, entry: Entry) -> None:
        """Wait here instead, in the same order."""
        queue.remove(entry)
        self._put(entry, entry.sort_key)

    def _put(self, entry: Entry, key: tuple[float, int]) -> None:
        entry.sort_key, entry.place = key, self
        waiting = self._waiting
        if waiting and key < waiting[-1][:2]:
            insort(waiting, (*key, entry))
        else:
            waiting.append((*key, entry))
        self.rows += entry.rows
        self._on_change(head=waiting[0][2] is entry)

    def remove(self, entry: Entry) -> None:
        index = bisect_left(self._waiting, entry.sort_key)
        assert self._waiting[index][2] is entry
        del self._waiting[index]
        self._left([entry], head=index == 0)

    def due(self, now_ms: float) -> list[Entry]:
        """Take out every entry whose place in the order has passed."""
        return self._take(bisect_left(self._waiting, (now_ms, NEVER)))

    def take(self, rows_max: int) -> list[Entry]:
        """Take out the head and as many behind it as fit into ``rows_max`` rows."""
        rows = taken = 0
        for _, _, entry in self._waiting:
            if taken and rows + entry.rows > rows_max:
                break
            rows += entry.rows
            taken += 1
        return self._take(taken)

    def first(self, number: int) -> list[tuple[float, int, Entry]]:
        """(deadline, order, entry) of the most urgent ones."""
        return self._waiting[:number]

    def take_all(self) -> list[Entry]:
        return self._take(len(self._waiting))

    def ahead_ms(self, deadline_ms: float, block_ms: float = NEVER) -> float:
        """Predicted time to work off what would run before a new entry with that deadline, in batches of its size."""
        waiting = self._waiting
        if not waiting:
            return 0.0
        rows = self.rows
        if deadline_ms < waiting[-1][0]:
            if deadline_ms <= waiting[0][0]:
                return 0.0
            rows = rows * bisect_left(waiting, (deadline_ms,)) // len(waiting)
        if block_ms != self._block_ms:
            self._block_ms = block_ms
            self._rows_of_batch = self.candidate.table.rows_within(NEVER, 1, block_ms)
        return self.candidate.table.queue_ms(rows, self._rows_of_batch)

    def _take(self, number: int) -> list[Entry]:
        taken = [entry for _, _, entry in self._waiting[:number]]
        del self._waiting[:number]
        self._left(taken, head=True)
        return taken

    def _left(self, entries: Sequence[Entry], *, head: bool) -> None:
        for entry in entries:
            self.rows -= entry.rows
            entry.place = None
        self._on_change(head=head)


def batch_rows(queue: VariantQueue, start_ms: float, block_ms: float = NEVER) -> int:
    """The most rows for a batch that starts at ``start_ms``: its end should meet the head's deadline.

    ``block_ms`` bounds it too: for longer than that nobody else should have to wait for the device.
    0 when even the head alone would miss its deadline (never for a head that gives up latency instead).
    """
    head = queue.head
    table = queue.candidate.table
    if head.latency_deadline_ms is not None:
        budget_ms = head.latency_deadline_ms - start_ms
        if table.p50_ms(head.rows) <= budget_ms:
            return table.rows_within(budget_ms, head.rows, block_ms)
        if head.deadline_ms is not None:
            return 0
    return table.rows_within(NEVER, head.rows, block_ms)


def concatenated(inputs: Sequence[tuple[Tensor, ...]], rows: int) -> tuple[BatchTensor, ...]:
    """Several queries' inputs, ``rows`` in all, along the rows: in raw bytes that is putting one behind another."""
    return tuple(
        BatchTensor(
            first.name,
            first.datatype,
            (rows, *first.shape[1:]),
            first.data if len(inputs) == 1 else b"".join([tensors[index].data for tensors in inputs]),
        )
        for index, first in enumerate(inputs[0])
    )


class Tightness:
    """The shortest latency that was asked for lately: of this period or the one before."""

    def __init__(self) -> None:
        self._period_ends_ms = 0.0
        self._this_ms = self._before_ms = NEVER

    def observe(self, latency_ms: float, now_ms: float) -> None:
        """A query was admitted that allows so long from its log time."""
        self._turn(now_ms)
        self._this_ms = min(self._this_ms, latency_ms)

    def latency_ms(self, now_ms: float) -> float:
        self._turn(now_ms)
        return min(self._this_ms, self._before_ms)

    def _turn(self, now_ms: float) -> None:
        if now_ms >= self._period_ends_ms:
            lapsed = now_ms >= self._period_ends_ms + TIGHTNESS_PERIOD_MS
            self._before_ms = NEVER if lapsed else self._this_ms
            self._this_ms = NEVER
            self._period_ends_ms = now_ms + TIGHTNESS_PERIOD_MS
