"""Executors with real children: loading, running, refusing, dying, and being replaced."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from worker_builders import CRASH, ENV, HANG, RAISE, X, Y, tensor, write_onnx, write_safetensors

from workers.executor import ChildExecutor, EmulatedExecutor, ExecutionError, Executor, ExecutorDiedError, LoadSpec
from workers.executors import Executors

ROWS = (tensor(np.arange(8, dtype="f4").reshape(2, 4)),)


def row(first: float) -> tuple[object, ...]:
    return (tensor(np.full((1, 4), first, "f4")),)


@pytest.fixture
def onnx_spec(tmp_path: Path) -> LoadSpec:
    return LoadSpec("m:1/onnx-fp32", "onnx-fp32", write_onnx(tmp_path / "m.onnx"), (X,), (Y,))


@pytest.fixture
def nasty_spec(tmp_path: Path) -> LoadSpec:
    path = write_safetensors(tmp_path / "n.safetensors")
    return LoadSpec("n:1/torch-fp32", "torch-fp32", path, (X,), (Y,), "worker_builders:nasty", ("worker_builders",))


async def test_onnx(child: ChildExecutor, onnx_spec: LoadSpec) -> None:
    await child.load(onnx_spec)
    (output,) = await child.run(onnx_spec.variant, ROWS)
    assert (output.name, output.datatype, output.shape) == ("y", "FP32", (2, 4))
    assert np.frombuffer(output.data, "<f4").tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    await child.unload(onnx_spec.variant)
    with pytest.raises(ExecutionError, match="not loaded"):
        await child.run(onnx_spec.variant, ROWS)


async def test_large_batches_cross_the_socket(child: ChildExecutor, onnx_spec: LoadSpec) -> None:
    await child.load(onnx_spec)
    array = np.arange(4_000_000, dtype="f4").reshape(-1, 4)
    (output,) = await child.run(onnx_spec.variant, (tensor(array),))
    assert np.array_equal(np.frombuffer(output.data, "<f4").reshape(output.shape), array + 1)


async def test_what_does_not_fit_is_an_error_and_the_child_lives(child: ChildExecutor, onnx_spec: LoadSpec) -> None:
    with pytest.raises(ExecutionError, match="no output z; it has: y"):
        await child.load(replace(onnx_spec, outputs=(replace(Y, name="z"),)))
    with pytest.raises(ExecutionError, match="inputs are x; declared are a"):
        await child.load(replace(onnx_spec, inputs=(replace(X, name="a"),)))
    await child.load(replace(onnx_spec, outputs=(replace(Y, shape=(-1, 5)),)))
    with pytest.raises(ExecutionError, match=r"output 'y' has shape \[2, 4\], declared is \[-1, 5\]"):
        await child.run(onnx_spec.variant, ROWS)
    await child.load(onnx_spec)
    with pytest.raises(ExecutionError, match=r"input 'x' has shape \[1, 3\]"):
        await child.run(onnx_spec.variant, (tensor(np.ones((1, 3), "f4")),))
    assert await child.run(onnx_spec.variant, ROWS)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".pt", ".pkl"])
async def test_a_pickle_is_never_opened(child: ChildExecutor, onnx_spec: LoadSpec, tmp_path: Path, suffix: str) -> None:
    canary, disguised = tmp_path / "canary", tmp_path / f"model{suffix}"
    disguised.write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(ExecutionError, match=r"pickle|expected a \.onnx file"):
        await child.load(replace(onnx_spec, path=disguised))
    assert not canary.exists()
    disguised.write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(ExecutionError, match=r"zip archive|expected a \.onnx file"):
        await child.load(replace(onnx_spec, path=disguised))


async def test_junk_with_the_right_extension_is_an_error(
    child: ChildExecutor, onnx_spec: LoadSpec, tmp_path: Path
) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(os.urandom(500))
    with pytest.raises(ExecutionError, match="onnxruntime cannot load it"):
        await child.load(replace(onnx_spec, path=junk))


@pytest.mark.slow
async def test_torch_factories(child: ChildExecutor, nasty_spec: LoadSpec, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match=r"not allowed here; add its module to worker\.factories_allowed"):
        await child.load(replace(nasty_spec, factories_allowed=("elsewhere", "worker_builder")))
    with pytest.raises(ExecutionError, match="needs `factory"):
        await child.load(replace(nasty_spec, factory=None))
    with pytest.raises(ExecutionError, match="failed: AttributeError"):
        await child.load(replace(nasty_spec, factory="worker_builders:nobody"))
    await child.load(nasty_spec)
    (output,) = await child.run(nasty_spec.variant, ROWS)
    assert np.frombuffer(output.data, "<f4").tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(ExecutionError, match="ValueError: this row is not liked"):
        await child.run(nasty_spec.variant, row(RAISE))  # type: ignore[arg-type]
    (nan,) = await child.run(nasty_spec.variant, row(float("nan")))  # type: ignore[arg-type]
    assert np.isnan(np.frombuffer(nan.data, "<f4")).all()


@pytest.mark.slow
async def test_a_crash_and_a_hang_end_only_the_child(nasty_spec: LoadSpec) -> None:
    deaths: list[Executor] = []
    for first in (CRASH, HANG):
        executor = await ChildExecutor.spawn("cpu", 1, deaths.append, ENV)
        await executor.load(nasty_spec)
        future = executor.run(nasty_spec.variant, row(first))  # type: ignore[arg-type]
        if first == HANG:
            await asyncio.sleep(0.05)
            executor.kill()
        with pytest.raises(ExecutorDiedError):
            await future
        assert not executor.alive
        with pytest.raises(ExecutorDiedError):
            await executor.run(nasty_spec.variant, ROWS)
        await executor.close()
    await asyncio.sleep(0)
    assert len(deaths) == 2


async def test_a_dead_executor_is_replaced_by_the_spare(onnx_spec: LoadSpec) -> None:
    executors = Executors(partial(ChildExecutor.spawn, "cpu", 1), lambda: None, lambda *_: None)
    await executors.start()
    await executors.load(onnx_spec)
    await _until(lambda: executors._prepared == {"onnx-fp32"})
    first = executors.serving
    assert first is not None
    started_s = time.monotonic()
    first.kill()
    await _until(lambda: executors.serving is not None and executors.serving is not first)
    assert executors.serving is not None
    await executors.serving.run(onnx_spec.variant, ROWS)
    print(f"\nserving again {1000 * (time.monotonic() - started_s):.0f} ms after the death")
    statistics = executors.statistics()
    assert statistics.deaths == 1
    assert statistics.promotion_ms < 1000
    executors.quarantine([onnx_spec.variant])
    await _until(lambda: executors.quarantined is not None)
    assert executors.quarantined is not None
    await executors.quarantined.run(onnx_spec.variant, ROWS)
    executors.quarantine([])
    await _until(lambda: executors.quarantined is None)
    await executors.close()
    await first.close()


async def test_our_settings_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELLESS_KAFKA__SASL_USERNAME", "secret")
    executor = await ChildExecutor.spawn("cpu", 3, lambda _: None)
    await executor.prepare(())
    seen = await asyncio.to_thread(lambda: Path(f"/proc/{executor.pid}/environ").read_text().split("\0"))
    assert "OMP_NUM_THREADS=3" in seen
    assert not any(line.startswith("MODELLESS_") for line in seen)
    await executor.close()


async def test_emulated_waits_as_its_table_says(tmp_path: Path) -> None:
    table = tmp_path / "e.csv"
    table.write_text(
        "group,batch_size,p50_ms,p99_ms,load_ms,memory_mb\ngpu,1,5,6,1,100\ngpu,8,20,25,1,100\nother,1,1,1,1,1\n"
    )
    executor = EmulatedExecutor("gpu")
    spec = LoadSpec("e:1/emulated", "emulated", table, (X,), (Y,))
    await executor.load(spec)
    for rows, expected_ms in ((1, 5.0), (3, 20.0), (8, 20.0), (16, 40.0)):
        waited_ms = []
        for _ in range(3):  # somebody else may have the core for a while
            started_s = time.monotonic()
            (output,) = await executor.run(spec.variant, (tensor(np.ones((rows, 4), "f4")),))
            waited_ms.append((time.monotonic() - started_s) * 1000)
            assert output.shape == (rows, 4)
        assert expected_ms <= min(waited_ms) < expected_ms + 30
    assert (await executor.memory()).rss_bytes == 100 * 2**20
    with pytest.raises(ExecutionError, match="rows for group 'tpu'"):
        await EmulatedExecutor("tpu").load(spec)
    await executor.close()


async def _until(reached: object, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.01)
