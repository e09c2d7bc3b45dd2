"""Tiny torch networks for the builders' tests, [n, 3, 8, 8] to [n, 10], and ones that some builder cannot make."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from modelless.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 3, 8, 8))
Y = TensorSpec("y", "FP32", (-1, 10))


def small() -> nn.Module:
    """A convolution and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )


def convolutional() -> nn.Module:
    """No linear layer."""
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def exponential() -> nn.Module:
    """Nothing to quantise."""
    return Exponential()


def branching() -> nn.Module:
    """What it does depends on the values: it cannot be traced."""
    return Branching()


def exiting() -> nn.Module:
    """Three exits, each a linear layer of its own on what the blocks before it made."""
    return Exiting()


def masked() -> nn.Module:
    """Of :mod:`padded_models`: the mean of the embeddings where the mask is 1, and each of them."""
    return Masked()


def remembering() -> nn.Module:
    """Buffers that the factory makes and no file holds."""
    return Remembering()


def write(factory: str, path: Path) -> nn.Module:
    """Random weights, the same every time, at ``path``; the network that has them."""
    import safetensors.torch

    torch.manual_seed(0)
    network: nn.Module = globals()[factory]().eval()
    safetensors.torch.save_file(network.state_dict(), path)
    return network


class Exponential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10].exp()


class Branching(Exponential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Exiting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(inputs, 4, 3, padding=1) for inputs in (3, 4, 4))
        self.heads = nn.ModuleList(nn.Linear(256, 10) for _ in range(3))

    def forward(self, x: torch.Tensor, exit: int | None = None) -> torch.Tensor:
        last = exit or len(self.blocks)
        for block in self.blocks[:last]:
            x = block(x).relu()
        answer: torch.Tensor = self.heads[last - 1](x.flatten(1))
        return answer


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.table(tokens) * mask.unsqueeze(-1)
        pooled = embedded.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return self.head(pooled), self.head(embedded)


class Remembering(nn.Module):
    """With buffers that are not in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 10)
        self.bias_half = nn.Parameter(torch.zeros(10))
        self.register_buffer("noise", torch.empty(1000).normal_(), persistent=False)
        self.register_buffer("ones", nn.init.ones_(torch.empty(10)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(x.flatten(1)) + self.bias_half * self.ones
        return found
