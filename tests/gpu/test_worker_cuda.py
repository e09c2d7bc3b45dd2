"""A torch module, and what builders make of one, on a CUDA device. Skipped aloud where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from worker_builders import ENV, X, Y, tensor, write_safetensors

from modelless.frames import BatchTensor
from workers import builders
from workers.executor import ChildExecutor, LoadSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no CUDA device: /dev/nvidia0 is not there"),
]


async def test_torch_on_cuda(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "n.safetensors")
    allowed = ("worker_builders",)
    spec = LoadSpec("n:1/torch-fp32", "torch-fp32", path, (X,), (Y,), "worker_builders:nasty", allowed)
    child = await ChildExecutor.spawn("cuda:0", 1, lambda _: None, ENV)
    await child.load(spec)
    (output,) = await child.run(spec.variant, (tensor(np.ones((4, 4), "f4")),))
    assert np.frombuffer(output.data, "<f4").tolist() == [2.0] * 16
    assert (await child.memory()).device_bytes > 0
    await child.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "most"),
    [("torch-fp16", 0.01), ("torch-bf16", 0.05), ("torch-compile", 1e-2), ("onnx-fp32", 1e-2), ("tensorrt-fp16", 0.01)],
)
async def test_builders_on_cuda(name: str, most: float, tmp_path: Path) -> None:
    """Float32 is compared with the processor's: tensor cores may round its inputs to 10 bits of mantissa."""
    builder = builders.find(name)
    assert builder is not None
    if (reason := builder.refusal("cuda:0")) is not None:
        pytest.skip(reason)
    path, factory = tmp_path / "small.safetensors", "tiny_networks:small"
    network = tiny_networks.write("small", path)
    spec = LoadSpec("s:1/x", name, path, (tiny_networks.X,), (tiny_networks.Y,), factory, ("tiny_networks",))
    child = await ChildExecutor.spawn("cuda:0", 1, lambda _: None, ENV)
    if (suffix := builder.formats["safetensors"]) is not None:
        spec = replace(spec, built=tmp_path / f"built{suffix}")
        assert spec.built is not None
        await child.build(replace(spec, built=None), None, spec.built)
    await child.load(spec)
    for rows in (1, 2, 31, 200):
        x = np.random.default_rng(rows).standard_normal((rows, 3, 8, 8)).astype("<f4")
        (output,) = await child.run(spec.variant, (BatchTensor("x", "FP32", x.shape, x.tobytes()),))
        expected = network(torch.from_numpy(x)).detach().numpy()
        assert np.abs(np.frombuffer(output.data, "<f4").reshape(output.shape) - expected).max() < most
    await child.close()
