"""Emulated models: a table instead of a network. Executing waits, and takes no processor."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelless.frames import BatchTensor
from modelless.padding import Layout
from modelless.tensors import ITEM_BYTES, TensorSpec
from workers.formats import FormatError, refuse_foreign

COLUMNS = ("group", "batch_size", "p50_ms", "p99_ms", "load_ms", "memory_mb")


@dataclass(frozen=True, slots=True)
class EmulatedModel:
    """One group's rows of the table, by ascending batch size."""

    batch_sizes: tuple[int, ...]
    p50_ms: tuple[float, ...]
    load_ms: float
    memory_bytes: int
    outputs: tuple[TensorSpec, ...]
    layout: Layout | None = None

    def length(self, inputs: Sequence[BatchTensor]) -> int:
        """That rows are padded to; 1 where they are not."""
        return 1 if self.layout is None else inputs[self.layout.leader].shape[self.layout.axes[self.layout.leader]]

    def latency_ms(self, rows: int) -> float:
        """lat(b) of the next larger profiled size; beyond the largest, in proportion."""
        index = bisect_left(self.batch_sizes, rows)
        if index < len(self.batch_sizes):
            return self.p50_ms[index]
        return self.p50_ms[-1] * rows / self.batch_sizes[-1]

    def answer(self, rows: int, length: int = 1) -> tuple[BatchTensor, ...]:
        """Zeros of the declared shapes; free dimensions are 1, or what they follow: the ``length`` of the inputs."""
        tensors = []
        for spec in self.outputs:
            follows = 0 if spec.padding is None else spec.padding.axis
            sizes = [(1 if size == -1 else size) for size in spec.shape]
            shape = (rows, *(length if axis == follows else size for axis, size in enumerate(sizes) if axis))
            row_bytes = ITEM_BYTES[spec.datatype]
            for size in shape[1:]:
                row_bytes *= size
            tensors.append(BatchTensor(spec.name, spec.datatype, shape, bytes(rows * row_bytes)))
        return tuple(tensors)


def load(path: Path, outputs: tuple[TensorSpec, ...], group: str, layout: Layout | None = None) -> EmulatedModel:
    """Raises FormatError when the table is malformed or has no rows for the group."""
    refuse_foreign(path, ".csv")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise FormatError(f"the first line must be {','.join(COLUMNS)}")
        try:
            table = sorted(
                tuple(float(row[column]) for column in COLUMNS[1:]) for row in reader if row["group"] == group
            )
        except (ValueError, TypeError):
            raise FormatError(f"line {reader.line_num} has something else than numbers after the group") from None
    if not table or table[0][0] < 1 or not all(0 < row[1] < 1e7 and 0 <= row[3] < 1e7 for row in table):
        raise FormatError(f"the table needs rows for group {group!r} with positive batch sizes and times")
    return EmulatedModel(
        batch_sizes=tuple(int(row[0]) for row in table),
        p50_ms=tuple(row[1] for row in table),
        load_ms=table[-1][3],
        memory_bytes=int(table[-1][4] * 2**20),
        outputs=outputs,
        layout=layout,
    )
