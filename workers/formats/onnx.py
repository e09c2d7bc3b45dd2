"""ONNX through onnxruntime, builder ``onnx-fp32``: on the CPU, or on CUDA where the installed build has it.

An .onnx artifact is loaded as it is; of a torch network one is exported first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from workers.formats import Array, FormatError, Source, refuse_foreign


def build(source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int) -> None:
    """Of a torch network. Raises FormatError."""
    from workers.formats import exporting

    network = exporting.to_onnx(source, calibration, target, threads)
    exporting.check_same(network, open_session(target, source, "cpu", threads), source, calibration)


def load(source: Source, built: Path | None, device: str, threads: int) -> OnnxModel:
    """Raises FormatError when onnxruntime refuses the file, or its inputs and outputs are not those declared."""
    return open_session(built or source.path, source, device, threads)


def graph_of(source: Source, calibration: Mapping[str, Array] | None, folder: Path, threads: int) -> Path:
    """The source's own .onnx file; of a torch network one exported into ``folder``. Raises FormatError."""
    if source.path.suffix.lower() == ".onnx":
        refuse_foreign(source.path, ".onnx")
        return source.path
    from workers.formats import exporting

    exporting.to_onnx(source, calibration, folder / "exported.onnx", threads)
    return folder / "exported.onnx"


def open_session(path: Path, source: Source, device: str, threads: int) -> OnnxModel:
    """As :func:`load`, of any file."""
    refuse_foreign(path, ".onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(device))
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise FormatError(f"onnxruntime cannot load it: {first_line(error)}") from None
    return OnnxModel(session, source)


class OnnxModel:
    def __init__(self, session: Any, source: Source) -> None:
        self._session = session
        self._outputs = [spec.name for spec in source.outputs]
        check_names(source, [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()])

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = self._session.run(self._outputs, inputs)
        return outputs

    def device_bytes(self) -> int:
        return 0


def check_names(source: Source, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raises FormatError unless a graph has the declared inputs, and at least the declared outputs."""
    declared = [spec.name for spec in source.inputs]
    if sorted(inputs) != sorted(declared):
        raise FormatError(f"the model's inputs are {', '.join(inputs)}; declared are {', '.join(declared)}")
    if missing := {spec.name for spec in source.outputs} - set(outputs):
        raise FormatError(f"the model has no output {', '.join(sorted(missing))}; it has: {', '.join(outputs)}")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise FormatError("this onnxruntime has no CUDA; install onnxruntime-gpu, or register it for a cpu group")
    return [("CUDAExecutionProvider", {"device_id": device.partition(":")[2]}), "CPUExecutionProvider"]
