"""Measuring one variant for its group: load time, memory, lat(b), accuracy.

On an executor of its own, so that a model that crashes while it is measured takes nobody along, but on the same device:
every few runs are one *step* between live batches, and nothing is loaded meanwhile. Times are taken where live batches
are timed, at the supervisor. Where live batches had the device for more than a little of the time between the steps,
its caches and its clock were theirs, and the numbers are taken again, a few times at most.

* lat(b) for b = 1, 2, 4, … until throughput stopped growing: less than 5 % better twice in a row, or the limits. Where
  rows are padded, of the longest first and then of each other length that there is time for.
* Memory: resident growth from before loading to the peak while running the largest batch, plus device memory.
* Accuracy on the half of the evaluation set that no builder saw, or as much of it as there is time for.
* Load time in a process that has its libraries: cold, the first time, and warm, again at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelless import accuracy
from modelless.frames import BatchTensor
from modelless.messages import BatchTime, LengthTimes, ModelVersion, Profile
from modelless.padding import Layout, layout_of
from modelless.tensors import NUMPY_DTYPES, Tensor
from workers.evaluation import Evaluation
from workers.executor import ExecutionError, Executor, ExecutorDiedError, LoadSpec, Outputs

Step = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

RUNS_MAX = 100
RUNS_MIN = 3
WARM_UP_RUNS = 3
STEP_S = 0.01
GROWTH_MIN = 1.05
LATENCY_SHARE = 0.6
"""Of the time budget; accuracy has what is left."""
ACCURACY_ROWS_MIN = 100
"""Measured on whatever time that takes."""
LOAD_S_MAX = 300.0
RUN_S_MAX = 60.0
DISTURBED_SHARE_MAX = 0.25
"""Of the time, that live batches may have had the device while a batch size was measured."""
DISTURBED_ATTEMPTS_MAX = 3
DISTURBED_PAUSE_S = 0.5


class MeasuringError(Exception):
    """The variant cannot be used; the message is for the operator."""


class Bench:
    """Where measuring takes place.

    Args:
        step: gives the device to one piece of work, when it has a moment.
        busy_s: time that live batches have had the device so far.
    """

    def __init__(self, step: Step, busy_s: Callable[[], float] = lambda: 0.0) -> None:
        self._step = step
        self.busy_s = busy_s
        self.loading = asyncio.Lock()
        """Held by whoever loads a variant: loading and measuring do not overlap."""

    async def step(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self.loading:
            await self._step(work)


class Measurement:
    """One variant on one executor.

    Args:
        data: the half of the evaluation set to measure on; None: accuracy as declared, made-up inputs.
    """

    def __init__(self, executor: Executor, spec: LoadSpec, bench: Bench, data: Evaluation | None) -> None:
        self._executor = executor
        self._spec = spec
        self._bench = bench
        self._data = data
        self._layout = layout_of(spec.inputs, spec.outputs)

    async def profile(self, model: ModelVersion, group: str, budget_s: float, batch_size_max: int) -> Profile:
        """``budget_s`` is for latencies and accuracy; loading has its own bound. Raises MeasuringError."""
        try:
            await self._executor.prepare([self._spec.builder])
            before = await self._executor.memory()
            load_ms = await self._load()
            await self._executor.memory()
            await self._check_followers()
            until_s = time.monotonic() + budget_s
            batches, lengths = await self._all_latencies(budget_s * LATENCY_SHARE, batch_size_max)
            after = await self._executor.memory()
            right, rows = await self._score(batches, until_s)
            await self._executor.unload(self._spec.variant)
            load_warm_ms = await self._load()
            await self._executor.unload(self._spec.variant)
        except ExecutionError as error:
            raise MeasuringError(str(error)) from None
        except ExecutorDiedError:
            raise MeasuringError("it brought its executor down while it was loaded or run") from None
        except TimeoutError:
            raise MeasuringError(f"loading it took longer than {LOAD_S_MAX:.0f} s") from None
        measured = right / rows if rows else model.evaluation.accuracy
        interval = accuracy.wilson(right, rows) if rows else accuracy.declared(measured or 0.0)
        return Profile(
            variant=self._spec.variant,
            group=group,
            status="ready",
            digest=model.digest,
            load_ms=load_ms,
            load_warm_ms=load_warm_ms,
            memory_bytes=max(0, after.peak_bytes - before.rss_bytes) + after.device_bytes,
            accuracy=measured,
            accuracy_low=None if measured is None else interval.low,
            accuracy_high=None if measured is None else interval.high,
            accuracy_rows=rows,
            batches=batches,
            lengths=lengths,
        )

    async def _check_followers(self) -> None:
        """What is said to follow the length of the rows does so. Raises MeasuringError."""
        for length in self._layout.lengths if self._layout is not None and self._layout.cuts else ():

            async def check(length: int = length) -> None:
                outputs = await self._run(self._inputs(1, length))
                for index, axis in self._layout.cuts if self._layout is not None else ():
                    if (got := outputs[index].shape[axis]) != length:
                        raise MeasuringError(
                            f"output {outputs[index].name!r} is said to follow the length of the inputs, "
                            f"but has {got} in dimension {axis} where they have {length}"
                        )

            await self._bench.step(check)

    async def _all_latencies(
        self, budget_s: float, batch_size_max: int
    ) -> tuple[tuple[BatchTime, ...], tuple[LengthTimes, ...]]:
        """Of the longest rows, and of those shorter lengths that could be measured as far as is useful."""
        until_s = time.monotonic() + budget_s
        shorter = () if self._layout is None else self._layout.lengths[:-1]
        batches, _ = await self._latencies(budget_s / (1 + len(shorter)), batch_size_max)
        found = []
        for index, length in enumerate(shorter):
            share_s = (until_s - time.monotonic()) / (len(shorter) - index)
            if share_s > 0:
                times, complete = await self._latencies(share_s, batch_size_max, length)
                if complete:
                    found.append(LengthTimes(length, times))
        return batches, tuple(found)

    async def _load(self) -> float:
        """How long it took, ms."""
        async with self._bench.loading:
            started_s = time.monotonic()
            async with asyncio.timeout(LOAD_S_MAX):
                await self._executor.load(self._spec)
            return (time.monotonic() - started_s) * 1000

    async def _latencies(
        self, budget_s: float, batch_size_max: int, length: int = 0
    ) -> tuple[tuple[BatchTime, ...], bool]:
        """And whether they are all that is useful: False when the time ended it."""
        until_s = time.monotonic() + budget_s
        sizes = list(_doubling(batch_size_max))
        measured: list[BatchTime] = []
        best, stale = 0.0, 0
        for index, size in enumerate(sizes):
            share_s = (until_s - time.monotonic()) / (len(sizes) - index)
            times_ms = await self._undisturbed_ms(self._inputs(size, length), share_s)
            p50_ms, p99_ms = np.percentile(times_ms, [50, 99])
            measured.append(BatchTime(size, float(p50_ms), float(p99_ms)))
            stale = 0 if size / p50_ms >= GROWTH_MIN * best else stale + 1
            best = max(best, size / p50_ms)
            if stale == 2:
                break
            if time.monotonic() > until_s and size < sizes[-1]:
                return tuple(measured), False
        return tuple(measured), True

    async def _undisturbed_ms(self, inputs: tuple[BatchTensor, ...], budget_s: float) -> list[float]:
        """The attempt during which live batches had the least of the device; the first one that is good enough."""
        attempts: list[tuple[float, list[float]]] = []
        for _ in range(DISTURBED_ATTEMPTS_MAX):
            started_s, busy_before_s = time.monotonic(), self._bench.busy_s()
            times_ms = await self._times_ms(inputs, budget_s)
            share = (self._bench.busy_s() - busy_before_s) / max(time.monotonic() - started_s, 1e-9)
            attempts.append((share, times_ms))
            if share <= DISTURBED_SHARE_MAX:
                break
            await asyncio.sleep(DISTURBED_PAUSE_S)
        return min(attempts, key=lambda attempt: attempt[0])[1]

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

        await self._bench.step(warm_up)
        while len(times_ms) < RUNS_MIN or (len(times_ms) < RUNS_MAX and time.monotonic() < until_s):
            await self._bench.step(some)
        return times_ms

    async def _score(self, batches: tuple[BatchTime, ...], until_s: float) -> tuple[float, int]:
        """(right, of how many) predictions on the rows that there is time for; 0 of 0 without data."""
        if self._data is None:
            return 0.0, 0
        batch_size = min(batches, key=lambda batch: batch.p50_ms / batch.batch_size).batch_size
        right: list[NDArray[Any]] = []
        scored = 0
        while scored < self._data.rows and (scored < ACCURACY_ROWS_MIN or time.monotonic() < until_s):
            part = self._data.take(np.arange(scored, min(scored + batch_size, self._data.rows)))

            async def score(part: Evaluation = part) -> None:
                outputs = await self._run(self._tensors(part.inputs))
                right.append(_right(outputs, part.labels, self._layout, part.length))

            await self._bench.step(score)
            scored += part.rows
        hits = np.concatenate(right)  # [rows, ...]: a row of several labels counts by the share that is right
        return float(hits.reshape(scored, -1).mean(axis=1).sum()), scored

    async def _run(self, inputs: tuple[BatchTensor, ...]) -> Outputs:
        try:
            async with asyncio.timeout(RUN_S_MAX):
                return await self._executor.run(self._spec.variant, inputs)
        except TimeoutError:
            self._executor.kill()
            raise MeasuringError(f"one batch took longer than {RUN_S_MAX:.0f} s") from None

    def _inputs(self, batch_size: int, length: int = 0) -> tuple[BatchTensor, ...]:
        """Rows of the evaluation set, repeated as needed, or zeros; if padded, of ``length`` (0: the longest)."""
        if self._data is None:
            return zeros(self._spec, batch_size, length)
        inputs = self._data.take(np.arange(batch_size) % self._data.rows).inputs
        if self._layout is not None:
            inputs = self._layout.stretched(inputs, length or self._layout.lengths[-1])
        return self._tensors(inputs)

    def _tensors(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[BatchTensor, ...]:
        return tuple(_tensor(spec.name, inputs[spec.name]) for spec in self._spec.inputs)


def _right(outputs: Outputs, labels: NDArray[Any], layout: Layout | None, length: int) -> NDArray[np.bool_]:
    """Where the first output's argmax is the label; of ``length``, if that output follows."""
    first = outputs[0]
    array = Tensor(first.name, first.datatype, first.shape, first.data).to_numpy()
    for index, axis in layout.cuts if layout is not None else ():
        if index == 0:
            array = array.take(np.arange(length), axis=axis)
    found = array.argmax(axis=-1)
    if found.shape != labels.shape:
        raise MeasuringError(
            f"evaluation: labels have shape {list(labels.shape)}, "
            f"the argmax of output {first.name!r} has {list(found.shape)}"
        )
    right: NDArray[np.bool_] = found == labels
    return right


def zeros(spec: LoadSpec, batch_size: int, length: int = 0) -> tuple[BatchTensor, ...]:
    """Inputs for trying a variant out; free dimensions are 1, or ``length`` where they are padded (0: the longest)."""
    layout = layout_of(spec.inputs)
    made = () if layout is None else layout.made
    arrays: dict[str, NDArray[Any]] = {}
    for declared in spec.inputs:
        shape = (batch_size, *(1 if size == -1 else size for size in declared.shape[1:]))
        arrays[declared.name] = np.full(shape, declared in made, NUMPY_DTYPES[declared.datatype])
    if layout is not None:
        arrays = layout.stretched(arrays, length or layout.lengths[-1])
    return tuple(_tensor(name, array) for name, array in arrays.items())


def _tensor(name: str, array: NDArray[Any]) -> BatchTensor:
    tensor = Tensor.from_numpy(name, array)
    return BatchTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _doubling(batch_size_max: int) -> Iterator[int]:
    size = 1
    while size <= batch_size_max:
        yield size
        size *= 2
