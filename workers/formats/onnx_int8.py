"""Builder ``onnx-int8``: onnxruntime's static quantisation of an ONNX graph, convolutions and matrix products alike.

The graph gets pairs of QuantizeLinear and DequantizeLinear (QDQ) around what can be quantised; onnxruntime fuses them
into integer kernels. Weights are int8 with a scale per output channel, activations uint8 with the range that they took
on the calibration rows, at most ``CALIBRATION_ROWS_MAX`` of them. Without such rows it cannot be built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from workers import hardware
from workers.formats import Array, FormatError, Source
from workers.formats.onnx import OnnxModel, first_line, graph_of, open_session

CALIBRATION_ROWS_MAX = 256
_BATCH = 32


def build(source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int) -> None:
    """Raises FormatError when there are no calibration rows, or the graph cannot be quantised."""
    if calibration is None or not all(map(len, calibration.values())):
        raise FormatError(
            "it needs rows to calibrate on, and the model declares its accuracy; give [evaluation] data instead"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = graph_of(source, calibration, Path(folder), threads)
        try:
            _quantise(whole, target, Path(folder), calibration, threads)
        except Exception as error:  # onnxruntime and onnx raise a dozen unrelated types
            raise FormatError(f"onnxruntime cannot quantise it: {first_line(error)}") from None
    if not _is_quantised(target):
        target.unlink()
        raise FormatError("none of its operators can be quantised: onnxruntime covers convolutions and matrix products")
    open_session(target, source, "cpu", threads).run({name: rows[:1] for name, rows in calibration.items()})


def load(source: Source, built: Path | None, device: str, threads: int) -> OnnxModel:
    assert built is not None, "it builds a file of every format"
    return open_session(built, source, device, threads)


def _quantise(whole: Path, target: Path, folder: Path, calibration: Mapping[str, Array], threads: int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    def open_bounded(calibrater: Any) -> None:
        options = _options(threads, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        calibrater.infer_session = onnxruntime.InferenceSession(calibrater.augmented_model_path, options)

    MinMaxCalibrater.create_inference_session = open_bounded  # its own takes every core, and no setting changes that

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(calibration)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._batches, None)

    quantize_static(
        _simplified(whole, folder, threads),
        target,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=not hardware.flags() & hardware.INT8,
    )


def _batches(calibration: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    rows = min(CALIBRATION_ROWS_MAX, *(len(array) for array in calibration.values()))
    for start in range(0, rows, _BATCH):
        yield {name: array[start : min(start + _BATCH, rows)] for name, array in calibration.items()}


def _simplified(whole: Path, folder: Path, threads: int) -> Path:
    """Constants folded and batch normalisation fused into convolutions: what is gone need not be quantised."""
    options = _options(threads, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    options.optimized_model_filepath = str(folder / "simplified.onnx")
    onnxruntime.InferenceSession(str(whole), options)
    return folder / "simplified.onnx"


def _options(threads: int, level: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = level
    return options


def _is_quantised(path: Path) -> bool:
    import onnx

    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path, load_external_data=False).graph.node)
