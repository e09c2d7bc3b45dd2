"""The evaluation set: read, checked, and cut in two halves that have nothing in common.

One half **calibrates** (builders that quantise look at it), the other **measures** accuracy. Both hold every class in
its share, whatever the order of the file, and both are shuffled, so that any beginning of one is a fair sample. The
same labels are always cut in the same way: all variants of a model are measured on the same rows, on every group.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelless.padding import layout_of
from modelless.tensors import NUMPY_DTYPES, TensorSpec

Array = NDArray[Any]
CALIBRATION_ROWS_MAX = 512
"""Enough to see the range of every activation; more only makes building slower."""
CALIBRATION_BYTES_MAX = 64 * 1024 * 1024
_SEED = 0


class EvaluationError(Exception):
    """The set cannot be used; the message is for the operator."""


class Halves(NamedTuple):
    """Indices of rows."""

    calibration: NDArray[np.int64]
    measuring: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Arrays by input name with n rows each, and the labels, [n, ...].

    Where rows are padded, they are, and ``length`` is the one that they had before; otherwise 0.
    """

    inputs: Mapping[str, Array]
    labels: Array
    length: int = 0

    @property
    def rows(self) -> int:
        return len(self.labels)

    def take(self, indices: Array) -> Evaluation:
        inputs = {name: array[indices] for name, array in self.inputs.items()}
        return Evaluation(inputs, self.labels[indices], self.length)

    def halves(self) -> tuple[Evaluation, Evaluation]:
        """To calibrate with (within its limits, but at least a row), and to measure on."""
        calibration, measuring = halves(self.labels)
        row_bytes = sum(array[:1].nbytes for array in self.inputs.values())
        rows = max(1, min(CALIBRATION_ROWS_MAX, CALIBRATION_BYTES_MAX // max(1, row_bytes)))
        return self.take(calibration[:rows]), self.take(measuring)


def halves(labels: Array) -> Halves:
    """Rows in two halves, classes dealt alternately, each half shuffled; the measuring one gets an odd row.

    Args:
        labels: [n] classes; of more dimensions: rows are dealt as they come out of the shuffle.
    """
    random = np.random.default_rng(_SEED)
    order = random.permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    return Halves(random.permutation(order[1::2]), random.permutation(order[0::2]))


def read_evaluation(path: Path, inputs: Sequence[TensorSpec]) -> Evaluation:
    """The arrays of an ``.npz``, checked against the model's inputs.

    Raises:
        EvaluationError: it is no such file, or an array is missing or does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"evaluation: the data is not a readable .npz ({error})") from None
    labels = arrays.get("labels")
    if labels is None or labels.ndim < 1 or len(labels) < 2:
        raise EvaluationError("evaluation: the data needs an array `labels` of at least 2 rows")
    layout = layout_of(inputs)
    made = () if layout is None else layout.made
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None and spec in made:
            continue
        if array is None:
            raise EvaluationError(f"evaluation: the data has no array for input {spec.name!r}; it has {sorted(arrays)}")
        if array.dtype != NUMPY_DTYPES[spec.datatype] or len(array) != len(labels):
            raise EvaluationError(
                f"evaluation: array {spec.name!r} is {array.dtype} with {len(array)} rows; "
                f"expected {spec.datatype} with {len(labels)}"
            )
        if array.ndim != len(spec.shape):
            raise EvaluationError(f"evaluation: array {spec.name!r} has shape {array.shape}, expected {spec.shape}")
    if layout is None:
        return Evaluation({spec.name: arrays[spec.name] for spec in inputs}, labels)
    shapes = {name: array.shape for name, array in arrays.items()}
    if (problem := layout.problem(shapes)) is not None:
        raise EvaluationError(f"evaluation: {problem}")
    return Evaluation(
        layout.whole(arrays), labels, shapes[layout.specs[layout.leader].name][layout.axes[layout.leader]]
    )


def write_calibration(evaluation: Evaluation, path: Path) -> None:
    """The inputs of the calibrating half as an ``.npz``; its labels are nobody's business."""
    with path.open("wb") as file:
        np.savez(file, **evaluation.halves()[0].inputs)  # type: ignore[arg-type]
