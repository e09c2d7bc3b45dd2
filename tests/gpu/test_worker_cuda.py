"""A torch module on a CUDA device. Skipped aloud where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from worker_builders import X, Y, tensor, write_safetensors

from workers.executor import ChildExecutor, LoadSpec

SUPPORT = str(Path(__file__).parents[1] / "support")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no CUDA device: /dev/nvidia0 is not there"),
]


async def test_torch_on_cuda(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "n.safetensors")
    allowed = ("worker_builders",)
    spec = LoadSpec("n:1/torch-fp32", "torch-fp32", path, (X,), (Y,), "worker_builders:nasty", allowed)
    child = await ChildExecutor.spawn("cuda:0", 1, lambda _: None, os.environ | {"PYTHONPATH": SUPPORT})
    await child.load(spec)
    (output,) = await child.run(spec.variant, (tensor(np.ones((4, 4), "f4")),))
    assert np.frombuffer(output.data, "<f4").tolist() == [2.0] * 16
    assert (await child.memory()).device_bytes > 0
    await child.close()
