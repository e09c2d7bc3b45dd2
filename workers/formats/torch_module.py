"""Torch modules: weights as safetensors, the architecture from a factory that the operator installed and allowed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch

from workers.formats import Array, FormatError, Source, refuse_foreign


def load(source: Source, built: Path | None, device: str, threads: int) -> TorchModel:
    """Raises FormatError when the factory is not allowed or fails, or the weights do not fit its module strictly."""
    refuse_foreign(source.path, ".safetensors")
    torch.set_num_threads(threads)
    module = _build(source.factory, source.factories_allowed)
    try:
        weights = safetensors.torch.load_file(source.path)
    except Exception as error:
        raise FormatError(f"safetensors cannot read it: {error}") from None
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise FormatError(f"the weights do not fit {source.factory}: {' '.join(str(error).split())[:500]}") from None
    if device != "cpu" and not torch.cuda.is_available():
        raise FormatError("this torch sees no CUDA device; check the driver, or register it for a cpu group")
    return TorchModel(module.eval().to(device), source, device)


class TorchModel:
    def __init__(self, module: torch.nn.Module, source: Source, device: str) -> None:
        self._module = module
        self._inputs = [spec.name for spec in source.inputs]
        self._outputs = [spec.name for spec in source.outputs]
        self._device = device

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(inputs[name]).to(self._device) for name in self._inputs]
            return [output.cpu().numpy() for output in self._ordered(self._module(*tensors))]

    def device_bytes(self) -> int:
        return 0 if self._device == "cpu" else torch.cuda.memory_reserved(self._device)

    def _ordered(self, result: object) -> list[torch.Tensor]:
        """One tensor, a sequence in the declared order, or a mapping by name."""
        if isinstance(result, torch.Tensor):
            result = [result]
        elif isinstance(result, Mapping):
            missing = [name for name in self._outputs if name not in result]
            if missing:
                raise FormatError(f"the module returned {', '.join(map(str, result))}; {missing[0]!r} is declared")
            result = [result[name] for name in self._outputs]
        if not isinstance(result, Sequence) or not all(isinstance(part, torch.Tensor) for part in result):
            raise FormatError(f"the module returned {type(result).__name__}; expected tensors")
        return list(result)


def is_allowed(factory: str, allowed: Sequence[str]) -> bool:
    """Whether the factory's module is one of the configured ones; a trailing ``*`` makes a prefix of a name."""
    module = factory.partition(":")[0]
    return any(module.startswith(name[:-1]) if name.endswith("*") else module == name for name in allowed)


def _build(factory: str | None, allowed: Sequence[str]) -> torch.nn.Module:
    if not factory:
        raise FormatError('a safetensors model needs `factory = "package.module:function"`')
    if not is_allowed(factory, allowed):
        raise FormatError(f"factory {factory!r} is not allowed here; add its module to worker.factories_allowed")
    module_name, _, function = factory.partition(":")
    try:
        module = getattr(importlib.import_module(module_name), function)()
    except Exception as error:  # the operator's code; whatever it raises is what they need to read
        raise FormatError(f"factory {factory!r} failed: {type(error).__name__}: {error}") from None
    if not isinstance(module, torch.nn.Module):
        raise FormatError(f"factory {factory!r} returned {type(module).__name__}, expected a torch.nn.Module")
    return module
