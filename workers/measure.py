"""Measuring one variant for its group: load time, memory, lat(b), accuracy.

On an executor of its own, so that a model that crashes while it is measured takes nobody along, but on the same device:
every few runs are one *step* between live batches. Times are taken where live batches are timed, at the supervisor.

* lat(b) for b = 1, 2, 4, … until throughput stopped growing: less than 5 % better twice in a row, or the limits.
* Memory: resident growth from before loading to the peak while running the largest batch, plus device memory.
* Accuracy on the second half of the evaluation set; the first half is for calibration.
"""

from __future__ import annotations

import asyncio
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelless.frames import BatchTensor
from modelless.messages import BatchTime, ModelVersion, Profile
from modelless.tensors import NUMPY_DTYPES, Tensor
from workers.executor import ExecutionError, Executor, ExecutorDiedError, LoadSpec, Outputs

Step = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
Arrays = Mapping[str, NDArray[Any]]

RUNS_MAX = 30
RUNS_MIN = 3
WARM_UP_RUNS = 3
STEP_S = 0.01
GROWTH_MIN = 1.05
LOAD_S_MAX = 300.0
RUN_S_MAX = 60.0


class MeasuringError(Exception):
    """The variant cannot be used; the message is for the operator."""


class Measurement:
    """One variant on one executor.

    Args:
        data: the evaluation set (arrays by input name, and ``labels``); None: accuracy as declared, made-up inputs.
    """

    def __init__(self, executor: Executor, spec: LoadSpec, step: Step, data: Arrays | None) -> None:
        self._executor = executor
        self._spec = spec
        self._step = step
        self._data = data

    async def profile(self, model: ModelVersion, group: str, budget_s: float, batch_size_max: int) -> Profile:
        """Raises MeasuringError."""
        try:
            await self._executor.prepare([self._spec.builder])
            before = await self._executor.memory()
            started_s = time.monotonic()
            async with asyncio.timeout(LOAD_S_MAX):
                await self._executor.load(self._spec)
            load_ms = (time.monotonic() - started_s) * 1000
            await self._executor.memory()
            batches = await self._latencies(budget_s, batch_size_max)
            after = await self._executor.memory()
            accuracy, rows = await self._accuracy(model, batches[-1].batch_size)
        except ExecutionError as error:
            raise MeasuringError(str(error)) from None
        except ExecutorDiedError:
            raise MeasuringError("it brought its executor down while it was loaded or run") from None
        except TimeoutError:
            raise MeasuringError("loading or running it took too long") from None
        return Profile(
            variant=self._spec.variant,
            group=group,
            status="ready",
            digest=model.digest,
            load_ms=load_ms,
            memory_bytes=max(0, after.peak_bytes - before.rss_bytes) + after.device_bytes,
            accuracy=accuracy,
            accuracy_rows=rows,
            batches=batches,
        )

    async def _latencies(self, budget_s: float, batch_size_max: int) -> tuple[BatchTime, ...]:
        until_s = time.monotonic() + budget_s
        sizes = list(_doubling(batch_size_max))
        measured: list[BatchTime] = []
        best, stale = 0.0, 0
        for index, size in enumerate(sizes):
            share_s = (until_s - time.monotonic()) / (len(sizes) - index)
            times_ms = await self._times_ms(self._inputs(size), share_s)
            p50_ms, p99_ms = np.percentile(times_ms, [50, 99])
            measured.append(BatchTime(size, float(p50_ms), float(p99_ms)))
            stale = 0 if size / p50_ms >= GROWTH_MIN * best else stale + 1
            best = max(best, size / p50_ms)
            if stale == 2 or time.monotonic() > until_s:
                break
        return tuple(measured)

    async def _times_ms(self, inputs: tuple[BatchTensor, ...], budget_s: float) -> list[float]:
        """Timed runs in steps of ``STEP_S``, after a few that do not count."""
        times_ms: list[float] = []
        until_s = time.monotonic() + budget_s

        async def warm_up() -> None:
            for _ in range(WARM_UP_RUNS):
                await self._run(inputs)

        async def some() -> None:
            step_until_s = time.monotonic() + STEP_S
            while True:
                started_s = time.monotonic()
                await self._run(inputs)
                times_ms.append((time.monotonic() - started_s) * 1000)
                if len(times_ms) >= RUNS_MAX or time.monotonic() > step_until_s:
                    return

        await self._step(warm_up)
        while len(times_ms) < RUNS_MIN or (len(times_ms) < RUNS_MAX and time.monotonic() < until_s):
            await self._step(some)
        return times_ms

    async def _accuracy(self, model: ModelVersion, batch_size: int) -> tuple[float | None, int]:
        if self._data is None:
            return model.evaluation.accuracy, 0
        rows = len(self._data["labels"])
        right: list[NDArray[Any]] = []

        for start in range(rows // 2, rows, batch_size):
            part = slice(start, min(start + batch_size, rows))

            async def score(part: slice = part) -> None:
                outputs = await self._run(self._rows(part))
                first = Tensor(*_fields(outputs[0])).to_numpy()
                found = first.argmax(axis=-1)
                labels = self._labels(part)
                if found.shape != labels.shape:
                    raise MeasuringError(
                        f"evaluation: labels have shape {list(labels.shape)}, "
                        f"the argmax of output {outputs[0].name!r} has {list(found.shape)}"
                    )
                right.append((found == labels).ravel())

            await self._step(score)
        hits = np.concatenate(right)
        return float(hits.mean()), rows - rows // 2

    async def _run(self, inputs: tuple[BatchTensor, ...]) -> Outputs:
        try:
            async with asyncio.timeout(RUN_S_MAX):
                return await self._executor.run(self._spec.variant, inputs)
        except TimeoutError:
            self._executor.kill()
            raise MeasuringError(f"one batch took longer than {RUN_S_MAX:.0f} s") from None

    def _inputs(self, batch_size: int) -> tuple[BatchTensor, ...]:
        """Rows of the evaluation set, repeated as needed, or zeros."""
        if self._data is None:
            return zeros(self._spec, batch_size)
        indices = np.arange(batch_size) % len(self._data["labels"])
        return tuple(self._tensor(spec.name, self._data[spec.name][indices]) for spec in self._spec.inputs)

    def _rows(self, part: slice) -> tuple[BatchTensor, ...]:
        assert self._data is not None, "asked for only with data"
        return tuple(self._tensor(spec.name, self._data[spec.name][part]) for spec in self._spec.inputs)

    def _labels(self, part: slice) -> NDArray[Any]:
        assert self._data is not None, "asked for only with data"
        return self._data["labels"][part]

    @staticmethod
    def _tensor(name: str, array: NDArray[Any]) -> BatchTensor:
        tensor = Tensor.from_numpy(name, array)
        return BatchTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def zeros(spec: LoadSpec, batch_size: int) -> tuple[BatchTensor, ...]:
    """Inputs for trying a variant out; free dimensions are 1."""
    tensors = []
    for declared in spec.inputs:
        shape = (batch_size, *(1 if size == -1 else size for size in declared.shape[1:]))
        array = np.zeros(shape, NUMPY_DTYPES[declared.datatype])
        tensors.append(BatchTensor(declared.name, declared.datatype, shape, array.tobytes()))
    return tuple(tensors)


def read_evaluation(path: Path, model: ModelVersion) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz``, checked against the model's inputs.

    Raises:
        MeasuringError: it is no such file, or an array is missing or does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MeasuringError(f"evaluation: the data is not a readable .npz ({error})") from None
    labels = arrays.get("labels")
    if labels is None or labels.ndim < 1 or len(labels) < 2:
        raise MeasuringError("evaluation: the data needs an array `labels` of at least 2 rows")
    for spec in model.inputs:
        array = arrays.get(spec.name)
        if array is None:
            raise MeasuringError(f"evaluation: the data has no array for input {spec.name!r}; it has {sorted(arrays)}")
        if array.dtype != NUMPY_DTYPES[spec.datatype] or len(array) != len(labels):
            raise MeasuringError(
                f"evaluation: array {spec.name!r} is {array.dtype} with {len(array)} rows; "
                f"expected {spec.datatype} with {len(labels)}"
            )
    return arrays


def _doubling(batch_size_max: int) -> Iterator[int]:
    size = 1
    while size <= batch_size_max:
        yield size
        size *= 2


def _fields(tensor: BatchTensor) -> tuple[str, str, tuple[int, ...], bytes | memoryview]:
    return tensor.name, tensor.datatype, tensor.shape, tensor.data
