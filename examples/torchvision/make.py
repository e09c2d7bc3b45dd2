"""Write model.toml and weights of four torchvision architectures: ``python examples/torchvision/make.py [FOLDER]``.

The weights are random: what is real here is the compute. So the accuracy cannot be measured; each model.toml declares
what is published for the architecture's first ImageNet-1K weights (top-1, https://docs.pytorch.org/vision/stable/models.html).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file

ACCURACY = {"squeezenet1_1": 0.58178, "mobilenet_v3_small": 0.67668, "resnet18": 0.69758, "resnet50": 0.7613}
"""Top-1 as published, not of the weights made here."""

SPECIFICATION = """\
# Random weights: the accuracy is the published one of the architecture ({origin}), declared and not measured.
name = "{name}"
task = "imagenet"
artifact = "{name}.safetensors"
factory = "torchvision.models:{name}"

[inputs.pixels]
datatype = "FP32"
shape = [-1, 3, 224, 224]

[outputs.logits]
datatype = "FP32"
shape = [-1, 1000]

[evaluation]
accuracy = {accuracy}
"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, accuracy in ACCURACY.items():
        torch.manual_seed(0)  # the same weights every time: the same content is the same version
        network = torchvision.models.get_model(name, weights=None)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        path = folder / f"{name}.toml"
        path.write_text(SPECIFICATION.format(name=name, accuracy=accuracy, origin="torchvision, IMAGENET1K_V1"))
        print(path)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "models")
