"""Rows of varying length in one batch: to what they are padded, with what, and what is cut off again. Pure.

A model may say of one dimension of its inputs that its rows have lengths of their own (tokens of a text, samples of a
sound) and to which **lengths** they are padded. What is padded to the same length may share a batch. The words:

* the **leader**: the input that names the lengths;
* **followers**: inputs that have the leader's length in a dimension of theirs, padded with a value of their own, and
  outputs, which are cut back to the length of each row before it is answered;
* **made** inputs, which a sender may leave out: a mask (1 up to a row's own length, then 0) and the own lengths.

A query has one length for all its rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, prod
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from modelless.errors import ConfigurationError
from modelless.frames import BatchTensor
from modelless.tensors import ITEM_BYTES, NUMPY_DTYPES, Padding, Tensor, TensorSpec

LENGTHS_MAX = 32
LENGTH_MAX = 2**24
VALUE_MAX = 2**53
"""Beyond this not every whole number is a float."""
PADDED_BYTES_MAX = 16 * 1024 * 1024
"""Of one query; a few bytes of many short rows would otherwise become any number of them."""

Role = Literal["plain", "padded", "mask", "own_lengths"]
MADE = ("mask", "own_lengths")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the inputs of one model are padded. The first four have an entry for each input, in the declared order."""

    specs: tuple[TensorSpec, ...]
    roles: tuple[Role, ...]
    axes: tuple[int, ...]
    """0: it has no dimension that is padded."""
    values: tuple[float, ...]
    leader: int
    lengths: tuple[int, ...]
    made: tuple[TensorSpec, ...]
    """The inputs that a sender may leave out."""
    cuts: tuple[tuple[int, int], ...] = ()
    """(index, axis) of each output that follows."""
    answers_each: bool = False
    """Whether the first output has a class for each element of a row's length, and not one for the row."""

    def own_length(self, inputs: Sequence[Tensor]) -> int:
        """Of the rows of a query, before they are padded."""
        return inputs[self.leader].shape[self.axes[self.leader]]

    def padded_length(self, own_length: int) -> int:
        """The first declared length that holds it. The caller knows that there is one."""
        return self.lengths[bisect_left(self.lengths, own_length)]

    def length_of(self, tensors: Sequence[Tensor]) -> int:
        """That a query would be padded to which nobody has checked yet; 0: to none."""
        leader, axis = self.specs[self.leader], self.axes[self.leader]
        for tensor in tensors:
            if tensor.name == leader.name and len(tensor.shape) == len(leader.shape):
                length = tensor.shape[axis]
                return self.padded_length(length) if length <= self.lengths[-1] else 0
        return 0

    def shapes(self, inputs: Sequence[Tensor], length: int) -> tuple[tuple[int, ...], ...]:
        """Of a row of each input that is padded to ``length``."""
        return tuple([_with(each.shape, axis, length)[1:] for each, axis in zip(inputs, self.axes, strict=True)])

    def problem(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What is wrong with the lengths of inputs of these shapes, each of which fits its own specification."""
        leader, axis = self.specs[self.leader].name, self.axes[self.leader]
        length = shapes[leader][axis]
        if length > self.lengths[-1]:
            return f"input {leader!r} has length {length} in dimension {axis}; at most {self.lengths[-1]} is taken"
        for spec, own_axis in zip(self.specs, self.axes, strict=True):
            shape = shapes.get(spec.name)
            if own_axis and shape is not None and shape[own_axis] != length:
                return (
                    f"input {spec.name!r} has length {shape[own_axis]} in dimension {own_axis}, "
                    f"but {leader!r}, which it follows, has {length}"
                )
        return None

    def complete(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...] | str:
        """All inputs of a query, with what we make of those that are None; or a sentence that says what is wrong.

        The caller has checked datatypes and shapes, and that only what we make is None.
        """
        problem = self.problem({tensor.name: tensor.shape for tensor in inputs if tensor is not None})
        if problem is not None:
            return problem
        leader = inputs[self.leader]
        assert leader is not None, "it is not made"
        rows, length = leader.shape[0], leader.shape[self.axes[self.leader]]
        complete = [
            _made(spec, role, rows, length) if tensor is None else tensor
            for tensor, spec, role in zip(inputs, self.specs, self.roles, strict=True)
        ]
        padded_length = self.padded_length(length)
        shapes = self.shapes(complete, padded_length)
        size_bytes = rows * sum(
            prod(shape) * ITEM_BYTES[spec.datatype] for shape, spec in zip(shapes, self.specs, strict=True)
        )
        if size_bytes > PADDED_BYTES_MAX:
            return (
                f"inputs of {rows} rows that are padded from length {length} to {padded_length} take {size_bytes} "
                f"bytes, more than {PADDED_BYTES_MAX}; send fewer rows in one query"
            )
        return tuple(complete)

    def whole(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Rows of one length as they would be run: with what is made, and padded. The caller knows that they fit."""
        leader = arrays[self.specs[self.leader].name]
        rows, own_length = len(leader), leader.shape[self.axes[self.leader]]
        missing = self.padded_length(own_length) - own_length
        whole = {}
        for spec, role, axis, value in zip(self.specs, self.roles, self.axes, self.values, strict=True):
            array = arrays.get(spec.name)
            if array is None:
                array = _made(spec, role, rows, own_length).to_numpy()
            if axis and missing:
                behind = [(0, missing if each == axis else 0) for each in range(array.ndim)]
                array = np.pad(array, behind, constant_values=value)
            whole[spec.name] = array
        return whole

    def stretched(self, arrays: Mapping[str, NDArray[Any]], length: int) -> dict[str, NDArray[Any]]:
        """All inputs of some rows as if these had another length: repeated, or cut. To measure with, not to answer."""
        stretched = {}
        for spec, role, axis in zip(self.specs, self.roles, self.axes, strict=True):
            array = arrays[spec.name]
            if axis:
                array = array.take(np.arange(length) % array.shape[axis], axis=axis)
            stretched[spec.name] = np.full_like(array, length) if role == "own_lengths" else array
        return stretched

    def join(self, queries: Sequence[Sequence[Tensor]], rows: int, length: int) -> tuple[BatchTensor, ...]:
        """The complete inputs of several queries, ``rows`` in all, padded to ``length`` and one behind another."""
        joined = []
        for index, axis in enumerate(self.axes):
            parts = [inputs[index] for inputs in queries]
            if axis and any(part.shape[axis] != length for part in parts):
                first = parts[0]
                shape = (rows, *_with(first.shape, axis, length)[1:])
                data = _padded(parts, shape, axis, self.values[index])
                joined.append(BatchTensor(first.name, first.datatype, shape, data))
            else:
                joined.append(BatchTensor.joined(parts, rows))
        return tuple(joined)


def layout_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()) -> Layout | None:
    """How a model with these inputs and outputs is padded; None: not at all.

    Raises:
        ConfigurationError: they do not go together; names the field of ``model.toml``.
    """
    specs = {spec.name: spec for spec in inputs}
    leaders = [spec for spec in inputs if spec.padding is not None and spec.padding.lengths]
    for section, tensors in (("inputs", inputs), ("outputs", outputs)):
        for spec in tensors:
            if spec.padding is not None:
                _check(f"{section}.{spec.name}.padding", spec, spec.padding, leaders, is_input=section == "inputs")
    if not leaders:
        return None
    leader = leaders[0]
    assert leader.padding is not None
    roles: dict[str, Role] = {spec.name: "plain" if spec.padding is None else "padded" for spec in inputs}
    axes = {spec.name: 0 if spec.padding is None else spec.padding.axis for spec in inputs}
    if leader.padding.mask is not None:
        _check_made(f"inputs.{leader.name}.padding.mask", leader.padding.mask, specs, 2)
        roles[leader.padding.mask], axes[leader.padding.mask] = "mask", 1
    if leader.padding.own_lengths is not None:
        field = f"inputs.{leader.name}.padding.own_lengths"
        _check_made(field, leader.padding.own_lengths, specs, 1)
        made = specs[leader.padding.own_lengths]
        if not _holds(made.datatype, leader.padding.lengths[-1]):
            _refuse(field, f"{made.datatype} of {made.name!r} cannot hold {leader.padding.lengths[-1]}")
        if roles[made.name] == "mask":
            _refuse(field, f"{made.name!r} is the mask already")
        roles[made.name] = "own_lengths"
    cuts = tuple((index, spec.padding.axis) for index, spec in enumerate(outputs) if spec.padding is not None)
    return Layout(
        specs=tuple(inputs),
        roles=tuple(roles[spec.name] for spec in inputs),
        axes=tuple(axes[spec.name] for spec in inputs),
        values=tuple(0.0 if spec.padding is None else spec.padding.value for spec in inputs),
        leader=list(inputs).index(leader),
        lengths=leader.padding.lengths,
        made=tuple(spec for spec in inputs if roles[spec.name] in MADE),
        cuts=cuts,
        answers_each=any(index == 0 and axis < len(outputs[0].shape) - 1 for index, axis in cuts),
    )


def _check(field: str, spec: TensorSpec, padding: Padding, leaders: Sequence[TensorSpec], *, is_input: bool) -> None:
    if not 1 <= padding.axis < len(spec.shape) or spec.shape[padding.axis] != -1:
        _refuse(f"{field}.axis", f"must be that of a free dimension (-1) after the batch, got {padding.axis}")
    if bool(padding.lengths) == (padding.follows is not None) or not (is_input or padding.follows):
        either = "either lengths or follows" if is_input else "follows, the input whose length it has"
        _refuse(field, f"give {either}")
    if padding.follows is not None and padding.follows not in [leader.name for leader in leaders]:
        _refuse(f"{field}.follows", f"must be an input whose padding has lengths, got {padding.follows!r}")
    if padding.lengths:
        if leaders[0] is not spec:
            _refuse(
                f"{field}.lengths",
                f"inputs.{leaders[0].name} has lengths already, and one dimension can be padded; "
                f'let this one follow it: padding = {{ follows = "{leaders[0].name}" }}',
            )
        _check_lengths(f"{field}.lengths", padding.lengths)
    if not is_input and padding.value:
        _refuse(f"{field}.value", "goes with an input; an output is only cut")
    if not isfinite(padding.value) or not _holds(spec.datatype, padding.value):
        _refuse(f"{field}.value", f"must be a finite number that {spec.datatype} can hold, got {padding.value:g}")
    if not padding.lengths and (padding.mask is not None or padding.own_lengths is not None):
        _refuse(field, "mask and own_lengths go with lengths, on the input that is followed")


def _check_lengths(field: str, lengths: Sequence[int]) -> None:
    if len(lengths) > LENGTHS_MAX:
        _refuse(field, f"must be at most {LENGTHS_MAX}, got {len(lengths)}; each is measured")
    if lengths[0] < 1 or lengths[-1] > LENGTH_MAX or any(one >= other for one, other in pairwise(lengths)):
        _refuse(field, f"must be ascending whole numbers from 1 to {LENGTH_MAX}, got {list(lengths)}")


def _check_made(field: str, name: str, specs: dict[str, TensorSpec], dimensions: int) -> None:
    spec = specs.get(name)
    if spec is None:
        _refuse(field, f"must be one of the inputs, {', '.join(specs)}, got {name!r}")
    if spec.shape != (-1,) * dimensions:
        _refuse(field, f"{name!r} must have shape {[-1] * dimensions}, got {list(spec.shape)}")
    if spec.padding is not None:
        _refuse(field, f"{name!r} is padded by this; remove its own padding")


def _holds(datatype: str, value: float) -> bool:
    """Whether a tensor of the datatype can have the (finite) value."""
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        return abs(value) <= float(np.finfo(dtype).max)
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return value == int(value) and low <= value <= high and abs(value) <= VALUE_MAX


def _refuse(field: str, problem: str) -> NoReturn:
    raise ConfigurationError(f"{field}: {problem}")


def _with(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return (*shape[:axis], length, *shape[axis + 1 :]) if axis else shape


def _made(spec: TensorSpec, role: Role, rows: int, length: int) -> Tensor:
    dtype = NUMPY_DTYPES[spec.datatype]
    array = np.ones((rows, length), dtype) if role == "mask" else np.full(rows, length, dtype)
    return Tensor(spec.name, spec.datatype, array.shape, array.tobytes())


def _padded(parts: Sequence[Tensor], shape: tuple[int, ...], axis: int, value: float) -> memoryview:
    """The rows of all parts, of lengths of their own along ``axis``, as the bytes of one array of ``shape``."""
    rows, outer, length, inner = shape[0], prod(shape[1:axis]), shape[axis], prod(shape[axis + 1 :])
    dtype = NUMPY_DTYPES[parts[0].datatype]
    whole = np.full((rows, outer, length, inner), value, dtype)
    start = 0
    for part in parts:
        end = start + part.shape[0]
        whole[start:end, :, : part.shape[axis]] = np.frombuffer(part.data, dtype).reshape(end - start, outer, -1, inner)
        start = end
    return whole.reshape(-1).view(np.uint8).data
