"""Train one recipe with torch and export it. Seeded: on one machine the same recipe gives the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from modelless.demo import factories

if TYPE_CHECKING:
    from modelless.demo.family import Images, Recipe

BATCH_SIZE = 32

Step = Callable[[float], None]
"""Told the share that is done, 0 to 1."""


def train(recipe: Recipe, images: Images, step: Step) -> nn.Module:
    """A trained module in evaluation mode; a committee's members are trained one after another."""
    torch.manual_seed(recipe.seed)
    module: nn.Module = getattr(factories, recipe.factory)()
    members = list(module.members) if isinstance(module, factories.Committee) else [module]
    for index, member in enumerate(members):
        _fit(member, recipe, images, lambda share, done=index: step((done + share) / len(members)))  # type: ignore[misc]
    return module.eval()


def export(module: nn.Module, path: Path) -> None:
    """Write the weights; the factory is the rest of the network."""
    from safetensors.torch import save_file

    save_file(module.state_dict(), path)


def _fit(module: nn.Module, recipe: Recipe, images: Images, step: Step) -> None:
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    batches = -(-len(pixels) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * batches)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05 if recipe.shifts else 0.0)
    module.train()
    for epoch in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(len(pixels)), BATCH_SIZE):
            batch = _shifted(pixels[chosen]) if recipe.shifts else pixels[chosen]
            optimizer.zero_grad()
            loss(module(batch), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        step((epoch + 1) / recipe.epochs)


def _shifted(pixels: torch.Tensor) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions; [n, 1, 8, 8]."""
    padded = nn.functional.pad(pixels, (1, 1, 1, 1))
    side = torch.arange(factories.SIDE)
    y = torch.randint(3, (len(pixels), 1, 1)) + side[None, :, None]
    x = torch.randint(3, (len(pixels), 1, 1)) + side[None, None, :]
    return padded[torch.arange(len(pixels))[:, None, None], 0, y, x][:, None]
