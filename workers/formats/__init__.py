"""How an artifact becomes something that runs. Only executor children import the modules in here.

A builder's module (see :mod:`workers.builders`) has::

    def load(source: Source, built: Path | None, device: str, threads: int) -> Model

and, where it builds a file of the artifact first::

    def build(
        source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int
    ) -> None

``target`` is where to write the file, its extension as the descriptor says; ``built`` is that file, later and perhaps
on another machine of the group. ``calibration`` holds rows of every input, like those to come; None: there are none.
Both raise FormatError for whatever the operator should read. ``device`` is ``cpu`` or ``cuda:N``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelless.tensors import NUMPY_DTYPES, TensorSpec

Array = NDArray[Any]

_REFUSED_MAGIC = {
    b"PK\x03\x04": "a zip archive (as .pt files are)",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x8a\x0a\x6c\xfc": "a legacy torch pickle",
}


class FormatError(Exception):
    """The artifact cannot be loaded, or does not do what was declared. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a model is made of. ``path`` is local and its digest was verified."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    factory: str | None = None
    factories_allowed: tuple[str, ...] = ()
    exit: int | None = None
    """After which of its exits a network stops, from 1; None: after the last."""


class Model(Protocol):
    """One loaded variant."""

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Outputs in the order of the declared ones, each with as many rows as the inputs."""

    def device_bytes(self) -> int:
        """Memory that it takes on a device of its own, besides this process's resident memory."""


def refuse_foreign(path: Path, suffix: str) -> None:
    """Raises FormatError for another extension, and for what could run code when it is read."""
    if path.suffix.lower() != suffix:
        raise FormatError(f"{path.name}: expected a {suffix} file")
    with path.open("rb") as file:
        head = file.read(9)
    if suffix == ".safetensors" and head[8:] == b"{":
        return  # begins with a length, which may look like anything
    for magic, what in _REFUSED_MAGIC.items():
        if head.startswith(magic):
            raise FormatError(f"{path.name} is {what}, which is never loaded; export it as {suffix}")


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Raises FormatError unless the inputs are those declared."""
    if inputs.keys() != {spec.name for spec in specs}:
        raise FormatError(f"inputs are {sorted(inputs)}, declared are {sorted(spec.name for spec in specs)}")
    for spec in specs:
        _check("input", spec, inputs[spec.name], None)


def check_outputs(specs: Sequence[TensorSpec], outputs: Sequence[Array], rows: int) -> None:
    """Raises FormatError unless the outputs are those declared, for ``rows`` rows."""
    if len(outputs) != len(specs):
        raise FormatError(f"the model returned {len(outputs)} outputs, declared are {len(specs)}")
    for spec, array in zip(specs, outputs, strict=True):
        _check("output", spec, array, rows)


def _check(role: str, spec: TensorSpec, array: Array, rows: int | None) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != NUMPY_DTYPES[spec.datatype]:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise FormatError(f"{role} {spec.name!r} is {found}, declared is {spec.datatype}")
    if len(array.shape) != len(spec.shape) or any(
        want not in (-1, got) for want, got in zip(spec.shape[1:], array.shape[1:], strict=True)
    ):
        raise FormatError(f"{role} {spec.name!r} has shape {list(array.shape)}, declared is {list(spec.shape)}")
    if rows is not None and array.shape[0] != rows:
        raise FormatError(f"{role} {spec.name!r} has {array.shape[0]} rows for {rows} rows of input")
