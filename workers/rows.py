"""Rows of a batch: which part of the concatenated inputs, and of the outputs, belongs to which query. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import numpy as np

from modelless.frames import Batch, BatchTensor, Item
from modelless.tensors import ITEM_BYTES, NUMPY_DTYPES, Tensor


def check(batch: Batch) -> str | None:
    """Why the inputs cannot be those of the items (rows, datatype, bytes disagree), or None when they can."""
    counts = [item.rows for item in batch.items]
    rows = sum(counts)
    if not batch.inputs or min(counts, default=0) < 1:
        return "a batch needs items with rows, and inputs"
    sizes = [size for size, _ in batch.times]
    if sizes and (sizes[0] < rows or sizes != sorted(sizes)):
        return f"its times are of {sizes} rows, and it has {rows}"
    for tensor in batch.inputs:
        if not tensor.shape or tensor.shape[0] != rows:
            return f"input {tensor.name!r} has shape {list(tensor.shape)} for {rows} rows"
        if prod(tensor.shape) * ITEM_BYTES.get(tensor.datatype, 0) != len(tensor.data):
            return f"input {tensor.name!r}: {len(tensor.data)} bytes are not {tensor.datatype} {list(tensor.shape)}"
    if batch.length and not all(1 <= item.length <= batch.length for item in batch.items):
        return f"items are to have lengths from 1 to {batch.length}, that they are padded to"
    if batch.cuts and not (batch.length and all(index >= 0 and axis >= 1 for index, axis in batch.cuts)):
        return "outputs are to be cut, but inputs are not padded"
    return None


def gather(batch: Batch, indices: Sequence[int]) -> tuple[BatchTensor, ...]:
    """The inputs of the items at ``indices`` (ascending), without a copy when that is one contiguous stretch."""
    if len(indices) == len(batch.items):
        return batch.inputs
    spans = _spans(batch, indices)
    rows = sum(end - start for start, end in spans)
    return tuple(_take(tensor, spans, rows) for tensor in batch.inputs)


def kind(batch: Batch) -> tuple[object, ...]:
    """Of a row; what is of one kind can be put together."""
    return batch.length, batch.cuts, [(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in batch.inputs]


def joined(parts: Sequence[tuple[BatchTensor, ...]]) -> tuple[BatchTensor, ...]:
    """Inputs of one kind, one behind another."""
    if len(parts) == 1:
        return parts[0]
    columns = [(column, sum([tensor.shape[0] for tensor in column])) for column in zip(*parts, strict=True)]
    return tuple([BatchTensor.joined(column, rows) for column, rows in columns])


def split(
    outputs: Sequence[BatchTensor], items: Sequence[Item], cuts: Sequence[tuple[int, int]] = ()
) -> list[tuple[memoryview, ...]]:
    """The bytes of the outputs cut into one tuple per item, views of them where nothing has to be copied.

    Args:
        items: in the order of their rows.
        cuts: (index, axis) of the outputs of which each item gets its own length; see :func:`own_shape`.
    """
    rows = [item.rows for item in items]
    ends, axes = [*accumulate(rows)], axes_cut(outputs, cuts)
    columns = []
    for index, output in enumerate(outputs):
        data = memoryview(output.data)
        row_bytes = len(data) // ends[-1]
        parts = [data[(end - count) * row_bytes : end * row_bytes] for end, count in zip(ends, rows, strict=True)]
        if index in axes:
            parts = [_cut(part, output, axes[index], item) for part, item in zip(parts, items, strict=True)]
        columns.append(parts)
    return [*zip(*columns, strict=True)] if columns else [()] * len(rows)


def axes_cut(outputs: Sequence[BatchTensor], cuts: Sequence[tuple[int, int]]) -> dict[int, int]:
    """By the index of an output, the axis that it is cut along, where it has one."""
    return {index: axis for index, axis in cuts if index < len(outputs) and axis < len(outputs[index].shape)}


def own_shape(output: BatchTensor, item: Item, axis: int | None) -> tuple[int, ...]:
    """Of an item's part of an output, cut back along ``axis``; None: it is not cut."""
    if axis is None:
        return (item.rows, *output.shape[1:])
    length = min(item.length, output.shape[axis])
    return (item.rows, *output.shape[1:axis], length, *output.shape[axis + 1 :])


def _cut(data: memoryview, output: BatchTensor, axis: int, item: Item) -> memoryview:
    whole = (item.rows * prod(output.shape[1:axis]), output.shape[axis], -1)
    array = np.frombuffer(data, NUMPY_DTYPES[output.datatype]).reshape(whole)
    return np.ascontiguousarray(array[:, : item.length]).reshape(-1).view(np.uint8).data


def predictions(
    outputs: Sequence[BatchTensor], items: Sequence[Item], cuts: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, ...]]:
    """By item, the classes that were answered: the argmax along the last dimension of the first output, row by row.

    As where accuracy is measured. An output of a single dimension holds no classes: empty then.
    """
    if not outputs or len(outputs[0].shape) < 2:
        return []
    first, axis = outputs[0], axes_cut(outputs, cuts).get(0)
    parts = split((first,), items, () if axis is None else ((0, axis),))
    arrays = [
        Tensor(first.name, first.datatype, own_shape(first, item, axis), data).to_numpy()
        for item, (data,) in zip(items, parts, strict=True)
    ]
    return [tuple(array.argmax(axis=-1).ravel().tolist()) for array in arrays]


def _spans(batch: Batch, indices: Sequence[int]) -> list[tuple[int, int]]:
    """Row ranges of the items, neighbours merged."""
    wanted = set(indices)
    spans: list[tuple[int, int]] = []
    start = 0
    for index, item in enumerate(batch.items):
        end = start + item.rows
        if index in wanted:
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        start = end
    return spans


def _take(tensor: BatchTensor, spans: list[tuple[int, int]], rows: int) -> BatchTensor:
    row_bytes = len(tensor.data) // tensor.shape[0]
    view = memoryview(tensor.data)
    parts = [view[start * row_bytes : end * row_bytes] for start, end in spans]
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return BatchTensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), data)
