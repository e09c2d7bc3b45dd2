"""Torch modules: weights as safetensors, the architecture from a factory that the operator installed and allowed.

Builder ``torch-fp32``: as it is, eagerly. All that is made of such a model, here and by the exporting builders, starts
with :func:`network`: one module with the inputs and outputs as declared, whatever it computes in, stopped at one exit.

On a CPU it leaves its weights where they are in the file, mapped into memory: they are read when they are used first,
and all processes of the machine that serve a model from the same file share one copy of them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from modelless.tensors import NUMPY_DTYPES
from workers.formats import Array, FormatError, Source, refuse_foreign


def load(source: Source, built: Path | None, device: str, threads: int) -> TorchModel:
    """Raises FormatError when the factory is not allowed or fails, or the weights do not fit its module strictly."""
    return load_as(None, source, device, threads)


def load_as(dtype: torch.dtype | None, source: Source, device: str, threads: int) -> TorchModel:
    """Eagerly, in a reduced precision; None: as the factory made it."""
    torch.set_num_threads(threads)
    return TorchModel(network(source, device, dtype, mapped=True), source, device)


def network(source: Source, device: str = "cpu", dtype: torch.dtype | None = None, *, mapped: bool = False) -> Network:
    """The source's network on the device, for inference. Raises FormatError as :func:`load` does.

    Args:
        mapped: its weights may be views of the file: to be run, but exporters look at a tensor's whole storage.
    """
    refuse_foreign(source.path, ".safetensors")
    if device != "cpu" and not torch.cuda.is_available():
        raise FormatError("this torch sees no CUDA device; check the driver, or register it for a cpu group")
    module = _from_factory(source.factory, source.factories_allowed)
    try:
        weights = safetensors.torch.load_file(source.path)
    except Exception as error:
        raise FormatError(f"safetensors cannot read it: {error}") from None
    try:
        dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
        weights = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}
        module.load_state_dict(weights, strict=True, assign=mapped)
    except RuntimeError as error:
        raise FormatError(f"the weights do not fit {source.factory}: {' '.join(str(error).split())[:500]}") from None
    if source.exit is not None and "exit" not in inspect.signature(module.forward).parameters:
        raise FormatError(
            f"model.toml says that {source.factory} has several exits; then its forward must take `exit: int | None`"
        )
    return Network(module.eval().requires_grad_(False).to(device, dtype), source, dtype).eval()


class _Uninitialised(TorchFunctionMode):
    """Parameters are not filled with random numbers: all of them are loaded afterwards, and for a large module it takes
    longer than all the rest."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.nn.Parameter):
                return tensor
        return func(*args, **kwargs)


_RANDOM = frozenset(
    {
        torch.nn.init.uniform_,
        torch.nn.init.normal_,
        torch.nn.init.kaiming_uniform_,
        torch.Tensor.uniform_,
        torch.Tensor.normal_,
    }
)


class Network(torch.nn.Module):
    """The operator's module with a fixed signature: declared inputs in order to a tuple of declared outputs in order.

    With a ``dtype``, inputs of any floating-point type are cast to it, and outputs of it to what is declared.
    """

    def __init__(self, module: torch.nn.Module, source: Source, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self._exit = {} if source.exit is None else {"exit": source.exit}
        self._outputs = tuple(spec.name for spec in source.outputs)
        self._dtype = dtype
        self._dtypes = [torch_dtype(spec.datatype) for spec in source.outputs]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._dtype is None:
            return self._ordered(self.module(*inputs, **self._exit))
        cast = [tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
        outputs = self._ordered(self.module(*cast, **self._exit))
        return tuple(
            tensor.to(declared) if tensor.dtype == self._dtype else tensor
            for tensor, declared in zip(outputs, self._dtypes, strict=False)  # how many is checked elsewhere
        )

    def _ordered(self, result: object) -> tuple[torch.Tensor, ...]:
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
        if len(result) != len(self._outputs):
            raise FormatError(f"the model returned {len(result)} outputs, declared are {len(self._outputs)}")
        return tuple(result)


class TorchModel:
    """What takes the declared inputs and returns the declared outputs, in order, on the device."""

    def __init__(self, compute: Callable[..., Sequence[torch.Tensor]], source: Source, device: str) -> None:
        self._compute = compute
        self._inputs = [spec.name for spec in source.inputs]
        self._device = device

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(inputs[name]).to(self._device) for name in self._inputs]
            return [output.cpu().numpy() for output in self._compute(*tensors)]

    def device_bytes(self) -> int:
        return 0 if self._device == "cpu" else torch.cuda.memory_reserved(self._device)


def torch_dtype(datatype: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, NUMPY_DTYPES[datatype])).dtype


def is_allowed(factory: str, allowed: Sequence[str]) -> bool:
    """Whether the factory's module is one of the configured ones; a trailing ``*`` makes a prefix of a name."""
    module = factory.partition(":")[0]
    return any(module.startswith(name[:-1]) if name.endswith("*") else module == name for name in allowed)


def _from_factory(factory: str | None, allowed: Sequence[str]) -> torch.nn.Module:
    if not factory:
        raise FormatError('a safetensors model needs `factory = "package.module:function"`')
    if not is_allowed(factory, allowed):
        raise FormatError(f"factory {factory!r} is not allowed here; add its module to worker.factories_allowed")
    module_name, _, function = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), function)
        with _Uninitialised():
            module = make()
    except Exception as error:  # the operator's code; whatever it raises is what they need to read
        raise FormatError(f"factory {factory!r} failed: {type(error).__name__}: {error}") from None
    if not isinstance(module, torch.nn.Module):
        raise FormatError(f"factory {factory!r} returned {type(module).__name__}, expected a torch.nn.Module")
    return module
