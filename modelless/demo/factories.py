"""The demo's architectures: functions without arguments that return a torch module, [n, 1, 8, 8] to [n, 10].

They double as factories for ``.safetensors`` artifacts: ``factory = "modelless.demo.factories:mlp"`` in a model.toml,
and ``worker.factories_allowed = ["modelless.demo.factories"]`` in modelless.toml.
"""

from __future__ import annotations

import torch
from torch import nn

SIDE = 8
CLASSES = 10
MEMBERS = 3
"""Networks of the committee."""


def linear() -> nn.Module:
    """Softmax regression: 650 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


def mlp() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 48), nn.ReLU(), nn.Linear(48, CLASSES))


def cnn() -> nn.Module:
    """Two convolutions, the size of the mlp."""
    return nn.Sequential(
        *_convolution(1, 8), nn.MaxPool2d(2), *_convolution(8, 16), nn.Flatten(), nn.Linear(16 * 16, CLASSES)
    )


def deep(channels: int = 16) -> nn.Module:
    """Four convolutions."""
    return nn.Sequential(
        *_convolution(1, channels),
        *_convolution(channels, channels),
        nn.MaxPool2d(2),
        *_convolution(channels, 2 * channels),
        *_convolution(2 * channels, 2 * channels),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(8 * channels, CLASSES),
    )


def committee() -> nn.Module:
    """Three wide networks that vote."""
    return Committee([deep(48) for _ in range(MEMBERS)])


def multi_exit() -> nn.Module:
    """Three exits: `exits = 3` in its model.toml."""
    return MultiExit([8, 16, 32])


class Committee(nn.Module):
    """Averages the log-probabilities of its members over the image and its eight shifts by a pixel."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(pixels, (1, 1, 1, 1))
        views = [padded[:, :, y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
        stacked = torch.cat(views)
        votes = [member(stacked).log_softmax(-1).view(len(views), -1, CLASSES).mean(0) for member in self.members]
        return torch.stack(votes).mean(0)


class MultiExit(nn.Module):
    """A network that can answer early: what it has computed so far is enough for a classifier, after every block.

    After MSDNet (Huang et al., ICLR 2018), whose point it keeps: every block carries a fine and a coarse scale along,
    because a classifier needs coarse features, and an early block's fine ones are not yet such. Here each coarse scale
    takes the previous one and a strided look at the fine one.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        before = [1, *channels[:-1]]
        self.fine = nn.ModuleList(nn.Sequential(*_convolution(i, o)) for i, o in zip(before, channels, strict=True))
        self.look = nn.ModuleList(nn.Conv2d(o, o, 3, stride=2, padding=1) for o in channels)
        self.coarse = nn.ModuleList(
            nn.Sequential(*_convolution((i if index else 0) + o, o))
            for index, (i, o) in enumerate(zip(before, channels, strict=True))
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(16 * o, CLASSES)) for o in channels)

    def forward(self, pixels: torch.Tensor, exit: int | None = None) -> torch.Tensor:
        """The answer after the block ``exit``, from 1; None: after the last. What comes later is not computed."""
        return self.exits(pixels, exit)[-1]

    def exits(self, pixels: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """The answers after each block up to ``last``: what training weighs together."""
        fine, coarse, answers = pixels, None, []
        for index in range(last or len(self.heads)):
            fine = self.fine[index](fine)
            looked = self.look[index](fine)
            coarse = self.coarse[index](looked if coarse is None else torch.cat([coarse, looked], dim=1))
            answers.append(self.heads[index](coarse))
        return answers


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
