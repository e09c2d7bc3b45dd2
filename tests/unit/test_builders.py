"""Which builders a worker offers: ours, others' through entry points, and what is said of those that cannot work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelless.config import GroupConfig
from modelless.messages import split_exit
from workers import builders

CPU = GroupConfig(name="cpu")
SOURCE = """
class Good:
    name, module, devices, formats = "good", "elsewhere.good", ("cpu",), {"onnx": ".onnx"}

    def version(self):
        return "1"

    def refusal(self, device):
        return None


class Refusing(Good):
    name = "refusing"

    def refusal(self, device):
        return f"needs a compiler on {device}"


class Raising(Good):
    name = "raising"

    def refusal(self, device):
        raise OSError("no such file")


good, refusing, raising, misnamed, unlike = Good(), Refusing(), Raising(), Good(), 7
"""
ENTRIES = """[modelless.builders]
good = third_party_builders:good
refusing = third_party_builders:refusing
raising = third_party_builders:raising
other.name = third_party_builders:misnamed
unlike = third_party_builders:unlike
absent = third_party_builders_absent:builder
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution beside ours, as if it were installed."""
    (tmp_path / "third_party_builders.py").write_text(SOURCE)
    metadata = tmp_path / "third_party-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    builders.installed.cache_clear()
    yield
    sys.modules.pop("third_party_builders", None)
    builders.installed.cache_clear()


def test_ours_are_offered_by_device() -> None:
    pairs = builders.offer(CPU).pairs
    assert {("onnx", "onnx-fp32"), ("safetensors", "torch-fp32")} <= set(pairs)
    emulated = builders.offer(GroupConfig(name="e", device="emulated"))
    assert emulated == builders.Offer((("emulated", "emulated"),), {})


def test_what_is_built_anew_depends_on_the_libraries() -> None:
    import torch

    builder = builders.find("torch-fp32")
    assert builder is not None
    assert f"torch={torch.__version__.partition('+')[0]} " in builder.version()
    assert builder.version().startswith("1 ")


@pytest.mark.usefixtures("third_party")
def test_a_third_partys_builder_is_offered_and_broken_ones_say_why() -> None:
    offer = builders.offer(CPU)
    assert ("onnx", "good") in offer.pairs
    assert ("safetensors", "torch-fp32") in offer.pairs
    assert offer.refusals["refusing"] == "needs a compiler on cpu"
    assert offer.refusals["raising"] == "refusal() failed: OSError: no such file"
    assert "its name is 'good'" in offer.refusals["other.name"]
    assert "AttributeError" in offer.refusals["unlike"]
    assert "No module named 'third_party_builders_absent'" in offer.refusals["absent"]
    assert not {"refusing", "raising", "other.name", "unlike", "absent"} & {name for _, name in offer.pairs}


@pytest.mark.usefixtures("third_party")
def test_settings_choose_among_them() -> None:
    offer = builders.offer(CPU, ("good", "onnx-fp32", "goood"))
    assert {name for _, name in offer.pairs} == {"good", "onnx-fp32"}
    assert offer.refusals["goood"].startswith("there is no builder of this name; installed are: ")
    group = GroupConfig(name="cpu", builders=("onnx-fp32", "torch-fp32"))
    assert {name for _, name in builders.offer(group, ("good", "onnx-fp32")).pairs} == {"onnx-fp32"}


def test_an_exit_is_told_from_the_builders_name() -> None:
    assert split_exit("torch-fp32.exit12") == ("torch-fp32", 12)
    assert split_exit("torch-fp32") == ("torch-fp32", None)
