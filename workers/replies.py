"""What a run, or the lack of one, says to those who asked: replies ready to be written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modelless import headers
from modelless.codec import encode_reply
from modelless.errors import OK
from modelless.frames import BatchTensor, Item, ItemOutcome
from modelless.messages import MS_PER_HOUR, Reply, split_variant
from modelless.reply_template import ReplyTemplate
from modelless.tensors import Tensor
from workers import rows
from workers.device_queue import Answer, Run

Headers = list[tuple[str, bytes]]
Disposition = Literal["answered", "poisoned"]


class Outgoing(NamedTuple):
    """One reply of ``item`` on its way to Kafka, and what to tell the broker when it is there."""

    item: Item
    status: str
    value: bytes
    headers: Headers
    disposition: Disposition = "answered"

    @property
    def partition_key(self) -> bytes:
        """What murmur2 takes where no partition is asked for."""
        return self.item.key if self.item.key is not None else self.item.id.encode()

    def outcome(self, problem: str | None = None) -> ItemOutcome:
        """The reply is in Kafka, or there is a problem and it can never be."""
        return ItemOutcome(self.item.record, "undeliverable" if problem else self.disposition, self.status, problem)


@dataclass(frozen=True, slots=True)
class Author:
    """Who answers: the group and its price (USD per hour)."""

    group: str
    price_per_hour: float


def of_run(
    run: Run, outputs: Sequence[BatchTensor], execute_ms: float, author: Author, now_ms: float
) -> list[list[Outgoing]]:
    """One OK reply per item, by the parts of the run. ``now_ms`` is Kafka time; the cost is shared by rows."""
    templates: dict[tuple[float, int, int], ReplyTemplate] = {}
    own = iter(rows.split(outputs, run.items, run.cuts))
    replies: list[list[Outgoing]] = []
    for part in run.parts:
        replies.append([])
        accuracy = part.batch.accuracy
        for item in part.items:
            data = next(own)
            alike = accuracy, item.rows, item.length if run.cuts else 0
            template = templates.get(alike)
            if template is None:
                example = _example(run, accuracy, item, outputs, data, execute_ms, author)
                template = templates[alike] = ReplyTemplate(example)
            late = item.latency_deadline_ms is not None and now_ms > item.latency_deadline_ms
            missed = (*item.missed, "latency") if late else item.missed
            query = str(item.record)
            queue_ms = max(0.0, run.started_ms - item.arrival_ms)
            value = template.encode(item.id, query, queue_ms, missed, item.metadata, data, item.form)
            replies[-1].append(Outgoing(item, OK, value, headers.reply_headers(item.id, OK, query, item.headers)))
    return replies


def _example(
    run: Run,
    accuracy: float,
    item: Item,
    outputs: Sequence[BatchTensor],
    data: Sequence[memoryview],
    execute_ms: float,
    author: Author,
) -> Reply:
    """What the replies to the queries of one accuracy, with as many rows, of the same length, have in common."""
    key, _ = split_variant(run.variant)
    model, _, version = key.rpartition(":")
    rows_run, axes = run.rows, rows.axes_cut(outputs, run.cuts)
    return Reply(
        id="",
        query="",
        status=OK,
        outputs=tuple(
            Tensor(output.name, output.datatype, rows.own_shape(output, item, axes.get(index)), own)
            for index, (output, own) in enumerate(zip(outputs, data, strict=True))
        ),
        model=model,
        version=int(version) if version.isdigit() else None,
        variant=run.variant,
        group=author.group,
        accuracy=accuracy,
        cost=author.price_per_hour / MS_PER_HOUR * execute_ms / rows_run * item.rows,
        batch_size=rows_run,
        execute_ms=execute_ms,
    )


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
    disposition: Disposition = "poisoned" if poisoned else "answered"
    return Outgoing(
        item,
        status,
        encode_reply(reply, item.form),
        headers.reply_headers(item.id, status, reply.query, item.headers),
        disposition,
    )
