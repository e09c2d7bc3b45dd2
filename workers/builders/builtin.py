"""The builders that come with modelless: one descriptor each. What they do is in their modules' docstrings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

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


EMULATED = Described("emulated", "workers.formats.emulated", {"emulated": None}, (), ("emulated",))
ONNX_FP32 = Described("onnx-fp32", "workers.formats.onnx", {"onnx": None}, ("onnxruntime",), ("cpu", "cuda"))
TORCH_FP32 = Described(
    "torch-fp32", "workers.formats.torch_module", {"safetensors": None}, ("torch", "safetensors"), ("cpu", "cuda")
)
