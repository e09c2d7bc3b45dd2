"""Builders: what variants a worker can make of a registered model, by the model's format and the group's device."""

from __future__ import annotations

from importlib.util import find_spec

from modelless.config import GroupConfig

_NEEDS = {"onnx-fp32": ("onnxruntime",), "torch-fp32": ("torch", "safetensors")}
_REAL = (("onnx", "onnx-fp32"), ("safetensors", "torch-fp32"))
_EMULATED = (("emulated", "emulated"),)

FORMAT_MODULES = {"onnx-fp32": "workers.formats.onnx", "torch-fp32": "workers.formats.torch_module"}
"""What an executor child imports for a builder."""


def builders_for(group: GroupConfig) -> tuple[tuple[str, str], ...]:
    """(model format, builder) pairs that a worker of this group can run: those whose libraries are installed."""
    if group.device == "emulated":
        return _EMULATED
    return tuple(pair for pair in _REAL if all(find_spec(name) for name in _NEEDS[pair[1]]))
