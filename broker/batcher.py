"""Queues of waiting queries, earliest deadline first, and how many of them make a batch.

One queue per (variant, group, shape of a row): what may share a batch. Rows that are padded have the shape that they
are padded to (:mod:`modelless.padding`). A batch leaves when a device has room for it, so that it grows by itself while
the device is busy and a lone query is never kept waiting for company. Its size is the largest that is useful (beyond
some size throughput stops growing), whose predicted end still meets the deadline at the head of the queue, and that
does not block the device for too long beside the shortest latency that anybody asked of the group lately: a batch
cannot be interrupted (:meth:`broker.groups.Group.block_ms`). Where devices have long been in demand it may
(:meth:`broker.prices.Prices.scarcity`).

What belongs to a topic that is ahead of its share (:mod:`broker.fairness`) waits behind all others, by deadline too.
What has no deadline waits in a queue of its own (:class:`OfflineQueue`), and nobody else sees it: it runs where a
device has room and nothing with a deadline waits that it could run, in batches that who comes next can wait for
(:meth:`broker.groups.Group.offline_ms`), and fills up others' batches where that takes no longer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from itertools import count, islice
from math import prod
from typing import TYPE_CHECKING, Final, Protocol

from broker.catalog import Candidate, Signature
from broker.ledger import Entry
from modelless.frames import FRAME_BYTES_MAX, BatchTensor
from modelless.padding import Layout
from modelless.tensors import ITEM_BYTES, Tensor

if TYPE_CHECKING:
    from broker.fairness import Account

BATCH_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Of inputs that are padded."""
NEVER: Final = float("inf")
BEHIND_MS: Final = 1e14
"""Later than any deadline. Who is ahead of its share waits in the order of its deadlines so much later."""
TIGHTNESS_PERIOD_MS: Final = 5000.0
PASSED_MAX: Final = 128
"""Offline entries that are looked at for one that is short enough."""
_sequence = count()


class Changed(Protocol):
    """Somebody came or went; ``head``: the first one, or the one due first, is another one now, or nobody."""

    def __call__(self, *, head: bool) -> None: ...


def _unheard(*, head: bool) -> None:
    pass


def order_ms(entry: Entry, group: str, deadline_ms: float | None = None) -> float:
    """Where it waits among all of a group: by its deadline, and if its topic is ahead of its share, behind the others.

    Args:
        deadline_ms: default: its latency deadline; none: last.
    """
    if deadline_ms is None:
        deadline_ms = NEVER if entry.latency_deadline_ms is None else entry.latency_deadline_ms
    if entry.account is not None and entry.account.is_ahead(group):
        deadline_ms += BEHIND_MS
    return deadline_ms


class VariantQueue:
    """Entries that wait for one candidate, in the order of their :func:`order_ms`, then of their arrival."""

    is_offline = False

    def __init__(self, candidate: Candidate, signature: Signature = (0, ()), on_change: Changed = _unheard) -> None:
        self.candidate, self.signature, self._on_change = candidate, signature, on_change
        self.length = signature[0]
        self.table = candidate.table_of(self.length)
        self._quicker = self.table.queue_ms(1) / candidate.table.queue_ms(1) if self.length else 1.0
        self.rows = 0
        self.accounts: Counter[Account] = Counter()
        """Of the entries that wait; empty while there is one topic only."""
        self._block_ms, self._rows_of_batch = NEVER, self.table.rows_useful
        self._waiting: list[tuple[float, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def head(self) -> Entry:
        return self._waiting[0][2]

    @property
    def head_order_ms(self) -> float:
        """Where the head is in the order of all queues; inf if nobody waits, or without a deadline."""
        return self._waiting[0][0] if self._waiting else NEVER

    @property
    def turn(self) -> tuple[float, float]:
        """Of all queues the least goes first."""
        return self.head_order_ms, 0.0

    @property
    def head_deadline_ms(self) -> float:
        """The earliest deadline of all."""
        first_ms = self.head_order_ms
        if self.accounts and (front := self._front) < len(self._waiting):
            return min(first_ms, self._waiting[front][0] - BEHIND_MS)
        return first_ms

    @property
    def front_ms(self) -> float:
        """Who is earlier in the order is as little or as much behind as the head is."""
        return BEHIND_MS if self.accounts and self.head_order_ms < BEHIND_MS else NEVER

    def tail_ms(self, before_ms: float = NEVER) -> float:
        """The last place in the order that is before ``before_ms``; minus inf if there is none."""
        waiting = self._waiting
        last = self.number_before(before_ms) if waiting and waiting[-1][0] >= before_ms else len(waiting)
        return waiting[last - 1][0] if last else -NEVER

    def add(self, entry: Entry, deadline_ms: float | None = None) -> None:
        """Wait in the order of ``deadline_ms`` (default: the entry's latency deadline; none: last)."""
        self._put(entry, (order_ms(entry, self.candidate.group, deadline_ms), next(_sequence)))

    def move_from(self, queue: VariantQueue, entry: Entry) -> None:
        """Wait here instead, in the same order."""
        queue.remove(entry)
        self._put(entry, entry.sort_key)

    def reorder(self, account: Account) -> None:
        """All of a topic's entries go behind the others, or back."""
        if account not in self.accounts:
            return
        shift_ms = BEHIND_MS if account.is_ahead(self.candidate.group) else -BEHIND_MS
        for index, (place_ms, number, entry) in enumerate(self._waiting):
            if entry.account is account and (place_ms >= BEHIND_MS) != (shift_ms > 0):
                entry.sort_key = (place_ms + shift_ms, number)
                self._waiting[index] = (*entry.sort_key, entry)
        self._waiting.sort()
        self._on_change(head=True)

    def _put(self, entry: Entry, key: tuple[float, int]) -> None:
        entry.sort_key, entry.place = key, self
        waiting, place = self._waiting, (key[0], key[1], entry)
        if waiting and place < waiting[-1]:  # no two have the same key
            insort(waiting, place)
        else:
            waiting.append(place)
        self.rows += entry.rows
        if entry.account is not None:
            self.accounts[entry.account] += 1
            entry.charged_ms = self.candidate.row_ms * self._quicker * entry.rows
            entry.account.add(self.candidate.group, entry.charged_ms)
        self._on_change(head=waiting[0][2] is entry or BEHIND_MS <= key[0] < NEVER)

    def remove(self, entry: Entry) -> None:
        index = bisect_left(self._waiting, entry.sort_key)
        assert self._waiting[index][2] is entry
        self._take(index, 1)

    def due(self, now_ms: float) -> list[Entry]:
        """Take out every entry whose deadline has passed."""
        taken = self._take(0, bisect_left(self._waiting, (now_ms, NEVER)))
        if self.accounts:
            front = self._front
            taken += self._take(front, bisect_left(self._waiting, (BEHIND_MS + now_ms, NEVER)) - front)
        return taken

    def take(self, rows_max: int, start_ms: float = -NEVER, heads: int = 0) -> list[Entry]:
        """Take out the head and as many behind it as fit into ``rows_max`` rows, and into a frame once padded.

        Args:
            start_ms: when they will start to run. Who waits behind other topics, and would be late so, waits on.
            heads: so many wait on, the next one is the head.
        """
        if self.length:
            rows_max = min(rows_max, padded_rows_max(self.candidate, self.signature))
        waiting = self._waiting
        front = self._front if self.accounts else 0
        number, rows = self._fitting(heads, front if heads < front else len(waiting), rows_max)
        if heads + number != front or front == len(waiting):
            return self._take(heads, number)
        rest = self.number_before(BEHIND_MS + start_ms + self.table.p50_ms(rows_max))
        behind, _ = self._fitting(rest, len(waiting), rows_max, rows)
        joining = self._take(rest, behind)
        return self._take(heads, number) + joining

    def number_before(self, place_ms: float) -> int:
        """How many entries wait before that place in the order."""
        return bisect_left(self._waiting, (place_ms,))

    def first(self, number: int) -> list[tuple[float, int, Entry]]:
        """(order, number, entry) of the most urgent ones."""
        return self._waiting[:number]

    def take_heads(self, number: int) -> list[Entry]:
        """Take out the most urgent ones."""
        return self._take(0, number)

    def take_all(self) -> list[Entry]:
        return self._take(0, len(self._waiting))

    def ahead_ms(self, before_ms: float, block_ms: float = NEVER) -> float:
        """Predicted time to work off what would run before a new entry at that place, in batches of its size."""
        rows = self.rows_before(before_ms)
        if not rows:
            return 0.0
        if block_ms != self._block_ms:
            self._block_ms = block_ms
            self._rows_of_batch = self.table.rows_within(NEVER, 1, block_ms)
        return self.table.queue_ms(rows, self._rows_of_batch)

    def rows_before(self, before_ms: float) -> int:
        """Of the entries before that place in the order, if they were of the mean size."""
        waiting = self._waiting
        if not waiting or before_ms >= waiting[-1][0]:
            return self.rows
        if before_ms <= waiting[0][0]:
            return 0
        return self.rows * self.number_before(before_ms) // len(waiting)

    @property
    def _front(self) -> int:
        """How many wait before those that are ahead of their share."""
        return self.number_before(BEHIND_MS)

    def _fitting(self, start: int, end: int, rows_max: int, rows: int = 0) -> tuple[int, int]:
        """How many from ``start`` on fit, one at least if there are no ``rows`` yet; and all rows then."""
        number = 0
        for _, _, entry in islice(self._waiting, start, end):
            if rows and rows + entry.rows > rows_max:
                break
            rows += entry.rows
            number += 1
        return number, rows

    def _take(self, start: int, number: int) -> list[Entry]:
        places = self._waiting[start : start + number]
        del self._waiting[start : start + number]
        taken = [entry for _, _, entry in places]
        for entry in taken:
            self.rows -= entry.rows
            entry.place = None
            if (account := entry.account) is not None:
                self.accounts[account] -= 1
                if not self.accounts[account]:
                    del self.accounts[account]
                account.take(self.candidate.group, entry.charged_ms)
        self._on_change(head=not start or (bool(places) and places[0][0] >= BEHIND_MS))
        return taken


class OfflineQueue(VariantQueue):
    """Entries without a deadline, that of the job with the least attained service first (:mod:`broker.jobs`)."""

    is_offline = True

    @property
    def head_order_ms(self) -> float:
        return NEVER

    @property
    def turn(self) -> tuple[float, float]:
        return NEVER, self._waiting[0][0]

    @property
    def head_deadline_ms(self) -> float:
        return NEVER

    def tail_ms(self, before_ms: float = NEVER) -> float:
        return -NEVER

    def add(self, entry: Entry, deadline_ms: float | None = None) -> None:
        """Behind what its job, and those that will have had as little, have waiting."""
        assert entry.job is not None
        self._put(entry, (entry.job.place_ms, next(_sequence)))

    def due(self, now_ms: float) -> list[Entry]:
        return []

    def take_within(self, ms: float, alone_ms: float) -> list[Entry]:
        """Take out a batch that surely takes no longer than that, of those that go first and fit; maybe nobody.

        Args:
            alone_ms: likewise for one entry, if none fits.
        """
        rows_max = self.table.rows_lasting(ms)
        if self.length:
            rows_max = min(rows_max, padded_rows_max(self.candidate, self.signature))
        for heads, (_, _, entry) in enumerate(self._waiting[:PASSED_MAX]):
            if entry.rows <= rows_max:
                return self.take(rows_max, heads=heads)
        for heads, (_, _, entry) in enumerate(self._waiting[:PASSED_MAX]):
            if self.table.sure_ms(entry.rows) <= alone_ms:
                return self.take(entry.rows, heads=heads)
        return []

    def take_beside(self, rows: int) -> list[Entry]:
        """Take out who goes first, as many as fit beside so many rows of somebody else without making them slower."""
        room = self.table.rows_as_quick(rows) - rows
        if self.length:
            room = min(room, padded_rows_max(self.candidate, self.signature) - rows)
        return self.take(room) if self._waiting and self.head.rows <= room else []

    def rows_before(self, before_ms: float) -> int:
        return self.rows if before_ms == NEVER else 0

    def _put(self, entry: Entry, key: tuple[float, int]) -> None:
        assert entry.job is not None
        entry.charged_ms = self.candidate.row_ms * self._quicker * entry.rows
        entry.job.add(entry.charged_ms)
        super()._put(entry, key)

    def _take(self, start: int, number: int) -> list[Entry]:
        taken = super()._take(start, number)
        for entry in taken:
            assert entry.job is not None
            entry.job.take(entry.charged_ms)
        return taken


def batch_rows(queue: VariantQueue, start_ms: float, block_ms: float = NEVER) -> int:
    """The most rows for a batch that starts at ``start_ms``: its end should meet the head's deadline.

    ``block_ms`` bounds it too: for longer than that nobody else should have to wait for the device.
    0 when even the head alone would miss its deadline (never for a head that gives up latency instead).
    """
    head = queue.head
    table = queue.table
    if head.latency_deadline_ms is not None:
        budget_ms = head.latency_deadline_ms - start_ms
        if table.p50_ms(head.rows) <= budget_ms:
            return table.rows_within(budget_ms, head.rows, block_ms)
        if head.deadline_ms is not None:
            return 0
    return table.rows_within(NEVER, head.rows, block_ms)


def padded_rows_max(candidate: Candidate, signature: Signature) -> int:
    """How many padded rows may share a batch, for their bytes."""
    items = [ITEM_BYTES[spec.datatype] for spec in candidate.model.inputs]
    row_bytes = sum([prod(shape) * size for shape, size in zip(signature[1], items, strict=True)])
    return BATCH_BYTES_MAX // row_bytes


def concatenated(
    inputs: Sequence[tuple[Tensor, ...]], rows: int, layout: Layout | None = None, length: int = 0
) -> tuple[BatchTensor, ...]:
    """Several queries' inputs, ``rows`` in all, along the rows.

    With a ``layout``, each row is padded to ``length`` before.
    """
    if layout is not None:
        return layout.join(inputs, rows, length)
    return tuple([BatchTensor.joined(parts, rows) for parts in zip(*inputs, strict=True)])


class Tightness:
    """The shortest latency that was asked for lately: of this period or the one before."""

    def __init__(self, period_ms: float = TIGHTNESS_PERIOD_MS) -> None:
        self._period_ms = period_ms
        self._period_ends_ms = 0.0
        self._this_ms = self._before_ms = NEVER

    def observe(self, latency_ms: float, now_ms: float) -> None:
        """A query was admitted that allows so long from its log time."""
        if now_ms >= self._period_ends_ms:
            self._turn(now_ms)
        if latency_ms < self._this_ms:
            self._this_ms = latency_ms

    def latency_ms(self, now_ms: float) -> float:
        if now_ms >= self._period_ends_ms:
            self._turn(now_ms)
        return self._this_ms if self._this_ms < self._before_ms else self._before_ms

    @property
    def turns_ms(self) -> float:
        """When the present period is over."""
        return self._period_ends_ms

    def _turn(self, now_ms: float) -> None:
        """A period is over."""
        lapsed = now_ms >= self._period_ends_ms + self._period_ms
        self._before_ms = NEVER if lapsed else self._this_ms
        self._this_ms = NEVER
        self._period_ends_ms = now_ms + self._period_ms
