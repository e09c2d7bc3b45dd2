"""The network of :mod:`benchmarks.cold_start`: a large multi-layer perceptron, [n, 2048] to [n, 10]."""

from __future__ import annotations

from torch import nn

WIDTH, LAYERS, CLASSES = 2048, 12, 10


def perceptron() -> nn.Module:
    """The factory."""
    hidden = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))
