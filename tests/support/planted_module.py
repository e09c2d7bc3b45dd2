"""What an executor child imports for a planted builder: the file that it makes is the model with a note."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from workers.formats import Array, FormatError, Model, Source, onnx

DOC_STRING = b"\x32\x05built"
"""Field 6 of an ONNX ModelProto."""


_kept: list[bytes] = []


class Bulky:
    """y = x + 1 with 36 MB of small blocks; some outlive it, so that the heap does not shrink by itself."""

    def __init__(self) -> None:
        self._blocks = [bytes(600) for _ in range(60_000)]
        _kept.extend(self._blocks[::500])

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        return [inputs["x"] + 1]

    def device_bytes(self) -> int:
        return 0


def build(source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int) -> None:
    match target.suffix:
        case ".fails":
            raise FormatError("this model has an operator that nobody knows")
        case ".dies":
            os.abort()
        case ".hangs":
            time.sleep(3600)
    target.write_bytes(source.path.read_bytes() + DOC_STRING)


def load(source: Source, built: Path | None, device: str, threads: int) -> Model:
    assert built is not None
    if built.suffix == ".bulky":
        return Bulky()
    return onnx.load(replace(source, path=built), None, device, threads)
