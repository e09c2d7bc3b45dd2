"""Builder ``tensorrt-fp16``: an ONNX graph, the artifact or one exported, in half precision, as a TensorRT engine.

TensorRT takes a network's types from its graph, so the graph is converted first; its inputs and outputs stay as they
were. An engine is for one kind of GPU and one version of TensorRT, and for 1 to ``ROWS_MAX`` rows: larger batches run
in parts. No GPU has run this module yet; it was written from the documentation of TensorRT 10 and 11.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt
import torch

from workers.formats import Array, FormatError, Source
from workers.formats.onnx import check_names, first_line, graph_of
from workers.formats.torch_module import torch_dtype

ROWS_MAX = 128
_ROWS_TYPICAL = 16
_LOGGER = tensorrt.Logger(tensorrt.Logger.ERROR)


def build(source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int) -> None:
    """Raises FormatError when the graph cannot be converted, parsed or built."""
    for spec in source.inputs:
        if -1 in spec.shape[1:]:
            raise FormatError(
                f"input {spec.name!r} has free dimensions besides the batch; an engine needs their limits"
            )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        graph = _half_precision(source, calibration, Path(folder), threads)
    builder = tensorrt.Builder(_LOGGER)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, _LOGGER)
    if not parser.parse(graph):
        raise FormatError(f"TensorRT cannot parse it: {parser.get_error(0).desc() if parser.num_errors else 'unknown'}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for spec in source.inputs:
        profile.set_shape(spec.name, *((rows, *spec.shape[1:]) for rows in (1, _ROWS_TYPICAL, ROWS_MAX)))
    config.add_optimization_profile(profile)
    with torch.cuda.device(device):
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise FormatError("TensorRT cannot build an engine of it; the worker's log has its complaint")
    target.write_bytes(engine)


def load(source: Source, built: Path | None, device: str, threads: int) -> EngineModel:
    """Raises FormatError when the engine is for another GPU or TensorRT, or has other inputs and outputs."""
    assert built is not None, "it builds a file of every format"
    with torch.cuda.device(device):
        runtime = tensorrt.Runtime(_LOGGER)
        engine = runtime.deserialize_cuda_engine(built.read_bytes())
        if engine is None:
            raise FormatError("TensorRT refuses the engine: it was built for another GPU or version")
        return EngineModel(runtime, engine, source, device)


class EngineModel:
    def __init__(self, runtime: Any, engine: Any, source: Source, device: str) -> None:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT for name in names}
        check_names(source, [n for n in names if is_input[n]], [n for n in names if not is_input[n]])
        self._runtime, self._engine, self._source, self._device = runtime, engine, source, device
        self._context = engine.create_execution_context()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._dtypes = {spec.name: torch_dtype(spec.datatype) for spec in source.outputs}

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        rows = len(next(iter(inputs.values())))
        parts = [
            self._run({name: array[start : start + ROWS_MAX] for name, array in inputs.items()})
            for start in range(0, rows, ROWS_MAX)
        ]
        return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _run(self, inputs: Mapping[str, Array]) -> list[Array]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            held = {name: torch.from_numpy(array).to(self._device).contiguous() for name, array in inputs.items()}
            for name, tensor in held.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
            for name, dtype in self._dtypes.items():
                held[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=self._device)
            for name, tensor in held.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise FormatError("TensorRT could not run the batch; the worker's log has its complaint")
            self._stream.synchronize()
            return [held[name].cpu().numpy() for name in self._dtypes]

    def device_bytes(self) -> int:
        """Weights and scratch space are TensorRT's own, not in torch's count."""
        return torch.cuda.memory_reserved(self._device) + int(self._engine.device_memory_size_v2)


def _half_precision(source: Source, calibration: Mapping[str, Array] | None, folder: Path, threads: int) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = graph_of(source, calibration, folder, threads)
    try:
        graph = convert_float_to_float16(onnx.load(path, load_external_data=False), keep_io_types=True)
        return bytes(graph.SerializeToString())
    except Exception as error:  # onnx raises a dozen unrelated types
        raise FormatError(f"it cannot be converted to half precision: {first_line(error)}") from None
