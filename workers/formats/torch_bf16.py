"""Builder ``torch-bf16``: weights and computation in bfloat16, eagerly. Half the memory; faster where the processor or
device multiplies it. Inputs are rounded to its 8 bits of mantissa, outputs are cast back to what is declared."""

from __future__ import annotations

from pathlib import Path

import torch

from workers.formats import Source
from workers.formats.torch_module import TorchModel, load_as


def load(source: Source, built: Path | None, device: str, threads: int) -> TorchModel:
    return load_as(torch.bfloat16, source, device, threads)
