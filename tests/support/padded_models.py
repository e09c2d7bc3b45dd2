"""Models whose rows have lengths of their own, and what they answer, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelless.messages import Evaluation, ModelVersion
from modelless.padding import Layout, layout_of
from modelless.tensors import Padding, Tensor, TensorSpec

TOKENS = TensorSpec("tokens", "INT64", (-1, -1), Padding(1, (4, 8, 16), 0.0, mask="mask"))
MASK = TensorSpec("mask", "FP32", (-1, -1))
KINDS = TensorSpec("kinds", "INT8", (-1, -1), Padding(1, value=-1.0, follows="tokens"))
POOLED = TensorSpec("pooled", "FP32", (-1, 3))
EACH = TensorSpec("each", "FP32", (-1, -1, 3), Padding(1, follows="tokens"))

SPECS, OUTPUTS = (TOKENS, MASK), (POOLED, EACH)
WORDS = 50
TABLE = np.random.default_rng(0).normal(size=(WORDS, 3)).astype("f4")
"""The embedding."""


def layout(inputs: tuple[TensorSpec, ...] = SPECS, outputs: tuple[TensorSpec, ...] = OUTPUTS) -> Layout:
    found = layout_of(inputs, outputs)
    assert found is not None
    return found


def model(
    name: str = "m", inputs: tuple[TensorSpec, ...] = SPECS, outputs: tuple[TensorSpec, ...] = OUTPUTS
) -> ModelVersion:
    return ModelVersion(name, 1, "t", "onnx", "", "0" * 64, 1, inputs, outputs, Evaluation(), f"{name}:1")


def tokens(length: int, rows: int = 1, seed: int = 0) -> Tensor:
    return Tensor.from_numpy("tokens", np.random.default_rng(seed).integers(1, WORDS, (rows, length)))


def answers(tokens: NDArray[Any], mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean of the embeddings where the mask is 1, and the embeddings: [n, 3] and [n, length, 3]."""
    each = TABLE[tokens] * mask[:, :, None]
    return (each.sum(axis=1) / mask.sum(axis=1, keepdims=True)).astype("f4"), each.astype("f4")
