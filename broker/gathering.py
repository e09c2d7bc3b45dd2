"""Which of those that wait for one task make the next batch together, and who of them would spoil it. Pure.

Each entry waits for the variant that was the best for itself. By the time that a device has room there may be a few of
them for each of several variants, and a device takes nearly as long for a batch of two as for one of eight. So the
batch is put together anew: each variant that somebody waits for is worth the accuracy of the answers that it would give
to whoever may join, less the price of its time (:mod:`broker.prices`), and the best one runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from broker.batcher import BEHIND_MS, NEVER, VariantQueue, batch_rows
from broker.catalog import Candidate, Catalog, Matched
from broker.devices import Worker
from broker.ledger import Entry
from broker.prices import Prices

JOIN_COST_MAX: Final = 1.1
"""Times what its own variant costs in such batches as are usual: the larger batch makes up for that and more."""
GATHERED_MAX: Final = 128
"""Entries that are looked at for one batch."""
LEAST_GAIN: Final = 1e-9
"""Rows: the head waits on only where that is better, not as good."""


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


class Cut(NamedTuple):
    """What of a queue makes the next batch."""

    late: int
    """Heads that cannot be in time any more."""
    heads: int
    """Behind those, that wait on."""
    rows: int
    """At most, of the batch of those behind; 0: no batch before what is left is looked at anew."""


def best_cut(queue: VariantQueue, start_ms: float, block_ms: float, next_ms: float, price: float) -> Cut:
    """The batch that makes the most of a device, and whom it passes over.

    With the head in it a batch may only be so large that the head is in time. Without the heads that it would make
    late, another size may do better; who is passed over may still be in time when the next device is free. Of all sizes
    that one runs which costs the least::

        s * (r * lat(size) - rows) + (1 - s) * lost

    where ``rows`` of those that wait fill a batch of that size, r is the most rows per ms that they allow, and s, from
    0 to 1, what a ms of the device is worth of the most answers that it might ever give. The first part is how many
    rows more would run in the same time in the most efficient of these batches; ``lost`` are those that cannot be in
    time after it, each of which leaves its device time to others. So an idle device gives up nobody, and one that has
    fallen behind does not run batches of one for ever. (Which heads a batch
    would make late is asked of each size as in Clockwork, OSDI 2020, section 5.3; to give up few for the efficiency of
    all is early drop, Nexus, SOSP 2019, section 6.3, here by price.)

    Args:
        start_ms: when it would start.
        block_ms: no batch should take longer.
        next_ms: when another device is free.
        price: of a device-ms, in accuracy (:mod:`broker.prices`).
    """
    head, table, waiting = queue.head, queue.table, queue.rows
    rows = batch_rows(queue, start_ms, block_ms)
    if not rows:
        return Cut(1, 0, 0)
    if head.deadline_ms is None or len(queue) == 1:
        return Cut(0, 0, rows)
    sizes = [(rows, table.sure_ms(rows)), *table.times(1, block_ms)]
    full_rate = rate = 0.0
    for size, _ in sizes:
        lat_ms = table.p50_ms(size)
        full_rate = max(full_rate, size / lat_ms)
        rate = max(rate, min(size, waiting) / lat_ms)
    scarcity = min(1.0, price / (queue.candidate.accuracy_low * full_rate))
    one_ms, next_head_ms = table.p50_ms(1), table.p50_ms(rows)
    mean_rows = waiting / len(queue)
    places_ms = BEHIND_MS if BEHIND_MS <= queue.head_order_ms < NEVER else 0.0
    peers = queue.number_before(queue.front_ms)  # who is ahead of its share does not run instead of all that are not
    best, least = Cut(0, 0, rows), NEVER
    for size, sure_ms in sizes:
        heads = queue.number_before(places_ms + start_ms + sure_ms) if size != rows else 0
        taken = min(size, waiting - heads * mean_rows)
        if taken < 1 or (heads and heads >= peers):
            continue
        lat_ms = table.p50_ms(size)
        free_ms = places_ms + min(max(next_ms, start_ms), start_ms + lat_ms)
        late_rows = queue.number_before(free_ms + next_head_ms) * mean_rows
        lost = late_rows - min(max(late_rows - heads * mean_rows, 0.0), taken)
        cost = scarcity * (rate * lat_ms - taken) + (1.0 - scarcity) * lost
        if cost < least - LEAST_GAIN:
            late = min(heads, queue.number_before(free_ms + one_ms))
            best, least = Cut(late, heads - late, size), cost
    return best


def may_join(entry: Entry, candidate: Candidate) -> bool:
    """Whether a candidate of its task would do as well for an entry that waits for another one."""
    query = entry.query
    if entry.place is not None and entry.place.candidate is candidate:
        return True
    if query.task is None or candidate in entry.refused_by:
        return False
    if query.cost_max is not None and candidate.cost_per_1000_usual > query.cost_max:
        return False
    own: Candidate = entry.place.candidate
    if query.on_miss == "degrade" and (query.prefer == "accuracy" or own.accuracy_low < entry.accuracy_floor):
        return True  # under load, the most accuracy that all can have; who has given up the floor has given it up
    if query.prefer == "cost" and candidate.cost_per_1000_usual > JOIN_COST_MAX * own.cost_per_1000_usual:
        return False
    if query.prefer == "latency" and candidate.lat_ms(entry.rows) > own.lat_ms(entry.rows):
        return False
    return candidate.accuracy_low >= entry.accuracy_floor
