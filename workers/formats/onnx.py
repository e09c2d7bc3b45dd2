"""ONNX through onnxruntime: on the CPU, or on CUDA where the installed build has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from workers.formats import Array, FormatError, Source, refuse_foreign


def load(source: Source, built: Path | None, device: str, threads: int) -> OnnxModel:
    """Raises FormatError when onnxruntime refuses the file, or its inputs and outputs are not those declared."""
    refuse_foreign(source.path, ".onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(source.path), options, providers=_providers(device))
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise FormatError(f"onnxruntime cannot load it: {_first_line(error)}") from None
    return OnnxModel(session, source)


class OnnxModel:
    def __init__(self, session: Any, source: Source) -> None:
        self._session = session
        self._outputs = [spec.name for spec in source.outputs]
        _same_names("inputs", [node.name for node in session.get_inputs()], [spec.name for spec in source.inputs])
        missing = set(self._outputs) - {node.name for node in session.get_outputs()}
        if missing:
            found = ", ".join(node.name for node in session.get_outputs())
            raise FormatError(f"the model has no output {', '.join(sorted(missing))}; it has: {found}")

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = self._session.run(self._outputs, inputs)
        return outputs

    def device_bytes(self) -> int:
        return 0


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise FormatError("this onnxruntime has no CUDA; install onnxruntime-gpu, or register it for a cpu group")
    return [("CUDAExecutionProvider", {"device_id": device.partition(":")[2]}), "CPUExecutionProvider"]


def _same_names(what: str, found: list[str], declared: list[str]) -> None:
    if sorted(found) != sorted(declared):
        raise FormatError(f"the model's {what} are {', '.join(found)}; declared are {', '.join(declared)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
