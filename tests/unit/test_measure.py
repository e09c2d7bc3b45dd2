"""Measuring with a real child, and on a bench that is disturbed as a test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from padded_models import OUTPUTS, SPECS
from worker_builders import X, Y, write_onnx

from modelless import store
from modelless.accuracy import wilson
from modelless.frames import BatchTensor
from modelless.messages import Evaluation as Declared
from modelless.messages import ModelVersion
from modelless.padding import layout_of
from modelless.tensors import TensorSpec
from workers import measure
from workers.evaluation import Evaluation, read_evaluation
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


def masked(folder: Path, outputs: tuple[TensorSpec, ...] = OUTPUTS) -> LoadSpec:
    path = folder / "masked.safetensors"
    tiny_networks.write("masked", path)
    factory = "tiny_networks:masked"
    return LoadSpec("m:1/torch-fp32", "torch-fp32", path, SPECS, outputs, factory, ("tiny_networks",))


async def test_rows_that_are_padded_are_measured_at_every_length(child: ChildExecutor, tmp_path: Path) -> None:
    of = replace(MODEL, format="safetensors", inputs=SPECS, outputs=OUTPUTS)
    path = tmp_path / "eval.npz"
    tokens = np.random.default_rng(0).integers(1, 50, (40, 6))
    network = tiny_networks.write("masked", tmp_path / "masked.safetensors")
    with torch.inference_mode():
        labels = network(torch.from_numpy(tokens), torch.ones(40, 6))[0].numpy().argmax(axis=1)
    labels[:10] = (labels[:10] + 1) % 3
    np.savez(path, tokens=tokens, labels=labels)
    data = read_evaluation(path, SPECS)
    assert (data.length, data.inputs["tokens"].shape, data.inputs["mask"].sum()) == (6, (40, 8), 240)
    profile = await Measurement(child, masked(tmp_path), Bench(step), data).profile(of, "cpu", 5.0, 8)
    assert profile.accuracy == pytest.approx(0.75), "padded to 8, answered as rows of 6"
    assert [each.length for each in profile.lengths] == [4, 8]
    assert all(each.batches[0].batch_size == 1 for each in profile.lengths)
    assert profile.batches


async def test_an_output_of_each_element_is_compared_without_the_padding(child: ChildExecutor, tmp_path: Path) -> None:
    """And what was declared to follow, and does not, is refused with the reason."""
    pooled, each = OUTPUTS
    spec = masked(tmp_path, (replace(pooled, shape=(-1, -1), padding=each.padding), each))
    with pytest.raises(
        MeasuringError, match=r"'pooled' is said to follow .* but has 3 in dimension 1 where they have 4"
    ):
        await Measurement(child, spec, Bench(step), None).profile(MODEL, "cpu", 0.1, 2)
    shape, labels = (2, 8, 3), np.zeros((2, 6), "i8")
    answered = np.zeros(shape, "f4")
    answered[:, 6:, 1] = 1  # nobody asked
    output = BatchTensor("each", "FP32", shape, answered.tobytes())
    layout = layout_of(SPECS, (each,))
    assert measure._right((output,), labels, layout, 6).all()


async def test_an_emulated_model_answers_in_the_length_of_its_inputs(tmp_path: Path) -> None:
    spec = replace(emulated(tmp_path, "cpu,1,0.5,0.6,1,1\ncpu,2,0.5,0.6,1,1\n"), inputs=SPECS, outputs=OUTPUTS)
    executor = EmulatedExecutor("cpu")
    profile = await Measurement(executor, spec, Bench(step), None).profile(MODEL, "cpu", 0.5, 2)
    assert [each.length for each in profile.lengths] == [4, 8]
    await executor.load(spec)
    pooled, each = await executor.run(spec.variant, measure.zeros(spec, 2, 8))
    assert (pooled.shape, each.shape, len(each.data)) == ((2, 3), (2, 8, 3), 2 * 8 * 3 * 4)
    await executor.close()


async def test_a_length_that_there_was_no_time_for_counts_as_the_longest(child: ChildExecutor, tmp_path: Path) -> None:
    of = replace(MODEL, inputs=SPECS, outputs=OUTPUTS)
    profile = await Measurement(child, masked(tmp_path), Bench(step), None).profile(of, "cpu", 1e-6, 64)
    assert profile.batches
    assert profile.lengths == ()
