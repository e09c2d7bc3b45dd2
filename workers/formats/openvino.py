"""Builder ``openvino-fp32``: an ONNX graph, the artifact or one exported of a torch network, compiled by OpenVINO.

It compiles when it is loaded. Left to itself it would compute in bfloat16 where the processor can; it is told not to.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.formats import Array, FormatError, Source, refuse_foreign
from workers.formats.onnx import check_names, first_line

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing openvino would report home

import openvino  # noqa: E402


def build(source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int) -> None:
    """Of a torch network. Raises FormatError."""
    from workers.formats import exporting

    network = exporting.to_onnx(source, calibration, target, threads)
    exporting.check_same(network, _compile(target, source, threads), source, calibration)


def load(source: Source, built: Path | None, device: str, threads: int) -> OpenVinoModel:
    """Raises FormatError when OpenVINO refuses the file, or its inputs and outputs are not those declared."""
    return _compile(built or source.path, source, threads)


def _compile(path: Path, source: Source, threads: int) -> OpenVinoModel:
    refuse_foreign(path, ".onnx")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except Exception as error:
        raise FormatError(f"OpenVINO cannot compile it: {first_line(error)}") from None
    return OpenVinoModel(compiled, source)


class OpenVinoModel:
    def __init__(self, compiled: Any, source: Source) -> None:
        check_names(source, [i.any_name for i in compiled.inputs], [o.any_name for o in compiled.outputs])
        self._outputs = [compiled.output(spec.name) for spec in source.outputs]
        self._request = compiled.create_infer_request()

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        found = self._request.infer(inputs, share_inputs=True)
        return [found[output] for output in self._outputs]

    def device_bytes(self) -> int:
        return 0
