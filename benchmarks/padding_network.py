"""The network of :mod:`benchmarks.padding`: a text classifier that looks at nothing where its mask is 0."""

from __future__ import annotations

import torch
from torch import nn

WORDS, WIDTH, CLASSES = 1000, 64, 8


class Classifier(nn.Module):
    """An embedding, two layers of attention, the mean over the tokens, [n, length] to [n, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        x = (x * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        answer: torch.Tensor = self.head(x)
        return answer


def classifier() -> nn.Module:
    """The factory."""
    return Classifier()
