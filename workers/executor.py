"""Executors: where variants are loaded and run. The supervisor's side.

* :class:`ChildExecutor`: a child process (:mod:`workers.executor_main`) behind a Unix socket pair. A model that
  crashes or hangs costs that child and nothing else.
* :class:`EmulatedExecutor`: in this process; it runs a batch by waiting as long as a table says, on no processor.

Both are the same small :class:`Executor`. They are used from one event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from modelless.frames import BatchTensor
from modelless.padding import layout_of
from modelless.tensors import TensorSpec
from workers import builders, channel
from workers.formats import FormatError, emulated

_SOCKET_BYTES = 4 * 1024 * 1024
Outputs = tuple[BatchTensor, ...]


class ExecutionError(Exception):
    """The model, or what was asked, is at fault; the executor lives. The message is for the operator."""


class ExecutorDiedError(Exception):
    """The executor is gone, and with it whatever it was doing."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What an executor needs to build and load one variant. ``path`` and ``built`` are local and verified."""

    variant: str
    builder: str
    """Without an exit."""
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    factory: str | None = None
    factories_allowed: tuple[str, ...] = ()
    exit: int | None = None
    """After which of its exits a network stops, from 1; None: after the last."""
    built: Path | None = None
    """What the builder made of it, where it builds a file."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory now, its peak since the last question, and memory on a device of its own."""

    rss_bytes: int
    peak_bytes: int
    device_bytes: int


class Executor(Protocol):
    @property
    def alive(self) -> bool: ...

    async def prepare(self, names: Sequence[str]) -> None:
        """Import what the builders of these names need."""

    async def build(self, spec: LoadSpec, calibration: Path | None, target: Path) -> float:
        """Make the variant's file at ``target``; how long it took, ms. What was loaded goes on being served.

        Args:
            calibration: an ``.npz`` with rows of every input, like those to come.

        Raises:
            ExecutionError: it cannot be built; there is nothing at ``target``.
            ExecutorDiedError: building brought the executor down.
        """

    async def load(self, spec: LoadSpec) -> float:
        """Load and keep a variant; how long it took, ms. Raises ExecutionError, ExecutorDiedError."""

    def run(self, variant: str, inputs: Sequence[BatchTensor]) -> asyncio.Future[Outputs]:
        """Run one batch; one at a time. The future raises ExecutionError or ExecutorDiedError."""

    async def unload(self, variant: str) -> None:
        """Forget a variant; none of it may be running."""

    async def memory(self) -> Memory: ...

    def kill(self) -> None:
        """End it at once; what it does ends with ExecutorDiedError."""

    async def close(self) -> None:
        """End it and wait until it is gone. Its ``on_death`` is not called."""


class ChildExecutor(asyncio.Protocol):
    """A child process. Made by :meth:`spawn`; ``on_death`` is called once, unless it was closed."""

    def __init__(self, process: subprocess.Popen[bytes], device: str, on_death: Callable[[Executor], None]) -> None:
        self._process = process
        self._device = device
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._incoming = channel.Incoming()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._call = 0
        self._gone = self._loop.create_future()
        self._closing = False

    @classmethod
    async def spawn(
        cls, device: str, threads: int, on_death: Callable[[Executor], None], env: Mapping[str, str] | None = None
    ) -> ChildExecutor:
        """Start a child, from the main thread (it dies when the thread that started it does).

        Our own settings, which may name secrets, are not passed on to model code.
        """
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        inherited = {k: v for k, v in (env or os.environ).items() if not k.startswith("MODELLESS_")}
        bounds = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - a few milliseconds, and it must be this thread
                [
                    *(sys.executable, "-m", "workers.executor_main"),
                    *(str(theirs.fileno()), str(os.getpid()), str(threads)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=inherited | bounds,
            )
        loop = asyncio.get_running_loop()
        _, executor = await loop.create_unix_connection(lambda: cls(process, device, on_death), sock=ours)
        return executor

    @property
    def alive(self) -> bool:
        return not self._gone.done()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def prepare(self, names: Sequence[str]) -> None:
        await self._ask("import", {"modules": [builder_of(name).module for name in names]})

    async def build(self, spec: LoadSpec, calibration: Path | None, target: Path) -> float:
        paths = {"calibration": str(calibration) if calibration else None, "target": str(target)}
        build_ms: float = (await self._ask("build", self._fields(spec) | paths)).fields["build_ms"]
        return build_ms

    async def load(self, spec: LoadSpec) -> float:
        fields = {"variant": spec.variant, "built": str(spec.built) if spec.built else None}
        load_ms: float = (await self._ask("load", self._fields(spec) | fields)).fields["load_ms"]
        return load_ms

    def run(self, variant: str, inputs: Sequence[BatchTensor]) -> asyncio.Future[Outputs]:
        return self._ask("run", {"variant": variant}, inputs)

    async def unload(self, variant: str) -> None:
        await self._ask("unload", {"variant": variant})

    async def memory(self) -> Memory:
        return Memory(**(await self._ask("memory", {})).fields)

    def kill(self) -> None:
        self._process.kill()

    async def close(self) -> None:
        self._closing = True
        self._process.kill()
        await self._gone

    def _fields(self, spec: LoadSpec) -> dict[str, Any]:
        return {
            "module": builder_of(spec.builder).module,
            "device": self._device,
            "path": str(spec.path),
            "inputs": [asdict(tensor) for tensor in spec.inputs],
            "outputs": [asdict(tensor) for tensor in spec.outputs],
            "factory": spec.factory,
            "factories_allowed": spec.factories_allowed,
            "exit": spec.exit,
        }

    def _ask(self, kind: str, fields: Mapping[str, Any], tensors: Sequence[BatchTensor] = ()) -> asyncio.Future[Any]:
        """The child's Message, or for ``run`` its tensors."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None or not self.alive:
            future.set_exception(ExecutorDiedError())
            return future
        self._call += 1
        self._pending[self._call] = future
        self._transport.writelines(channel.encode(self._call, kind, fields, tensors))
        return future

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1 << 30)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._incoming.feed(data):
                future = self._pending.pop(message.call, None)
                if future is None or future.done():
                    continue
                if message.kind == "ok":
                    future.set_result(message.tensors or message)
                else:
                    future.set_exception(ExecutionError(message.fields.get("reason", "unknown")))
        except channel.ChannelError:
            self.kill()

    def connection_lost(self, error: Exception | None) -> None:
        self._process.kill()
        self._loop.run_in_executor(None, self._process.wait).add_done_callback(self._buried)

    def _buried(self, _: object) -> None:
        self._gone.set_result(None)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ExecutorDiedError())
        self._pending.clear()
        if not self._closing:
            self._on_death(self)


class EmulatedExecutor:
    """Waits lat(b) of the group's rows in the variant's table; see :mod:`workers.formats.emulated`."""

    alive = True

    def __init__(self, group: str) -> None:
        self._group = group
        self._models: dict[str, emulated.EmulatedModel] = {}
        self._thread = ThreadPoolExecutor(1, "emulated-device")

    async def prepare(self, names: Sequence[str]) -> None:
        """Nothing to import."""

    async def build(self, spec: LoadSpec, calibration: Path | None, target: Path) -> float:
        raise ExecutionError("there is nothing to build of an emulated model")

    async def load(self, spec: LoadSpec) -> float:
        try:
            model = emulated.load(spec.path, spec.outputs, self._group, layout_of(spec.inputs, spec.outputs))
        except FormatError as error:
            raise ExecutionError(str(error)) from None
        await asyncio.sleep(model.load_ms / 1000)
        self._models[spec.variant] = model
        return model.load_ms

    def run(self, variant: str, inputs: Sequence[BatchTensor]) -> asyncio.Future[Outputs]:
        """Waits in a thread: the event loop's timers are a millisecond coarse."""
        until_s = time.monotonic()
        loop = asyncio.get_running_loop()
        model = self._models.get(variant)
        if model is None:
            future: asyncio.Future[Outputs] = loop.create_future()
            future.set_exception(ExecutionError("it is not loaded in this executor"))
            return future
        rows = inputs[0].shape[0]
        until_s += model.latency_ms(rows) / 1000
        return loop.run_in_executor(self._thread, _wait, until_s, model, rows, model.length(inputs))

    async def unload(self, variant: str) -> None:
        self._models.pop(variant, None)

    async def memory(self) -> Memory:
        """As if all that is loaded had been resident."""
        loaded_bytes = sum(model.memory_bytes for model in self._models.values())
        return Memory(loaded_bytes, loaded_bytes, 0)

    def kill(self) -> None:
        """It neither hangs nor dies."""

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def builder_of(name: str) -> builders.Builder:
    """Raises ExecutionError when it is not installed."""
    found = builders.find(name)
    if found is None:
        raise ExecutionError(f"builder {name!r} is not installed here")
    return found


def _wait(until_s: float, model: emulated.EmulatedModel, rows: int, length: int) -> Outputs:
    time.sleep(max(0.0, until_s - time.monotonic()))
    return model.answer(rows, length)


def _has_descriptor(stream: Any) -> bool:
    try:
        return bool(stream.fileno() >= 0)
    except (AttributeError, OSError):
        return False
