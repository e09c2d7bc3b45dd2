"""``model.toml``: what an operator says about a model, read strictly.

::

    name = "digits-cnn"
    task = "digits"
    artifact = "digits_cnn.onnx"              # .onnx, .safetensors with a factory, or .csv for emulated devices
    # factory = "package.module:function"     # builds the torch module of a .safetensors artifact
    # exits = 3                               # of its networks that can answer early; see docs/operations.md

    [inputs.pixels]
    datatype = "FP32"
    shape = [-1, 1, 8, 8]                     # -1: the batch

    [outputs.logits]
    datatype = "FP32"
    shape = [-1, 10]

    # Where rows have lengths of their own and are to share batches (docs/padding.md):
    # [inputs.tokens]
    # datatype = "INT64"
    # shape = [-1, -1]
    # padding = { lengths = [16, 32, 64, 128], value = 0, mask = "attention_mask" }

    [evaluation]
    data = "digits_eval.npz"                  # arrays named as the inputs, and "labels"; or: accuracy = 0.97
    metric = "accuracy"                       # the first output's argmax equals the label

Paths are relative to the file. Every complaint is a ConfigurationError that names the field, what it got and what
is expected.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from modelless import store
from modelless.errors import ConfigurationError, InvalidArgumentError
from modelless.padding import layout_of
from modelless.tensors import DIMENSIONS_MAX, ITEM_BYTES, NUMPY_DTYPES, Padding, TensorSpec

FORMATS = {".onnx": "onnx", ".safetensors": "safetensors", ".csv": "emulated"}
METRICS = ("accuracy",)
EXITS_MAX = 32
SPECIFICATION_BYTES_MAX = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FIELDS = ("name", "task", "artifact", "factory", "exits", "inputs", "outputs", "evaluation")
_NAMES_RESERVED = ("offline",)
_PADDING = ("axis", "lengths", "value", "follows", "mask", "own_lengths")


@dataclass(frozen=True, slots=True)
class EvaluationSource:
    """Exactly one of the two: ``accuracy`` as declared, or ``data`` to measure it on."""

    accuracy: float | None
    data: Path | None
    metric: str


@dataclass(frozen=True, slots=True)
class Specification:
    """A ``model.toml`` that is in order; its files exist and are what they say."""

    name: str
    task: str
    artifact: Path
    format: str
    """``onnx``, ``safetensors`` or ``emulated``."""
    factory: str | None
    exits: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    evaluation: EvaluationSource


def read_specification(path: Path) -> Specification:
    """Read and check a ``model.toml`` and the files that it names.

    Raises:
        ConfigurationError: names the field, what it got and what is expected.
    """
    table = _read_toml(path)
    _refuse_unknown("", table, _FIELDS)
    artifact, format = _artifact(table, path.parent)
    inputs, outputs = _tensors("inputs", table), _tensors("outputs", table)
    layout_of(inputs, outputs)
    return Specification(
        name=_name("name", table),
        task=_name("task", table),
        artifact=artifact,
        format=format,
        factory=_factory(table, format),
        exits=_exits(table, format),
        inputs=inputs,
        outputs=outputs,
        evaluation=_evaluation(table, inputs, path.parent),
    )


def _refuse(field: str, problem: str) -> NoReturn:
    raise ConfigurationError(f"{field}: {problem}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > SPECIFICATION_BYTES_MAX:
            _refuse(path.name, f"is larger than {SPECIFICATION_BYTES_MAX} bytes; is it a model.toml?")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        _refuse(str(path), f"cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        _refuse(path.name, "is not UTF-8 text; is it a model.toml?")
    except tomllib.TOMLDecodeError as error:
        _refuse(path.name, f"is not TOML: {error}")


def _refuse_unknown(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for field in table:
        if field not in known:
            near = get_close_matches(field, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}"
            _refuse(f"{where}{field}", f"is not a known field; {hint}")


def _text(field: str, table: Mapping[str, Any], example: str) -> str:
    value = table.get(field.rpartition(".")[2])
    if value is None:
        _refuse(field, f'is missing; give it as in {field.rpartition(".")[2]} = "{example}"')
    if not isinstance(value, str):
        _refuse(field, f'must be text like "{example}", got {value!r}')
    return value


def _name(field: str, table: Mapping[str, Any]) -> str:
    value = _text(field, table, "digits")
    if not _NAME.fullmatch(value):
        _refuse(field, f"must be 1 to 64 letters, digits, dots, dashes or underscores, got {value!r}")
    if value in _NAMES_RESERVED:
        _refuse(field, f"{value!r} is the name of a topic of ours; choose another")
    return value


def _table(field: str, table: Mapping[str, Any], example: str) -> dict[str, Any]:
    value = table.get(field.rpartition(".")[2])
    if value is None:
        _refuse(field, f"is missing; give it as in {example}")
    if not isinstance(value, dict) or not value:
        _refuse(field, f"must be a table as in {example}, got {value!r}")
    return value


def _file(field: str, table: Mapping[str, Any], folder: Path, example: str) -> Path:
    path = folder / _text(field, table, example)
    if not path.is_file():
        _refuse(field, f"there is no file {str(path)!r}; paths are relative to the model.toml")
    try:
        store.inspect(path)
    except InvalidArgumentError as error:
        _refuse(field, error.message)
    except OSError as error:
        _refuse(field, f"{str(path)!r} cannot be read ({error.strerror})")
    return path


def _artifact(table: Mapping[str, Any], folder: Path) -> tuple[Path, str]:
    name = _text("artifact", table, "model.onnx")
    suffix = Path(name).suffix.lower()
    if suffix == ".pt2":
        _refuse("artifact", f"{name!r}: .pt2 is not enabled; export the model as .onnx, or its weights as .safetensors")
    if suffix not in FORMATS:
        _refuse("artifact", f"{name!r} must be one of {', '.join(FORMATS)}; pickles and .pt files are never loaded")
    return _file("artifact", table, folder, "model.onnx"), FORMATS[suffix]


def _factory(table: Mapping[str, Any], format: str) -> str | None:
    if format != "safetensors":
        if "factory" in table:
            _refuse("factory", f"goes with a .safetensors artifact only, but the artifact is {format}; remove it")
        return None
    factory = _text("factory", table, "package.module:function")
    if not _FACTORY.fullmatch(factory):
        _refuse("factory", f'must be like "package.module:function", got {factory!r}')
    return factory


def _exits(table: Mapping[str, Any], format: str) -> int:
    value = table.get("exits", 1)
    if type(value) is not int or not 1 <= value <= EXITS_MAX:
        _refuse("exits", f"must be a whole number from 1 to {EXITS_MAX}, got {value!r}")
    if value > 1 and format != "safetensors":
        _refuse("exits", f"goes with a .safetensors artifact only, but the artifact is {format}; remove it")
    return value


def _tensors(section: str, table: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    example = '[inputs.pixels] with datatype = "FP32" and shape = [-1, 1, 8, 8]'
    specs = _table(section, table, example.replace("inputs.pixels", f"{section}.name"))
    return tuple(_tensor(f"{section}.{name}", name, spec) for name, spec in specs.items())


def _tensor(field: str, name: str, spec: Any) -> TensorSpec:
    if not isinstance(spec, dict):
        _refuse(field, f"must be a table with datatype and shape, got {spec!r}")
    _refuse_unknown(f"{field}.", spec, ("datatype", "shape", "padding"))
    datatype = _text(f"{field}.datatype", spec, "FP32")
    if datatype not in ITEM_BYTES:
        _refuse(f"{field}.datatype", f"must be one of {', '.join(ITEM_BYTES)}, got {datatype!r}")
    shape = _shape(f"{field}.shape", spec.get("shape"))
    return TensorSpec(name, datatype, shape, _padding(f"{field}.padding", spec.get("padding"), shape))


def _padding(field: str, spec: Any, shape: tuple[int, ...]) -> Padding | None:
    """What it says, each by itself; whether it goes together :func:`modelless.padding.layout_of` knows."""
    if spec is None:
        return None
    if not isinstance(spec, dict):
        _refuse(field, f"must be a table like {{ lengths = [16, 32, 64], value = 0 }}, got {spec!r}")
    _refuse_unknown(f"{field}.", spec, _PADDING)
    axis = spec.get("axis")
    if axis is None:
        free = [index for index, size in enumerate(shape) if index and size == -1]
        if len(free) != 1:
            problem = "has no free dimension (-1) after the batch" if not free else "has several free dimensions"
            _refuse(f"{field}.axis", f"shape {list(shape)} {problem}; give the one that is padded, the batch is 0")
        axis = free[0]
    if type(axis) is not int:
        _refuse(f"{field}.axis", f"must be a whole number, got {axis!r}")
    lengths, value = spec.get("lengths", []), spec.get("value", 0)
    if not isinstance(lengths, list) or not all(type(length) is int for length in lengths):
        _refuse(f"{field}.lengths", f"must be a list of whole numbers like [16, 32, 64], got {lengths!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(f"{field}.value", f"must be a number, got {value!r}")
    names = {
        name: _text(f"{field}.{name}", spec, "tokens") for name in ("follows", "mask", "own_lengths") if name in spec
    }
    return Padding(axis, tuple(lengths), float(value), **names)


def _shape(field: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        _refuse(field, f"must be a list of whole numbers like [-1, 10], got {shape!r}")
    if not 1 <= len(shape) <= DIMENSIONS_MAX:
        _refuse(field, f"must have 1 to {DIMENSIONS_MAX} dimensions, got {len(shape)}")
    if shape[0] != -1:
        _refuse(field, f"must start with -1, the batch, got {shape!r}")
    if not all(size == -1 or size >= 1 for size in shape):
        _refuse(field, f"dimensions must be -1 (free) or at least 1, got {shape!r}")
    if prod(abs(size) for size in shape) > 2**40:
        _refuse(field, f"is larger than any memory: {shape!r}")
    return tuple(shape)


def _evaluation(table: Mapping[str, Any], inputs: tuple[TensorSpec, ...], folder: Path) -> EvaluationSource:
    spec = _table("evaluation", table, '[evaluation] with data = "eval.npz", or accuracy = 0.97')
    _refuse_unknown("evaluation.", spec, ("data", "accuracy", "metric"))
    metric = _text("evaluation.metric", {"metric": "accuracy", **spec}, "accuracy")
    if metric not in METRICS:
        _refuse("evaluation.metric", f"must be one of {', '.join(METRICS)}, got {metric!r}")
    if ("data" in spec) == ("accuracy" in spec):
        got = "both" if "data" in spec else "neither"
        _refuse("evaluation", f"give either data (measured) or accuracy (declared), got {got}")
    if "accuracy" in spec:
        return EvaluationSource(_accuracy(spec["accuracy"]), None, metric)
    data = _file("evaluation.data", spec, folder, "eval.npz")
    if data.suffix.lower() != ".npz":
        _refuse("evaluation.data", f"must be an .npz file, got {data.name!r}")
    _check_data(data, inputs)
    return EvaluationSource(None, data, metric)


def _accuracy(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        _refuse("evaluation.accuracy", f"must be a number from 0 to 1, got {value!r}")
    return float(value)


def _check_data(path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    """Arrays named as the inputs with their shapes and datatypes, and as many labels as rows."""
    field = "evaluation.data"
    layout = layout_of(inputs)
    made = set() if layout is None else {spec.name for spec in layout.made}
    expected = [*(spec.name for spec in inputs), "labels"]
    with np.load(path, allow_pickle=False) as arrays:
        if sorted({*arrays.files, *made}) != sorted(expected):
            _refuse(field, f"must hold the arrays {', '.join(expected)}, got {', '.join(arrays.files)}")
        labels = arrays["labels"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) < 2:
            _refuse(field, f"labels must be at least 2 whole numbers, got {labels.dtype} of shape {labels.shape}")
        for spec in inputs:
            if spec.name not in arrays.files:
                continue
            array = arrays[spec.name]
            if array.dtype != NUMPY_DTYPES[spec.datatype]:
                _refuse(field, f"{spec.name!r} must be {spec.datatype}, as inputs.{spec.name} says, got {array.dtype}")
            if len(array.shape) != len(spec.shape) or any(
                size not in (-1, got) for size, got in zip(spec.shape, array.shape, strict=True)
            ):
                _refuse(field, f"{spec.name!r} must have the shape {list(spec.shape)}, got {list(array.shape)}")
            if len(array) != len(labels):
                _refuse(field, f"{spec.name!r} has {len(array)} rows, but there are {len(labels)} labels")
        if layout is not None and (problem := layout.problem({name: arrays[name].shape for name in arrays.files})):
            _refuse(field, problem)
