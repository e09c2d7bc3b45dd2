"""What a run, or the lack of one, says to those who asked: replies ready to be written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modelless import headers
from modelless.codec import encode_reply
from modelless.frames import BatchTensor, Item, ItemOutcome
from modelless.messages import Reply, split_variant
from workers import rows
from workers.device_queue import Answer, Run

Headers = list[tuple[str, bytes]]
_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One reply of ``item`` on its way to Kafka, and what to tell the broker when it is there."""

    item: Item
    status: str
    value: bytes
    headers: Headers
    disposition: Literal["answered", "poisoned"] = "answered"

    @property
    def partition_key(self) -> bytes:
        """What murmur2 takes where no partition is asked for."""
        return self.item.key if self.item.key is not None else self.item.id.encode()

    def outcome(self) -> ItemOutcome:
        return ItemOutcome(self.item.record, self.disposition, self.status)

    def undeliverable(self, reason: str) -> ItemOutcome:
        return ItemOutcome(self.item.record, "undeliverable", self.status, reason)


@dataclass(frozen=True, slots=True)
class Author:
    """Who answers: the group and its price (USD per hour)."""

    group: str
    price_per_hour: float


def of_run(
    run: Run, outputs: Sequence[BatchTensor], execute_ms: float, author: Author, now_ms: float
) -> list[Outgoing]:
    """One OK reply per item. ``now_ms`` is Kafka time; the cost is shared by rows."""
    items = run.items
    rows_run = run.rows
    batch = run.batch
    key, _ = split_variant(batch.variant)
    model, _, version = key.rpartition(":")
    cost_per_row = author.price_per_hour / _MS_PER_HOUR * execute_ms / rows_run
    replies = []
    for item, tensors in zip(items, rows.split(outputs, [item.rows for item in items]), strict=True):
        late = item.latency_deadline_ms is not None and now_ms > item.latency_deadline_ms
        reply = Reply(
            id=item.id,
            query=str(item.record),
            status="OK",
            outputs=tensors,
            model=model,
            version=int(version) if version.isdigit() else None,
            variant=batch.variant,
            group=author.group,
            accuracy=batch.accuracy,
            cost=cost_per_row * item.rows,
            batch_size=rows_run,
            queue_ms=max(0.0, run.started_ms - item.arrival_ms),
            execute_ms=execute_ms,
            missed=(*item.missed, "latency") if late else item.missed,
            metadata=item.metadata,
        )
        replies.append(_outgoing(item, reply))
    return replies


def of_answer(answer: Answer, author: Author, now_ms: float) -> list[Outgoing]:
    """One error reply per item."""
    return [
        _error(item, answer.status, answer.message, author, now_ms, poisoned=answer.poisoned) for item in answer.items
    ]


def too_large(outgoing: Outgoing, author: Author, now_ms: float) -> Outgoing:
    """What is written instead of a reply that its topic does not take."""
    message = f"the reply of {len(outgoing.value)} bytes is larger than {outgoing.item.reply_topic} allows"
    return _error(outgoing.item, "INTERNAL", message, author, now_ms)


def _error(item: Item, status: str, message: str, author: Author, now_ms: float, *, poisoned: bool = False) -> Outgoing:
    reply = Reply(
        id=item.id,
        query=str(item.record),
        status=status,
        message=message,
        group=author.group,
        queue_ms=max(0.0, now_ms - item.arrival_ms),
        missed=item.missed,
        metadata=item.metadata,
    )
    return _outgoing(item, reply, "poisoned" if poisoned else "answered")


def _outgoing(item: Item, reply: Reply, disposition: Literal["answered", "poisoned"] = "answered") -> Outgoing:
    written: Headers = [
        (headers.ID, item.id.encode()),
        (headers.STATUS, reply.status.encode()),
        (headers.QUERY, reply.query.encode()),
        *item.headers,
    ]
    return Outgoing(item, reply.status, encode_reply(reply, item.form), written, disposition)
