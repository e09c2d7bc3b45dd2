"""Builder ``torch-int8``: torchao's dynamic quantisation, applied when it is loaded; there is nothing to build.

It covers ``nn.Linear``: weights as int8, a scale per output channel; activations are quantised row by row as they come,
so an answer does not depend on what else is in the batch. Everything else, convolutions above all, stays float32:
torchao has no int8 kernels for it outside its compiler. For networks of convolutions there is ``onnx-int8``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from workers.formats import FormatError, Source
from workers.formats.torch_module import TorchModel, network


def load(source: Source, built: Path | None, device: str, threads: int) -> TorchModel:
    torch.set_num_threads(threads)
    made = network(source, device)
    before = {name: type(weight) for name, weight in made.named_parameters()}
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    if all(type(weight) is before[name] for name, weight in made.named_parameters()):
        raise FormatError("none of its layers can be quantised here: torch-int8 covers nn.Linear, and it has none")
    return TorchModel(made, source, device)
