"""The family: a split without overlap, weights that compute what the module computes, a cache that can be trusted."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the demo's extra is not installed")
pytest.importorskip("sklearn", reason="the demo's extra is not installed")

from modelless.demo import factories  # noqa: E402
from modelless.demo.family import RECIPES, Family, Recipe, prepare, specification, split  # noqa: E402
from modelless.demo.training import export, train  # noqa: E402

LINEAR = replace(RECIPES[0], epochs=2)
MLP = replace(RECIPES[1], epochs=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(folder: Path, *recipes: Recipe) -> tuple[Family, list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []
    family = prepare(folder, lambda name, share: told.append((name, share)), recipes)
    return family, told


def test_no_image_is_in_two_parts_and_every_class_is_in_each() -> None:
    parts = split()
    assert [len(part.labels) for part in parts] == [500, 697, 600]
    together = np.concatenate([part.pixels.reshape(len(part.pixels), -1) for part in parts])
    assert len(together) == 1797
    for part in parts:
        assert part.pixels.dtype == np.float32
        assert part.pixels.shape[1:] == (1, 8, 8)
        assert part.pixels.min() >= 0 and part.pixels.max() == 1
        assert np.bincount(part.labels, minlength=10).min() >= 0.08 * len(part.labels)


def test_an_early_exit_answers_as_when_all_are_computed_and_computes_no_more() -> None:
    network = factories.multi_exit().eval()
    pixels = torch.rand(4, 1, 8, 8)
    called: list[int] = []
    for number, head in enumerate(network.heads, start=1):
        head.register_forward_hook(lambda *_, number=number: called.append(number))
    with torch.inference_mode():
        answers = network.exits(pixels)
        called.clear()
        for exit, answer in enumerate(answers, start=1):
            assert torch.equal(network(pixels, exit=exit), answer)
            assert called == list(range(1, exit + 1))
            called.clear()
        assert torch.equal(network(pixels), answers[-1])
    assert answers[0].shape == (4, 10)


def test_a_family_is_made_once(tmp_path: Path) -> None:
    first, told = make(tmp_path, LINEAR, MLP)
    assert not first.is_reused
    assert told[-1] == ("digits-mlp", 1.0)
    again, told = make(tmp_path, LINEAR, MLP)
    assert again.is_reused and not told
    assert [path.name for path in again.specifications] == ["digits-linear.toml", "digits-mlp.toml"]
    assert all((path.parent / tomllib.loads(path.read_text())["artifact"]).exists() for path in again.specifications)


def test_what_an_interrupted_training_left_is_made_anew(tmp_path: Path) -> None:
    family, _ = make(tmp_path, LINEAR)
    (family.specifications[0].parent / "complete").unlink()
    assert not make(tmp_path, LINEAR)[0].is_reused


def test_another_recipe_is_another_family(tmp_path: Path) -> None:
    make(tmp_path, LINEAR)
    assert not make(tmp_path, replace(LINEAR, seed=1))[0].is_reused


def test_the_same_seed_gives_the_same_weights() -> None:
    images = split()[0]
    one, two = (train(LINEAR, images, lambda _: None).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_architecture_takes_any_batch_and_its_weights_compute_the_same(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = getattr(factories, recipe.factory)().eval()
    path = tmp_path / recipe.artifact
    export(module, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "one file, so that one digest names it"
    for rows in (1, 3):
        pixels = split()[2].pixels[:rows]
        with torch.inference_mode():
            expected = module(torch.from_numpy(pixels)).numpy()
        assert expected.shape == (rows, 10)
        np.testing.assert_allclose(_run(path, recipe, pixels), expected, atol=1e-4)


def _run(path: Path, recipe: Recipe, pixels: np.ndarray) -> np.ndarray:
    from safetensors.torch import load_file

    module = getattr(factories, recipe.factory)().eval()
    module.load_state_dict(load_file(path), strict=True)
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(pixels)).numpy())


def test_specifications_are_what_registration_reads() -> None:
    for recipe in RECIPES:
        table = tomllib.loads(specification(recipe))
        assert table["task"] == "digits"
        assert table["inputs"]["pixels"] == {"datatype": "FP32", "shape": [-1, 1, 8, 8]}
        assert table["outputs"]["logits"] == {"datatype": "FP32", "shape": [-1, 10]}
        assert table["evaluation"]["data"] == "digits_eval.npz"
        assert table["factory"] == f"modelless.demo.factories:{recipe.factory}"
        assert Path(table["artifact"]).suffix == ".safetensors"
