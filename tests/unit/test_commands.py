"""What the commands say, without a cluster: progress, inputs, errors and help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from modelless.commands.query import _array, _read_input
from modelless.config import Config, GroupConfig
from modelless.errors import InvalidArgumentError
from modelless.messages import Assignment, BatchTime, Evaluation, Labels, Member, ModelVersion, Plan, Profile
from modelless.registration import GroupProgress, progress, to_measure

MODEL = ModelVersion("m", 1, "t", "onnx", "file:///m.onnx", "0" * 64, 1, (), (), Evaluation(0.9), "digest")
READY = Profile("m:1/onnx-fp32", "cpu", "ready", "digest", batches=(BatchTime(1, 1.0, 2.0),))
FAILED = Profile("m:1/onnx-fp32", "cpu", "failed", "digest", reason="needs 3 GB")
BROKER = Member("broker", "broker-0", "1", "ready")


def worker(group: str = "cpu", *variants: str, **errors: str) -> Member:
    return Member("worker", f"{group}-0", "1", "ready", group=group, variants=variants, errors=errors)


class OneModel:
    """A catalog of MODEL with the given profiles, and of a second version."""

    def __init__(self, *profiles: Profile, labels: Labels | None = None, newer: Profile | None = None) -> None:
        self._profiles = list(profiles)
        self._labels = labels
        self._newer = [] if newer is None else [newer]

    def models(self) -> list[ModelVersion]:
        return [MODEL, replace(MODEL, version=2)]

    def profiles(self, model: ModelVersion) -> list[Profile]:
        return self._newer if model.version == 2 else self._profiles

    def labels(self, name: str) -> Labels | None:
        return self._labels


def test_progress_of_groups() -> None:
    config = Config(groups=(GroupConfig(name="cpu"), GroupConfig(name="emu", device="emulated")))

    def states(*workers: Member, profiles: tuple[Profile, ...] = ()) -> list[tuple[str, str, str | None]]:
        groups = progress(config, OneModel(*profiles), MODEL, workers)  # type: ignore[arg-type]
        return [(group.group, group.state, group.reason) for group in groups]

    assert states(worker("emu")) == []
    assert states(worker("cpu"), worker("emu"), worker("new")) == [("cpu", "waiting", None), ("new", "waiting", None)]
    complaining = Member("worker", "cpu-0", "1", "ready", group="cpu", errors={"m:1/onnx-fp32": "no such operator"})
    assert states(complaining) == [("cpu", "waiting", "no such operator")]
    assert states(worker("cpu"), profiles=(READY,)) == [("cpu", "loading", None)]
    assert states(worker("cpu", "m:1/onnx-fp32"), profiles=(READY,)) == [("cpu", "ready", None)]
    assert states(worker("cpu"), profiles=(FAILED,)) == [("cpu", "failed", "needs 3 GB")]


@pytest.mark.parametrize(
    ("labels", "newer", "state"),
    [
        (None, FAILED, "loading"),
        (None, READY, "measured"),
        (Labels("m", stable=1), READY, "loading"),
        (Labels("m", stable=2, canary=1), READY, "loading"),
        (Labels("m", stable=2), None, "measured"),
    ],
)
def test_where_another_version_answers_measured_is_as_far_as_it_gets(
    labels: Labels | None, newer: Profile | None, state: str
) -> None:
    catalog = OneModel(READY, labels=labels, newer=newer)
    (group,) = progress(Config(), catalog, MODEL, [worker("cpu")])  # type: ignore[arg-type]
    assert group.state == state


def test_progress_of_variants() -> None:
    """What the plan wants to be measured is waited for; one that is loaded is enough to be ready."""
    other, third = replace(READY, variant="m:1/onnx-int8"), "m:1/torch-compile"
    plan = Plan(1, "broker-0", 0.0, {"cpu-0": Assignment((), (third, "n:1/onnx-fp32")), "gpu-0": Assignment()})

    expected = to_measure(plan, MODEL, [worker("cpu"), worker("new")])
    assert expected == {("cpu", third)}

    def group(*profiles: Profile, loaded: tuple[str, ...] = ()) -> GroupProgress:
        catalog: Any = OneModel(*profiles)
        (found,) = progress(Config(), catalog, MODEL, [worker("cpu", *loaded)], expected)
        return found

    def states(found: GroupProgress) -> dict[str, str]:
        return {one.variant: one.state for one in found.variants}

    assert states(group()) == {third: "waiting"}
    assert group(FAILED).state == "waiting"
    done = replace(FAILED, variant=third)
    assert group(FAILED, done).state == "failed"
    assert group(FAILED, done).is_complete
    measured = group(other, FAILED)
    assert (measured.state, measured.profile) == ("loading", other)
    served = group(READY, other, loaded=("m:1/onnx-int8",))
    assert states(served) == {"m:1/onnx-fp32": "measured", "m:1/onnx-int8": "loaded", third: "waiting"}
    assert (served.state, served.profile, served.is_complete) == ("ready", other, False)
    assert group(READY, done, loaded=(READY.variant,)).is_complete
    assert not group(READY, done).is_complete


def test_inputs_of_a_query(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    (tmp_path / "x.json").write_text("[[1, 2]]")

    name, array = _read_input(f"x=@{tmp_path / 'x.npy'}")
    assert (name, array.dtype, array.shape) == ("x", np.float32, (1, 3))
    assert _read_input(f"x=@{tmp_path / 'x.json'}") == ("x", [[1, 2]])
    assert _read_input("x=[[1, 2]]") == ("x", [[1, 2]])
    assert _array("x", [[1, 2]], "FP32").dtype == np.float32
    with pytest.raises(typer.BadParameter, match="name=@file"):
        _read_input("x")
    with pytest.raises(InvalidArgumentError, match="neither"):
        _read_input("x=[1,")
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        _read_input("x=@nowhere.npy")
    with pytest.raises(InvalidArgumentError, match="not an array of FP32"):
        _array("x", [["a"]], "FP32")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(InvalidArgumentError, match="neither"):
        _read_input(f"x=@{tmp_path / 'x.npy'}")


def test_nothing_heavy_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, modelless; light = set(sys.modules); import modelless.client; "
        "import json; print(json.dumps([len(light & {'numpy', 'aiokafka'}), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0, False]


@pytest.mark.parametrize("name", ["up", "register", "models", "query", "simulate", "status"])
def test_help_teaches(name: str) -> None:
    from importlib import import_module

    app = typer.Typer(rich_markup_mode="markdown")
    app.callback()(lambda: None)
    import_module(f"modelless.commands.{name}").register(app)
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"modelless {name}" in result.output
