"""The builders that come with modelless: one descriptor each. What they do is in their modules' docstrings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from workers import hardware

_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
"""Of modules whose distribution may have another name."""


@dataclass(frozen=True, slots=True)
class Described:
    """A :class:`workers.builders.Builder` as a few facts."""

    name: str
    module: str
    formats: Mapping[str, str | None]
    libraries: tuple[str, ...]
    """Top-level modules without which it cannot load what it makes."""
    devices: tuple[str, ...] = ("cpu",)
    extra: str = "worker"
    """What installs the libraries: modelless[extra]."""
    needs: Callable[[str], str | None] = lambda device: None
    """What a device must have besides; a refusal, or None."""
    revision: int = 1
    """Counted up when the same libraries make something else than before."""

    def version(self) -> str:
        return " ".join([str(self.revision), *(f"{name}={_version(name)}" for name in self.libraries)])

    def refusal(self, device: str) -> str | None:
        missing = [name for name in self.libraries if find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} is not installed; install modelless[{self.extra}]"
        return self.needs(device)


def _version(module: str) -> str:
    for distribution in _DISTRIBUTIONS.get(module, (module,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def _bf16(device: str) -> str | None:
    if device == "cpu" and not hardware.flags() & hardware.BF16:
        return f"this processor does not multiply bfloat16 itself (it has none of {', '.join(sorted(hardware.BF16))})"
    return None


def _compiler(device: str) -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"it needs a C++ compiler, and there is no {compiler}; install g++, or name another one in CXX"
    return None


_TORCH = ("torch", "safetensors")
_ONNX = ("onnxruntime",)
_EITHER = ("cpu", "cuda")
_ONNX_EXPORTED = {"onnx": None, "safetensors": ".onnx"}
_ONNX_QUANTISED = {"onnx": ".onnx", "safetensors": ".onnx"}
_AS_IT_IS = {"safetensors": None}

EMULATED = Described("emulated", "workers.formats.emulated", {"emulated": None}, (), ("emulated",))
TORCH_FP32 = Described("torch-fp32", "workers.formats.torch_module", _AS_IT_IS, _TORCH, _EITHER)
TORCH_BF16 = Described("torch-bf16", "workers.formats.torch_bf16", _AS_IT_IS, _TORCH, _EITHER, needs=_bf16)
TORCH_FP16 = Described("torch-fp16", "workers.formats.torch_fp16", _AS_IT_IS, _TORCH, ("cuda",))
TORCH_INT8 = Described("torch-int8", "workers.formats.torch_int8", _AS_IT_IS, (*_TORCH, "torchao"))
TORCH_COMPILE = Described(
    "torch-compile", "workers.formats.torch_compile", {"safetensors": ".pt2"}, _TORCH, _EITHER, needs=_compiler
)
ONNX_FP32 = Described("onnx-fp32", "workers.formats.onnx", _ONNX_EXPORTED, _ONNX, _EITHER)
ONNX_INT8 = Described("onnx-int8", "workers.formats.onnx_int8", _ONNX_QUANTISED, (*_ONNX, "onnx"))
OPENVINO_FP32 = Described("openvino-fp32", "workers.formats.openvino", _ONNX_EXPORTED, ("openvino",), extra="openvino")
TENSORRT_FP16 = Described(
    "tensorrt-fp16",
    "workers.formats.tensorrt",
    {"onnx": ".engine", "safetensors": ".engine"},
    ("tensorrt", "torch", "onnx", *_ONNX),
    ("cuda",),
    extra="tensorrt",
)
