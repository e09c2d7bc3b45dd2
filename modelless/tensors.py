"""Tensors in the terms of the Open Inference Protocol (V2).

``data`` holds the elements in row-major order as raw little-endian bytes. The first dimension of a
query's inputs is the batch: its length is the query's number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelless.errors import InvalidArgumentError

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
ITEM_BYTES: dict[str, int] = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

DIMENSIONS_MAX = 16


@dataclass(frozen=True, slots=True)
class Padding:
    """Which dimension of a tensor has rows of varying length, and what becomes of it; see :mod:`modelless.padding`."""

    axis: int
    """Of the dimension; the batch is 0."""
    lengths: tuple[int, ...] = ()
    """To what an input is padded: the first of these, ascending, that holds it. Or else it has ``follows``."""
    value: float = 0.0
    """What an input is padded with."""
    follows: str | None = None
    """The input with ``lengths`` whose length this one has; an output is cut back to it."""
    mask: str | None = None
    """An input that is made where it is not sent: 1 up to the length of the row, then 0."""
    own_lengths: str | None = None
    """Likewise: the length of each row."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model expects or returns. ``shape[0]`` is -1, the batch; other -1 are free dimensions."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    padding: Padding | None = None
    """None: rows that share a batch have the same shape."""

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one row, or None when a dimension besides the batch is free."""
        inner = self.shape[1:]
        return None if -1 in inner else prod(inner) * ITEM_BYTES[self.datatype]


class Tensor(NamedTuple):
    """One named tensor of a message. ``data`` may be a view into the bytes that it was decoded from."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def check(self) -> Tensor:
        """Return self when datatype, shape and the number of bytes agree, before anything is allocated.

        Raises:
            InvalidArgumentError: with the tensor's name and what disagrees.
        """
        item_bytes = ITEM_BYTES.get(self.datatype)
        if item_bytes is None:
            raise InvalidArgumentError(
                f"tensor {self.name!r}: datatype {self.datatype!r} is not one of {', '.join(ITEM_BYTES)}"
            )
        if not self.shape or len(self.shape) > DIMENSIONS_MAX:
            raise InvalidArgumentError(f"tensor {self.name!r}: shape must have 1 to {DIMENSIONS_MAX} dimensions")
        if min(self.shape) < 1:
            raise InvalidArgumentError(f"tensor {self.name!r}: every dimension of shape must be at least 1")
        expected_bytes = prod(self.shape) * item_bytes
        if expected_bytes != len(self.data):
            raise InvalidArgumentError(
                f"tensor {self.name!r}: {self.datatype} of shape {list(self.shape)} takes {expected_bytes} bytes, "
                f"but data has {len(self.data)}"
            )
        return self

    def to_numpy(self) -> NDArray[Any]:
        """A read-only array over ``data`` (no copy)."""
        return np.frombuffer(self.data, dtype=NUMPY_DTYPES[self.datatype]).reshape(self.shape)

    @classmethod
    def from_numpy(cls, name: str, array: NDArray[Any]) -> Tensor:
        """Raises InvalidArgumentError for a dtype that the contract does not carry (object, str, complex…)."""
        dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        datatype = _NAMES.get(dtype)
        if datatype is None:
            raise InvalidArgumentError(
                f"tensor {name!r}: dtype {array.dtype} is not one of {', '.join(map(str, _NAMES))}"
            )
        return cls(name, datatype, tuple(array.shape), np.ascontiguousarray(array, dtype=dtype).tobytes())


def rows(tensors: Sequence[Tensor]) -> int:
    """The common first dimension of a query's inputs. Raises InvalidArgumentError when they differ."""
    first = tensors[0].shape[0]
    for tensor in tensors:
        if tensor.shape[0] != first:
            raise InvalidArgumentError(
                f"inputs disagree on the batch dimension: {tensors[0].name!r} has {first} rows, "
                f"{tensor.name!r} has {tensor.shape[0]}"
            )
    return first
