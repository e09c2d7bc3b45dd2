"""Which of those that wait for a task run with another broker's batch of one of its variants. Pure.

With several brokers each has a part of what one would put into a batch. The worker that another broker has sent a batch
calls for more of that variant (``Call``): what waits for it joins, and what waits for another variant of the task if it
may, as in a batch of this broker's own (:mod:`broker.gathering`).
"""

from __future__ import annotations

from broker.batcher import VariantQueue
from broker.catalog import Candidate, Catalog
from broker.gathering import GATHERED_MAX, is_current, may_join, move
from broker.groups import Group
from modelless.frames import Call


def joining(group: Group, candidate: Candidate, call: Call, catalog: Catalog) -> VariantQueue | None:
    """The queue of the candidate, filled up to the rows called for from others of its task, the most urgent first.

    Of several shapes of rows of that length it is the most urgent one's; None: nobody joins.
    """
    task, rows_max = candidate.model.task, call.rows
    queues = [
        queue
        for queue in group.queues.values()
        if queue and not queue.is_offline and queue.candidate.model.task == task and queue.length == call.length
    ]
    if not queues:
        return None
    signature = min(queues, key=lambda queue: queue.head_order_ms).signature
    found = group.queue_of(candidate, signature)
    if found.candidate is not candidate:
        return None
    if found.rows < rows_max and not catalog.labels and is_current(candidate, catalog):
        others = [
            queue
            for queue in queues
            if queue is not found and queue.signature == signature and is_current(queue.candidate, catalog)
        ]
        waiting = sorted([item for queue in others for item in queue.first(GATHERED_MAX)])
        for _, _, entry in waiting:
            if found.rows >= rows_max:
                break
            if entry.query.task is not None and may_join(entry, candidate):
                move(entry, found)
    return found if found else None
