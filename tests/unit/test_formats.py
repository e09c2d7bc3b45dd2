"""Every builder for CPUs with its real library, in a real executor child: what it builds, answers and refuses."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import safetensors.torch
import tiny_networks
import torch
from numpy.typing import NDArray
from padded_models import OUTPUTS
from padded_models import SPECS as PADDED
from tiny_networks import X, Y
from worker_builders import ENV, write_onnx
from worker_builders import X as ONNX_X
from worker_builders import Y as ONNX_Y

from modelless.frames import BatchTensor
from workers import builders, hardware
from workers.executor import ChildExecutor, ExecutionError, LoadSpec
from workers.formats import Array, FormatError, Source, refuse_foreign

ROWS = np.random.default_rng(0).standard_normal((128, 3, 8, 8)).astype("<f4")
WITH_CHILD = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def child() -> AsyncIterator[ChildExecutor]:
    """One for all: its frameworks take longer to import than what is asked of them here."""
    executor = await ChildExecutor.spawn("cpu", 1, lambda _: None, ENV)
    yield executor
    assert executor.alive
    await executor.close()


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calibration.npz", x=ROWS[:40])
    return tmp_path / "calibration.npz"


def spec(folder: Path, builder: str, factory: str, exit: int | None = None) -> LoadSpec:
    """Of a tiny network whose weights are written beside."""
    path = folder / f"{factory}.safetensors"
    tiny_networks.write(factory, path)
    name = f"m:1/{builder}" + (f".exit{exit}" if exit else "")
    return LoadSpec(name, builder, path, (X,), (Y,), f"tiny_networks:{factory}", ("tiny_networks",), exit)


async def make(child: ChildExecutor, of: LoadSpec, calibration: Path | None, format: str = "safetensors") -> None:
    """Build, where the builder does, and load."""
    builder = builders.find(of.builder)
    assert builder is not None
    if (suffix := builder.formats[format]) is not None:
        built = of.path.parent / f"{of.builder}-{of.exit}{suffix}"
        assert await child.build(of, calibration, built) > 0
        of = replace(of, built=built)
    await child.load(of)


async def answer(child: ChildExecutor, of: LoadSpec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    (output,) = await child.run(of.variant, (BatchTensor("x", "FP32", rows.shape, rows.tobytes()),))
    assert (output.name, output.datatype) == ("y", "FP32")
    return np.frombuffer(output.data, "<f4").reshape(output.shape)


async def errors(child: ChildExecutor, of: LoadSpec, exit: int | None = None) -> list[float]:
    """Largest difference from the network in torch itself, for batches of several sizes."""
    network = tiny_networks.write(of.factory.partition(":")[2] if of.factory else "", of.path)
    found = []
    for rows in (1, 2, 3, 31, 128):
        with torch.inference_mode():
            expected = network(torch.from_numpy(ROWS[:rows]), **({"exit": exit} if exit else {})).numpy()
        got = await answer(child, of, ROWS[:rows])
        assert got.shape == expected.shape
        found.append(float(np.abs(got - expected).max()))
    return found


def names_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def refused(name: str) -> str | None:
    builder = builders.find(name)
    assert builder is not None
    return builder.refusal("cpu")


@pytest.mark.slow
@WITH_CHILD
async def test_eager_torch(child: ChildExecutor, tmp_path: Path) -> None:
    """bfloat16 and int8 answer float32, close to what float32 answers, and not the same."""
    whole, half, eight = (spec(tmp_path, name, "small") for name in ("torch-fp32", "torch-bf16", "torch-int8"))
    for each in (whole, half, eight):
        await make(child, each, None)
    assert max(await errors(child, whole)) < 1e-5
    assert 1e-4 < max(await errors(child, half)) < 0.05
    assert 1e-4 < max(await errors(child, eight)) < 0.05
    with pytest.raises(ExecutionError, match=r"none of its layers can be quantised here: torch-int8 covers nn\.Linear"):
        await child.load(spec(tmp_path, "torch-int8", "convolutional"))


@pytest.mark.slow
@WITH_CHILD
async def test_exported(child: ChildExecutor, tmp_path: Path, calibration: Path) -> None:
    """ONNX and OpenVINO answer as torch does; quantised, nearly so. What cannot be built says why."""
    for name, most in (("onnx-fp32", 1e-4), ("openvino-fp32", 1e-4), ("onnx-int8", 0.2)):
        of = spec(tmp_path, name, "small")
        await make(child, of, calibration)
        found = max(await errors(child, of))
        assert found < most, name
        assert found > 1e-4 or name != "onnx-int8", "it is quantised"
    branching, target = spec(tmp_path, "onnx-fp32", "branching"), tmp_path / "target.onnx"
    with pytest.raises(ExecutionError, match=r"torch cannot export it as ONNX: .*data-dependent"):
        await child.build(branching, calibration, target)
    with pytest.raises(ExecutionError, match="it needs rows to calibrate on"):
        await child.build(spec(tmp_path, "onnx-int8", "small"), None, target)
    with pytest.raises(ExecutionError, match="none of its operators can be quantised"):
        await child.build(spec(tmp_path, "onnx-int8", "exponential"), calibration, target)
    assert not target.exists()


@pytest.mark.slow
@WITH_CHILD
async def test_exits(child: ChildExecutor, tmp_path: Path, calibration: Path) -> None:
    """Exit k is the network cut there, eagerly and exported; an ordinary network has none."""
    answers = []
    for name, exit in (("torch-fp32", None), ("torch-fp32", 1), ("torch-fp32", 2), ("onnx-fp32", 1)):
        of = spec(tmp_path, name, "exiting", exit)
        await make(child, of, calibration)
        assert max(await errors(child, of, exit)) < 1e-4
        answers.append(await answer(child, of, ROWS[:2]))
    assert not np.allclose(answers[0], answers[1])
    assert not np.allclose(answers[1], answers[2])
    with pytest.raises(ExecutionError, match="several exits; then its forward must take `exit"):
        await child.load(spec(tmp_path, "torch-fp32", "small", 1))


@pytest.mark.slow
@pytest.mark.timeout(400)
@WITH_CHILD
async def test_compiled(child: ChildExecutor, tmp_path: Path) -> None:
    """Ahead of time, for every batch size, while the child goes on serving; nothing is left behind."""
    if (reason := refused("torch-compile")) is not None:
        pytest.skip(reason)
    eager, compiled = spec(tmp_path, "torch-fp32", "exiting"), spec(tmp_path, "torch-compile", "exiting", 1)
    await make(child, eager, None)
    before = names_in("/tmp")
    making = asyncio.create_task(make(child, compiled, None))
    served = 0
    while not making.done():
        await answer(child, eager, ROWS[:1])
        served += 1
        await asyncio.sleep(0.05)
    await making
    assert served > 20
    assert max(await errors(child, compiled, 1)) < 1e-4
    assert sorted(names_in(tmp_path)) == ["exiting.safetensors", "torch-compile-1.pt2"]
    assert not [name for name in names_in("/tmp") - before if "inductor" in name]
    with pytest.raises(ExecutionError, match=r"torch cannot compile it: .*data-dependent"):
        await child.build(spec(tmp_path, "torch-compile", "branching"), None, tmp_path / "target.pt2")
    (tmp_path / "junk.pt2").write_bytes(os.urandom(500))
    with pytest.raises(ExecutionError, match="the compiled package cannot be loaded"):
        await child.load(replace(compiled, built=tmp_path / "junk.pt2"))


@WITH_CHILD
async def test_an_onnx_artifact_is_not_built_unless_it_is_quantised(child: ChildExecutor, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    for name in ("onnx-fp32", "openvino-fp32"):
        of = LoadSpec(f"m:1/{name}", name, path, (ONNX_X,), (ONNX_Y,))
        await make(child, of, None, "onnx")
        rows = np.arange(8, dtype="<f4").reshape(2, 4)
        assert np.array_equal(await answer(child, of, rows), rows + 1)
    with pytest.raises(ExecutionError, match="no output z; it has: y"):
        await child.load(replace(of, outputs=(replace(ONNX_Y, name="z"),)))


class _Shifted:
    """Answers one row otherwise than the network, as a graph does that took a batch of one for a special case."""

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        x = inputs["x"]
        return [np.exp(x.reshape(len(x), -1)[:, :10]) + np.float32(0.1 if len(x) == 1 else 0)]

    def device_bytes(self) -> int:
        return 0


def test_what_answers_otherwise_than_the_network_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.formats import exporting, torch_module

    of = spec(tmp_path, "onnx-fp32", "exponential")
    source = Source(of.path, of.inputs, of.outputs, of.factory, of.factories_allowed)
    network = torch_module.network(source)
    with pytest.raises(FormatError, match=r"built, it answers 1 rows otherwise than the network: 'y' differs by 0\.1"):
        exporting.check_same(network, _Shifted(), source, None)
    monkeypatch.setattr(exporting, "ROWS_CHECKED", (2, 5))
    exporting.check_same(network, _Shifted(), source, None)


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """The first bytes of a safetensors file are a length: 896 is 80 03 00…, as a pickle begins."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 896) + b"{" + bytes(895))
    refuse_foreign(path, ".safetensors")
    path.write_bytes(struct.pack("<Q", 896) + b"}" + bytes(895))
    with pytest.raises(FormatError, match="is a pickle"):
        refuse_foreign(path, ".safetensors")


def test_the_processor_says_what_torch_says() -> None:
    flags = hardware.flags()
    assert ("avx512_bf16" in flags) == torch.cpu._is_avx512_bf16_supported()
    assert (refused("torch-bf16") is None) == bool(flags & hardware.BF16)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert refused("torch-compile") == (
        "it needs a C++ compiler, and there is no no-such-compiler; install g++, or name another one in CXX"
    )
    monkeypatch.setattr(hardware, "flags", lambda: frozenset({"avx512f"}))
    assert "does not multiply bfloat16 itself" in (refused("torch-bf16") or "")
    tensorrt = builders.find("tensorrt-fp16")
    assert tensorrt is not None
    assert tensorrt.refusal("cuda:0") == "tensorrt is not installed; install modelless[tensorrt]"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("builder", ["torch-fp32", "onnx-fp32", "openvino-fp32", "torch-compile"])
@WITH_CHILD
async def test_a_network_of_rows_that_are_padded(
    child: ChildExecutor, tmp_path: Path, builder: str, calibrated: bool
) -> None:
    """Built once, it answers every length that rows are padded to as the network does."""
    if (reason := refused(builder)) is not None:
        pytest.skip(reason)
    if builder == "torch-compile" and calibrated:
        pytest.skip("takes long, and the graph is the same")
    network = tiny_networks.write("masked", tmp_path / "masked.safetensors")
    of = LoadSpec(
        f"m:1/{builder}", builder, tmp_path / "masked.safetensors", PADDED, OUTPUTS, "tiny_networks:masked",
        ("tiny_networks",),
    )  # fmt: skip
    np.savez(tmp_path / "c.npz", tokens=np.ones((9, 8), "i8"), mask=np.ones((9, 8), "f4"))
    await make(child, of, tmp_path / "c.npz" if calibrated else None)
    for length in (4, 8, 16):
        for rows in (1, 2, 5):
            tokens = np.random.default_rng(length).integers(0, 50, (rows, length))
            mask = (np.arange(length) < 3).astype("f4") * np.ones((rows, 1), "f4")
            outputs = await child.run(
                of.variant,
                (
                    BatchTensor("tokens", "INT64", tokens.shape, tokens.tobytes()),
                    BatchTensor("mask", "FP32", mask.shape, mask.astype("<f4").tobytes()),
                ),
            )
            with torch.inference_mode():
                expected = network(torch.from_numpy(tokens), torch.from_numpy(mask.astype("f4")))
            for got, want in zip(outputs, expected, strict=True):
                assert got.shape == tuple(want.shape)
                assert np.allclose(np.frombuffer(got.data, "<f4").reshape(got.shape), want.numpy(), atol=1e-5)


def test_weights_stay_in_the_file_and_nothing_else_of_the_network_changes(tmp_path: Path) -> None:
    """Mapped and shared; a buffer that is made by the factory, and drawn at random, is as the factory makes it."""
    from workers.formats import torch_module

    path = tmp_path / "w.safetensors"
    expected = tiny_networks.write("remembering", path)
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file(weights | {"bias_half": weights["bias_half"].half()}, path)
    source = Source(path, (X,), (Y,), "tiny_networks:remembering", ("tiny_networks",), None)
    torch.manual_seed(0)
    module = torch_module.network(source, mapped=True).module
    mapped = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    for name, tensor in module.named_parameters():
        assert torch.equal(tensor, expected.get_parameter(name))
        if name != "bias_half":
            assert any(start <= tensor.data_ptr() < end for start, end in mapped), f"{name} is a copy"
    assert module.get_parameter("bias_half").dtype == torch.float32, "what the file holds takes the module's type"
    assert module.get_buffer("noise").std() > 0.5
    with torch.inference_mode():
        assert torch.equal(module.get_buffer("ones"), expected.get_buffer("ones"))
