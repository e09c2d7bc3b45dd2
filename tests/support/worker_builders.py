"""Small real things for the worker's tests: batches, items, tiny models on disk, and misbehaving torch modules."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelless.frames import Batch, BatchTensor, Item
from modelless.messages import RecordId
from modelless.tensors import TensorSpec

SUPPORT = str(Path(__file__).parent)
ENV = os.environ | {"PYTHONPATH": SUPPORT}
"""Of an executor that can import what is here."""
VARIANT = "m:1/onnx-fp32"
X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 4))
CRASH, HANG, RAISE = 666.0, 777.0, 888.0
"""A row that starts with one of these makes ``nasty`` misbehave."""


def item(offset: int, deadline_ms: float | None = None, rows: int = 1, reply_topic: str = "r") -> Item:
    return Item(
        record=RecordId("q", 0, offset),
        id=f"id-{offset}",
        rows=rows,
        arrival_ms=0.0,
        deadline_ms=deadline_ms,
        latency_deadline_ms=deadline_ms,
        reply_topic=reply_topic,
        reply_partition=None,
        key=None,
        form="msgpack",
        headers=(),
        metadata={},
        missed=(),
        attempt=1,
    )


def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], name: str = "x") -> BatchTensor:
    return BatchTensor(name, "FP32", array.shape, array.astype("<f4").tobytes())


def batch(number: int, items: Sequence[Item], cost_ms: float = 1.0, variant: str = VARIANT) -> Batch:
    """Row i of the inputs holds the offset of its item."""
    firsts = [float(each.record.offset) for each in items for _ in range(each.rows)]
    rows = np.repeat(np.array(firsts, "<f4")[:, None], 4, axis=1)
    return Batch(number, variant, 0.9, cost_ms, tuple(items), (tensor(rows),))


def write_onnx(path: Path, output: str = "y") -> Path:
    """y = x + 1."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], [output])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.ones(4, "f4"), "one")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write_safetensors(path: Path) -> Path:
    """Weights of ``nasty``: y = x + 1."""
    from safetensors.numpy import save_file

    save_file({"one": np.ones(4, "f4")}, path)
    return path


def nasty() -> object:
    """A module that adds 1, and crashes, hangs or raises when a row asks for it."""
    import torch

    class Nasty(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            firsts = set(x[:, 0].tolist())
            if CRASH in firsts:
                os.abort()
            if HANG in firsts:
                time.sleep(3600)
            if RAISE in firsts:
                raise ValueError("this row is not liked")
            return x + self.one

    return Nasty()
