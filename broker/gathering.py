"""Which of those that wait for one task make the next batch together, and who of them would spoil it. Pure.

Each entry waits for the variant that was the best for itself. By the time that a device has room there may be a few of
them for each of several variants, and a device takes nearly as long for a batch of two as for one of eight. So the
batch is put together anew: each variant that somebody waits for is worth the accuracy of the answers that it would give
to whoever may join, less the price of its time (:mod:`broker.prices`), and the best one runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.batcher import NEVER, RUN_SHARE, VariantQueue
from broker.catalog import Candidate, Catalog, Matched
from broker.devices import Worker
from broker.ledger import Entry
from broker.prices import Prices

JOIN_COST_MAX = 1.1
"""Times what its own variant costs in such batches as are usual: the larger batch makes up for that and more."""
GATHERED_MAX = 128
"""Entries that are looked at for one batch."""


def gathered(
    urgent: VariantQueue,
    queues: Sequence[VariantQueue],
    worker: Worker,
    start_ms: float,
    block_ms: float,
    catalog: Catalog,
    prices: Prices,
) -> VariantQueue:
    """Of the queues of one task, that whose variant is the best for a batch of whoever may join it; they join.

    Args:
        urgent: the one that would be next; its head is in the batch whatever the variant.
        queues: all of the group that somebody waits in.
        worker: who is to run the batch, from ``start_ms`` on.
        block_ms: no batch should take longer.
    """
    head = urgent.head
    deadline_ms = head.latency_deadline_ms
    if head.query.task is None or deadline_ms is None or head.deadline_ms is None:
        return urgent
    siblings = [
        queue
        for queue in queues
        if queue.signature == urgent.signature
        and queue.candidate.model.task == head.query.task
        and queue.candidate.variant in worker.ready
        and (queue is urgent or is_current(queue.candidate, catalog))
    ]
    if len(siblings) < 2:
        return urgent
    slack_ms = deadline_ms - start_ms
    waiting = sorted([item for queue in siblings for item in queue.first(GATHERED_MAX)])[:GATHERED_MAX]
    front_ms = urgent.front_ms
    if front_ms < NEVER:  # who is ahead of its share may join the batch in the end, but has no say
        waiting = [item for item in waiting if item[0] < front_ms]
    best, most, joining = urgent, -NEVER, []
    for queue in siblings:
        candidate = queue.candidate
        if not may_join(head, candidate) or queue.table.p50_ms(head.rows) > slack_ms:
            continue
        if fitting(head, queue) is None:
            continue
        able = [entry for _, _, entry in waiting if may_join(entry, candidate)]
        rows = min(sum([entry.rows for entry in able]), queue.table.rows_within(slack_ms, head.rows, block_ms))
        lat_ms = queue.table.p50_ms(rows)
        left = rows * candidate.accuracy_low - prices.of(candidate.group, candidate.team, head.account) * lat_ms
        if left > most:
            best, most, joining = queue, left, able
    rows_max = best.table.rows_within(slack_ms, head.rows, block_ms)
    rows = 0
    for entry in joining:
        rows += entry.rows
        if rows > rows_max:
            break
        if entry.place is not best:
            move(entry, best)
    return best


def move(entry: Entry, queue: VariantQueue) -> None:
    """To a queue of another variant of its task."""
    matched = fitting(entry, queue)
    if matched is None or not isinstance(entry.place, VariantQueue):
        return
    entry.inputs = matched.inputs
    less = ("accuracy",) if queue.candidate.accuracy_low < entry.accuracy_floor else ()
    entry.missed = (*less, *[each for each in entry.missed if each != "accuracy"])
    queue.move_from(entry.place, entry)


def fitting(entry: Entry, queue: VariantQueue) -> Matched | None:
    """Its inputs for the queue's variant, if they may share a batch with what waits there."""
    matched = queue.candidate.match(entry.query.inputs)
    return None if isinstance(matched, str) or matched.signature != queue.signature else matched


def is_current(candidate: Candidate, catalog: Catalog) -> bool:
    """Whether its version answers for its model: what waits for an older one is not joined."""
    served = catalog.served(candidate.model.name)
    return served is not None and served.key == candidate.model.key


def spoils_batch(
    queue: VariantQueue, queues: Sequence[VariantQueue], rows: int, block_ms: float, prices: Prices
) -> bool:
    """Whether the head has so little time left that its batch would be small, and that costs more than it is worth.

    Behind it in the same batch run ``rows`` less its own, which could run in a full one instead; what the batch takes
    longer than that is the head's own device time, at the price of a millisecond. It goes elsewhere, if anywhere
    (early drop, as in Nexus, SOSP 2019, section 6.3, by price). Without that, a device that once fell behind runs
    batches of one for ever.
    """
    head, of, table = queue.head, queue.candidate, queue.table
    front_ms = queue.front_ms
    if head.deadline_ms is None or sum([each.rows_before(front_ms) for each in queues]) <= rows:
        return False
    latency_ms = NEVER if head.latency_deadline_ms is None else head.latency_deadline_ms - head.source.arrival_ms
    full = table.rows_within(NEVER, head.rows, min(block_ms, RUN_SHARE * latency_ms))
    if rows >= full:
        return False
    head_ms = table.p50_ms(rows) - (rows - head.rows) * table.p50_ms(full) / full
    return of.accuracy_low * head.rows < prices.of(of.group, of.team, head.account) * head_ms


def behind_heads(queue: VariantQueue, rows: int, start_ms: float, block_ms: float) -> tuple[int, int] | None:
    """(heads that wait on, rows) of the batch of those behind that makes the most of a device; None: ``rows`` do.

    Who is passed over because it has too little time for a large batch may still be in time in a small one when the
    next device is free (as in Clockwork, OSDI 2020, section 5.3, whose batches skip whom they would make late).
    """
    if queue.accounts:
        return None
    table, mean_rows = queue.table, queue.rows / len(queue)
    best, most = None, rows / table.p50_ms(rows)
    for size, sure_ms in table.times(rows, block_ms)[1:]:
        heads = queue.number_before(start_ms + sure_ms)
        left = min(size, int(queue.rows - heads * mean_rows))
        if left > rows and left / table.p50_ms(left) > most:
            best, most = (heads, left), left / table.p50_ms(left)
    return best


def may_join(entry: Entry, candidate: Candidate) -> bool:
    """Whether a candidate of its task would do as well for an entry that waits for another one."""
    query = entry.query
    if entry.place is not None and entry.place.candidate is candidate:  # type: ignore[attr-defined]
        return True
    if query.task is None or candidate in entry.refused_by:
        return False
    if query.cost_max is not None and candidate.cost_per_1000_usual > query.cost_max:
        return False
    own: Candidate = entry.place.candidate  # type: ignore[attr-defined]
    if query.on_miss == "degrade" and (query.prefer == "accuracy" or own.accuracy_low < entry.accuracy_floor):
        return True  # under load, the most accuracy that all can have; who has given up the floor has given it up
    if query.prefer == "cost" and candidate.cost_per_1000_usual > JOIN_COST_MAX * own.cost_per_1000_usual:
        return False
    if query.prefer == "latency" and candidate.lat_ms(entry.rows) > own.lat_ms(entry.rows):
        return False
    return candidate.accuracy_low >= entry.accuracy_floor
