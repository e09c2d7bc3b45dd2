"""Measuring with a real child, and on a bench that is disturbed as a test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worker_builders import X, Y, write_onnx

from modelless import store
from modelless.accuracy import wilson
from modelless.frames import BatchTensor
from modelless.messages import Evaluation as Declared
from modelless.messages import ModelVersion
from workers import measure
from workers.evaluation import Evaluation
from workers.executor import ChildExecutor, EmulatedExecutor, ExecutionError, LoadSpec
from workers.measure import Bench, Measurement, MeasuringError

MODEL = ModelVersion("m", 1, "t", "onnx", "", "", 0, (X,), (Y,), Declared(), "digest")


async def step(work: Callable[[], Awaitable[None]]) -> None:
    await work()


@pytest.fixture
def spec(tmp_path: Path) -> LoadSpec:
    return LoadSpec("m:1/onnx-fp32", "onnx-fp32", write_onnx(tmp_path / "m.onnx"), (X,), (Y,))


def emulated(tmp_path: Path, rows: str) -> LoadSpec:
    table = tmp_path / "e.csv"
    table.write_text(f"{store.EMULATED_HEADER}\n{rows}")
    return LoadSpec("m:1/emulated", "emulated", table, (X,), (Y,))


def labelled(rows: int, wrong: int) -> Evaluation:
    """y = x + 1 keeps the largest column; the labels of the first ``wrong`` rows are others."""
    x = np.random.default_rng(1).random((rows, 4), dtype="f4")
    labels = x.argmax(axis=1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    return Evaluation({"x": x}, labels)


async def test_a_profile(child: ChildExecutor, spec: LoadSpec) -> None:
    profile = await Measurement(child, spec, Bench(step), labelled(50, 10)).profile(MODEL, "cpu", 1.0, 16)
    assert (profile.status, profile.digest, profile.variant) == ("ready", "digest", "m:1/onnx-fp32")
    assert profile.accuracy == pytest.approx(0.8)
    assert (profile.accuracy_low, profile.accuracy_high) == pytest.approx(wilson(40, 50))
    assert profile.accuracy_rows == 50
    assert [b.batch_size for b in profile.batches][:3] == [1, 2, 4]
    assert all(0 < b.p50_ms <= b.p99_ms for b in profile.batches)
    assert profile.load_ms > 0
    assert profile.load_warm_ms > 0


@pytest.mark.usefixtures("third_party")
async def test_a_second_variant_in_the_same_process_is_measured_as_the_first(
    child: ChildExecutor, tmp_path: Path
) -> None:
    """What the first one left free is not counted as the second one's."""
    bulky = LoadSpec("m:1/bulky", "bulky", tmp_path / "m.onnx", (X,), (Y,), built=tmp_path / "m.bulky")
    for _ in range(3):
        profile = await Measurement(child, bulky, Bench(step), None).profile(MODEL, "cpu", 0.1, 2)
        assert profile.memory_bytes == pytest.approx(38e6, rel=0.2)
    with pytest.raises(ExecutionError, match="not loaded"):
        await child.run(bulky.variant, (BatchTensor("x", "FP32", (1, 4), bytes(16)),))


async def test_what_was_declared_is_believed(child: ChildExecutor, spec: LoadSpec) -> None:
    declared = replace(MODEL, evaluation=Declared(0.9))
    profile = await Measurement(child, spec, Bench(step), None).profile(declared, "cpu", 0.1, 2)
    assert (profile.accuracy, profile.accuracy_low, profile.accuracy_high) == (0.9, 0.9, 0.9)
    assert profile.accuracy_rows == 0


async def test_a_slow_variant_is_measured_on_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms a row, and 400 rows: 8 s, of which there is half a second."""
    monkeypatch.setattr(measure, "ACCURACY_ROWS_MIN", 10)
    spec = emulated(tmp_path, "cpu,1,20,20,0,1\n")
    executor = EmulatedExecutor("cpu")
    started_s = time.monotonic()
    profile = await Measurement(executor, spec, Bench(step), labelled(400, 0)).profile(MODEL, "cpu", 0.5, 1)
    assert time.monotonic() - started_s < 3
    assert 10 <= profile.accuracy_rows < 100
    assert profile.accuracy_high is not None
    assert profile.accuracy_low is not None
    assert profile.accuracy_high - profile.accuracy_low > 0.01
    await executor.close()


@pytest.mark.parametrize(("busy_s", "attempts"), [([0, 0], 1), ([0, 9, 9, 9], 2), ([0, 9, 9, 20, 20, 30], 3)])
async def test_what_live_batches_disturbed_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_s: list[float], attempts: int
) -> None:
    """The time that live batches have had is looked at before and after every attempt; three are the limit."""
    monkeypatch.setattr(measure, "DISTURBED_PAUSE_S", 0.0)
    executor = EmulatedExecutor("cpu")
    seen = iter(busy_s)
    bench = Bench(step, lambda: next(seen))
    spec = emulated(tmp_path, "cpu,1,2,2,0,1\n")
    profile = await Measurement(executor, spec, bench, None).profile(MODEL, "cpu", 0.01, 1)
    assert list(seen) == []
    assert len(busy_s) == 2 * attempts
    assert profile.status == "ready"
    await executor.close()


async def test_nothing_is_measured_while_something_is_loaded(child: ChildExecutor, spec: LoadSpec) -> None:
    bench = Bench(step)
    async with bench.loading:
        measuring = asyncio.create_task(Measurement(child, spec, bench, None).profile(MODEL, "cpu", 0.1, 1))
        await asyncio.sleep(0.5)
        assert not measuring.done()
    await measuring


async def test_it_says_what_is_wrong(child: ChildExecutor, spec: LoadSpec) -> None:
    wrong = replace(spec, outputs=(replace(Y, shape=(-1, 7)),))
    with pytest.raises(MeasuringError, match="declared is"):
        await Measurement(child, wrong, Bench(step), None).profile(MODEL, "cpu", 1.0, 4)
    three = Evaluation({"x": np.ones((9, 4), "f4")}, np.zeros((9, 3), "i8"))
    with pytest.raises(MeasuringError, match=r"labels have shape \[.*3\], the argmax of output 'y' has"):
        await Measurement(child, spec, Bench(step), three).profile(MODEL, "cpu", 0.1, 4)
