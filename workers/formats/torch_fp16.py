"""Builder ``torch-fp16``: weights and computation in half precision, eagerly, on CUDA. What exceeds 65,504 overflows,
which the measured accuracy shows. Outputs are cast back to what is declared."""

from __future__ import annotations

from pathlib import Path

import torch

from workers.formats import Source
from workers.formats.torch_module import TorchModel, load_as


def load(source: Source, built: Path | None, device: str, threads: int) -> TorchModel:
    return load_as(torch.float16, source, device, threads)
