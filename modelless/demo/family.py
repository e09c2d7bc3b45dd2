"""The demo's models: five architectures on scikit-learn's bundled digits (1,797 images of 8x8 pixels).

The images are split three ways, by class, with a fixed seed: 500 to train on, 697 that the system measures accuracy
on (``digits_eval.npz``), and 600 that are only ever queries. The family lies in a folder named by the digest of its
recipe, so it is trained once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASK = "digits"
EVALUATION_IMAGES = 697
QUERY_IMAGES = 600
THREADS = 1
"""The networks are so small that a second thread mostly waits for the first; and one gives the same sums everywhere."""
_COMPLETE = "complete"
_SOURCES = ("family.py", "training.py", "factories.py")

Progress = Callable[[str, float], None]
"""Told a model's name and the share of its training that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Images:
    pixels: NDArray[np.float32]
    """[n, 1, 8, 8], 0 to 1."""
    labels: NDArray[np.int64]
    """[n]"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is made. ``shifts``: trained on images moved by up to a pixel."""

    name: str
    factory: str
    artifact: str
    epochs: int
    learning_rate: float
    shifts: bool = False
    seed: int = 0


RECIPES = (
    Recipe("digits-linear", "linear", "digits_linear.safetensors", epochs=20, learning_rate=1e-2),
    Recipe("digits-mlp", "mlp", "digits_mlp.safetensors", epochs=30, learning_rate=1e-2),
    Recipe("digits-cnn", "cnn", "digits_cnn.safetensors", epochs=25, learning_rate=1e-2, shifts=True),
    Recipe("digits-deep", "deep", "digits_deep.safetensors", epochs=25, learning_rate=4e-3, shifts=True),
    Recipe("digits-committee", "committee", "digits_committee.safetensors", epochs=40, learning_rate=4e-3, shifts=True),
)


@dataclass(frozen=True, slots=True)
class Family:
    specifications: tuple[Path, ...]
    """A model.toml per model, the smallest first."""
    queries: Images
    """Held out: seen neither in training nor in measuring."""
    is_reused: bool


def prepare(folder: Path, progress: Progress, recipes: tuple[Recipe, ...] = RECIPES) -> Family:
    """The trained family, from ``folder`` if it is there; what an interrupted training left is not taken for one."""
    home = folder / f"family-{_digest(recipes)}"
    is_reused = (home / _COMPLETE).exists()
    if not is_reused:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        _make(home, progress, recipes)
        (home / _COMPLETE).touch()
    with np.load(home / "digits_queries.npz") as arrays:
        queries = Images(arrays["pixels"], arrays["labels"])
    return Family(tuple(home / f"{recipe.name}.toml" for recipe in recipes), queries, is_reused)


def split() -> tuple[Images, Images, Images]:
    """To train on, to evaluate on, to ask; every class in its share in each."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)

    def part(indices: NDArray[Any]) -> Images:
        return Images(np.ascontiguousarray(pixels[indices]), labels[indices])

    rest, queries = train_test_split(np.arange(len(labels)), test_size=QUERY_IMAGES, stratify=labels, random_state=0)
    training, evaluation = train_test_split(rest, test_size=EVALUATION_IMAGES, stratify=labels[rest], random_state=0)
    return part(training), part(evaluation), part(queries)


def _make(home: Path, progress: Progress, recipes: tuple[Recipe, ...]) -> None:
    import torch

    from modelless.demo.training import export, train

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    training, evaluation, queries = split()
    np.savez(home / "digits_eval.npz", pixels=evaluation.pixels, labels=evaluation.labels)
    np.savez(home / "digits_queries.npz", pixels=queries.pixels, labels=queries.labels)
    for recipe in recipes:
        name = recipe.name
        module = train(recipe, training, lambda share, name=name: progress(name, share))  # type: ignore[misc]
        export(module, home / recipe.artifact)
        (home / f"{name}.toml").write_text(specification(recipe))
    torch.set_num_threads(threads)


def specification(recipe: Recipe) -> str:
    """The model.toml of a recipe."""
    return (
        f'name = "{recipe.name}"\ntask = "{TASK}"\nartifact = "{recipe.artifact}"\n'
        f'factory = "modelless.demo.factories:{recipe.factory}"\n\n'
        '[inputs.pixels]\ndatatype = "FP32"\nshape = [-1, 1, 8, 8]\n\n'
        '[outputs.logits]\ndatatype = "FP32"\nshape = [-1, 10]\n\n'
        '[evaluation]\ndata = "digits_eval.npz"\n'
    )


def _digest(recipes: tuple[Recipe, ...]) -> str:
    """Of everything that decides the weights: recipes, code, libraries."""
    digest = sha256(repr(recipes).encode())
    for name in _SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(f"torch {version('torch')} scikit-learn {version('scikit-learn')}".encode())
    return digest.hexdigest()[:12]
