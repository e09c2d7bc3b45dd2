"""The executor child: ``python -m workers.executor_main FD PARENT THREADS``. It runs models and knows nothing else.

A loop that blocks on the socket, one run at a time. Building and loading happen beside it in threads, so that serving
goes on.
It dies with its parent, and at the end of the socket.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelless.frames import BatchTensor
from modelless.tensors import NUMPY_DTYPES, Padding, TensorSpec
from workers import channel
from workers.formats import FormatError, Model, Source, check_inputs, check_outputs

_PR_SET_PDEATHSIG = 1


class Executor:
    """Loaded variants and the socket to the supervisor."""

    def __init__(self, sock: socket.socket, threads: int) -> None:
        self._sock = sock
        self._threads = threads
        self._models: dict[str, tuple[Model, Source]] = {}
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Until the parent closes the socket."""
        operations: dict[str, Callable[[channel.Message], tuple[dict[str, Any], tuple[BatchTensor, ...]]]] = {
            "run": self._run,
            "unload": self._unload,
            "memory": self._memory,
            "import": self._import,
            "load": self._load,
            "build": self._build,
        }
        while (message := channel.receive(self._sock)) is not None:
            operation = operations[message.kind]
            if message.kind in ("load", "build", "import"):
                threading.Thread(target=self._answer, args=(message, operation), daemon=True).start()
            else:
                self._answer(message, operation)

    def _answer(
        self,
        message: channel.Message,
        operation: Callable[[channel.Message], tuple[dict[str, Any], tuple[BatchTensor, ...]]],
    ) -> None:
        """The one boundary where whatever a model raises becomes an answer."""
        try:
            fields, tensors = operation(message)
            buffers = channel.encode(message.call, "ok", fields, tensors)
        except FormatError as error:
            buffers = channel.encode(message.call, "error", {"reason": str(error)})
        except Exception as error:
            buffers = channel.encode(message.call, "error", {"reason": f"{type(error).__name__}: {error}"[:2000]})
        with self._sending:
            channel.send(self._sock, buffers)

    def _run(self, message: channel.Message) -> tuple[dict[str, Any], tuple[BatchTensor, ...]]:
        found = self._models.get(message.fields["variant"])
        if found is None:
            raise FormatError("it is not loaded in this executor")
        model, source = found
        inputs = {t.name: np.frombuffer(t.data, NUMPY_DTYPES[t.datatype]).reshape(t.shape) for t in message.tensors}
        check_inputs(source.inputs, inputs)
        outputs = model.run(inputs)
        check_outputs(source.outputs, outputs, message.tensors[0].shape[0])
        return {}, tuple(
            BatchTensor(spec.name, spec.datatype, array.shape, _raw(array))
            for spec, array in zip(source.outputs, outputs, strict=True)
        )

    def _load(self, message: channel.Message) -> tuple[dict[str, Any], tuple[BatchTensor, ...]]:
        fields, source = message.fields, _source(message.fields)
        module = importlib.import_module(fields["module"])
        built = Path(fields["built"]) if fields["built"] else None
        started_s = time.monotonic()
        model = module.load(source, built, fields["device"], self._threads)
        self._models[fields["variant"]] = model, source
        return {"load_ms": (time.monotonic() - started_s) * 1000}, ()

    def _build(self, message: channel.Message) -> tuple[dict[str, Any], tuple[BatchTensor, ...]]:
        fields, source = message.fields, _source(message.fields)
        target = Path(fields["target"])
        module = importlib.import_module(fields["module"])
        started_s = time.monotonic()
        try:
            module.build(source, _calibration(fields["calibration"], source), target, fields["device"], self._threads)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        if not target.is_file():
            raise FormatError("its builder made no file")
        return {"build_ms": (time.monotonic() - started_s) * 1000}, ()

    def _unload(self, message: channel.Message) -> tuple[dict[str, Any], tuple[BatchTensor, ...]]:
        self._models.pop(message.fields["variant"], None)
        return {}, ()

    def _import(self, message: channel.Message) -> tuple[dict[str, Any], tuple[BatchTensor, ...]]:
        for module in message.fields["modules"]:
            importlib.import_module(module)
        return {}, ()

    def _memory(self, message: channel.Message) -> tuple[dict[str, Any], tuple[BatchTensor, ...]]:
        """Resident bytes now and their peak since the last call; device bytes of all variants."""
        _give_back()
        status = Path("/proc/self/status").read_text()
        found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        device_bytes = max((model.device_bytes() for model, _ in self._models.values()), default=0)
        return {
            "rss_bytes": int(found["VmRSS"]) * 1024,
            "peak_bytes": int(found["VmHWM"]) * 1024,
            "device_bytes": device_bytes,
        }, ()


def _raw(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _source(fields: Mapping[str, Any]) -> Source:
    return Source(
        path=Path(fields["path"]),
        inputs=_specs(fields["inputs"]),
        outputs=_specs(fields["outputs"]),
        factory=fields["factory"],
        factories_allowed=fields["factories_allowed"],
        exit=fields["exit"],
    )


def _calibration(path: str | None, source: Source) -> dict[str, NDArray[Any]] | None:
    if path is None:
        return None
    with np.load(path, allow_pickle=False) as archive:
        inputs = {spec.name: archive[spec.name] for spec in source.inputs}
    check_inputs(source.inputs, inputs)
    return inputs


def _specs(fields: tuple[Mapping[str, Any], ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(f["name"], f["datatype"], f["shape"], Padding(**f["padding"]) if f["padding"] else None)
        for f in fields
    )


def _give_back() -> None:
    """What an unloaded variant left free is returned to the system: the next one's growth would hide in it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library's
    if trim is not None:
        trim(0)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    descriptor, parent, threads = map(int, sys.argv[1:4])
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Executor(socket.socket(fileno=descriptor), threads).serve()


if __name__ == "__main__":
    main()
