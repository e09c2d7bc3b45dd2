"""model.toml: what is in order is read, and every complaint names the field and what is expected."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelless.errors import ConfigurationError
from modelless.specification import EvaluationSource, read_specification
from modelless.tensors import Padding, TensorSpec

GOOD = """
name = "digits-cnn"
task = "digits"
artifact = "model.onnx"
[inputs.pixels]
datatype = "FP32"
shape = [-1, 1, 8, 8]
[outputs.logits]
datatype = "FP32"
shape = [-1, 10]
[evaluation]
data = "eval.npz"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    header = json.dumps({}).encode()
    (tmp_path / "model.onnx").write_bytes(bytes([0x08, 8, 0x3A, 3]) + b"abc")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "model.csv").write_text("group,batch_size,p50_ms,p99_ms,load_ms,memory_mb\n")
    (tmp_path / "model.pt2").write_bytes(b"PK")
    (tmp_path / "model.pt").write_bytes(b"PK")
    (tmp_path / "broken.onnx").write_bytes(b"\x80\x05pickle")
    save(tmp_path / "eval.npz")
    return tmp_path


def save(path: Path, **changes: Any) -> None:
    arrays = {"pixels": np.zeros((4, 1, 8, 8), np.float32), "labels": np.zeros(4, np.int64)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def read(folder: Path, text: str) -> Any:
    (folder / "model.toml").write_text(text)
    return read_specification(folder / "model.toml")


def test_good(folder: Path) -> None:
    specification = read(folder, GOOD)

    assert (specification.name, specification.task, specification.format) == ("digits-cnn", "digits", "onnx")
    assert specification.artifact == folder / "model.onnx"
    assert specification.inputs == (TensorSpec("pixels", "FP32", (-1, 1, 8, 8)),)
    assert specification.outputs == (TensorSpec("logits", "FP32", (-1, 10)),)
    assert specification.evaluation == EvaluationSource(None, folder / "eval.npz", "accuracy")
    assert specification.factory is None


def test_other_formats(folder: Path) -> None:
    declared = GOOD.replace('data = "eval.npz"', "accuracy = 0.97")
    emulated = read(folder, declared.replace("model.onnx", "model.csv"))
    weights = read(folder, declared.replace('"model.onnx"', '"model.safetensors"\nfactory = "zoo.nets:make"'))

    assert emulated.format == "emulated"
    assert emulated.evaluation.accuracy == 0.97
    assert (weights.format, weights.factory) == ("safetensors", "zoo.nets:make")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("task =", "tusk =", "tusk: is not a known field; did you mean task"),
        ("[evaluation]", "[colour]\nx = 1\n[evaluation]", "colour: is not a known field; known are: name"),
        ('name = "digits-cnn"', "", "name: is missing"),
        ('"digits-cnn"', "7", "name: must be text"),
        ('"digits-cnn"', '"../etc"', "name: must be 1 to 64 letters"),
        ('"digits"', '"a/b"', "task: must be 1 to 64 letters"),
        ('"digits"', '"offline"', "task: 'offline' is the name of a topic"),
        ('"model.onnx"', '"nowhere.onnx"', "artifact: there is no file"),
        ('"model.onnx"', '"model.pt2"', "artifact: .*not enabled"),
        ('"model.onnx"', '"model.pt"', "artifact: .*never loaded"),
        ('"model.onnx"', '"broken.onnx"', "artifact: broken.onnx: is not an ONNX model"),
        ('"model.onnx"', '"model.safetensors"', "factory: is missing"),
        ('"model.onnx"', '"model.safetensors"\nfactory = "os.system"', "factory: must be like"),
        ('"model.onnx"', '"model.onnx"\nfactory = "a:b"', "factory: goes with a .safetensors"),
        ('[inputs.pixels]\ndatatype = "FP32"\nshape = [-1, 1, 8, 8]', "inputs = 3", "inputs: must be a table"),
        ('[inputs.pixels]\ndatatype = "FP32"\nshape = [-1, 1, 8, 8]', "", "inputs: is missing"),
        ('"FP32"\nshape = [-1, 10]', '"FLOAT"\nshape = [-1, 10]', "outputs.logits.datatype: must be one of BOOL"),
        ('datatype = "FP32"\nshape = [-1, 10]', "shape = [-1, 10]", "outputs.logits.datatype: is missing"),
        ("[-1, 10]", "[1, 10]", "outputs.logits.shape: must start with -1"),
        ("[-1, 10]", "[-1, 0]", "outputs.logits.shape: dimensions must be"),
        ("[-1, 10]", "[-1, 10.5]", "outputs.logits.shape: must be a list of whole"),
        ("[-1, 10]", "[]", "outputs.logits.shape: must have 1 to 16"),
        ("[-1, 10]", "[-1, 1000000, 1000000, 1000000]", "outputs.logits.shape: is larger than any memory"),
        ("[-1, 10]", "[-1, 10]\nlayout = 1", "outputs.logits.layout: is not a known field"),
        ('[evaluation]\ndata = "eval.npz"', "", "evaluation: is missing"),
        ('data = "eval.npz"', 'metric = "accuracy"', "evaluation: give either .* neither"),
        ('data = "eval.npz"', 'data = "eval.npz"\naccuracy = 0.9', "evaluation: give either .* both"),
        ('data = "eval.npz"', "accuracy = 97", "evaluation.accuracy: must be a number from 0 to 1"),
        ('data = "eval.npz"', "accuracy = true", "evaluation.accuracy: must be a number from 0 to 1"),
        ('data = "eval.npz"', "accuracy = nan", "evaluation.accuracy: must be a number from 0 to 1"),
        ('data = "eval.npz"', 'data = "model.onnx"', "evaluation.data: must be an .npz"),
        ('data = "eval.npz"', 'dita = "eval.npz"', "evaluation.dita: is not a known field; did you mean data"),
        ('data = "eval.npz"', 'data = "eval.npz"\nmetric = "f1"', "evaluation.metric: must be one of accuracy"),
        ("name =", "name = =", "model.toml: is not TOML"),
    ],
)
def test_complaints(folder: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigurationError, match=f"^{complaint}"):
        read(folder, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": None}, "must hold the arrays pixels, labels"),
        ({"extra": np.zeros(4)}, "must hold the arrays"),
        ({"labels": np.zeros(3, np.int64)}, "4 rows, but there are 3 labels"),
        ({"labels": np.zeros(4)}, "labels must be at least 2 whole numbers"),
        ({"pixels": np.zeros((4, 64), np.float32)}, "must have the shape"),
        ({"pixels": np.zeros((4, 1, 8, 9), np.float32)}, "must have the shape"),
        ({"pixels": np.zeros((4, 1, 8, 8))}, "must be FP32"),
        ({"pixels": np.array([None] * 4)}, "holds Python objects"),
    ],
)
def test_complaints_about_the_data(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    save(folder / "eval.npz", **changes)
    with pytest.raises(ConfigurationError, match=f"^evaluation.data: .*{complaint}"):
        read(folder, GOOD)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_specification(tmp_path / "model.toml")
    (tmp_path / "model.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_specification(tmp_path / "model.toml")


PADDED = """
name = "intents"
task = "intents"
artifact = "model.onnx"
[inputs.tokens]
datatype = "INT64"
shape = [-1, -1]
padding = { lengths = [16, 32, 64], value = 1, mask = "attention_mask" }
[inputs.attention_mask]
datatype = "INT64"
shape = [-1, -1]
[outputs.logits]
datatype = "FP32"
shape = [-1, -1, 10]
padding = { axis = 1, follows = "tokens" }
[evaluation]
accuracy = 0.9
"""


def test_padding(folder: Path) -> None:
    specification = read(folder, PADDED)

    assert specification.inputs[0].padding == Padding(1, (16, 32, 64), 1.0, mask="attention_mask")
    assert specification.inputs[1].padding is None
    assert specification.outputs[0].padding == Padding(1, follows="tokens")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{ lengths =", "{ length ="), r"inputs.tokens.padding.length: is not a known field; did you mean lengths\?"),
        (("[16, 32, 64]", "16"), "inputs.tokens.padding.lengths: must be a list of whole numbers"),
        (("[16, 32, 64]", "[16.5]"), "inputs.tokens.padding.lengths: must be a list of whole numbers"),
        (("[16, 32, 64]", "[true]"), "inputs.tokens.padding.lengths: must be a list of whole numbers"),
        (("[16, 32, 64]", "[64, 16]"), "inputs.tokens.padding.lengths: must be ascending"),
        (("[16, 32, 64]", "[]"), "inputs.tokens.padding: give either lengths or follows"),
        (("value = 1", 'value = "x"'), "inputs.tokens.padding.value: must be a number"),
        (("value = 1", "value = true"), "inputs.tokens.padding.value: must be a number"),
        (("value = 1", "value = nan"), "inputs.tokens.padding.value: must be a finite number"),
        (('mask = "attention_mask"', "mask = 1"), "inputs.tokens.padding.mask: must be text"),
        (('mask = "attention_mask"', 'mask = "other"'), "inputs.tokens.padding.mask: must be one of the inputs"),
        (("shape = [-1, -1]\npadding", "shape = [-1, 8]\npadding"), "inputs.tokens.padding.axis: .*no free dimension"),
        (("shape = [-1, -1]\npadding", "shape = [-1, -1, -1]\npadding"), "inputs.tokens.padding.axis: .*several free"),
        (("axis = 1", "axis = 2"), "outputs.logits.padding.axis: must be that of a free dimension"),
        (("axis = 1", 'axis = "1"'), "outputs.logits.padding.axis: must be a whole number"),
        (("{ axis = 1", "{ axis = 1, lengths = [2]"), "outputs.logits.padding: give follows"),
        (('{ axis = 1, follows = "tokens" }', '"tokens"'), "outputs.logits.padding: must be a table like"),
    ],
)
def test_padding_that_is_wrong(folder: Path, change: tuple[str, str], words: str) -> None:
    assert change[0] in PADDED
    with pytest.raises(ConfigurationError, match=words):
        read(folder, PADDED.replace(*change, 1))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, None),
        ({"attention_mask": np.ones((4, 20), np.int64)}, None),
        ({"attention_mask": np.ones((4, 21), np.int64)}, "'attention_mask' has length 21"),
        ({"attention_mask": np.ones((4, 20), np.float32)}, "must be INT64"),
        ({"tokens": np.ones((4, 65), np.int64)}, "'tokens' has length 65 in dimension 1; at most 64 is taken"),
        ({"other": np.ones((4, 20), np.int64)}, "must hold the arrays"),
        ({"tokens": None}, "must hold the arrays"),
    ],
)
def test_evaluation_data_of_rows_that_are_padded(folder: Path, arrays: dict[str, Any], words: str | None) -> None:
    """A mask need not be among them; the length must be one that is taken."""
    save(folder / "eval.npz", **({"pixels": None, "tokens": np.ones((4, 20), np.int64)} | arrays))
    text = PADDED.replace("accuracy = 0.9", 'data = "eval.npz"')
    if words is None:
        read(folder, text)
    else:
        with pytest.raises(ConfigurationError, match=words):
            read(folder, text)
