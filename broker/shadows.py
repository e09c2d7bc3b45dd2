"""Copies of queries for a model's shadow: sampled, sent when nothing else waits, compared, and dropped. Pure.

A copy's way: its query's batch is asked for its **predictions** (the classes that it answered); when it was answered,
the query's inputs and predictions are kept; when a worker that has the shadow loaded idles and nothing waits for its
group, copies go there as a batch that answers nobody; what it predicts is compared, row by row, and counted.

A copy never delays or costs a query: it is no entry of the ledger, takes no credit, and is forgotten on any trouble (no
idle worker for a while, too many of them, another shape, the link lost). A batch that already runs is not interrupted,
so a copy's batch blocks the device for no longer than any other may. A shadow that failed often gets no more copies
until the labels change: a model that brings executors down would cost everybody.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from broker.batcher import concatenated, padded_rows_max
from broker.canary import Counts
from broker.catalog import Candidate, Catalog
from broker.devices import Worker
from broker.groups import Group
from broker.ledger import Entry
from broker.versions import shadowed
from modelless import frames
from modelless.labels import shadow_of
from modelless.messages import Labels, RecordId, split_variant
from modelless.tensors import Tensor

COPIES_MAX = 512
BYTES_MAX = 16 * 1024 * 1024
WAIT_MS_MAX = 2_000.0
FAILURES_MAX = 3


@dataclass(frozen=True, slots=True)
class Copy:
    """One answered query of a model with a shadow."""

    labels: Labels
    record: RecordId
    inputs: tuple[Tensor, ...]
    rows: int
    predictions: tuple[int, ...]
    answered_by: str
    """A variant."""
    until_ms: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Sent:
    batch: int
    candidate: Candidate
    copies: tuple[Copy, ...]


class Shadows:
    """This broker's. ``numbers`` are those of its batches."""

    def __init__(self, catalog: Catalog, counts: Counts, numbers: Iterator[int]) -> None:
        self._catalog, self._counts, self._numbers = catalog, counts, numbers
        self._waiting: deque[Copy] = deque()
        self._bytes = 0
        self._sent: dict[str, _Sent] = {}
        self._failures: Counter[str] = Counter()

    def __len__(self) -> int:
        """Copies that wait."""
        return len(self._waiting)

    def relabel(self, name: str) -> None:
        """Labels changed: what waits was sampled for others."""
        del self._failures[name]
        self._keep(copy for copy in self._waiting if copy.labels.name != name)

    def lost(self, worker: Worker) -> None:
        """Its link ended."""
        self._sent.pop(worker.incarnation, None)

    # --- in -------------------------------------------------------------------------------------------------------

    def samples(self, candidate: Candidate, entries: Iterable[Entry]) -> bool:
        """Whether a batch holds a query whose copy the shadow gets: its predictions are wanted then."""
        labels = self._labels(candidate)
        return labels is not None and any(shadowed(labels, entry.record) for entry in entries)

    def answered(
        self, candidate: Candidate, entries: Iterable[Entry], predictions: Sequence[int], now_ms: float
    ) -> None:
        """A batch was answered as a whole; ``predictions`` are its rows', equally many of each, or of each element."""
        labels, batch, layout = self._labels(candidate), list(entries), candidate.layout
        lengths = [layout.own_length(e.inputs) if layout is not None and layout.answers_each else 1 for e in batch]
        total = sum([entry.rows * length for entry, length in zip(batch, lengths, strict=True)])
        if labels is None or not total or len(predictions) % total:
            return
        each, start = len(predictions) // total, 0
        for entry, length in zip(batch, lengths, strict=True):
            end = start + entry.rows * length * each
            if shadowed(labels, entry.record) and not self._is_full(entry.size_bytes):
                self._waiting.append(
                    Copy(
                        labels,
                        entry.record,
                        entry.query.inputs,
                        entry.rows,
                        tuple(predictions[start:end]),
                        candidate.variant,
                        now_ms + WAIT_MS_MAX,
                        entry.size_bytes,
                    )
                )
                self._bytes += entry.size_bytes
            start = end

    def _labels(self, candidate: Candidate) -> Labels | None:
        """With a shadow that is another than the candidate, is loaded somewhere, and still gets copies."""
        labels = self._catalog.labels.get(candidate.model.name)
        shadow = shadow_of(labels) if labels is not None else None
        if labels is None or shadow is None or self._failures[labels.name] >= FAILURES_MAX:
            return None
        version, variant = shadow
        if candidate.variant == variant or (candidate.model.key == version and variant is None):
            return None
        loaded = (c for c in self._catalog.candidates_of(version) if c.workers and variant in (None, c.variant))
        return labels if any(loaded) else None

    def _is_full(self, size_bytes: int) -> bool:
        return len(self._waiting) >= COPIES_MAX or self._bytes + size_bytes > BYTES_MAX

    # --- out ------------------------------------------------------------------------------------------------------

    def due(
        self, groups: Iterable[Group], block_ms: Callable[[Group], float], now_ms: float
    ) -> list[tuple[Worker, frames.Batch]]:
        """Batches for idle workers of these groups, for which nothing else waits.

        Args:
            block_ms: how long a batch may block a device of a group.
        """
        while self._waiting and self._waiting[0].until_ms <= now_ms:
            self._bytes -= self._waiting.popleft().size_bytes
        batches = []
        for group in groups if self._waiting else ():
            for worker in group.workers.values():
                if worker.draining or worker.sent or worker.incarnation in self._sent:
                    continue
                batch = self._batch(worker, block_ms(group), now_ms)
                if batch is not None:
                    batches.append((worker, batch))
        return batches

    def _batch(self, worker: Worker, block_ms: float, now_ms: float) -> frames.Batch | None:
        """The oldest copy that the worker can run, and as many like it as fit."""
        for first in self._waiting:
            candidate = self._candidate(first, worker)
            matched = candidate.match(first.inputs) if candidate is not None else ""
            if candidate is None or isinstance(matched, str):
                continue
            signature, layout = matched.signature, candidate.layout
            length = signature[0]
            copies, tensors, rows, table = [first], [matched.inputs], first.rows, candidate.table_of(length)
            rows_max = table.rows_within(inf, first.rows, block_ms)
            if length:
                rows_max = min(rows_max, padded_rows_max(candidate, signature))
            for copy in self._waiting:
                if copy is first or (copy.labels, copy.answered_by) != (first.labels, first.answered_by):
                    continue
                more = candidate.match(copy.inputs)
                if isinstance(more, str) or more.signature != signature or rows + copy.rows > rows_max:
                    continue
                copies.append(copy)
                tensors.append(more.inputs)
                rows += copy.rows
            gone = set(map(id, copies))
            self._keep(copy for copy in self._waiting if id(copy) not in gone)
            sent = self._sent[worker.incarnation] = _Sent(next(self._numbers), candidate, tuple(copies))
            cost_ms = table.p50_ms(rows)
            worker.occupy(cost_ms, now_ms)
            return frames.Batch(
                sent.batch,
                candidate.variant,
                candidate.accuracy,
                cost_ms,
                tuple(
                    _item(copy, layout.own_length(inputs) if layout is not None else 0)
                    for copy, inputs in zip(copies, tensors, strict=True)
                ),
                concatenated(tensors, rows, layout, length),
                predicts=True,
                shadow=True,
                length=length,
                cuts=layout.cuts if layout is not None else (),
            )
        return None

    def _candidate(self, copy: Copy, worker: Worker) -> Candidate | None:
        """What the worker would run it with: the variant; of a version the same builder, or else the most accurate."""
        shadow = shadow_of(copy.labels)
        assert shadow is not None, "it was sampled for one"
        version, variant = shadow
        if variant is not None:
            return self._catalog.candidate(variant, worker.group) if variant in worker.ready else None
        builder = split_variant(copy.answered_by)[1]
        there = [
            candidate
            for candidate in self._catalog.candidates_of(version)
            if candidate.group == worker.group and candidate.variant in worker.ready
        ]
        return min(
            there, key=lambda c: (split_variant(c.variant)[1] != builder, -c.accuracy_low, c.variant), default=None
        )

    def _keep(self, copies: Iterable[Copy]) -> None:
        self._waiting = deque(copies)
        self._bytes = sum(copy.size_bytes for copy in self._waiting)

    # --- back -----------------------------------------------------------------------------------------------------

    def outcome(self, worker: Worker, frame: frames.Outcome) -> None:
        """A batch that is not one of queries is ours, if it is anybody's."""
        sent = self._sent.get(worker.incarnation)
        if sent is None or sent.batch != frame.batch or not frame.final:
            return
        del self._sent[worker.incarnation]
        labels, candidate = sent.copies[0].labels, sent.candidate
        if self._catalog.labels.get(labels.name) != labels:
            return
        if any(item.status == "INTERNAL" for item in frame.items):
            self._failures[labels.name] += 1
            self._counts.failed(labels.name, candidate.variant)
        rows = sum(copy.rows for copy in sent.copies)
        expected = sum(len(copy.predictions) for copy in sent.copies)
        if not frame.rest_ok or len(frame.predictions) != expected:
            return
        agreed = start = 0
        for copy in sent.copies:
            end = start + len(copy.predictions)
            agreed += frame.predictions[start:end] == copy.predictions
            start = end
        self._counts.compared(labels.name, candidate.variant, len(sent.copies), agreed, frame.execute_ms / rows)


def _item(copy: Copy, length: int) -> frames.Item:
    """Nobody is answered, and it never expires."""
    return frames.Item(copy.record, "", copy.rows, 0.0, None, None, "", None, None, "msgpack", (), {}, (), 0, length)
